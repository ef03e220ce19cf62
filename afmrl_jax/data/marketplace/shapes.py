"""The outline of a garment: its parts of fabric, and where the details go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from afmrl_jax.data.marketplace.pen import Point, mirrored
from afmrl_jax.data.marketplace.world import LEGS, UPPER

SHOULDER = 18.0
"""Height of the shoulders of an upper garment."""
NECK = 14.0
"""Height of the neckline's upper end."""
HEMS = {
    "upper": {"cropped": 53.0, "regular": 64.0, "long": 76.0, "full": 88.0},
    "dress": {"cropped": 60.0, "regular": 70.0, "long": 80.0, "full": 90.0},
    "legs": {"cropped": 64.0, "regular": 73.0, "long": 82.0, "full": 92.0},
    "trousers": {"cropped": 48.0, "regular": 62.0, "long": 77.0, "full": 92.0},
    "skirt": {"cropped": 40.0, "regular": 56.0, "long": 72.0, "full": 88.0},
}


@dataclass(frozen=True)
class Edge:
    """A lower edge of the fabric, where trims go."""

    points: list[Point]
    inward: Point
    """Unit vector into the fabric."""


@dataclass(frozen=True)
class Outline:
    """Where everything is, in garment units."""

    body: list[Point]
    sleeves: list[list[Point]]
    edges: list[Edge]
    seams: list[list[Point]]
    """Lines that are always seen, such as between the legs."""
    half_width: Callable[[float], float]
    """Of the body, at a height."""
    hem: float
    waist: float | None
    """Height of the waist band's upper end."""
    front_end: float
    """Height at which closures end."""
    pocket_top: float
    """Height of the upper end of hip pockets."""


def _between(stops: list[Point], y: float) -> float:
    """A value that changes linearly between stops (height, value)."""
    for (y0, v0), (y1, v1) in pairwise(stops):
        if y <= y1:
            return v0 + (v1 - v0) * max(0.0, y - y0) / (y1 - y0)
    return stops[-1][1]


def _profile(kind: str, hem: float) -> list[Point]:
    """Half widths of the body, as stops (height, half width)."""
    top, long = SHOULDER, hem - SHOULDER
    if kind == "shirt":
        return [(top, 24), (hem, 24)]
    if kind == "sweater":
        bulge = ((0, 22), (0.3, 23), (0.5, 27), (0.68, 31), (0.84, 31), (0.94, 26), (1, 20))
        return [(top + long * t, w) for t, w in bulge]
    if kind == "jacket":
        return [(top, 27), (top + 0.5 * long, 18), (top + 0.6 * long, 18.5), (hem, 28)]
    if kind == "tunic":
        return [(top, 20), (top + 6, 21.5), (hem, 38)]
    if kind == "poncho":
        return [(top, 20), (hem, 45)]
    if kind == "dress":
        return [(top, 23), (46, 16), (50, 19), (56, 25), (hem, 34)]
    if kind == "skirt":
        return [(12, 16), (20, 20), (hem, 34)]
    if kind == "jumpsuit":
        return [(top, 23), (46, 18), (58, 24), (hem, 25)]
    if kind == "dungarees":
        return [(22, 14), (43, 14), (46, 20), (58, 24), (hem, 25)]
    return [(10, 20), (24, 24), (hem, 25)]


_SHAPES: dict[str, Callable[[float, float], float]] = {
    "straight": lambda u, room: 0.0,
    "curved": lambda u, room: 7.0 - 15.0 * u * u,
    "peaked": lambda u, room: 9.0 - 18.0 * abs(u),
    "slanted": lambda u, room: 8.5 * u,
    "scalloped": lambda u, room: 11.0 * abs(round(math.sin(1.5 * math.pi * (u + 1)), 6)) - 7.0,
    "slit": lambda u, room: -room * max(0.0, 1.0 - abs(u) / 0.42),
}


def _hem_line(kind: str, half: float, hem: float, room: float) -> list[Point]:
    """The lower edge from right to left."""
    steps = 24
    shape = _SHAPES[kind]
    places = [1 - 2 * step / steps for step in range(steps + 1)]
    return [(half * u, hem + shape(u, room)) for u in places]


def _upper_body(kind: str, profile: list[Point], bottom: list[Point]) -> list[Point]:
    (right, left), top = (bottom[0][1], bottom[-1][1]), profile[0]
    half = top[1]
    neck = [(-13.0, NECK), (13.0, NECK)] if kind in UPPER else [(-half, top[0]), (half, top[0])]
    side = [y for y, _ in profile[1:-1]]
    points = [*neck, (half, top[0])]
    points += [(_between(profile, y), y) for y in side if y < right]
    points += [(_between(profile, right), right), *bottom[1:-1], (-_between(profile, left), left)]
    points += [(-_between(profile, y), y) for y in reversed(side) if y < left]
    return [*points, (-half, top[0])]


