"""Errors a user can act on: every message names the record or file and the remedy."""


class AfmrlError(Exception):
    """Base of all errors that are the user's to mend; commands print them without a trace."""


class CatalogueError(AfmrlError):
    """A catalogue, or one of its records, cannot be used."""


class RunError(AfmrlError):
    """A run directory cannot be continued as asked."""


class ConfigError(AfmrlError, ValueError):
    """A setting is out of range or contradicts another."""


class InputError(AfmrlError, ValueError):
    """An item that was handed to a model cannot be used."""
