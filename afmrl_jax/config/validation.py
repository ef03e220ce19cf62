"""How a setting is refused."""

from __future__ import annotations

from afmrl_jax.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Refuse a setting.

    Raises:
        ConfigError: with `message`, where `condition` does not hold.
    """
    if not condition:
        raise ConfigError(message)
