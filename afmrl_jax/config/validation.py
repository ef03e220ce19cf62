"""Validation of settings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from afmrl_jax.errors import ConfigError

MAX_STEPS = 10**8
"""Most steps of a stage, and most of whatever is counted in steps."""
MAX_ROWS = 10**6
"""Most rows of a batch."""
MAX_TOKENS = 2**20
"""Longest sequence."""
MAX_COUNT = 2**31 - 1
"""Largest whole number of any setting; more does not fit the arrays it would count."""
MAX_FACTOR = 1e6
"""Largest weight, rate or scale."""
TINY = 1e-12
"""Smallest number that something is divided by."""


def require(condition: bool, message: str) -> None:
    """Reject a setting unless a condition holds.

    Raises:
        ConfigError: with `message`, if `condition` is false.
    """
    if not condition:
        raise ConfigError(message)


class Settings:
    """Base of all settings: their numbers are finite, and what JSON holds has the right types."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            name, value = field.name, getattr(self, field.name)
            # A text where a switch belongs would count as true.
            if field.type == "bool":
                require(isinstance(value, bool), f"{name} must be true or false, found {value!r}")
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float):
                    require(math.isfinite(number), f"{name} must be a finite number")
                elif isinstance(number, int):
                    require(abs(number) <= MAX_COUNT, f"{name} must not exceed {MAX_COUNT}")

    def _within(self, **bounds: tuple[float, float]) -> None:
        """Reject a setting outside its bounds, which are inclusive; None passes.

        Raises:
            ConfigError: it, or one of its numbers if it has several, is smaller or larger.
        """
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                require(
                    number is None or low <= number <= high,
                    f"{name} must lie between {low:,} and {high:,}, found {number!r}",
                )
