"""Qwen2-VL and Qwen2.5-VL in Flax NNX, used functionally; an embedder and a generator on top."""
