"""AFMRL in JAX: fine-grained product retrieval with generated attributes."""
