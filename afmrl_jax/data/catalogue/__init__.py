"""Listings: read, checked, split, converted and stored."""
