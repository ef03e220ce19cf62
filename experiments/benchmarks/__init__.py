"""What `experiments/bench.py` measures."""
