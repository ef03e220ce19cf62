"""The paths of a service."""
