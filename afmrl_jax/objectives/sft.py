"""Supervised fine-tuning: cross entropy of the tokens that are to be written."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from afmrl_jax.parallel.layout import rows_over_data
from afmrl_jax.types import Array, Bool, Float, Int


def sft_loss(
    logits: Float[Array, "b t v"],
    targets: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    weights: Float[Array, "b t"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross entropy per counted token, in float32 nats.

        L = sum_{counted} w ( logsumexp_v logit - logit_target ) / sum_{counted} w

    The mean is over tokens, not rows, so a long list weighs more than a short one. A batch
    without counted tokens gives 0.

    Example:
        >>> logits, targets = jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), jnp.int32)
        >>> loss, _ = sft_loss(logits, targets, jnp.ones((1, 2), bool))
        >>> round(float(loss), 4)  # log 4
        1.3863

    Args:
        logits: [b t v].
        targets: [b t], the token each position should predict; anything where it does not count.
        mask: [b t], which positions count.
        weights: [b t], how much each counts; 1 without.

    Returns:
        The loss and metrics: `loss`, `token_accuracy`.
    """
    return _mean(_sums(logits, targets, mask, weights))


def sft_loss_of_hidden(
    hidden: Float[Array, "b t d"],
    head: Callable[[jax.Array], jax.Array],
    targets: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    weights: Float[Array, "b t"] | None = None,
    *,
    at_once: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`sft_loss` of `head(hidden)`, whose [b t v] logits are never held whole.

    The vocabulary is the longest axis of all (152 k in Qwen), and the backward pass wants the
    logits twice. So a few tokens of every row are scored at a time, and once more when their
    gradient is due: a third of the head's arithmetic on top.

    Args:
        hidden: [b t d], after the final norm.
        head: [b c d] to logits [b c v].
        targets: as in `sft_loss`.
        mask: as in `sft_loss`.
        weights: as in `sft_loss`.
        at_once: tokens of each row, c; None for all of them.

    Returns:
        As `sft_loss`.
    """
    length = hidden.shape[1]
    if at_once is None or at_once >= length:
        return sft_loss(head(hidden), targets, mask, weights)
    weights = mask.astype(jnp.float32) if weights is None else weights
    count = -(-length // at_once)

    def cut(x: jax.Array) -> jax.Array:
        # Places that fill up the last part are masked: `mask` is padded with False.
        room = [(0, 0), (0, count * at_once - length)] + [(0, 0)] * (x.ndim - 2)
        parts = jnp.pad(x, room).reshape(x.shape[0], count, at_once, *x.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    @jax.checkpoint
    def body(sums: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        hidden, targets, mask, weights = part
        logits = head(rows_over_data(hidden))
        return sums + _sums(logits, targets, mask, weights), None

    parts = tuple(cut(x) for x in (hidden, targets, mask, weights))
    return _mean(jax.lax.scan(body, jnp.zeros(4, jnp.float32), parts)[0])


def _sums(
    logits: jax.Array, targets: jax.Array, mask: jax.Array, weights: jax.Array | None
) -> jax.Array:
    """Float32 [4]: weighted nats, weights, counted tokens, and those that are predicted right."""
    logits = logits.astype(jnp.float32)
    # Ignored positions may hold -100 or the like, and a gather out of range would give NaN.
    targets = jnp.where(mask, targets, 0)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # Not log_softmax: that would keep a second [b t v] array.
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    counted = mask.astype(jnp.float32)
    weights = counted if weights is None else jnp.where(mask, weights, 0.0)
    right = mask & (jnp.argmax(logits, axis=-1).astype(targets.dtype) == targets)
    amounts = (jnp.where(mask, weights * nats, 0.0), weights, counted, right.astype(jnp.float32))
    return jnp.stack([jnp.sum(x) for x in amounts])


def _mean(sums: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    nats, weights, counted, right = sums
    # A batch whose weights are all 0 gives 0, like one without counted tokens.
    loss = nats / jnp.maximum(weights, 1e-6)
    return loss, {"loss": loss, "token_accuracy": right / jnp.maximum(counted, 1.0)}
