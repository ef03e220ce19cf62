"""The field's numbers by the field's definitions (NumPy in, dictionaries out)."""
