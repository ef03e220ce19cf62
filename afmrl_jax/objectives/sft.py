"""Supervised fine-tuning: cross entropy of the tokens that are to be written."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.axes import Array, Bool, Float, Int


def sft_loss(
    logits: Float[Array, "b t v"], targets: Int[Array, "b t"], mask: Bool[Array, "b t"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross entropy per counted token, in float32 nats.

        L = sum_{counted} ( logsumexp_v logit - logit_target ) / number of counted tokens

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

    Returns:
        The loss and metrics: `loss`, `token_accuracy`.
    """
    logits = logits.astype(jnp.float32)
    # Ignored positions may hold -100 or the like, and a gather out of range would give NaN.
    targets = jnp.where(mask, targets, 0)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # Not log_softmax: that would keep a second [b t v] array.
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    total = jnp.maximum(jnp.sum(mask.astype(jnp.float32)), 1.0)
    loss = jnp.sum(jnp.where(mask, nats, 0.0)) / total
    right = mask & (jnp.argmax(logits, axis=-1).astype(targets.dtype) == targets)
    accuracy = jnp.sum(right.astype(jnp.float32)) / total
    return loss, {"loss": loss, "token_accuracy": accuracy}
