"""AFMRL in JAX: fine-grained product retrieval with generated attributes."""

__version__ = "0.1.0"
