"""Drawing in the coordinates of a garment, on a picture several times as large as the result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Point = tuple[float, float]
Color = tuple[int, int, int]
SIDE = 96.0
"""Units that a picture is high and wide; x runs from -48 to 48, y from 0 at the top to 96."""
LIGHT: Color = (248, 243, 230)
DARK: Color = (42, 40, 46)
"""What details are drawn in: one of the two shows on any fabric."""


@dataclass(frozen=True)
class Pose:
    """How the garment lies in the picture."""

    degrees: float = 0.0
    zoom: float = 1.0
    stretch: float = 1.0
    """Width relative to height."""
    shift: Point = (0.0, 0.0)
    mirrored: bool = False

    def matrix(self, scale: float) -> tuple[float, float, float, float, float, float]:
        """(a, b, c, d, e, f), with which (x, y) goes to (a x + b y + c, d x + e y + f)."""
        turn = math.radians(self.degrees)
        cosine, sine = (_rounded(f(turn)) for f in (math.cos, math.sin))
        across = self.zoom * self.stretch * (-1 if self.mirrored else 1) * scale
        down = self.zoom * scale
        middle = SIDE / 2
        x, y = ((middle + offset) * scale for offset in self.shift)
        return (
            cosine * across, -sine * down, x + sine * down * middle,
            sine * across, cosine * down, y - cosine * down * middle,
        )  # fmt: skip


def _rounded(value: float) -> float:
    # Sines differ in the last digit from machine to machine.
    return round(value, 6)


class Pen:
    """Draws shapes, each of which is moved by a pose.

    Args:
        image: to draw on.
        pose: where the garment lies.
        scale: pixels of `image` in a unit.
    """

    def __init__(self, image: Image.Image, pose: Pose, scale: float):
        self._draw = ImageDraw.Draw(image)
        self._matrix = pose.matrix(scale)
        self._zoom = pose.zoom * scale

    def _places(self, points: Iterable[Point]) -> list[Point]:
        a, b, c, d, e, f = self._matrix
        return [(a * x + b * y + c, d * x + e * y + f) for x, y in points]

    def area(
        self,
        points: Sequence[Point],
        fill: Color | int,
        edge: Color | None = None,
        width: float = 1.0,
    ) -> None:
        """A polygon, with a line around it if `edge` is given."""
        places = self._places(points)
        self._draw.polygon(places, fill=fill)
        if edge is not None:
            self._draw.line([*places, places[0]], edge, self._thick(width))

    def line(
        self, points: Sequence[Point], fill: Color, width: float = 1.0, *, smooth: bool = False
    ) -> None:
        """A line through some points, whose bends are filled if it is `smooth`."""
        joint = "curve" if smooth else None
        self._draw.line(self._places(points), fill, self._thick(width), joint)

    def disc(
        self, middle: Point, radius: float, fill: Color | int, edge: Color | None = None,
        width: float = 1.0,
    ) -> None:  # fmt: skip
        """A disc."""
        ((x, y),) = self._places([middle])
        size = radius * self._zoom
        box = (x - size, y - size, x + size, y + size)
        self._draw.ellipse(box, fill, edge, self._thick(width) if edge is not None else 1)

    def _thick(self, width: float) -> int:
        return max(1, round(width * self._zoom))


def arc(
    middle: Point, across: float, down: float, begin: float, end: float, steps: int = 16
) -> list[Point]:
    """Points on an ellipse, between two angles in degrees (0 is right, 90 is down)."""
    out = []
    for step in range(steps + 1):
        angle = math.radians(begin + (end - begin) * step / steps)
        x, y = _rounded(math.cos(angle)), _rounded(math.sin(angle))
        out.append((middle[0] + across * x, middle[1] + down * y))
    return out


def along(start: Point, end: Point, share: float) -> Point:
    """The point between two others, `share` of the way."""
    return (
        start[0] + (end[0] - start[0]) * share,
        start[1] + (end[1] - start[1]) * share,
    )


def mirrored(points: Iterable[Point]) -> list[Point]:
    """The points on the other side of the garment."""
    return [(-x, y) for x, y in points]
