"""Necklines, collars, waists, closures and pockets: each at least as large as a visual token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from afmrl_jax.data.marketplace.pen import DARK, LIGHT, Color, Pen, Point, along, arc, mirrored
from afmrl_jax.data.marketplace.shapes import NECK, Outline


@dataclass(frozen=True)
class Inside:
    """What shows through the neckline."""

    fill: Color
    edge: Color


def opening(kind: str) -> list[Point]:
    """The hole of a neckline."""
    top = NECK - 1
    if kind == "v-neck":
        return [(-12, top), (12, top), (0, 48)]
    if kind == "square":
        return [(-15, top), (15, top), (15, 36), (-15, 36)]
    if kind == "boat":
        return [(-20, 17), (-13, top), (13, top), (20, 17), *arc((0, 17), 20, 3.5, 0, 180)]
    if kind == "keyhole":
        return [(-11, top), (11, top), *arc((0, 15), 11, 4, 0, 180)]
    if kind == "cowl":
        return [(-13, top), (13, top), *arc((0, 14), 13, 7, 0, 180)]
    return [(-14.5, top), (14.5, top), *arc((0, 15), 14.5, 16, 0, 180)]


LOWEST = {"turtleneck": 19.0, "round": 31.0, "v-neck": 48.0, "square": 36.0, "boat": 21.0}
"""Lower end of a neckline; those of `keyhole` and `cowl` are the same."""


def lower_end(kind: str) -> float:
    """Height at which a neckline ends and a closure may begin."""
    return LOWEST.get(kind, 40.0)


def neckline(pen: Pen, kind: str, fabric: Color, inside: Inside, neck: Color | None) -> None:
    """Draw a neckline.

    Args:
        pen: to draw with.
        kind: its value.
        fabric: color of a turtleneck.
        inside: what shows through.
        neck: color of a mannequin's neck above it, None without one.
    """
    if kind == "turtleneck":
        pen.area([(-12, 1), (12, 1), (14, 19), (-14, 19)], fabric, inside.edge, 1.6)
        for y in (7.0, 13.0):
            pen.line([(-12, y), (12, y)], inside.edge, 1.2)
        return
    if neck is not None:
        pen.area([(-8, -4), (8, -4), (9, NECK + 4), (-9, NECK + 4)], neck)
    if kind == "cowl":
        # Folds that hang from shoulder to shoulder.
        for across, down in ((18.0, 26.0), (16.0, 17.0)):
            pen.area(arc((0, NECK), across, down, 0, 180), fabric, inside.edge, 2.2)
    pen.area(opening(kind), inside.fill, inside.edge, 1.8)
    if kind == "keyhole":
        pen.area(arc((0, 32), 8.5, 8, 0, 360), inside.fill, inside.edge, 1.8)


def hood(pen: Pen, fabric: Color, inside: Inside) -> None:
    """A hood, behind everything else."""
    pen.area(arc((0, 17), 23, 16, 180, 360), fabric, inside.edge, 1.8)
    pen.area(arc((0, 17), 15, 10, 180, 360), inside.fill, inside.edge, 1.2)


def collar(pen: Pen, kind: str) -> None:
    """Draw a collar next to the neckline; hoods are drawn before the body."""
    if kind == "pointed":
        flap: list[Point] = [(11, 11), (25, 16), (20, 35)]
        for side in (flap, mirrored(flap)):
            pen.area(side, LIGHT, DARK, 1.4)
    elif kind == "rounded":
        for x in (-18.0, 18.0):
            pen.disc((x, 20), 8.5, LIGHT, DARK, 1.4)
    elif kind == "bow":
        wing: list[Point] = [(2, 10), (18, 1), (18, 19)]
        for side in (wing, mirrored(wing)):
            pen.area(side, LIGHT, DARK, 1.4)
        pen.disc((0, 10), 4.0, LIGHT, DARK, 1.4)
    elif kind == "ruffled":
        for step in range(8):
            x = -20.3 + 5.8 * step
            pen.disc((x, 9 + 0.014 * x * x), 4.8, LIGHT, DARK, 1.2)


def waist(pen: Pen, kind: str, outline: Outline) -> None:
    """Draw the band at the waist."""
    top = outline.waist or 0.0
    low = top + 8
    left, right = -outline.half_width(top + 4) - 0.8, outline.half_width(top + 4) + 0.8
    band: list[Point] = [(left, top), (right, top), (right, low), (left, low)]
    if kind == "seamed":
        pen.line([(left, top + 4), (right, top + 4)], DARK, 1.0)
    elif kind == "belted":
        pen.area(band, DARK, LIGHT, 1.0)
        buckle: list[Point] = [(-5, top - 1), (5, top - 1), (5, low + 1), (-5, low + 1)]
        pen.area(buckle, (214, 176, 70), LIGHT, 1.0)
        pen.area([(-2, top + 2), (2, top + 2), (2, low - 2), (-2, low - 2)], DARK)
    elif kind == "elastic":
        pen.area(band, LIGHT, DARK, 1.2)
        steps = max(4, round((right - left) / 4.2))
        for step in range(1, steps):
            x = left + (right - left) * step / steps
            pen.line([(x, top + 1), (x, low - 1)], DARK, 1.3)
    elif kind == "drawstring":
        pen.line([(left, top + 4), (right, top + 4)], DARK, 1.0)
        for side in (-1, 1):
            loop: list[Point] = [(0, top + 4), (side * 11, top - 1), (side * 11, top + 8)]
            string: list[Point] = [(0, top + 4), (side * 5, top + 13), (side * 7, top + 25)]
            for shape in ([*loop, loop[0]], string):
                pen.line(shape, DARK, 4.4)
            for shape in ([*loop, loop[0]], string):
                pen.line(shape, LIGHT, 2.6)
            pen.disc((side * 7, top + 26), 3.2, LIGHT, DARK, 1.2)
        pen.disc((0, top + 4), 3.2, LIGHT, DARK, 1.2)
    elif kind == "sash":
        pen.area(band, LIGHT, DARK, 1.2)
        knot = right - 8
        for tail in ([(0, 0), (-7, 21), (1, 23)], [(0, 0), (4, 22), (11, 19)]):
            pen.area([(knot + x, top + 5 + y) for x, y in tail], LIGHT, DARK, 1.2)
        for wing in ([(0, 0), (-10, -6), (-9, 6)], [(0, 0), (9, -6), (9, 5)]):
            pen.area([(knot + x, top + 4 + y) for x, y in wing], LIGHT, DARK, 1.2)
        pen.disc((knot, top + 4), 2.8, DARK)


def closure(pen: Pen, kind: str, begin: float, outline: Outline) -> None:
    """Draw a closure from the neckline downwards.

    Args:
        pen: to draw with.
        kind: its value.
        begin: height of the neckline's lower end.
        outline: of the garment.
    """
    end = outline.front_end
    if kind == "wrapped":
        low = min(end, 62.0)
        right = outline.half_width(low) - 1
        for width, color in ((7.0, DARK), (4.6, LIGHT)):
            pen.line([(1 - outline.half_width(30), 29), (right, low)], color, width)
        for tail in ([(0, 0), (-9, 12), (-3, 15)], [(0, 0), (2, 15), (8, 12)]):
            pen.area([(right - 1 + x, low - 2 + y) for x, y in tail], LIGHT, DARK, 1.2)
    elif kind in _STRIPS:
        _STRIPS[kind](pen, begin, end)


def _steps(begin: float, end: float, apart: float) -> list[float]:
    count = max(2, int((end - begin) / apart))
    return [begin + (end - begin) * (step + 0.5) / count for step in range(count)]


def _buttoned(pen: Pen, begin: float, end: float) -> None:
    pen.area([(-6, begin), (6, begin), (6, end), (-6, end)], LIGHT, DARK, 1.2)
    for y in _steps(begin, end, 8.5):
        pen.disc((0, y), 3.5, DARK)


def _zipped(pen: Pen, begin: float, end: float) -> None:
    pen.area([(-5.6, begin), (5.6, begin), (5.6, end), (-5.6, end)], DARK, LIGHT, 1.2)
    for number, y in enumerate(_steps(begin, end, 2.9)):
        x = 1.2 if number % 2 else -1.2
        pen.line([(x - 2, y), (x + 2, y)], (190, 192, 198), 1.4)
    tab: list[Point] = [(-3, begin - 1), (3, begin - 1), (4, begin + 8), (-4, begin + 8)]
    pen.area(tab, (214, 176, 70), DARK, 1.0)


def _laced(pen: Pen, begin: float, end: float) -> None:
    pen.line([(0, begin), (0, end)], DARK, 2.0)
    for y in _steps(begin, end, 9.5):
        for width, color in ((3.8, DARK), (2.0, LIGHT)):
            pen.line([(-8, y - 4), (8, y + 4)], color, width)
            pen.line([(8, y - 4), (-8, y + 4)], color, width)


def _toggled(pen: Pen, begin: float, end: float) -> None:
    pen.line([(0, begin), (0, end)], DARK, 1.4)
    for y in _steps(begin, end, 9.5):
        for width, color in ((5.8, DARK), (3.6, (206, 160, 104))):
            pen.line([(-9, y), (9, y)], color, width)
        for x in (-9.0, 9.0):
            pen.disc((x, y), 3.0, DARK)


_STRIPS: dict[str, Callable[[Pen, float, float], None]] = {
    "buttoned": _buttoned,
    "zipped": _zipped,
    "laced": _laced,
    "toggled": _toggled,
}


def kangaroo(pen: Pen, outline: Outline) -> None:
    """A pouch in the middle, under the closure."""
    top = outline.pocket_top
    pouch: list[Point] = [(-10, top), (10, top), (18, top + 15), (-18, top + 15)]
    pen.area(pouch, LIGHT, DARK, 1.4)
    for side in (-1, 1):
        pen.line([(side * 9, top + 2), (side * 15, top + 13)], DARK, 1.6)


def pockets(pen: Pen, kind: str, outline: Outline) -> None:
    """Draw all other pockets."""
    if kind == "chest":
        _patch(pen, 6.0, 24.0, 17.5, 18.5)
        return
    top = outline.pocket_top
    outer = max(18.0, outline.half_width(top + 7) - 1.5)
    inner = outer - 14
    for side in (-1, 1):
        if kind == "patch":
            _patch(pen, inner if side > 0 else -outer, top, 14.0, 15.0)
        elif kind == "slant":
            ends: tuple[Point, Point] = ((side * (inner + 1), top - 1), (side * outer, top + 17))
            for width, color in ((8.2, LIGHT), (5.6, DARK)):
                short = 0.0 if color == LIGHT else 0.08
                pen.line([along(*ends, short), along(*ends, 1 - short)], color, width)
        elif kind == "flap":
            x0, x1 = side * inner, side * outer
            middle = (x0 + x1) / 2
            flap = [(x0, top), (x1, top), (x1, top + 8), (middle, top + 13), (x0, top + 8)]
            pen.area(flap, DARK, LIGHT, 1.2)
            pen.disc((middle, top + 7.5), 2.2, LIGHT)


def _patch(pen: Pen, left: float, top: float, width: float, height: float) -> None:
    right, low = left + width, top + height
    sack = [(left, top), (right, top), (right, low - 3), ((left + right) / 2, low), (left, low - 3)]
    pen.area(sack, LIGHT, DARK, 1.4)
    pen.line([(left + 1, top + 3.5), (right - 1, top + 3.5)], DARK, 1.2)
