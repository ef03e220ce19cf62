"""The kernels at published sizes on one device: AGCL, BM25, the reward's counting, exact search."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from afmrl_jax.data.attributes.bm25_terms import batch_vocabulary
from afmrl_jax.models.qwen_vl.attention import AttentionLayout, Implementation, attend
from afmrl_jax.objectives.agcl import Form, agcl_loss
from afmrl_jax.objectives.bm25 import bm25_scores, fit_bm25
from afmrl_jax.objectives.ranks import rank_positives
from afmrl_jax.performance.benchmarks import agcl
from afmrl_jax.performance.benchmarks.calls import seconds_of_calls
from afmrl_jax.performance.benchmarks.texts import attribute_texts
from afmrl_jax.performance.record import spread
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.types import JsonObject

QUEUED = 8
"""Calls of a kernel that are started at once, see `seconds_of_calls`; a search is waited for."""
Measured = tuple[dict[str, float], JsonObject]
"""Figures by name, and the detail that goes with them."""


@dataclass(frozen=True)
class KernelSizes:
    """What the kernels work on."""

    agcl: tuple[int, int] = (16_384, 65_536)
    """Pairs, the `16k` and `64k` of the figures."""
    dim: int = 1536
    """Of a vector; Qwen2-VL-2B has 1536."""
    vocab: int = 20_000
    """Attribute terms of the catalogue."""
    bm25: int = 1024
    """Queries, and candidates."""
    reward: tuple[int, int] = (4096, 200_000)
    """Queries and gallery of the reward."""
    exact: tuple[int, int] = (1_000_000, 8192)
    """Gallery and queries of exact search; the gallery is bfloat16."""
    agreement: int = 2048
    """Pairs on which AGCL's tiles are compared with the dense form."""

    @classmethod
    def tiny(cls) -> KernelSizes:
        """For a rehearsal on a CPU: seconds altogether."""
        return cls((128, 256), 64, 500, 64, (64, 500), (2000, 200), 128)


def unit_vectors(count: int, dim: int, dtype: DTypeLike, seed: int) -> jax.Array:
    """Random unit vectors [count dim], made on the device."""

    @jax.jit
    def make(key: jax.Array) -> jax.Array:
        x = jax.random.normal(key, (count, dim), jnp.bfloat16).astype(jnp.float32)
        return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)

    return make(jax.random.key(seed))


