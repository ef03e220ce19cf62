"""What `afmrl_jax/cli/bench.py` measures."""
