"""What `afmrl_jax/performance/benchmarks/throughput.py` and `afmrl_jax/performance/benchmarks/scaling.py` are made of."""
