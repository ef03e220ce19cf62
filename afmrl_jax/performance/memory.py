"""Memory of a model's arrays on each device of a mesh, counted from shapes only."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from afmrl_jax.config import Execution, QwenVLConfig
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.families import family
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.parallel.sharding import shardings
from afmrl_jax.performance.accelerators import chip_of
from afmrl_jax.runtime.hardware import machine
from afmrl_jax.types import JsonObject

if TYPE_CHECKING:
    from jaxtyping import PyTree

GIB = 1024**3

DEVICES: dict[str, int] = {
    "h100": 80,
    "h200": 141,
    "a100_40": 40,
    "a100_80": 80,
    "l4": 24,
    "t4": 16,
    "v4": 32,
    "v5e": 16,
    "v5p": 95,
    "v6e": 32,
}
"""Memory of one device in GB (10^9 bytes), as the vendor states it; TPUs by chip."""

SPARE = 0.08
"""Share of a device's memory that a plan leaves free: allocator, collectives, fragmentation."""

How = Literal["exact", "compiled", "estimate"]


@dataclass(frozen=True)
class Line:
    """One part of a device's memory."""

    what: str
    bytes: int
    how: How
    """`exact`: from shapes and shardings. `compiled`: what XLA planned. `estimate`: a formula."""


def device_bytes(name: str) -> int:
    """Memory of a device by name, bytes.

    Raises:
        ConfigError: there is no such device; the message lists the known ones.
    """
    if name not in DEVICES:
        raise ConfigError(f"no device {name!r}; choose from {', '.join(DEVICES)}")
    return DEVICES[name] * 10**9


GPUS = ("h100", "h200", "a100_40", "a100_80", "l4", "t4")
"""Those of `DEVICES` of which JAX by itself takes a share and leaves the rest."""
JAX_SHARE = 0.75
"""The share of a GPU's memory that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise;
docs.jax.dev, "GPU memory allocation"."""


def jax_share(environment: Mapping[str, str] = os.environ) -> float:
    """The share of a GPU's memory that JAX will take.

    Raises:
        ConfigError: XLA_PYTHON_CLIENT_MEM_FRACTION is no share.
    """
    if environment.get("XLA_PYTHON_CLIENT_ALLOCATOR", "default").lower() == "platform":
        return 1.0
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    text = environment.get(name, "")
    try:
        share = float(text) if text else JAX_SHARE
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(f"{name}={text}: write a number above 0 and at most 1, such as 0.92")
    return share


def share_of(name: str, environment: Mapping[str, str] = os.environ) -> float:
    """The share of its memory that JAX will take of a device by name."""
    return jax_share(environment) if name in GPUS else 1.0


def jax_bytes(name: str, environment: Mapping[str, str] = os.environ) -> int:
    """What JAX may use of a device by name, bytes.

    Raises:
        ConfigError: there is no such device, or the share in the environment is none.
    """
    return int(device_bytes(name) * share_of(name, environment))


def bytes_here(sharing: int = 1) -> int:
    """What JAX may use of this machine's first device, bytes.

    Args:
        sharing: devices that share the machine's memory, where they have none of their own.
    """
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    name = chip_of(device.device_kind)
    if name in DEVICES:
        return jax_bytes(name)
    return int(machine()["memory_bytes"]) // sharing


