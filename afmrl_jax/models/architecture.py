"""Models as a parameter dictionary plus a description without weights.

Parameters travel as `{"visual_tower/blocks/attn/qkv/kernel": array, ...}`: a pure pytree that jit,
grad, the sharding table and the checkpoints handle without knowing Flax. Those of a stack of
layers have the layers along their first axis.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from afmrl_jax.config import Execution, InitConfig, QwenVLConfig
from afmrl_jax.models.families import Build, family
from afmrl_jax.models.induction import add_induction_head
from afmrl_jax.models.qwen_vl.adapters import check_targets, fresh_magnitudes, scaled
from afmrl_jax.models.qwen_vl.layers import Keys
from afmrl_jax.models.qwen_vl.model import QwenVL
from afmrl_jax.parallel.param_paths import stays_wide
from afmrl_jax.runtime.distributed import to_host

Params = dict[str, jax.Array]


def _name(path: jax.tree_util.KeyPath) -> str:
    parts = [str(getattr(entry, "key", getattr(entry, "idx", ""))) for entry in path]
    return "/".join(part for part in parts if part not in ("", "value"))


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model without its weights: binds a parameter dictionary to a callable module."""

    config: QwenVLConfig
    execution: Execution
    graphdef: nnx.GraphDef[QwenVL]
    treedef: jax.tree_util.PyTreeDef
    shapes: dict[str, jax.ShapeDtypeStruct]
    """Of every parameter by name, in the order of the tree."""

    def __eq__(self, other: object) -> bool:
        """Config and execution determine the rest; cheap to compare as a static jit argument."""
        return (
            isinstance(other, Architecture)
            and self.config == other.config
            and self.execution == other.execution
        )

    def __hash__(self) -> int:
        return hash((self.config, self.execution))

    @classmethod
    def of(cls, config: QwenVLConfig, execution: Execution | None = None) -> Architecture:
        """Trace the module without allocating its weights.

        Raises:
            ConfigError: the vision tower lacks a map that adapters are wanted on.
        """
        execution = execution or Execution()
        abstract = nnx.eval_shape(
            lambda: family(config.family).build(
                config, execution, keys=Keys(jax.random.key(0), shapes_only=True)
            )
        )
        graphdef, state = nnx.split(abstract)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
        shapes = {_name(path): jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in leaves}
        check_targets(config, shapes)
        return cls(config, execution, graphdef, treedef, shapes)

    def with_execution(self, execution: Execution) -> Architecture:
        """The same model computed in another way."""
        return Architecture.of(self.config, execution)

    def init(self, seed: int, settings: InitConfig | None = None) -> Params:
        """Random parameters, float32."""
        build = family(self.config.family).build
        return self._init(build, jnp.uint32(seed), settings or InitConfig())

    # Of the class and not of an instance, so that equal architectures are compiled once.
    @partial(jax.jit, static_argnames=("self", "build", "settings"))
    def _init(self, build: Build, seed: jax.Array, settings: InitConfig) -> Params:
        key = jax.random.key(seed)
        params = self.flatten(build(self.config, self.execution, keys=Keys(key)))
        scales = {
            "embed_tokens": settings.embedding / InitConfig.embedding,
            "lm_head": settings.embedding / InitConfig.embedding,
            "layers/self_attn/o_proj/kernel": settings.residual,
            "layers/mlp/down_proj/kernel": settings.residual,
        }
        for ending, scale in scales.items():
            if scale != 1.0:
                params |= {n: scale * x for n, x in params.items() if n.endswith(ending)}
        text = self.config.text
        # The circuit is made of biases, and norms would undo its strengths.
        if settings.induction and text.qkv_bias and not text.qk_norm:
            params = add_induction_head(params, self.config.text, jax.random.fold_in(key, 1))
        return {**params, **fresh_magnitudes(params, params)}

    def as_computed(self, params: Params) -> Params:
        """New arrays of the types that a use of the parameters casts them to: vectors of float32
        computations, such as those of norms, as they are.

        The same function in fewer bytes, for parameters that are read often and do not learn.
        """
        dtype = jnp.dtype(self.execution.dtype)
        return {
            name: jnp.array(x, x.dtype if stays_wide(name) else dtype, copy=True)
            for name, x in params.items()
        }

    def flatten(self, model: QwenVL) -> Params:
        """The parameters of a module."""
        leaves = jax.tree.leaves(nnx.split(model)[1])
        return dict(zip(self.shapes, leaves, strict=True))

    def bind(self, params: Params) -> QwenVL:
        """The module holding `params`; cheap, and meant to be called inside jit."""
        ready = scaled(self.config, params)
        leaves = [ready[name] for name in self.shapes]
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, leaves))


def identity(architecture: Architecture, params: Params) -> str:
    """A hash of a model: what two different ones wrote or embedded must not be mixed."""
    digest = hashlib.sha256(repr(architecture.config).encode())
    for name in sorted(params):
        digest.update(to_host(params[name]).tobytes())
    return digest.hexdigest()[:16]
