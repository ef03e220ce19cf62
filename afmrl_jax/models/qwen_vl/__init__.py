"""The Qwen2-VL and Qwen2.5-VL architectures as Flax modules."""
