"""Step time and efficiency on many chips, from bytes, operations and public speeds."""

from __future__ import annotations

from dataclasses import dataclass

from afmrl_jax.performance.accelerators import Chip, ring_speed
from afmrl_jax.performance.flops import Passes
from afmrl_jax.performance.memory import Plan, device_bytes
from afmrl_jax.performance.plan import estimated, exact_lines
from afmrl_jax.performance.request import Request
from afmrl_jax.types import JsonObject


@dataclass(frozen=True)
class Assumptions:
    """Assumptions of the prediction."""

    mfu_alone: float = 0.40
    """Useful share of a chip's peak when nothing waits for other chips; the best published
    training of 2 to 4 B models reaches 30 to 44 %."""
    link_share: float = 0.80
    """Share of a link's stated speed that a long ring reaches."""
    hop_seconds: float = 1e-6
    """Latency of one step of a ring in a torus."""
    node_seconds: float = 10e-6
    """Latency of an exchange between the chips of a node."""
    fabric_seconds: float = 30e-6
    """Latency of an exchange between nodes."""


def useful(request: Request) -> float:
    """Useful operations of a step with all rows at full length."""
    config, rows = request.architecture().config, request.rows
    pictures = [request.visual_tokens * config.vision.merge_size**2] * rows
    length = request.visual_tokens + request.text_tokens
    # Distillation learns only from the list, at most the text after the picture.
    scored = rows * request.text_tokens if request.task == "distill" else 0
    return Passes.over(config, pictures, [length] * rows, scored).step(request.trained)


def start_seconds(chip: Chip, group: int, inner: int, chips: int, given: Assumptions) -> float:
    """How long an exchange takes to start, independent of its size."""
    links = chip.links
    if links.node > 1:
        return given.node_seconds if group * inner <= links.node else given.fabric_seconds
    sides = dict(links.torus)[chips]
    return given.hop_seconds * (sum(sides) if group == chips else max(sides))


@dataclass(frozen=True)
class Prediction:
    """One program on one kind of chip."""

    computing: float
    """Seconds of a step that the chips compute."""
    links: float
    """Seconds that the links are busy."""
    starts: float
    """Seconds that exchanges take to start."""
    efficiency: tuple[float, float]
    """Share of one chip's speed: with no overlap of exchange and compute, and with full overlap."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of a step: with full overlap, and with none."""
        exchange = self.links + self.starts
        return max(self.computing, exchange), self.computing + exchange


def predict(program: JsonObject, request: Request, chip: Chip, given: Assumptions) -> Prediction:
    """Predicted time of a program's step.

    Args:
        program: from `programs.exchanged`.
        request: the step on that mesh.
        chip: with links.
        given: the assumptions.
    """
    data, model = request.axes
    chips = data * model
    computing = useful(request) / chips / (chip.peak * given.mfu_alone)
    links = starts = 0.0
    for axes, own in program["axes"].items():
        group, inner = int(own["group"]), model if axes == "data" else 1
        # Compilers for accelerators send half as much of a sum of which each device takes a slice.
        sent = own["sent"] - own["sliced"] / 2
        links += sent / (given.link_share * ring_speed(chip.links, chips, group, inner))
        starts += own["big"] * start_seconds(chip, group, inner, chips, given)
    exchange = links + starts
    worst, best = computing / (computing + exchange), computing / max(computing, exchange)
    return Prediction(computing, links, starts, (worst, best))


def fits(request: Request, memory: str) -> str:
    """Verdict of the memory plan by formula, and how full the device is."""
    architecture = request.architecture()
    formula = estimated(request, architecture.config)
    plan = Plan((*exact_lines(request, architecture), formula), formula, device_bytes(memory))
    return f"{plan.verdict} ({plan.total / 1e9:.0f} of {plan.capacity / 1e9:.0f} GB)"
