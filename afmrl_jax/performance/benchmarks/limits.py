"""The least time that a part of the comparison with torch can take on this machine.

That of its matrix products at the rate of a large one, and of its weights at the rate at which they
are read. What a library needs beyond it goes to copies, small operations and waiting.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from afmrl_jax.performance.benchmarks.calls import seconds_of_calls
from afmrl_jax.performance.benchmarks.workload import Size
from afmrl_jax.performance.flops import Passes, decoder_flops, head_flops

READ_BYTES = 1 << 28
"""Of the matrix whose reading is timed: more than any cache holds."""
REPEATS = 15


class Limits(NamedTuple):
    """Of a machine, the best of some calls."""

    products: float
    """FLOP/s of a product as large as the model's widest, in float32."""
    reading: float
    """Bytes/s at which a product with a single row reads its matrix."""


def measure_limits(size: Size) -> Limits:
    """Both rates, with all cores that this process may use."""
    tokens = 2 * size.pairs * (size.side**2 + size.text_tokens)
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (tokens, size.hidden_dim))
    w = jax.random.normal(keys[1], (size.hidden_dim, size.intermediate_dim))
    product = jax.jit(lambda x, w: x @ w)
    flops = 2 * tokens * size.hidden_dim * size.intermediate_dim
    row = jax.random.normal(keys[2], (1, size.hidden_dim))
    big = jax.random.normal(keys[3], (size.hidden_dim, READ_BYTES // 4 // size.hidden_dim))
    return Limits(
        flops / min(seconds_of_calls(lambda: product(x, w), REPEATS)),
        big.nbytes / min(seconds_of_calls(lambda: product(row, big), REPEATS)),
    )


def least_seconds(part: str, size: Size, limits: Limits) -> float:
    """Of one call of a part, at those rates.

    Args:
        part: `forward`, `train`, or `decode_b` and the number of rows.
        size: of model and rows.
        limits: of the machine.
    """
    kind, _, asked = part.partition("_b")
    count, config = int(asked or 2 * size.pairs), size.config
    lengths = np.full(count, size.side**2 + size.text_tokens)
    patches = np.full(count, size.side**2 * config.vision.merge_size**2)
    passes = Passes.over(config, patches, lengths)
    if kind == "forward":
        return passes.forward / limits.products
    if kind == "train":
        adapted = dataclasses.replace(config, lora=size.lora)
        return Passes.over(adapted, patches, lengths).step("lora") / limits.products
    written = decoder_flops(config, np.ones(count), lengths) + head_flops(config, count)
    text = config.text
    narrow = text.num_kv_heads * text.head_dim
    kernels = text.hidden_dim * (2 * text.num_heads * text.head_dim + 2 * narrow)
    kernels += 3 * text.hidden_dim * text.intermediate_dim
    weights = 4 * (text.num_layers * kernels + text.hidden_dim * text.vocab_size)
    token = max(written / limits.products, weights / limits.reading)
    return passes.forward / limits.products + size.new_tokens * token
