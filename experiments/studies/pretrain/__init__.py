"""Pretraining of the demo's models on the marketplace's stream."""
