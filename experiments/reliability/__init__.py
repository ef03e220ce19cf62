"""Kills, restarts and sizes that a test suite cannot hold."""
