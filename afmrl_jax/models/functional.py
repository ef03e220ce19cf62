"""Models as a parameter dictionary plus a description without weights.

Parameters travel as `{"visual/blocks/0/attn/qkv/kernel": array, ...}`: a pure pytree that jit,
grad, the sharding table and the checkpoints handle without knowing Flax.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from afmrl_jax.model_config import QwenVLConfig
from afmrl_jax.models.induction import add_induction_head
from afmrl_jax.models.qwen_vl import QwenVL

Params = dict[str, jax.Array]


def _name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(entry, "key", getattr(entry, "idx", ""))) for entry in path]
    return "/".join(part for part in parts if part not in ("", "value"))


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model without its weights: binds a parameter dictionary to a callable module."""

    config: QwenVLConfig
    graphdef: Any
    treedef: Any
    names: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        """The config determines the rest, and is cheap to compare as a static jit argument."""
        return isinstance(other, Architecture) and self.config == other.config

    def __hash__(self) -> int:
        return hash(self.config)

    @classmethod
    def of(cls, config: QwenVLConfig) -> Architecture:
        """Trace the module without allocating its weights."""
        abstract = nnx.eval_shape(lambda: QwenVL(config, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
        return cls(config, graphdef, treedef, tuple(_name(path) for path, _ in leaves))

    def init(self, seed: int) -> Params:
        """Random parameters."""
        return jax.jit(self._init)(jnp.uint32(seed))

    def _init(self, seed: jax.Array) -> Params:
        key = jax.random.key(seed)
        params = self.flatten(QwenVL(self.config, rngs=nnx.Rngs(key)))
        if self.config.text.init_induction:
            params = add_induction_head(params, self.config.text, jax.random.fold_in(key, 1))
        return params

    def flatten(self, model: QwenVL) -> Params:
        """The parameters of a module."""
        leaves = jax.tree.leaves(nnx.split(model)[1])
        return dict(zip(self.names, leaves, strict=True))

    def bind(self, params: Params) -> QwenVL:
        """The module holding `params`; cheap, and meant to be called inside jit."""
        leaves = [params[name] for name in self.names]
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, leaves))


def identity(architecture: Architecture, params: Params) -> str:
    """A hash of a model: what two different ones wrote or embedded must not be mixed."""
    digest = hashlib.sha256(repr(architecture.config).encode())
    for name in sorted(params):
        digest.update(np.asarray(params[name]).tobytes())
    return digest.hexdigest()[:16]