def _legs(profile: list[Point], hem: float, crotch: float) -> tuple[list[Point], list[Edge]]:
    outer = [(_between(profile, y), y) for y, _ in profile[:-1]] + [(profile[-1][1], hem)]
    inner = (3.5, hem)
    body = [*outer, inner, (0.0, crotch), *mirrored([inner]), *mirrored(reversed(outer))]
    right = [outer[-1], inner]
    up = (0.0, -1.0)
    return body, [Edge(right, up), Edge(list(reversed(mirrored(right))), up)]


_RAISED = {"short": 22.0, "elbow": 12.0, "puff": 16.0}
"""Degrees by which short sleeves stand off the body further than long ones."""
_SLEEVES = {
    "short": (17, 15, 15),
    "elbow": (31, 15, 13),
    "long": (50, 15, 11),
    "bell": (44, 13, 26),
}
"""Length, width at the shoulder and width at the end."""


def _sleeve(kind: str, shoulder: float, degrees: float) -> tuple[list[Point], Edge | None]:
    """The right sleeve and its cuff."""
    if kind == "sleeveless":
        return [], None
    angle = math.radians(degrees + _RAISED.get(kind, 0.0))
    along_x, along_y = round(math.sin(angle), 6), round(math.cos(angle), 6)
    x, y = shoulder - 5.5, SHOULDER + 5.0

    def place(far: float, side: float) -> Point:
        return x + along_x * far + along_y * side, y + along_y * far - along_x * side

    if kind == "puff":
        outline = ((-6, -4), (-6, 5), (-1, 11), (6, 14), (13, 13), (18, 9), (20, 6))
        points = [place(far, side) for far, side in outline]
        points += [place(20, -6), place(18, -8), place(13, -9), place(6, -9)]
        end = (place(20, 6), place(20, -6))
    else:
        length, width, last = _SLEEVES[kind]
        points = [place(-5, -width / 2), place(-5, width / 2 - 2), place(0, width / 2)]
        if kind == "bell":
            points += [place(0.55 * length, width / 2)]
        points += [place(length, last / 2), place(length, -last / 2)]
        if kind == "bell":
            points += [place(0.55 * length, -width / 2)]
        end = (place(length, last / 2), place(length, -last / 2))
    return points, Edge(list(end), (-along_x, -along_y))


def outline_of(combination: Mapping[str, str], degrees: float) -> Outline:
    """The outline of a garment.

    Args:
        combination: the product.
        degrees: angle of the sleeves.
    """
    kind, length = combination["type"], combination["length"]
    group = "dress" if kind == "dress" else "upper" if kind in UPPER else kind
    if kind in ("jumpsuit", "dungarees"):
        group = "legs"
    hem = HEMS[group][length]
    profile = _profile(kind, hem)
    waist = {"dress": 43.0, "jumpsuit": 43.0, "dungarees": 43.0, "trousers": 9.0, "skirt": 11.0}
    crotch = 38.0 if kind == "trousers" else 60.0
    seams: list[list[Point]] = []
    if kind in LEGS:
        body, edges = _legs(profile, hem, crotch)
        if kind == "jumpsuit":
            body = [(-13.0, NECK), (13.0, NECK), *body]
        seams.append([(0.0, crotch), (0.0, crotch - 7)])
    else:
        room = 13.0 if length == "cropped" else 19.0
        bottom = _hem_line(combination["hem"], profile[-1][1], hem, room)
        body = _upper_body(kind, profile, bottom)
        edges = [Edge(bottom, (0.0, -1.0))]
    sleeves = []
    if "sleeve" in combination:
        points, cuff = _sleeve(combination["sleeve"], profile[0][1], degrees)
        if points and cuff:
            inward = (-cuff.inward[0], cuff.inward[1])
            sleeves = [points, mirrored(points)]
            edges += [cuff, Edge(list(reversed(mirrored(cuff.points))), inward)]
    top = {"dress": 53.0, "jumpsuit": 52.0, "dungarees": 53.0, "trousers": 20.0, "skirt": 22.0}
    return Outline(
        body=body,
        sleeves=sleeves,
        edges=edges,
        seams=seams,
        half_width=lambda y: _between(profile, y),
        hem=hem,
        waist=waist.get(kind),
        front_end=hem - 2,
        pocket_top=top.get(kind, 43.0),
    )
