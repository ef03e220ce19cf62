"""One row of the sweep: its settings, whether it fits, and the largest batch that does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from afmrl_jax.config.validation import require
from afmrl_jax.performance.memory import Line, Plan, abstract_mesh, parse_mesh, shard_bytes
from afmrl_jax.performance.plan import advise, divide, estimated, exact_lines
from afmrl_jax.performance.request import Request
from afmrl_jax.types import JsonObject

Task = Literal["agcl", "distill", "generate", "rar"]
MOST_BATCH = 1 << 17
"""Upper limit of the search for the largest batch."""


@dataclass(frozen=True)
class Cell:
    """What is measured. Invalid values are rejected on construction."""

    model: str
    task: Task
    batch_size: int
    """Of the whole mesh: pairs (agcl), rows (distill) or prompts (generate, rar). 0 means the
    largest that fits, see `largest_batch`."""
    visual_tokens: int
    text_tokens: int
    dtype: Literal["float32", "bfloat16"]
    mesh: str
    remat: Literal["none", "dots", "full"]
    trained: Literal["all", "decoder", "lora"]
    group_size: int
    max_new_tokens: int
    workers: int
    steps: int

    def __post_init__(self) -> None:
        require(self.visual_tokens > 0, "a row needs a picture: visual_tokens must be positive")
        require(self.text_tokens >= 12, "text_tokens must be 12 or more: title, list and marks")
        require(self.steps > 1, "a median needs steps > 1")
        data = self.request.axes[0]
        require(
            self.batch_size % data == 0,
            f"batch {self.batch_size} does not divide evenly over the {data} devices of "
            f"the data axis of mesh {self.mesh!r}",
        )

    @property
    def request(self) -> Request:
        """Request for the memory plan; RAR as its update, the largest of its three parts."""
        lists = self.group_size * self.max_new_tokens if self.task == "rar" else 0
        return Request(
            preset=self.model,
            task="distill" if self.task == "rar" else self.task,
            mesh=self.mesh,
            # 0 is not decided yet; the search for it makes requests with other sizes.
            batch_size=self.batch_size or 2 * parse_mesh(self.mesh)[0],
            visual_tokens=self.visual_tokens,
            text_tokens=self.text_tokens + lists,
            trained=self.trained,
            dtype=self.dtype,
            remat=self.remat,
            group_size=self.group_size if self.task == "generate" else 1,
            max_new_tokens=self.max_new_tokens,
        )

    @property
    def label(self) -> str:
        """Label for tables and messages."""
        what = f"{self.model} {self.task} b{self.batch_size} v{self.visual_tokens}"
        return f"{what} {self.dtype} {self.mesh} remat {self.remat}"

    def key(self, where: JsonObject) -> str:
        """Key of a row: a hash of its settings, its machine and the library versions."""
        text = json.dumps({"cell": vars(self), **where}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_of(cell: Cell, capacity: int) -> Plan:
    """The memory plan by formula, for a device of `capacity` bytes."""
    request = cell.request
    architecture = request.architecture()
    formula = estimated(request, architecture.config)
    lines = [x for x in exact_lines(request, architecture) if x.bytes] + [formula]
    if cell.task == "rar":
        learning, _ = divide(request, architecture)
        kept = shard_bytes(learning, abstract_mesh(*request.axes))
        lines.append(Line("reference policy (float32)", kept, "exact"))
    return Plan(tuple(lines), formula, capacity)


def changes(cell: Cell) -> list[str]:
    """What to change if a cell does not fit, largest effect first."""
    return list(advise(cell.request))


def largest_batch(cell: Cell, capacity_of: Callable[[Cell], int]) -> int:
    """The largest batch that fits by the plan; 0 if not even the smallest does.

    Args:
        cell: its batch size is ignored.
        capacity_of: bytes of a device of the cell's mesh.
    """
    unit = parse_mesh(cell.mesh)[0]
    unit = unit if unit > 1 or cell.task in ("generate", "rar") else 2

    def fits(units: int) -> bool:
        asked = dataclasses.replace(cell, batch_size=units * unit)
        return plan_of(asked, capacity_of(asked)).verdict == "fits"

    if not fits(1):
        return 0
    low = 1
    while 2 * low * unit <= MOST_BATCH and fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * unit
