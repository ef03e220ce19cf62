"""Studies, reliability runs and cluster launchers of the project."""
