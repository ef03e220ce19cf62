"""What `experiments/throughput.py` and `experiments/scaling.py` are made of."""
