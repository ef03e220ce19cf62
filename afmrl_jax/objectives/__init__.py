"""The mathematics of the method: pure functions from arrays to arrays."""
