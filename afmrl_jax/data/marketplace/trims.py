"""Trims along the lower edges of body and sleeves."""

from __future__ import annotations

import math
from itertools import pairwise

from afmrl_jax.data.marketplace.pen import DARK, LIGHT, Color, Pen, Point, along
from afmrl_jax.data.marketplace.shapes import Edge

WIDTH = 7.0
FUR: Color = (176, 140, 100)
FUR_SHADE: Color = (120, 90, 60)
WHITE: Color = (252, 252, 252)


def trim(pen: Pen, kind: str, edge: Edge) -> None:
    """Draw a trim along an edge."""
    if kind == "banded":
        pen.area(_band(edge, 0.0, WIDTH), DARK, LIGHT, 1.2)
    elif kind == "ribbed":
        pen.area(_band(edge, 0.0, WIDTH), LIGHT, DARK, 1.2)
        for point in _spread(edge, 4.4):
            pen.line([_inside(point, edge, 0.4), _inside(point, edge, WIDTH - 0.4)], DARK, 1.6)
    elif kind == "fringed":
        pen.line(edge.points, DARK, 2.2)
        for point in _spread(edge, 4.0):
            for width, color in ((2.8, DARK), (1.4, LIGHT)):
                pen.line([point, _inside(point, edge, -9.0)], color, width)
    elif kind == "furry":
        for row, radius, color in ((0, 5.4, FUR_SHADE), (0, 4.2, FUR), (1, 4.0, FUR)):
            for point in _spread(edge, 5.2):
                pen.disc(_inside(point, edge, 2.0 + 2.6 * row), radius, color)
    elif kind == "lace":
        for point in _spread(edge, 6.4):
            pen.disc(_inside(point, edge, 1.0), 4.3, WHITE, DARK, 1.0)
        pen.area(_band(edge, 2.0, WIDTH), WHITE)
        pen.line(_moved(edge, WIDTH), DARK, 1.0)
        for point in _spread(edge, 6.4):
            pen.disc(_inside(point, edge, 2.6), 1.7, DARK)


def _inside(point: Point, edge: Edge, far: float) -> Point:
    return point[0] + far * edge.inward[0], point[1] + far * edge.inward[1]


def _moved(edge: Edge, far: float) -> list[Point]:
    return [_inside(point, edge, far) for point in edge.points]


def _band(edge: Edge, near: float, far: float) -> list[Point]:
    return [*_moved(edge, near), *reversed(_moved(edge, far))]


def _spread(edge: Edge, apart: float) -> list[Point]:
    """Points on an edge at equal distances."""
    lengths = [round(math.dist(a, b), 4) for a, b in pairwise(edge.points)]
    total = sum(lengths)
    count = max(2, round(total / apart))
    out: list[Point] = []
    part, done = 0, 0.0
    for step in range(count):
        place = total * (step + 0.5) / count
        while part < len(lengths) - 1 and done + lengths[part] < place:
            done += lengths[part]
            part += 1
        share = (place - done) / lengths[part] if lengths[part] else 0.0
        out.append(along(edge.points[part], edge.points[part + 1], share))
    return out
