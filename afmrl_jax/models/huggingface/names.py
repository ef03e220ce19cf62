"""Which tensor of a Hugging Face checkpoint is which of our parameters, and how it lies there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.families import family
from afmrl_jax.parallel.param_paths import STACKS, TOWER, is_adapter, is_stacked

_RENAMES = (
    (f"^{TOWER}", "visual/"),
    (r"/mlp_(\d)/", r"/mlp/\1/"),
    (r"/kernel$", "/weight"),
    (r"/scale$", "/weight"),
    (r"embed_tokens$", "embed_tokens/weight"),
    (r"pos_embed$", "pos_embed/weight"),
    (r"^lm_head$", "lm_head/weight"),
)


@dataclass(frozen=True)
class HubTensor:
    """A tensor under its published name, and its place in our parameters."""

    name: str
    """`model.layers.0.self_attn.q_proj.weight`"""
    ours: str
    """`model/layers/self_attn/q_proj/kernel`"""
    layer: int | None
    """Index along the first axis of ours; None where that is no stack."""
    shape: tuple[int, ...]
    """In the file."""
    kind: Literal["plain", "matrix", "patches"]
    """`matrix` is transposed there ([out, in]); `patches` is a convolution's kernel
    [out, channels, frames, side, side]."""


def hub_tensors(architecture: Architecture) -> list[HubTensor]:
    """All tensors of a checkpoint of this architecture, adapters left out, layer by layer."""
    found = []
    for ours, struct in architecture.shapes.items():
        if is_adapter(ours):
            continue
        stacked = is_stacked(ours)
        shape = struct.shape[1:] if stacked else struct.shape
        kind: Literal["plain", "matrix", "patches"] = "plain"
        if ours.endswith("patch_embed/proj/kernel"):
            vision = architecture.config.vision
            side, frames = vision.patch_size, vision.temporal_patch_size
            kind, shape = "patches", (shape[1], vision.in_channels, frames, side, side)
        elif ours.endswith("kernel") or ours == "lm_head":
            kind, shape = "matrix", shape[::-1]
        for layer in range(struct.shape[0]) if stacked else (None,):
            found.append(HubTensor(_hub_name(ours, layer), ours, layer, tuple(shape), kind))
    return sorted(found, key=lambda x: (x.layer is not None, x.layer or 0, x.name))


def _hub_name(ours: str, layer: int | None) -> str:
    name = ours
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    if layer is not None:
        name = STACKS.sub(rf"\1\2/{layer}/", name)
    return name.replace("/", ".")


def published_name(name: str, family_name: str) -> str:
    """The name in a file of a family for a tensor of `hub_tensors`.

    Example:
        >>> published_name("visual.pos_embed.weight", "qwen3_vl")
        'model.visual.pos_embed.weight'
        >>> published_name("model.norm.weight", "qwen2_vl")
        'model.norm.weight'
    """
    for theirs, ours in family(family_name).hub_prefixes:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def canonical_name(name: str) -> str:
    """A tensor's name without the prefixes that versions of transformers have put before it.

    Published files say `model.layers…` and `visual…`; models in memory, and what some tools write,
    say `model.language_model.layers…` and `model.visual…`.

    Example:
        >>> canonical_name("model.language_model.layers.0.input_layernorm.weight")
        'model.layers.0.input_layernorm.weight'
        >>> canonical_name("model.visual.merger.ln_q.weight")
        'visual.merger.ln_q.weight'
    """
    name = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name)
    name = re.sub(r"^model\.lm_head\.", "lm_head.", name)
    return re.sub(r"^model\.visual\.", "visual.", name)
