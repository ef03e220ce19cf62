"""What vendors state about accelerators: peak, memory bandwidth and links."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from afmrl_jax.errors import ConfigError


@dataclass(frozen=True)
class Links:
    """How chips are connected; all speeds are in one direction, bytes/s of one chip."""

    node: int = 1
    """Chips connected by one switch; 1 means a torus instead."""
    inside: float = 0.0
    """From a chip to the switch of its node, or of one link of the torus."""
    outside: float = 0.0
    """From a chip to other nodes, or from a torus to others."""
    torus: tuple[tuple[int, tuple[int, int]], ...] = ()
    """Sides of the torus, by number of chips."""
    closed_from: int = 16
    """Length from which a side wraps around to a ring; shorter sides are lines."""


@dataclass(frozen=True)
class Chip:
    """One accelerator."""

    peak: float
    """Dense bfloat16 FLOP/s, no sparsity."""
    bandwidth: float
    """Memory bandwidth, bytes/s."""
    names: tuple[str, ...]
    """What JAX calls it (`device_kind`), in lower case; whole words of the name suffice."""
    source: str
    links: Links = Links()


_NVIDIA = "nvidia.com data sheet; TFLOPS with sparsity halved"
_CLOUD = "cloud.google.com/tpu/docs"
_HOPPER = Links(node=8, inside=450e9, outside=50e9)
"""NVLink 4: 900 GB/s in both directions; a 400 Gb/s adapter for each GPU, as in DGX H100 / H200."""
_SIDES = ((4, (2, 2)), (8, (2, 4)), (16, (4, 4)), (32, (4, 8)), (64, (8, 8)), (128, (8, 16)))
_TORUS = (*_SIDES, (256, (16, 16)))

CHIPS: dict[str, Chip] = {
    "h200": Chip(989e12, 4.8e12, ("h200",), f"{_NVIDIA} (H200 SXM)", _HOPPER),
    "h100": Chip(989e12, 3.35e12, ("h100",), f"{_NVIDIA} (H100 SXM)", _HOPPER),
    "a100_80": Chip(312e12, 2.04e12, ("a100-sxm4-80gb", "a100 80gb"), f"{_NVIDIA} (A100 80 GB)"),
    "a100_40": Chip(312e12, 1.56e12, ("a100",), f"{_NVIDIA} (A100 40 GB)"),
    "l4": Chip(121e12, 0.3e12, ("nvidia l4",), f"{_NVIDIA} (L4)"),
    "v4": Chip(275e12, 1.2e12, ("tpu v4",), f"{_CLOUD}/v4"),
    "v5e": Chip(
        197e12,
        0.819e12,
        ("tpu v5 lite", "tpu v5e"),
        f"{_CLOUD}/v5e; ICI 400 GB/s a chip over 4 links in both directions",
        Links(inside=50e9, torus=_TORUS),
    ),
    "v6e": Chip(
        918e12,
        1.638e12,
        ("tpu v6 lite", "tpu v6e"),
        f"{_CLOUD}/v6e; ICI 800 GB/s a chip over 4 links in both directions",
        Links(inside=100e9, torus=_TORUS),
    ),
    # After v5e, whose name has the same prefix.
    "v5p": Chip(459e12, 2.765e12, ("tpu v5",), f"{_CLOUD}/v5p"),
}
"""Figures from the vendors' pages in 2026."""


def chip(name: str) -> Chip:
    """A chip by its name in `CHIPS`.

    Raises:
        ConfigError: there is no such chip; the message lists the known ones.
    """
    if name not in CHIPS:
        raise ConfigError(f"no chip {name!r}; choose from {', '.join(CHIPS)}")
    return CHIPS[name]


def chip_of(device_kind: str) -> str | None:
    """Name in `CHIPS` for a JAX `device_kind`; None for other devices, such as a CPU.

    Example:
        >>> chip_of("NVIDIA H100 80GB HBM3"), chip_of("TPU v5 lite"), chip_of("cpu")
        ('h100', 'v5e', None)
    """
    kind = device_kind.lower()
    for name, own in CHIPS.items():
        if any(re.search(rf"{re.escape(x)}(?![a-z\d])", kind) for x in own.names):
            return name
    return None


def ring_speed(links: Links, chips: int, axis: int, inner: int) -> float:
    """Bytes/s that each chip can send in a ring along a mesh axis.

    With a switch: a ring inside a node runs at the speed of the chip's link; one across nodes
    leaves each node through the adapters of its chips that belong to the ring. In a torus: an axis
    that spans all chips uses both sides, any other axis uses one; a side that wraps around has two
    links, a line has one.

    Args:
        links: of the chips.
        chips: of the whole mesh.
        axis: size of the mesh axis, or of several axes together.
        inner: product of the sizes of the axes after it, whose devices are closer together.

    Raises:
        ConfigError: no torus of that many chips is known.
    """
    if links.node > 1:
        if axis * inner <= links.node:
            return links.inside
        members = max(1, links.node // inner)
        return min(links.inside, members * links.outside)
    sides = dict(links.torus).get(chips)
    if sides is None:
        known = ", ".join(str(x) for x, _ in links.torus) or "none"
        raise ConfigError(f"no torus of {chips} chips is known; known are {known}")

    def side(length: int) -> float:
        return links.inside * (2 if length >= links.closed_from else 1)

    if axis == math.prod(sides):
        return sum(side(x) for x in sides)
    return min(side(x) for x in sides)
