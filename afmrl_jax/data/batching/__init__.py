"""Listings as arrays: pictures, tokens, rows, batches and chunks."""