def parse_mesh(text: str) -> tuple[int, int]:
    """Sizes of the axes data and model.

    Example:
        >>> parse_mesh("data=8,model=2")
        (8, 2)
        >>> parse_mesh("model=4")
        (1, 4)

    Raises:
        ConfigError: an unknown axis, or a size that is not a positive number.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in sizes or not size.isdecimal() or int(size) < 1:
            raise ConfigError(
                f"mesh {text!r}: {part.strip()!r} is not a positive axis size; write "
                f"data=8,model=1 (the axes are {' and '.join(AXES)})"
            )
        sizes[axis] = int(size)
    return sizes["data"], sizes["model"]


def abstract_mesh(data: int, model: int) -> AbstractMesh:
    """A mesh without devices: enough to get the shape of a shard from the sharding table."""
    return AbstractMesh((data, model), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shard_bytes(tree: PyTree, mesh: Mesh | AbstractMesh) -> int:
    """Bytes of a tree's arrays on each device, laid out by the sharding table.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s under the names that the table knows.
        mesh: from `make_mesh` or `abstract_mesh`.
    """
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings(tree, mesh)), strict=True)
    return sum(
        math.prod(sharding.shard_shape(tuple(leaf.shape))) * np.dtype(leaf.dtype).itemsize
        for leaf, sharding in pairs
    )


def rows_per_device(rows: int, data: int) -> int:
    """Rows of a batch on each device; all of them if they do not divide evenly."""
    return rows // data if rows % data == 0 else rows


def cache_bytes(
    config: QwenVLConfig, itemsize: int, rows: int, prompt: int, group: int, new: int
) -> int:
    """Bytes of the keys and values of `rows` prompts with `group` continuations each, all layers.

    Heads are counted whole: the sharding table never splits a cache over `model`.
    """
    text = config.text
    entry = 2 * text.num_layers * text.num_kv_heads * text.head_dim * itemsize
    return rows * (prompt + group * new) * entry


@dataclass(frozen=True)
class Load:
    """What one device computes at once, for `activation_bytes`."""

    rows: int
    text_tokens: int
    """Of a row, without those of its picture."""
    visual_tokens: int
    model: int
    """Size of the axis that splits heads and hidden units."""
    backward: bool = True
    through_vision: bool = False
    """Whether gradients flow into the vision tower."""
    logits: int = 0
    """Token places whose vocabulary logits are formed."""


def activation_bytes(config: QwenVLConfig, execution: Execution, load: Load) -> int:
    """A formula for activations and temporaries on one device, without compiling.

    With a bytes per number (2 or 4), per stack of L layers over n tokens:

    * saved for the backward pass: L n width a (`remat full`: each layer's input); that plus the
      outputs of all matrix products (`dots`); everything one layer computes, including scores
      (`none`);
    * one layer at work: everything it computes, twice if there is a backward pass;
    * dense scores: rows * heads * n^2 in float32 and once more as weights; none with fused
      attention;
    * logits: three times places * vocabulary in float32 (logits, log-softmax, gradient);
    * weights of one layer, gathered from all devices in the dtype of the activations, and the
      token table;
    * with DoRA on the decoder: the outputs of adapted maps once more, and its largest matrix in
      float32, for the lengths of its columns.

    The stacks run one after the other, so only the larger working set counts.
    """
    size = np.dtype(jax.numpy.dtype(execution.dtype)).itemsize
    text, vision = config.text, config.vision
    tokens = load.text_tokens + load.visual_tokens
    heads, narrow = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    fused = execution.attention == "fused"

    def stack(
        layers: int, length: int, width: int, products: int, inner: int, heads: int, learns: bool
    ) -> tuple[int, int]:
        numbers = load.rows * length
        scores = 0 if fused else load.rows * heads * length**2 * (4 + size) // load.model
        whole = numbers * (3 * width + (products + inner) // load.model) * size + scores
        kept = {
            "full": numbers * width * size,
            "dots": numbers * (2 * width + products // load.model) * size,
            "none": whole,
        }[execution.recomputes]
        return (layers * kept, 2 * whole) if learns else (0, whole)

    outputs = dict.fromkeys(("k_proj", "v_proj"), narrow) | {"q_proj": heads}
    outputs |= dict.fromkeys(("gate_proj", "up_proj"), text.intermediate_dim)
    stretched = () if config.lora is None or not config.lora.dora else config.lora.targets
    again = [outputs.get(x, text.hidden_dim) for x in stretched]
    gates = 2 if family(config.family).vision.gated else 1
    saved, work = stack(
        text.num_layers,
        tokens,
        text.hidden_dim,
        2 * heads + 2 * narrow + 2 * text.intermediate_dim + sum(again),
        text.intermediate_dim,
        text.num_heads,
        load.backward,
    )
    saved_vision, work_vision = stack(
        vision.depth,
        load.visual_tokens * vision.merge_size**2,
        vision.embed_dim,
        4 * vision.embed_dim + gates * vision.intermediate,
        vision.intermediate,
        vision.num_heads,
        load.backward and load.through_vision,
    )
    layer = text.hidden_dim * (2 * heads + 2 * narrow + 3 * text.intermediate_dim)
    gathered = (layer + text.vocab_size * text.hidden_dim) * size // load.model
    copies = 3 if load.backward else 2
    logits = copies * 4 * load.logits * text.vocab_size // load.model
    whole = 4 * text.hidden_dim * text.intermediate_dim // load.model if again else 0
    return saved + saved_vision + max(work, work_vision, logits) + gathered + whole


Verdict = Literal["fits", "may fit", "does not fit"]


@dataclass(frozen=True)
class Plan:
    """What one device holds at the peak of a step, and whether it fits."""

    lines: tuple[Line, ...]
    formula: Line
    """Activations by `activation_bytes`, even if `lines` has the compiler's figure."""
    capacity: int
    """Bytes of the device that JAX may use."""
    advice: tuple[str, ...] = ()
    share: float = 1.0
    """Of the device's memory, that `capacity` is."""

    @property
    def usable(self) -> int:
        """Bytes that a plan may fill."""
        return int(self.capacity * (1 - SPARE))

    @property
    def total(self) -> int:
        """Bytes of all lines."""
        return sum(x.bytes for x in self.lines)

    @property
    def formula_total(self) -> int:
        """Bytes with the formula in place of the compiler's figure."""
        return self.formula.bytes + sum(x.bytes for x in self.lines if x.how == "exact")

    @property
    def verdict(self) -> Verdict:
        """`may fit`: only one of the formula and XLA's plan for CPUs is below the limit."""
        if self.total <= self.usable and self.formula_total <= self.usable:
            return "fits"
        return "may fit" if min(self.total, self.formula_total) <= self.usable else "does not fit"

    def as_dict(self) -> JsonObject:
        """Everything in bytes, for `--as-json`."""
        return {
            "lines": [vars(x) for x in self.lines],
            "total": self.total,
            "activations_by_formula": self.formula.bytes,
            "total_by_formula": self.formula_total,
            "capacity": self.capacity,
            "usable": self.usable,
            "verdict": self.verdict,
            "advice": list(self.advice),
        }

    def text(self) -> str:
        """A table in GiB, the verdict and the advice."""
        rows = [(x.what, x.bytes, str(x.how)) for x in self.lines]
        rows.append(("total per device", self.total, ""))
        if self.formula_total != self.total:
            rows.append(("total with the formula instead", self.formula_total, "estimate"))
        lines = [f"{what:34s} {amount / GIB:9.2f} GiB  {how}" for what, amount, how in rows]
        lines.append(
            f"{self.verdict}: {self.usable / GIB:.1f} GiB may be used of "
            f"{self.capacity / GIB:.1f} ({100 * SPARE:.0f} % stay free)"
        )
        if self.share < 1:
            lines.append(
                f"JAX takes {100 * self.share:.0f} % of a GPU's memory; set "
                "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 to plan and run with more"
            )
        if any(x.how == "compiled" for x in self.lines):
            lines.append(
                "compiled: XLA's plan for simulated CPU devices (dense attention, other fusions, "
                "bfloat16 perhaps widened to float32); an accelerator's plan differs"
            )
        return "\n".join([*lines, *(f"  try {x}" for x in self.advice)])
