"""Supervised fine-tuning: cross entropy of the tokens that are to be written."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.axes import Array, Bool, Float, Int


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
    logits = logits.astype(jnp.float32)
    # Ignored positions may hold -100 or the like, and a gather out of range would give NaN.
    targets = jnp.where(mask, targets, 0)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # Not log_softmax: that would keep a second [b t v] array.
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    counted = mask.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(counted), 1.0)
    weights = counted if weights is None else jnp.where(mask, weights, 0.0)
    # A batch whose weights are all 0 gives 0, like one without counted tokens.
    summed = jnp.sum(jnp.where(mask, weights * nats, 0.0))
    loss = summed / jnp.maximum(jnp.sum(weights), 1e-6)
    right = mask & (jnp.argmax(logits, axis=-1).astype(targets.dtype) == targets)
    accuracy = jnp.sum(right.astype(jnp.float32)) / total
    return loss, {"loss": loss, "token_accuracy": accuracy}
