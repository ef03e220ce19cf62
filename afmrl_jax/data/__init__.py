"""Catalogues, pictures, text, and the Grain input pipeline. Nothing here imports JAX."""
