"""Which linear maps have low-rank adapters, of which rank and scale, and what these come to.

A stack of layers has one array for each factor, so its layers share the largest rank of any. What a
layer of a smaller rank does not have is multiplied by zero wherever it would be used: it adds
nothing, its gradient is zero, and what an optimizer makes of a zero without gradient is zero.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import LoraConfig, LoraMap, QwenVLConfig
from afmrl_jax.config.validation import require
from afmrl_jax.parallel.param_paths import STACKS, TOWER
from afmrl_jax.types import Array, Float

_SMALLEST = 1e-30
"""In place of the length of a column of zeros, which has no direction."""


class Adapter(NamedTuple):
    """Of a linear map in every layer of a stack; one entry stands for all layers."""

    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dora: bool

    @property
    def rank(self) -> int:
        """That the arrays have."""
        return max(self.ranks)

    def factor(self) -> float | np.ndarray:
        """What `lora_b` is multiplied by: a number, or float32 [l r 1]."""
        if len({*self.ranks}) == len({*self.scales}) == 1:
            return self.scales[0]
        exists = np.arange(self.rank) < np.array(self.ranks)[:, None]
        return (exists * np.array(self.scales)[:, None]).astype(np.float32)[..., None]


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model, or of the part of it whose parameters are below `path`."""

    lora: LoraConfig | None = None
    maps: tuple[LoraMap, ...] = ()
    path: str = ""

    @classmethod
    def of(cls, config: QwenVLConfig) -> Adapters:
        """Those of the whole model."""
        return cls(config.lora, config.lora_maps)

    def below(self, name: str) -> Adapters:
        """Those of a part of this part."""
        return dataclasses.replace(self, path=f"{self.path}{name}/")

    def __call__(self, name: str) -> Adapter | None:
        """That of a linear map in this part; None where it has none."""
        lora, path = self.lora, self.path + name
        if lora is None or not _targeted(path, lora):
            return None
        own = next((x for x in self.maps if x.name == path), None)
        ranks = (lora.rank,) if own is None else own.ranks
        alphas = (lora.alpha,) if own is None else own.alphas
        scales = tuple(lora.scale_of(r, x) for r, x in zip(ranks, alphas, strict=True))
        return Adapter(ranks, scales, lora.dora)


NO_ADAPTERS = Adapters()


def _targeted(path: str, lora: LoraConfig) -> bool:
    if path.startswith(TOWER):
        return tower_target(path) in lora.tower_targets
    return STACKS.search(path) is not None and path.rpartition("/")[2] in lora.targets


def tower_target(path: str) -> str:
    """What `LoraConfig.tower_targets` calls a linear map of the tower.

    Example:
        >>> tower_target("visual_tower/blocks/attn/qkv")
        'attn.qkv'
        >>> tower_target("visual_tower/merger/mlp_0")
        'merger.mlp.0'
    """
    name = path.removeprefix(TOWER).removeprefix("blocks/")
    return name.replace("/", ".").replace("mlp_", "mlp.")


def tower_path(target: str) -> str:
    """The path of the map that `tower_target` names so.

    Example:
        >>> tower_path("attn.qkv")
        'visual_tower/blocks/attn/qkv'
        >>> tower_path("merger.mlp.0")
        'visual_tower/merger/mlp_0'
    """
    part = target.partition(".")[0]
    stack = "" if part in ("merger", "deepstack_merger_list") else "blocks/"
    return TOWER + stack + re.sub(r"\bmlp\.(?=\d)", "mlp_", target).replace(".", "/")


def check_targets(config: QwenVLConfig, names: Iterable[str]) -> None:
    """See that the vision tower has the maps that adapters are wanted on.

    Args:
        config: of the model.
        names: of its parameters.

    Raises:
        ConfigError: it lacks some; the message lists what it has.
    """
    wanted = () if config.lora is None else config.lora.tower_targets
    tower = [x for x in names if x.startswith(TOWER)]
    adapted = {tower_target(x.removesuffix("/lora_a")) for x in tower if x.endswith("/lora_a")}
    lost = [x for x in wanted if x not in adapted]
    if lost:
        # The patch embedding is a convolution.
        stems = [x.removesuffix("/kernel") for x in tower if x.endswith("/kernel")]
        known = [tower_target(x) for x in stems if "patch_embed" not in x]
        require(
            False,
            f"lora tower_targets {', '.join(lost)}: the vision tower of {config.family} has "
            f"{', '.join(known)}",
        )


def scaled(config: QwenVLConfig, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters with each `lora_b` multiplied by its adapter's scale.

    On this side of an adapter the scale costs next to nothing, and a module need not know it.
    """
    adapters, ready = Adapters.of(config), dict(params)
    for name, value in params.items():
        if name.endswith("/lora_b"):
            adapter = adapters(name.removesuffix("/lora_b"))
            assert adapter is not None
            ready[name] = (value.astype(jnp.float32) * adapter.factor()).astype(value.dtype)
    return ready


def merged_kernel(
    kernel: Float[Array, "*l i o"],
    lora_a: Float[Array, "*l i r"],
    lora_b: Float[Array, "*l r o"],
    magnitude: Float[Array, "*l o"] | None = None,
) -> Float[Array, "*l i o"]:
    """The sum kernel + lora_a lora_b, in float32; with `magnitude`, its columns of those lengths.

    Args:
        kernel: before adaptation.
        lora_a: the first factor.
        lora_b: the second, `scaled`.
        magnitude: of DoRA.
    """
    change = jnp.matmul(
        lora_a.astype(jnp.float32), lora_b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    whole = kernel.astype(jnp.float32) + change
    if magnitude is None:
        return whole
    return whole * (magnitude.astype(jnp.float32) / column_norms(whole))[..., None, :]


def column_norms(kernel: Float[Array, "*l i o"]) -> Float[Array, "*l o"]:
    """Euclidean lengths of a matrix's columns, float32 and above zero."""
    wide = kernel.astype(jnp.float32)
    return jnp.maximum(jnp.sqrt(jnp.sum(wide * wide, axis=-2)), _SMALLEST)


def column_gains(
    kernel: Float[Array, "i o"],
    lora_a: Float[Array, "i r"],
    lora_b: Float[Array, "r o"],
    magnitude: Float[Array, " o"],
) -> Float[Array, " o"]:
    """What DoRA multiplies the outputs of kernel + lora_a lora_b by, float32.

    The lengths of its columns count as constants in a gradient (the paper's section 4.3, and
    `peft`), so that the gradient of the whole matrix is not needed.
    """
    fixed = jax.lax.stop_gradient((kernel, lora_a, lora_b))
    return magnitude.astype(jnp.float32) / column_norms(merged_kernel(*fixed))


def fresh_magnitudes(params: Mapping[str, jax.Array], names: Iterable[str]) -> dict[str, jax.Array]:
    """Magnitudes, among parameters of these `names`, of DoRA adapters that change nothing yet."""
    ends = [x.removesuffix("lora_magnitude") for x in names if x.endswith("/lora_magnitude")]
    norms = jax.jit(column_norms)
    return {f"{stem}lora_magnitude": norms(params[f"{stem}kernel"]) for stem in ends}
