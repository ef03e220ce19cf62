"""Real sizes with random weights on one GPU or TPU: the embedder's training step and the
generator's decoding.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from afmrl_jax.config import Execution, LoraConfig, QwenVLConfig
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.sources.batches import ContrastiveBatch
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.generation import generate
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.parallel.param_paths import is_adapter
from afmrl_jax.performance.benchmarks.calls import seconds_of_calls
from afmrl_jax.performance.benchmarks.jax_side import settings
from afmrl_jax.performance.benchmarks.workload import Size, make_rows
from afmrl_jax.performance.flops import Passes
from afmrl_jax.performance.memory import cache_bytes
from afmrl_jax.performance.record import spread
from afmrl_jax.training.agcl import make_agcl_step
from afmrl_jax.training.state import initial_state, make_optimizer
from afmrl_jax.types import JsonObject

QUEUED = 16
"""Calls of a peak's measurement that are started at once."""


@dataclass(frozen=True)
class Load:
    """A model and its workload."""

    config: QwenVLConfig
    size: Size
    """Shape of the rows; its model widths are not used."""
    rows: int
    execution: Execution = dataclasses.field(
        default_factory=lambda: Execution(dtype="bfloat16", remat="dots")
    )

    @classmethod
    def embedder(cls) -> Load:
        """Qwen2-VL-2B on 32 pairs of 256 visual and 64 text tokens."""
        config = dataclasses.replace(preset("qwen2vl_2b"), lora=LoraConfig())
        return cls(config, Size(side=16, pairs=32), 64)

    @classmethod
    def generator(cls) -> Load:
        """Qwen2.5-VL-3B on 64 prompts of 256 visual and 64 text tokens, 128 tokens each."""
        return cls(preset("qwen2_5vl_3b"), Size(side=16, new_tokens=128), 64)

    @classmethod
    def tiny(cls, *, adapted: bool) -> Load:
        """For a rehearsal on a CPU, with adapters or without."""
        # More tokens than a test of values needs: their time must stand out of the prompt's.
        size = dataclasses.replace(Size.tiny(), new_tokens=48)
        config = dataclasses.replace(size.config, lora=size.lora) if adapted else size.config
        return cls(config, size, 4)

    @property
    def batch(self) -> VLBatch:
        """Rows with this model's image token id."""
        rows = make_rows(self.size, self.rows)
        place = rows.tokens == 3
        tokens = np.where(place, self.config.image_token_id, rows.tokens).astype(np.int32)
        return jax.device_put(rows._replace(tokens=tokens))


def peaks(side: int, repeats: int) -> tuple[dict[str, float], JsonObject]:
    """Measured peaks: a bfloat16 product of two [side side], and reading memory."""
    # Random, because constant data runs faster than any real one: fewer bits change.
    x = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    seconds = np.median(seconds_of_calls(lambda: product(x), repeats, QUEUED))
    big = jax.random.normal(jax.random.key(1), (16, side, side), jnp.bfloat16)
    total = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
    read = np.median(seconds_of_calls(lambda: total(big), repeats, QUEUED))
    figures = {
        "peak_tflops": 2 * side**3 / float(seconds) / 1e12,
        "bandwidth_tb_per_second": big.nbytes / float(read) / 1e12,
    }
    return figures, {"side": side, "queued": QUEUED}


def random_params(shapes: dict[str, jax.ShapeDtypeStruct], dtype: DTypeLike) -> Params:
    """Small random weights, created on the device one at a time."""

    @partial(jax.jit, static_argnums=(1,))
    def make(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return 0.02 * jax.random.normal(key, shape, dtype)

    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {n: make(k, tuple(x.shape)) for k, (n, x) in zip(keys, shapes.items(), strict=True)}


def device_memory() -> dict[str, int]:
    """Bytes of the first device: the most in use so far, and the limit; empty if it has neither."""
    found = jax.devices()[0].memory_stats() or {}
    return {k: found[k] for k in ("peak_bytes_in_use", "bytes_limit") if k in found}


def train_step(load: Load, peak: float, repeats: int) -> tuple[dict[str, float], JsonObject]:
    """The embedder's step on adapters: images/s, and FLOP/s by the operations that it needs: the
    frozen vision tower once and the decoder twice, see `flops.Passes.step`. `r_hfu` also counts
    what is recomputed to save memory.
    """
    architecture = Architecture.of(load.config, load.execution)
    own = {n: x for n, x in architecture.shapes.items() if is_adapter(n)}
    frozen = random_params(
        {n: x for n, x in architecture.shapes.items() if n not in own}, jnp.bfloat16
    )
    configured = settings(1000)
    optimizer = make_optimizer(configured.optimizer, configured.steps)
    holder = [initial_state(random_params(own, jnp.float32), optimizer)]
    step = make_agcl_step(architecture, configured, None, optimizer)
    products = jnp.arange(load.rows // 2, dtype=jnp.int32)
    batch = ContrastiveBatch(load.batch, products)

    def call() -> object:
        holder[0], metrics = step(frozen, holder[0], batch, jax.random.key(0))
        return holder[0], metrics

    samples = seconds_of_calls(call, repeats)
    visual = load.size.side**2
    patches = visual * load.config.vision.merge_size**2
    passes = Passes.over(load.config, [patches], [visual + load.size.text_tokens])
    rate = load.rows / float(np.median(samples))
    figures = {
        "r_images_per_second": rate,
        "r_tflops": rate * passes.step("lora") / 1e12,
        "r_share_of_peak": rate * passes.step("lora") / peak,
        "r_hfu": rate * passes.executed("lora", load.execution.recomputes) / peak,
    }
    return figures, {
        "rows": load.rows,
        "seconds": spread(samples),
        **device_memory(),
    }


def decode(load: Load, bandwidth: float, repeats: int) -> tuple[dict[str, float], JsonObject]:
    """The generator's decoding: tokens/s, and as a share of reading all weights once per token.

    Raises:
        RunError: the prompt alone took as long as the prompt and all tokens.
    """
    architecture = Architecture.of(load.config, load.execution)
    params, batch = random_params(architecture.shapes, jnp.bfloat16), load.batch

    @partial(jax.jit, static_argnums=2)
    def write(params: Params, batch: VLBatch, count: int) -> jax.Array:
        return generate(
            architecture.bind(params),
            batch,
            group_size=1,
            max_new_tokens=count,
            temperature=0.0,
            key=jax.random.key(0),
            eos_id=-1,
            pad_id=0,
        ).tokens

    whole = seconds_of_calls(lambda: write(params, batch, load.size.new_tokens), repeats)
    first = seconds_of_calls(lambda: write(params, batch, 1), repeats)
    # Without the prompt: seconds of each further token.
    seconds = float(np.median(whole) - np.median(first)) / (load.size.new_tokens - 1)
    if seconds <= 0:
        raise RunError("one token took as long as all: the machine is busy; measure again")
    # The vision tower is not read while decoding.
    read = sum(x.nbytes for n, x in params.items() if not n.startswith("visual_tower"))
    size, width = load.size, jnp.dtype(load.execution.dtype).itemsize
    # A token reads the prompts', and on average half of what will be written.
    prompt = size.side**2 + size.text_tokens
    cache = cache_bytes(load.config, width, load.rows, prompt, 1, size.new_tokens // 2)
    figures = {
        "g_tokens_per_second": load.rows / seconds,
        "g_share_of_bandwidth": read / bandwidth / seconds,
        "g_share_of_roofline": (read + cache) / bandwidth / seconds,
    }
    detail = {"rows": load.rows, "seconds": spread(whole)}
    return figures, detail | {"prompt_seconds": spread(first), **device_memory()}
