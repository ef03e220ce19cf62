"""Conditions on what a listing says of itself: `price<50`, `brand=Acme`, `attributes.color=red`.

A condition is a name, an operator and a value; several hold together. The grammar is this and no
more, so that a condition may come from a stranger.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np

from afmrl_jax.errors import InputError
from afmrl_jax.runtime.terminal import printable
from afmrl_jax.types import JsonObject

OPERATORS = ("<=", ">=", "!=", "=", "<", ">", "~")
FIELDS = ("listing_id", "product_id", "title")
"""Of a listing itself; all other names are columns that its shop carried, and attributes."""
ATTRIBUTES = "attributes."
MAX_CONDITIONS = 16
MAX_LENGTH = 512
"""Letters of a condition."""
NAMED = 20
"""Columns that a message names."""
REMEDY = "write NAME OPERATOR VALUE, as in price<50, brand=Acme, title~oak or attributes.color=red"

Operator = Literal["<=", ">=", "!=", "=", "<", ">", "~"]
_CONDITION = re.compile(r"([^<>=!~]+?)\s*(<=|>=|!=|=|<|>|~)\s*(.*)", re.DOTALL)
_NUMBER = re.compile(r"\s*[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})(e[+-]?\d{1,3})?\s*", re.I | re.A)


def number_of(cell: object) -> float:
    """A cell as a number, also where a table had it as text; NaN if it is none.

    Example:
        >>> number_of("49.90"), number_of(3), number_of(True), number_of("3 pieces")
        (49.9, 3.0, nan, nan)
    """
    if isinstance(cell, bool):
        return math.nan
    if isinstance(cell, int | float):
        return float(cell)
    if isinstance(cell, str) and _NUMBER.fullmatch(cell):
        found = float(cell)
        return found if math.isfinite(found) else math.nan
    return math.nan


def text_of(cell: object) -> str:
    """A cell as text; true and false as JSON writes them."""
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def cell_of(line: Mapping[str, object], name: str) -> object:
    """What a listing's line says under a name; None if nothing."""
    if name in FIELDS:
        return line.get(name)
    if name.startswith(ATTRIBUTES):
        pairs = str(line.get("attributes") or "").split(";")
        wanted = name.removeprefix(ATTRIBUTES)
        found = (x.partition(":") for x in pairs)
        return next((value.strip() for key, _, value in found if key.strip() == wanted), None)
    extra = line.get("extra")
    return extra.get(name) if isinstance(extra, dict) else None


@dataclass(frozen=True)
class Condition:
    """One condition; a listing that says nothing under the name does not fit."""

    name: str
    operator: Operator
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """A condition from text.

        Raises:
            InputError: it is none, or compares with something that is no number.

        Example:
            >>> Condition.parse("price <= 50")
            Condition(name='price', operator='<=', value='50')
        """
        shown = printable(text[:80])
        found = _CONDITION.fullmatch(text.strip()) if len(text) <= MAX_LENGTH else None
        if found is None:
            raise InputError(f"the condition {shown!r} cannot be read; {REMEDY}")
        name, operator, value = found.groups()
        if operator in ("<", "<=", ">", ">=") and math.isnan(number_of(value)):
            raise InputError(
                f"the condition {shown!r} compares with {printable(value[:40])!r}, which is no "
                f"number; {REMEDY}"
            )
        return cls(name.strip(), cast(Operator, operator), value)

    def fits(self, cell: object) -> bool:
        """Whether a cell fits; None does not."""
        return cell is not None and bool(self.fit(Column.of([cell]))[0])

    def fit(self, column: Column) -> np.ndarray:
        """Which cells of a column fit, bool [n]."""
        if self.operator == "~":
            wanted = self.value.casefold()
            found = (x is not None and wanted in x.casefold() for x in column.texts)
            return np.fromiter(found, bool, len(column.texts))
        number, numbers = number_of(self.value), column.numbers
        # Comparisons with NaN are false.
        if self.operator in ("=", "!="):
            same = np.asarray(column.texts == self.value, bool) | (numbers == number)
            return same if self.operator == "=" else column.there & ~same
        compare = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
        return np.asarray(compare[self.operator](numbers, number), bool)


@dataclass(frozen=True, eq=False)
class Column:
    """What all listings say under a name."""

    texts: np.ndarray
    """objects [n]: text, or None"""
    numbers: np.ndarray
    """float64 [n]: NaN for what is no number"""
    there: np.ndarray = field(repr=False)
    """bool [n]"""

    @classmethod
    def of(cls, cells: Sequence[object]) -> Column:
        """A column of cells."""
        texts = np.empty(len(cells), object)
        texts[:] = [None if x is None else text_of(x) for x in cells]
        numbers = np.fromiter((number_of(x) for x in cells), np.float64, len(cells))
        there = np.fromiter((x is not None for x in cells), bool, len(cells))
        return cls(texts, numbers, there)


Where = tuple[Condition, ...]
"""Conditions that hold together."""


def parse_where(texts: Sequence[str]) -> Where:
    """Conditions from texts.

    Raises:
        InputError: there are too many, or one cannot be read.
    """
    if len(texts) > MAX_CONDITIONS:
        raise InputError(f"{len(texts)} conditions; give {MAX_CONDITIONS} or fewer")
    return tuple(Condition.parse(x) for x in texts)


def unknown_column(name: str, lines: Sequence[JsonObject]) -> InputError:
    """The error for a name under which no listing says anything.

    Args:
        name: as it was given.
        lines: some listings, whose columns are named.
    """
    found: dict[str, None] = {}
    for line in lines:
        found |= dict.fromkeys(line.get("extra") or {})
        pairs = str(line.get("attributes") or "").split(";")
        found |= {f"{ATTRIBUTES}{x.partition(':')[0].strip()}": None for x in pairs if ":" in x}
    names = [*FIELDS, *sorted(found)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return InputError(
        f"no listing has {printable(name[:60])!r}; there are "
        f"{printable(', '.join(names[:NAMED]))}{more}"
    )
