"""Kills, restarts and sizes that are too much for a test suite."""
