"""The device mesh, and where every array lives on it."""
