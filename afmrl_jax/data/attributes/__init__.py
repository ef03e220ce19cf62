"""Attribute lists: their text, grammar and terms, and who writes them first."""
