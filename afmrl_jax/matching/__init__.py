"""Which listings are one product: candidate pairs, their probability, and clusters of them."""
