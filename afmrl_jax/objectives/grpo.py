"""Group relative policy optimisation: advantages with guards, clipped ratio, k3 KL."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.axes import Array, Bool, Float

SMALLEST_DEVIATION = 1e-4
"""Rewards closer than this are equal: the rounding of a similarity must not become a signal."""

LARGEST_LOG_RATIO = 20.0
"""Cap on differences of log-probabilities before exp; beyond it float32 would overflow."""


def dead_groups(rewards: Float[Array, "q g"], malformed: Bool[Array, "q g"]) -> Bool[Array, " q"]:
    """Groups that teach nothing about retrieval: their well-formed rewards are all equal.

    A group with one well-formed member, or none, is dead too.

    Args:
        rewards: [q g].
        malformed: [q g].
    """
    rewards = rewards.astype(jnp.float32)
    high = jnp.max(jnp.where(malformed, -jnp.inf, rewards), axis=1)
    low = jnp.min(jnp.where(malformed, jnp.inf, rewards), axis=1)
    # Without a well-formed member this is -inf - inf = -inf: dead.
    return high - low <= SMALLEST_DEVIATION


def group_advantages(
    rewards: Float[Array, "q g"], malformed: Bool[Array, "q g"], *, normalise: bool = True
) -> Float[Array, "q g"]:
    """Reward less the group's mean, over the group's deviation, with three guards.

        A_i = (r_i - mean_j r_j) / max(deviation_j r_j, 1e-4)

    * A group whose members are all malformed gets zero: a penalty they share is no signal, and
      divided by its vanishing deviation it would become a full-size phantom.
    * A group whose well-formed rewards are all equal gives its well-formed members zero: they
      differ only from the malformed ones, and praise for that would reward any text. Its malformed
      members keep their negative advantage, for being malformed is worse than not finding.
    * A malformed member is never better than a well-formed one. Rewards that can fall below the
      penalty (a margin) would teach the policy to break the grammar on hard queries, so where the
      worst well-formed reward is negative a malformed member stands as far below it as its own
      (negative) reward says. Rewards that are never negative (recall) are not touched by this.

    Example:
        >>> group_advantages(jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2), bool)).round(2).tolist()
        [[1.0, -1.0]]

    Args:
        rewards: [q g], with the penalty in place where malformed.
        malformed: [q g].
        normalise: divide by the deviation (GRPO), or not (Dr. GRPO).

    Returns:
        float32 [q g].

    Reference: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1.
    """
    rewards = rewards.astype(jnp.float32)
    worst = jnp.min(jnp.where(malformed, jnp.inf, rewards), axis=1, keepdims=True)
    below = jnp.minimum(rewards, worst + jnp.minimum(rewards, 0.0))
    rewards = jnp.where(malformed, below, rewards)
    advantage = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    if normalise:
        deviation = jnp.sqrt(jnp.mean(advantage**2, axis=1, keepdims=True))
        advantage = advantage / jnp.maximum(deviation, SMALLEST_DEVIATION)
    nothing = jnp.all(malformed, axis=1, keepdims=True)
    equal = dead_groups(rewards, malformed)[:, None]
    return jnp.where(nothing | (equal & ~malformed), 0.0, advantage)


def grpo_loss(
    logprobs: Float[Array, "q g n"],
    old_logprobs: Float[Array, "q g n"],
    reference_logprobs: Float[Array, "q g n"],
    advantages: Float[Array, "q g"],
    mask: Bool[Array, "q g n"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.01,
    entropy: Float[Array, "q g n"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """GRPO's objective, averaged over the tokens of a sample and then over samples.

        ratio = exp(logprob - old),   kl = exp(ref - logprob) - (ref - logprob) - 1   (k3)
        L = -mean( min(ratio A, clip(ratio, 1 - low, 1 + high) A) - beta kl )

    A sample without counted tokens adds 0 and still counts as a sample.

    Example:
        >>> logprobs, mask = jnp.full((1, 2, 1), -1.0), jnp.ones((1, 2, 1), bool)
        >>> loss, metrics = grpo_loss(logprobs, logprobs, logprobs, jnp.array([[1.0, 2.0]]), mask)
        >>> float(loss), float(metrics["ratio"]), float(metrics["kl"])
        (-1.5, 1.0, 0.0)

    Args:
        logprobs: [q g n], nats, of the policy; carries the gradient.
        old_logprobs: [q g n], of the policy that sampled; a constant.
        reference_logprobs: [q g n], of the distilled policy; a constant.
        advantages: [q g]; a constant.
        mask: [q g n], tokens that count; the values elsewhere may be anything.
        clip_low: how far the ratio may fall before its gradient stops.
        clip_high: how far it may rise.
        kl_coefficient: beta.
        entropy: [q g n], nats, of the policy at each token; only reported.

    Returns:
        The loss, float32, and metrics: `loss`, `kl`, `ratio` and, where given, `entropy` (means
        like the loss's), and `clip_share` (share of tokens whose gradient the clip has stopped).

    Reference: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1; Schulman, Approximating
    KL divergence (k3); unequal clips as in Yu et al., DAPO, arXiv 2503.14476.
    """
    lengths = jnp.maximum(jnp.sum(mask.astype(jnp.float32), axis=-1), 1.0)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.mean(jnp.sum(jnp.where(mask, values, 0.0), axis=-1) / lengths)

    def difference(left: jax.Array, right: jax.Array) -> jax.Array:
        # Masked before the subtraction: -inf - -inf would send NaN into the gradient.
        left = jnp.where(mask, left.astype(jnp.float32), 0.0)
        right = jnp.where(mask, right.astype(jnp.float32), 0.0)
        return jnp.clip(left - right, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)

    fixed = jax.lax.stop_gradient
    ratio = jnp.exp(difference(logprobs, fixed(old_logprobs)))
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    advantage = fixed(advantages.astype(jnp.float32))[..., None]
    surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
    gap = difference(fixed(reference_logprobs), logprobs)
    kl = jnp.exp(gap) - gap - 1.0
    loss = -mean(surrogate - kl_coefficient * kl)
    stopped = clipped * advantage < ratio * advantage
    metrics = {
        "loss": loss,
        "kl": mean(kl),
        "clip_share": mean(stopped.astype(jnp.float32)),
        "ratio": mean(ratio),
    }
    if entropy is not None:
        metrics["entropy"] = mean(fixed(entropy.astype(jnp.float32)))
    return loss, metrics
