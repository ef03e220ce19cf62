"""Validation of settings."""

from __future__ import annotations

from afmrl_jax.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Reject a setting unless a condition holds.

    Raises:
        ConfigError: with `message`, if `condition` is false.
    """
    if not condition:
        raise ConfigError(message)
