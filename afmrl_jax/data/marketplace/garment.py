"""A garment on a picture: its fabric, then its details from the back to the front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from afmrl_jax.data.marketplace import details, trims
from afmrl_jax.data.marketplace.fabric import draw_pattern
from afmrl_jax.data.marketplace.pen import DARK, LIGHT, Color, Pen, Point, Pose
from afmrl_jax.data.marketplace.shapes import NECK, Outline, outline_of
from afmrl_jax.data.marketplace.world import COLORS

STEEL: Color = (90, 90, 96)
"""Of a hanger."""


@dataclass(frozen=True)
class Garment:
    """A product as a seller presents it."""

    combination: Mapping[str, str]
    arms: float
    """Angle of the sleeves in degrees."""
    stand: str
    """What wears it: `mannequin`, `hanger` or `flat`."""
    skin: Color
    """Of the mannequin."""

    @cached_property
    def outline(self) -> Outline:
        """Where everything is."""
        return outline_of(self.combination, self.arms)

    @property
    def color(self) -> Color:
        """The fabric's main color."""
        return COLORS[self.combination["color"]]

    @property
    def ink(self) -> Color:
        """A color of lines that shows on the fabric."""
        return LIGHT if sum(self.color) < 240 else DARK

    @property
    def inside(self) -> details.Inside:
        """What shows through the neckline."""
        dark = sum(self.color) <= 150
        red, green, blue = (round(0.45 * x) for x in self.color)
        shade = (96, 96, 104) if dark else (red, green, blue)
        return details.Inside(self.skin if self.stand == "mannequin" else shade, self.ink)

    def draw(self, image: Image.Image, pose: Pose, scale: float, rng: np.random.Generator) -> None:
        """Draw it.

        Args:
            image: to draw on.
            pose: where it lies.
            scale: pixels of `image` in a unit.
            rng: moves the pattern.
        """
        pen = Pen(image, pose, scale)
        if self.combination.get("collar") == "hooded":
            details.hood(pen, self.color, self.inside)
        if self.stand == "hanger":
            pen.line([(0, NECK - 2), (0, 2), (4, 0)], STEEL, 1.6)
        if self.combination["type"] == "dungarees":
            for side in (-1, 1):
                straps = [(side * 12, 8), (side * 7, 8), (side * 8, 26), (side * 13, 26)]
                pen.area(straps, self.color, self.ink, 1.4)
        cloth = self._cloth(image.size, pose, scale, rng)
        # The body covers the upper ends of the sleeves, so that its shape is seen.
        for parts in (self.outline.sleeves, [self.outline.body]):
            if parts:
                _cover(image, cloth, pose, scale, parts)
            for part in parts:
                pen.line([*part, part[0]], self.ink, 1.6)
        for seam in self.outline.seams:
            pen.line(seam, self.ink, 1.4)
        self._draw_details(pen)

    def _cloth(
        self, size: tuple[int, int], pose: Pose, scale: float, rng: np.random.Generator
    ) -> Image.Image:
        """A whole picture of the fabric."""
        cloth = Image.new("RGB", size, self.color)
        pattern = self.combination["pattern"]
        if pattern != "plain":
            # Most garments are wider below.
            top = min(y for _, y in self.outline.body)
            middle = top + 0.62 * (self.outline.hem - top)
            accent = COLORS[self.combination["accent"]]
            draw_pattern(Pen(cloth, pose, scale), pattern, accent, middle, rng)
        return cloth

    def _draw_details(self, pen: Pen) -> None:
        values, outline = self.combination, self.outline
        neck, pocket = values.get("neckline"), values.get("pocket", "pocketless")
        if pocket == "kangaroo":
            details.kangaroo(pen, outline)
        if neck is not None:
            if "closure" in values:
                details.closure(pen, values["closure"], details.lower_end(neck), outline)
            worn = self.skin if self.stand == "mannequin" else None
            details.neckline(pen, neck, self.color, self.inside, worn)
        if "collar" in values:
            details.collar(pen, values["collar"])
        if pocket not in ("pocketless", "kangaroo"):
            details.pockets(pen, pocket, outline)
        if "waist" in values:
            details.waist(pen, values["waist"], outline)
        for edge in outline.edges:
            trims.trim(pen, values["trim"], edge)


def _cover(
    image: Image.Image, cloth: Image.Image, pose: Pose, scale: float, parts: list[list[Point]]
) -> None:
    """Put fabric on some parts."""
    mask = Image.new("L", image.size, 0)
    cutter = Pen(mask, pose, scale)
    for part in parts:
        cutter.area(part, 255)
    image.paste(cloth, mask=mask)