def agreement(sizes: KernelSizes, dtype: DTypeLike = jnp.bfloat16) -> Measured:
    """Relative errors of this device's forms.

    Attention in `dtype` with its gradients against the dense form in float32; the gradient of
    AGCL's tiles against that of the dense form.
    """
    shape = (2, 320, 12, 128)
    q, k, v = (
        8.0 * unit_vectors(2 * 320 * heads, 128, jnp.float32, seed).reshape(2, 320, heads, 128)
        for seed, heads in enumerate((shape[2], 2, 2))
    )
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    layout = AttentionLayout(causal=True)

    def both(form: Implementation, kind: DTypeLike) -> tuple[jax.Array, ...]:
        def total(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            narrow = q.astype(kind), k.astype(kind), v.astype(kind)
            out = attend(*narrow, layout, form).astype(jnp.float32)
            return jnp.sum(out**2), out

        grads, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return (out, *grads)

    attention = map(_apart, both("auto", dtype), both("dense", jnp.float32))
    settings = agcl.Settings(time_batch=sizes.agreement, size=sizes.dim, vocab=sizes.vocab)
    queries, candidates, terms, products = agcl.batch_of(settings)

    def gradient(form: Form) -> jax.Array:
        def loss(x: jax.Array) -> jax.Array:
            return agcl_loss(x, candidates, terms, products, form=form, gamma=1.0, delta=0.1)[0]

        return jax.jit(jax.grad(loss))(queries)

    figures = {
        "attention_error": max(attention),
        "agcl_error": _apart(gradient("tiled"), gradient("dense")),
    }
    return figures, {"attention_shape": list(shape), "agcl_pairs": sizes.agreement}


def _apart(found: jax.Array, expected: jax.Array) -> float:
    """Norm of the difference over the norm of what is right."""
    difference = jnp.linalg.norm(found.astype(jnp.float32) - expected)
    return float(difference / jnp.linalg.norm(expected))


def agcl_time(pairs: int, sizes: KernelSizes, repeats: int) -> tuple[list[float], JsonObject]:
    """Seconds of AGCL's value and gradient on both sides' vectors, attribute weights included."""
    settings = agcl.Settings(time_batch=pairs, size=sizes.dim, vocab=sizes.vocab)
    queries, candidates, terms, products = agcl.batch_of(settings)

    @jax.jit
    def value_and_gradient(q: jax.Array, c: jax.Array) -> object:
        def loss(q: jax.Array, c: jax.Array) -> jax.Array:
            return agcl_loss(q, c, terms, products, temperature=0.02, gamma=1.0, delta=0.1)[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(q, c)

    seconds = seconds_of_calls(lambda: value_and_gradient(queries, candidates), repeats, QUEUED)
    # Scores once, and once for the gradient of each side.
    detail = {"pairs": pairs, "dim": sizes.dim, "queued": QUEUED}
    return seconds, detail | {"flops": 6.0 * pairs**2 * sizes.dim}


def bm25_time(sizes: KernelSizes, repeats: int) -> tuple[list[float], JsonObject]:
    """Seconds of all scores of a batch on the device, its terms already numbered."""
    queries, candidates = (attribute_texts(sizes.bm25, sizes.vocab, 16, seed) for seed in range(2))
    statistics = fit_bm25(candidates, sizes.vocab)
    batch = batch_vocabulary(queries, candidates, sizes.vocab)
    own = statistics.restricted(jnp.asarray(batch.terms))
    asked, other = jnp.asarray(batch.query), jnp.asarray(batch.candidate)
    scores = jax.jit(lambda q, c: bm25_scores(own, q, c))
    seconds = seconds_of_calls(lambda: scores(asked, other), repeats, QUEUED)
    return seconds, {"batch": sizes.bm25, "queued": QUEUED}


def reward_time(sizes: KernelSizes, repeats: int) -> tuple[list[float], JsonObject]:
    """Seconds of the ranks of all queries against the gallery, bfloat16."""
    count, size = sizes.reward
    queries = unit_vectors(count, sizes.dim, jnp.float32, 0)
    gallery = unit_vectors(size, sizes.dim, jnp.bfloat16, 1)
    places = jnp.tile(jnp.arange(4, dtype=jnp.int32), (count, 1))
    ranks = jax.jit(lambda q, g: rank_positives(q, g, places, places[:, 0]).rank)
    seconds = seconds_of_calls(lambda: ranks(queries, gallery), repeats, QUEUED)
    detail = {"queries": count, "gallery": size, "dim": sizes.dim, "queued": QUEUED}
    return seconds, detail | {"flops": 2.0 * count * size * sizes.dim, "bytes": gallery.nbytes}


def exact_time(sizes: KernelSizes, repeats: int) -> tuple[list[float], JsonObject]:
    """Seconds of a search for the best 50 of the gallery, from queries on the host to ids."""
    size, count = sizes.exact
    vectors = np.asarray(unit_vectors(size, sizes.dim, jnp.bfloat16, 2))
    queries = np.asarray(unit_vectors(count, sizes.dim, jnp.float32, 3))
    index = ExactIndex([str(n) for n in range(size)], vectors, dtype="bfloat16")
    seconds = seconds_of_calls(lambda: index.search(queries, 50).scores, repeats)
    detail = {"queries": count, "gallery": size, "dim": sizes.dim}
    return seconds, detail | {"flops": 2.0 * count * size * sizes.dim, "bytes": vectors.nbytes}


def share_of_roofline(detail: JsonObject, seconds: float, peak: float, bandwidth: float) -> float:
    """How much of the time the slower of products and reading would take on its own.

    Args:
        detail: `flops` and, where reading matters, `bytes` of one call.
        seconds: of the call.
        peak: measured FLOP/s.
        bandwidth: measured bytes/s.
    """
    needed = max(detail["flops"] / peak, detail.get("bytes", 0) / bandwidth)
    return float(needed / seconds)


def figures_of(name: str, timed: tuple[list[float], JsonObject]) -> Measured:
    """Milliseconds by the kernel's name, and the detail with its spread."""
    seconds, detail = timed
    return {f"{name}_ms": 1e3 * float(np.median(seconds))}, detail | {"seconds": spread(seconds)}
