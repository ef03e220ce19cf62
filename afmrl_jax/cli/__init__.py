"""The `afmrl` command."""
