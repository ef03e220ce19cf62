"""Sampling and scoring of text after a prompt that is encoded once for its whole group."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.row_packing import Prompts
from afmrl_jax.data.batching.tail_packing import TailRows
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.models import constrained as following
from afmrl_jax.models.qwen_vl.attention import MASKED
from afmrl_jax.models.qwen_vl.decoder_attention import KeyValue
from afmrl_jax.models.qwen_vl.layers import Affine, TurnedAffine, for_few_rows, turns
from afmrl_jax.models.qwen_vl.model import QwenVL
from afmrl_jax.models.qwen_vl.token_loop import TokenLoop
from afmrl_jax.models.sampling import cut, draw, likeliest, sample_keys
from afmrl_jax.models.shared_prefix import continuation, packed_continuation, prefill
from afmrl_jax.models.token_logprobs import token_scores
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int


class Generation(NamedTuple):
    """Samples of a group of continuations for each prompt."""

    tokens: Int[Array, "b g n"]
    """Padding after the end."""
    logprobs: Float[Array, "b g n"]
    """At the sampling temperature, before any cut by top-p, top-k or a grammar; 0 after the end."""
    mask: Bool[Array, "b g n"]
    """True up to and including the end token."""
    finished: Bool[Array, "b g"]
    """Whether the end token came within the budget."""


class _Carry(NamedTuple):
    """What the loop hands from token to token; samples so far as in `Generation`."""

    step: Int[Array, ""]
    """Tokens written."""
    hidden: Float[Array, "b g d"]
    """Of the token before."""
    cache: list[KeyValue]
    """Keys and values of what is written, a layer each."""
    tokens: Int[Array, "b g n"]
    logprobs: Float[Array, "b g n"]
    mask: Bool[Array, "b g n"]
    finished: Bool[Array, "b g"]
    place: following.Progress | None
    """In the grammar, where there is one."""


def generate(
    model: QwenVL,
    prompt: Prompts,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    key: jax.Array,
    eos_id: int,
    pad_id: int,
    top_p: float = 1.0,
    top_k: int = 0,
    row_ids: Int[AnyArray, " b"] | None = None,
    visual: VisualFeatures | None = None,
    grammar: Grammar | None = None,
) -> Generation:
    """Continue prompts; one loop on the device that stops when all samples have ended.

    Every sample draws from a key of its own, folded from `key`, its row's id and its number in
    the group, so it does not depend on its neighbours in the batch.

    Args:
        model: the generator.
        prompt: b prompts, each encoded once for its group.
        group_size: g, samples per prompt.
        max_new_tokens: n, the budget, end token included.
        temperature: 0 takes the likeliest token.
        key: random key.
        eos_id: end token.
        pad_id: what stands after the end.
        top_p: mass of the likeliest tokens to draw from.
        top_k: number of the likeliest tokens to draw from, 0 for all.
        row_ids: int32 [b], names the rows for their keys; the row number by default.
        visual: features [n s d] where the vision tower has already run.
        grammar: only tokens that keep to it, and to the budget, are chosen; see `Grammar.check`.
    """
    prefix = prefill(model, prompt, visual)
    last = prefix.last
    rows, group, budget = last.shape[0], group_size, max_new_tokens
    keys = sample_keys(
        key, jnp.arange(rows, dtype=jnp.int32) if row_ids is None else row_ids, group
    )
    loop = TokenLoop(
        model.model, prefix.stored, prefix.mask, prefix.start, group=group, budget=budget
    )
    head = _head(model, last.dtype, rows * group)
    table = model.model.table(last.dtype)

    def pick(
        hidden: Float[Array, "b g d"], step: Int[Array, ""], place: following.Progress | None
    ) -> tuple[Int[Array, "b g"], Float[Array, "b g"]]:
        logits = head(hidden.reshape(rows * group, -1), jnp.float32) / (temperature or 1.0)
        logits = logits.reshape(rows, group, -1)
        offered = logits
        if grammar is not None and place is not None:
            legal = following.allowed(grammar, place, eos_id, budget - 1 - step)
            offered = jnp.where(legal, logits, MASKED)
        if temperature == 0.0:
            token = likeliest(offered)
        else:
            token = draw(cut(offered, top_p, top_k), keys, step)
        chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
        return token, chosen - jax.nn.logsumexp(logits, axis=-1)

    def step_once(carry: _Carry) -> _Carry:
        step, place = carry.step, carry.place
        token, logprob = pick(carry.hidden, step, place)
        alive = ~carry.finished
        token = jnp.where(alive, token, pad_id)
        tokens = jax.lax.dynamic_update_slice_in_dim(carry.tokens, token[..., None], step, axis=2)
        logprob = jnp.where(alive, logprob, 0.0)[..., None]
        logprobs = jax.lax.dynamic_update_slice_in_dim(carry.logprobs, logprob, step, axis=2)
        mask = jax.lax.dynamic_update_slice_in_dim(carry.mask, alive[..., None], step, axis=2)
        finished = carry.finished | (token == eos_id)
        if grammar is not None and place is not None:
            place = following.advance(grammar, place, token)
        hidden, cache = loop(jnp.take(table, token, axis=0), step, carry.cache)
        return _Carry(step + 1, hidden, cache, tokens, logprobs, mask, finished, place)

    shape = (rows, group, budget)
    carry = _Carry(
        jnp.int32(0),
        jnp.broadcast_to(last[:, None], (rows, group, last.shape[-1])),
        loop.empty(),
        jnp.full(shape, pad_id, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, bool),
        jnp.zeros(shape[:2], bool),
        None if grammar is None else following.begin(grammar, rows, group),
    )
    carry = jax.lax.while_loop(lambda c: (c.step < budget) & ~jnp.all(c.finished), step_once, carry)
    return Generation(carry.tokens, carry.logprobs, carry.mask, carry.finished)


def _head(model: QwenVL, dtype: DTypeLike, rows: int) -> Affine | TurnedAffine:
    """From states to logits, for the front of the loop."""
    head = model.head()
    if head.table and turns(rows):
        # It lies turned already, so that nothing has to be copied.
        return TurnedAffine(head.weights.astype(dtype))
    return for_few_rows(Affine(head.matrix(dtype)), rows)


def completion_logprobs(
    model: QwenVL,
    prompt: Prompts,
    tokens: Int[AnyArray, "b g n"],
    mask: Bool[AnyArray, "b g n"],
    *,
    temperature: float = 1.0,
    visual: VisualFeatures | None = None,
    tails: TailRows | None = None,
) -> tuple[Float[Array, "b g n"], Float[Array, "b g n"]]:
    """Log-probability and entropy of each token of given continuations, both float32 [b g n].

    One teacher-forced pass in which each prompt is encoded once for its group, and logits exist
    for a chunk of the vocabulary at a time.

    Args:
        model: the generator.
        prompt: b prompts.
        tokens: int32 [b g n].
        mask: bool [b g n]; values are 0 where it is False.
        temperature: of the distribution that is scored; 0 counts as 1.
        visual: features [n s d] where the vision tower has already run.
        tails: rows that several continuations share, of one part, as `packed_tails` makes them of
            the lengths: the same values with less padding. None for a row each.
    """
    temperature = temperature or 1.0
    if tails is not None:
        found = _packed_scores(model, prompt, tokens, tails, temperature, visual)
    else:
        last, hidden = continuation(model, prompt, tokens[:, :, :-1], mask[:, :, :-1], visual)
        first = jnp.broadcast_to(last[:, None, None], (*tokens.shape[:2], 1, last.shape[-1]))
        hidden = jnp.concatenate([first, hidden], axis=2)
        found = token_scores(hidden, model.head(), tokens, temperature=temperature)
    logprobs, entropy = (jnp.where(mask, x, 0.0) for x in found)
    return logprobs, entropy


def _packed_scores(
    model: QwenVL,
    prompt: Prompts,
    tokens: Int[AnyArray, "b g n"],
    tails: TailRows,
    temperature: float,
    visual: VisualFeatures | None,
) -> tuple[Float[Array, "b g n"], Float[Array, "b g n"]]:
    """As `token_scores` of each continuation, only that values behind their ends are any."""
    last, hidden = packed_continuation(model, prompt, tokens, tails, visual)
    batch, group, length = tokens.shape
    # A prompt predicts the first token of each continuation, a token the one behind it.
    states = jnp.concatenate([jnp.repeat(last, group, axis=0), hidden.reshape(-1, last.shape[-1])])
    begins = jnp.arange(batch * group, dtype=jnp.int32) * length
    at = jnp.concatenate([begins, jnp.asarray(tails.source).reshape(-1) + 1])
    told = jnp.take(jnp.asarray(tokens).reshape(-1), at)
    logprobs, entropy = (
        jnp.take(x, jnp.asarray(tails.back))
        for x in token_scores(states, model.head(), told, temperature=temperature)
    )
    return logprobs, entropy
