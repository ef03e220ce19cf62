"""Fields of a model's config.json: of the right type, and small enough for any real model."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.json_files import checked
from afmrl_jax.types import JsonObject

REMEDY = "download the model again"
"""What to do about a file of a model folder that is broken."""
MAX_LAYERS = 1000
MAX_WIDTH = 10**6
MAX_VOCABULARY = 10**7
"""A config.json that says more is refused before anything of such a size is made."""

T = TypeVar("T")


class Fields:
    """A JSON object whose missing and impossible fields are errors that name file and field."""

    def __init__(self, values: object, where: str):
        if not isinstance(values, dict):
            raise RunError(f"{where} is no JSON object; {REMEDY}")
        self._values: JsonObject = values
        self._where = where

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of several names that is there, whatever its value."""
        return self._first(names, default)[1]

    def _first(self, names: tuple[str, ...], default: Any) -> tuple[str, Any]:
        for name in names:
            if self._values.get(name) is not None:
                return name, self._values[name]
        if default is None:
            raise RunError(f"{self._where} has no {names[0]}; is it a Qwen-VL?")
        return names[0], default

    def take(self, kind: Callable[..., T], *names: str, default: Any = None) -> T:
        """The same of a type, such as `int` or `tuple[int, ...]`.

        Raises:
            RunError: it is of another type; so do the methods below.
        """
        name, value = self._first(names, default)
        return checked(cast(type[T], kind), value, f"{self._where}: {name}", remedy=REMEDY)

    def size(self, *names: str, most: int = MAX_WIDTH, default: int | None = None) -> int:
        """A whole number from 1 to `most`."""
        found = self.take(int, *names, default=default)
        self.require(1 <= found <= most, names[0], found, f"a whole number from 1 to {most:,}")
        return found

    def number(self, *names: str, least: float, most: float, default: float | None = None) -> float:
        """A number from `least` to `most`."""
        found = self.take(float, *names, default=default)
        self.require(least <= found <= most, names[0], found, f"a number from {least} to {most}")
        return found

    def inner(self, name: str) -> JsonObject:
        """An object inside this one; empty where there is none."""
        found = self._values.get(name)
        if found is not None and not isinstance(found, dict):
            raise RunError(f"{self._where}: {name} is no JSON object; {REMEDY}")
        return found or {}

    def over(self, values: JsonObject) -> Fields:
        """These fields, except where `values` has one of the name."""
        given = {name: value for name, value in values.items() if value is not None}
        return Fields({**self._values, **given}, self._where)

    def unsupported(self, what: str) -> RunError:
        """The error for a feature that is not supported."""
        return RunError(f"{self._where}: {what}")

    def require(self, condition: bool, name: str, found: object, wanted: str) -> None:
        """Refuse the value of a field.

        Raises:
            RunError: `condition` is false.
        """
        if not condition:
            raise RunError(
                f"{self._where}: {name} is {reprlib.repr(found)} and must be {wanted}; {REMEDY}"
            )
