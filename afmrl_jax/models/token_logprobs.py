"""Log-probability and entropy of tokens by chunks of the vocabulary: no logits are kept."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from afmrl_jax.parallel.layout import AXES
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int

CHUNK = 8192
"""Columns of the vocabulary whose logits exist at a time."""


class Head(NamedTuple):
    """Weights from hidden states to logits: a token table [v d], or a matrix [d v]."""

    weights: Float[Array, "_ _"]
    table: bool
    """Whether the vocabulary is the first axis."""

    def matrix(self, dtype: DTypeLike) -> Float[Array, "d v"]:
        """The weights in another type, the vocabulary along the columns."""
        return (self.weights.T if self.table else self.weights).astype(dtype)

    def logits(self, hidden: Float[Array, "*n d"]) -> Float[Array, "*n v"]:
        """All logits [... v] of states [... d], summed in float32 (float64 for float64 states)."""
        return jnp.dot(hidden, self.matrix(hidden.dtype), preferred_element_type=_wide(hidden))


class _Form(NamedTuple):
    """What is known when the program is compiled."""

    table: bool
    temperature: float
    chunk: int


def token_scores(
    hidden: Float[Array, "*n d"],
    head: Head,
    tokens: Int[AnyArray, "*n"],
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """The log of p(token) and the entropy of p at each place, both [...], in nats.

        p = softmax(hidden . head / temperature)

    The logits of a chunk of the vocabulary are made, summed up and let go, and made again for the
    gradient: memory is n x `chunk` and not n x v, for one more product with the head.

    Args:
        hidden: [... d].
        head: with v columns.
        tokens: int32 [...].
        temperature: divides the logits.
        chunk: columns at a time. A device that holds a part of the vocabulary goes through its
            own part.

    Returns:
        float32, or float64 for float64 states; equal to `token_scores_dense`, gradients too.
    """
    shape = tokens.shape
    flat, form = hidden.reshape(-1, hidden.shape[-1]), _Form(head.table, temperature, chunk)
    logprob, entropy = _scores(flat, head.weights, tokens.reshape(-1), form)
    return logprob.reshape(shape), entropy.reshape(shape)


def token_scores_dense(
    hidden: Float[Array, "*n d"],
    head: Head,
    tokens: Int[AnyArray, "*n"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """The literal twin of `token_scores`, over all logits at once."""
    logprobs = jax.nn.log_softmax(head.logits(hidden) / temperature, axis=-1)
    chosen = jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


def _wide(hidden: jax.Array) -> DTypeLike:
    """Type of sums."""
    return jnp.float64 if hidden.dtype == jnp.float64 else jnp.float32


class _Chunks:
    """The head cut into chunks [parts c d], in each of which all devices find columns of theirs.

    The last chunk begins early enough to be whole; what it repeats is masked.
    """

    def __init__(self, weights: jax.Array, form: _Form):
        self.table = table = form.table
        self.temperature = form.temperature
        vocab = weights.shape[0 if table else 1]
        mesh = jax.sharding.get_abstract_mesh()
        split = 1 if mesh.empty else int(mesh.shape.get(AXES[1], 1))
        self.parts = split if vocab % split == 0 else 1
        self.part = vocab // self.parts
        self.size = min(self.part, max(1, form.chunk // self.parts))
        self.count = -(-self.part // self.size)
        self.axis = 1 if table else 2
        shape = (self.parts, self.part)
        self.weights = weights.reshape(
            *(shape if table else (weights.shape[0],)),
            *((weights.shape[1],) if table else shape),
        )

    def begin(self, number: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.minimum(number * self.size, self.part - self.size)

    def take(self, array: Float[Array, "_ _ _"], number: Int[Array, ""]) -> Float[Array, "_ _ _"]:
        return jax.lax.dynamic_slice_in_dim(array, self.begin(number), self.size, self.axis)

    def logits(
        self, hidden: Float[Array, "n d"], number: Int[Array, ""]
    ) -> Float[Array, "n parts c"]:
        """-inf where an earlier chunk has the column."""
        weights = self.take(self.weights, number).astype(hidden.dtype)
        pattern = "nd,pcd->npc" if self.table else "nd,dpc->npc"
        out = jnp.einsum(pattern, hidden, weights, preferred_element_type=_wide(hidden))
        columns = self.begin(number) + jnp.arange(self.size, dtype=jnp.int32)
        own = (columns >= number * self.size)[None, None]
        return jnp.where(own, out / self.temperature, -jnp.inf)

    def place(
        self, tokens: Int[AnyArray, " n"], number: Int[Array, ""]
    ) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
        """Column of each token among the parts * c of a chunk, and whether it is there."""
        part, within = tokens // self.part, tokens % self.part
        at = within - self.begin(number)
        here = (within >= number * self.size) & (at < self.size)
        return part * self.size + jnp.clip(at, 0, self.size - 1), here


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scores(
    hidden: Float[Array, "n d"],
    weights: Float[Array, "_ _"],
    tokens: Int[AnyArray, " n"],
    form: _Form,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    return _forward(hidden, weights, tokens, form)[0]


def _sums(
    hidden: Float[Array, "n d"],
    weights: Float[Array, "_ _"],
    tokens: Int[AnyArray, " n"],
    form: _Form,
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """The log of p, entropy and log of the partition sum, by an online sum over chunks."""
    chunks, count = _Chunks(weights, form), hidden.shape[0]

    def step(carry: tuple[jax.Array, ...], number: jax.Array) -> tuple[tuple, None]:
        peak, total, weighted, chosen = carry
        logits = chunks.logits(hidden, number)
        higher = jnp.maximum(peak, jnp.max(logits, axis=(1, 2)))
        # The first peak is -inf, whose rescaling must be 0 and not NaN; a whole chunk never is.
        old = jnp.exp(peak - higher)
        mass = jnp.exp(logits - higher[:, None, None])
        total = total * old + jnp.sum(mass, axis=(1, 2))
        product = jnp.where(jnp.isneginf(logits), 0.0, mass * logits)
        weighted = weighted * old + jnp.sum(product, axis=(1, 2))
        column, here = chunks.place(tokens, number)
        own = jnp.take_along_axis(logits.reshape(count, -1), column[:, None], axis=1)[:, 0]
        return (higher, total, weighted, jnp.where(here, own, chosen)), None

    zero = jnp.zeros(count, _wide(hidden))
    start = (jnp.full(count, -jnp.inf, zero.dtype), zero, zero, zero)
    numbers = jnp.arange(chunks.count, dtype=jnp.int32)
    (peak, total, weighted, chosen), _ = jax.lax.scan(step, start, numbers)
    partition = peak + jnp.log(total)
    return chosen - partition, partition - weighted / total, partition


def _forward(
    hidden: Float[Array, "n d"],
    weights: Float[Array, "_ _"],
    tokens: Int[AnyArray, " n"],
    form: _Form,
) -> tuple[tuple[Float[Array, " n"], Float[Array, " n"]], tuple]:
    logprob, entropy, partition = _sums(hidden, weights, tokens, form)
    return (logprob, entropy), (hidden, weights, tokens, partition, entropy)


def _backward(form: _Form, kept: tuple, cotangents: tuple) -> tuple[jax.Array, jax.Array, None]:
    """Through the chunks again: d log p_t / d z = 1[t] - p and d H / d z = -p (log p + H)."""
    hidden, weights, tokens, partition, entropy = kept
    by_logprob, by_entropy = (x[:, None, None] for x in cotangents)
    chunks, wide = _Chunks(weights, form), _wide(hidden)
    back = "npc,pcd->nd" if form.table else "npc,dpc->nd"

    def step(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple, None]:
        by_hidden, by_weights = carry
        logits = chunks.logits(hidden, number)
        logp = logits - partition[:, None, None]
        p = jnp.exp(logp)
        surprise = jnp.where(jnp.isneginf(logits), 0.0, p * (logp + entropy[:, None, None]))
        column, here = chunks.place(tokens, number)
        columns = jnp.arange(chunks.parts * chunks.size, dtype=jnp.int32)
        own = (columns[None] == column[:, None]) & here[:, None]
        gradient = by_logprob * (own.reshape(p.shape).astype(wide) - p) - by_entropy * surprise
        gradient = (gradient / form.temperature).astype(hidden.dtype)
        part = chunks.take(chunks.weights, number).astype(hidden.dtype)
        by_hidden += jnp.einsum(back, gradient, part, preferred_element_type=wide)
        if gradient.dtype == wide:
            # XLA turns the left side around on a CPU, and the states are the smaller one.
            fresh = jnp.einsum("nd,npc->dpc", hidden, gradient)
            if form.table:
                fresh = jnp.transpose(fresh, (1, 2, 0))
        else:  # XLA has no such bfloat16 product on a CPU.
            fresh = jnp.einsum("npc,nd->pcd", gradient, hidden, preferred_element_type=wide)
            if not form.table:
                fresh = jnp.transpose(fresh, (2, 0, 1))
        # The masked columns of an overlapping chunk add nothing.
        fresh += chunks.take(by_weights, number)
        by_weights = jax.lax.dynamic_update_slice_in_dim(
            by_weights, fresh, chunks.begin(number), chunks.axis
        )
        return (by_hidden, by_weights), None

    start = jnp.zeros(hidden.shape, wide), jnp.zeros(chunks.weights.shape, wide)
    numbers = jnp.arange(chunks.count, dtype=jnp.int32)
    (by_hidden, by_weights), _ = jax.lax.scan(step, start, numbers)
    by_weights = by_weights.reshape(weights.shape).astype(weights.dtype)
    return by_hidden.astype(hidden.dtype), by_weights, None


_scores.defvjp(_forward, _backward)
