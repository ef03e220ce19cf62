"""Patterns: the fabric's color with figures of another color on it, all several pixels large."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afmrl_jax.data.marketplace.pen import Color, Pen, Point

_LEFT, _RIGHT, _TOP, _BOTTOM = -56, 57, -8, 106


def draw_pattern(
    pen: Pen, pattern: str, accent: Color, middle: float, rng: np.random.Generator
) -> None:
    """Cover the whole picture with a pattern.

    Args:
        pen: on a picture of the fabric's main color.
        pattern: its value.
        accent: color of the figures.
        middle: height at which a color block begins.
        rng: moves the pattern, and shapes irregular figures.
    """
    if pattern == "colorblock":
        half = [(_LEFT, middle), (_RIGHT, middle), (_RIGHT, _BOTTOM), (_LEFT, _BOTTOM)]
        pen.area(half, accent)
        return
    shift = (4 * float(rng.random()), 4 * float(rng.random()))
    _PATTERNS[pattern](pen, accent, shift, rng)


def _stripe(pen: Pen, accent: Color, start: Point, end: Point, width: float) -> None:
    pen.line([start, end], accent, width)


def _plain(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    """Nothing."""


def _striped(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    for y in range(_TOP, _BOTTOM, 11):
        _stripe(pen, accent, (_LEFT, y + shift[1]), (_RIGHT, y + shift[1]), 5.0)


def _vertical(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    for x in range(_LEFT, _RIGHT, 11):
        _stripe(pen, accent, (x + shift[0], _TOP), (x + shift[0], _BOTTOM), 4.6)


def _diagonal(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    for x in range(_LEFT - 120, _RIGHT, 16):
        _stripe(pen, accent, (x + shift[0], _BOTTOM), (x + shift[0] + 114, _TOP), 5.2)


def _checked(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    for y in range(_TOP, _BOTTOM, 13):
        _stripe(pen, accent, (_LEFT, y + shift[1]), (_RIGHT, y + shift[1]), 3.2)
    for x in range(_LEFT, _RIGHT, 13):
        _stripe(pen, accent, (x + shift[0], _TOP), (x + shift[0], _BOTTOM), 3.2)


def _dotted(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    for row, y in enumerate(range(_TOP, _BOTTOM, 10)):
        for x in range(_LEFT + 5 * (row % 2), _RIGHT, 10):
            pen.disc((x + shift[0], y + shift[1]), 3.1, accent)


_PETALS = ((0.0, -1.0), (0.95, -0.31), (0.59, 0.81), (-0.59, 0.81), (-0.95, -0.31))


def _floral(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    heart = (252, 226, 120) if accent[2] > 120 or accent[0] < 180 else (96, 60, 30)
    for row, y in enumerate(range(_TOP, _BOTTOM, 16)):
        for x in range(_LEFT + 9 * (row % 2), _RIGHT, 18):
            for across, down in _PETALS:
                pen.disc((x + shift[0] + 4.0 * across, y + shift[1] + 4.0 * down), 3.1, accent)
            pen.disc((x + shift[0], y + shift[1]), 2.2, heart)


def _zigzag(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    for y in range(_TOP, _BOTTOM + 12, 13):
        points = [
            (x + shift[0], y + shift[1] + (4.5 if step % 2 else -4.5))
            for step, x in enumerate(range(_LEFT, _RIGHT + 8, 8))
        ]
        pen.line(points, accent, 4.2, smooth=True)


def _argyle(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    for row, y in enumerate(range(_TOP, _BOTTOM, 10)):
        for x in range(_LEFT + 7 * (row % 2), _RIGHT, 14):
            a, b = x + shift[0], y + shift[1]
            pen.area([(a, b - 7), (a + 4.4, b), (a, b + 7), (a - 4.4, b)], accent)


def _leopard(pen: Pen, accent: Color, shift: Point, rng: np.random.Generator) -> None:
    """Rings that are open on one side, no two alike."""
    for row, y in enumerate(range(_TOP, _BOTTOM, 11)):
        for x in range(_LEFT + 6 * (row % 2), _RIGHT, 12):
            dx, dy, turn = (float(v) for v in rng.random(3))
            a, b = x + shift[0] + 3 * dx, y + shift[1] + 3 * dy
            begin = int(turn * 8)
            ring = [_RING[(begin + step) % 8] for step in range(6)]
            pen.line([(a + 3.6 * u, b + 3.2 * v) for u, v in ring], accent, 2.8, smooth=True)


_RING = (
    (1.0, 0.0), (0.71, 0.71), (0.0, 1.0), (-0.71, 0.71), (-1.0, 0.0), (-0.71, -0.71), (0.0, -1.0),
    (0.71, -0.71),
)  # fmt: skip

_PATTERNS: dict[str, Callable[[Pen, Color, Point, np.random.Generator], None]] = {
    "plain": _plain,
    "striped": _striped,
    "vertical": _vertical,
    "diagonal": _diagonal,
    "checked": _checked,
    "dotted": _dotted,
    "floral": _floral,
    "zigzag": _zigzag,
    "argyle": _argyle,
    "leopard": _leopard,
}
