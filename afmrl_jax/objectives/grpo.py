"""Group relative policy optimisation: advantages with guards, clipped ratio, KL; each a choice."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from afmrl_jax.types import Array, Bool, Float

Baseline = Literal["grpo", "dr_grpo", "rloo", "greedy", "best"]
Normalization = Literal["sample", "token", "constant"]
Importance = Literal["token", "sequence"]
Divergence = Literal["k1", "k2", "k3"]

SMALLEST_DEVIATION = 1e-4
"""Rewards closer than this are equal: the rounding of a similarity must not become a signal."""

LARGEST_LOG_RATIO = 20.0
"""Cap on differences of log-probabilities before exp; beyond it float32 would overflow."""


def dead_groups(
    rewards: Float[Array, "q g"],
    malformed: Bool[Array, "q g"],
    greedy: Float[Array, " q"] | None = None,
) -> Bool[Array, " q"]:
    """Groups that teach nothing about retrieval: their well-formed rewards are all equal.

    A group with one well-formed member, or none, is dead too.

    Args:
        rewards: [q g], or any other number by which samples may differ, such as ranks.
        malformed: [q g].
        greedy: [q], the same of a list outside of the group that it is compared with.
    """
    rewards = rewards.astype(jnp.float32)
    high = jnp.max(jnp.where(malformed, -jnp.inf, rewards), axis=1)
    low = jnp.min(jnp.where(malformed, jnp.inf, rewards), axis=1)
    if greedy is not None:
        some = jnp.any(~malformed, axis=1)
        high = jnp.where(some, jnp.maximum(high, greedy), high)
        low = jnp.where(some, jnp.minimum(low, greedy), low)
    # Without a well-formed member this is -inf - inf = -inf: dead.
    return high - low <= SMALLEST_DEVIATION


def group_advantages(
    rewards: Float[Array, "q g"],
    malformed: Bool[Array, "q g"],
    *,
    baseline: Baseline = "grpo",
    greedy: Float[Array, " q"] | None = None,
    dead: Bool[Array, " q"] | None = None,
) -> Float[Array, "q g"]:
    """What a sample earned beyond its group, in one of five ways, with three guards.

        grpo     (r_i - mean_j r_j) / max(deviation_j r_j, 1e-4)
        dr_grpo  r_i - mean_j r_j
        rloo     r_i - mean_{j != i} r_j
        greedy   r_i - reward of the greedy list
        best     1 for the first of the best well-formed lists, 0 for the others: with it the
                 gradient is that of supervised training on the best of the group

    * A group whose members are all malformed gets zero: a penalty they share is no signal, and
      divided by its vanishing deviation it would become a full-size phantom.
    * A group whose well-formed rewards are all equal gives its well-formed members zero: they
      differ only from the malformed ones, and praise for that would reward any text. Its malformed
      members keep their negative advantage, for being malformed is worse than not finding.
    * A malformed member is never better than a well-formed one. Rewards that can fall below the
      penalty (a margin) would teach the policy to break the grammar on hard queries, so where the
      worst well-formed reward is negative a malformed member stands as far below it as its own
      (negative) reward says. Rewards that are never negative (recall) are not touched by this.
      Against the greedy list, too, it is never better than zero.

    With `greedy` a group is dead if its members equal the greedy list as well.

    Example:
        >>> rewards, none = jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2), bool)
        >>> group_advantages(rewards, none).round(2).tolist()
        [[1.0, -1.0]]
        >>> group_advantages(rewards, none, baseline="dr_grpo").tolist()
        [[0.5, -0.5]]

    Args:
        rewards: [q g], with the penalty in place where malformed.
        malformed: [q g].
        baseline: which of the five.
        greedy: [q], rewards of the greedy lists, mended where malformed; for `greedy` alone.
        dead: [q], groups that are to teach nothing beside those of equal rewards.

    Returns:
        float32 [q g].

    Raises:
        ValueError: `greedy` is missing, or not asked for.

    Reference: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1; Liu et al., Dr. GRPO, arXiv
    2503.20783; Ahmadian et al., Back to basics (RLOO), arXiv 2402.14740; Li et al., ReMax, arXiv
    2310.10505 (the greedy list); Dong et al., RAFT, arXiv 2304.06767 (the best of the group).
    """
    if (greedy is None) == (baseline == "greedy"):
        raise ValueError(f"baseline {baseline} and the rewards of greedy lists do not fit")
    rewards = rewards.astype(jnp.float32)
    size = rewards.shape[1]
    worst = jnp.min(jnp.where(malformed, jnp.inf, rewards), axis=1, keepdims=True)
    below = jnp.minimum(rewards, worst + jnp.minimum(rewards, 0.0))
    rewards = jnp.where(malformed, below, rewards)
    advantage = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    if baseline == "grpo":
        deviation = jnp.sqrt(jnp.mean(advantage**2, axis=1, keepdims=True))
        advantage = advantage / jnp.maximum(deviation, SMALLEST_DEVIATION)
    elif baseline == "rloo":
        # The mean of the others lies size / (size - 1) times as far away as the mean of all.
        advantage = advantage * (size / (size - 1))
    elif baseline == "greedy":
        assert greedy is not None
        advantage = rewards - greedy.astype(jnp.float32)[:, None]
        advantage = jnp.where(malformed, jnp.minimum(advantage, below - worst), advantage)
    elif baseline == "best":
        place = jnp.argmax(jnp.where(malformed, -jnp.inf, rewards), axis=1)
        advantage = jax.nn.one_hot(place, size, dtype=jnp.float32)
    nothing = jnp.all(malformed, axis=1, keepdims=True)
    equal = dead_groups(rewards, malformed, greedy)
    if dead is not None:
        equal |= dead
    return jnp.where(nothing | (equal[:, None] & ~malformed), 0.0, advantage)


def token_weights(
    mask: Bool[Array, "q g n"],
    *,
    normalization: Normalization = "sample",
    groups: Bool[Array, " q"] | None = None,
    budget: int | None = None,
) -> Float[Array, "q g n"]:
    """Weight of each token in the loss of the whole batch, of which any part may then be summed.

        sample    1 / (samples * tokens of the sample): every sample counts alike (GRPO)
        token     1 / all tokens: every token counts alike (DAPO)
        constant  1 / (samples * budget): the budget instead of the length (Dr. GRPO)

    A sample without counted tokens adds 0 and still counts as a sample.

    Example:
        >>> token_weights(jnp.array([[[True, True], [True, False]]])).tolist()
        [[[0.25, 0.25], [0.5, 0.0]]]

    Args:
        mask: [q g n], tokens that count.
        normalization: which of the three.
        groups: [q], those that take part; the others get 0, and the rest weighs accordingly more.
            None for all. Leaving out dead groups is the dropping of dynamic sampling.
        budget: tokens that a sample may have, where `mask` is cut behind the longest; None: n.

    Reference: Shao et al., arXiv 2402.03300; Yu et al., DAPO, arXiv 2503.14476; Liu et al., Dr.
    GRPO, arXiv 2503.20783.
    """
    weights = mask.astype(jnp.float32)
    if groups is None:
        groups = jnp.ones(mask.shape[0], bool)
    weights = jnp.where(groups[:, None, None], weights, 0.0)
    lengths = jnp.sum(weights, axis=-1, keepdims=True)
    samples = jnp.sum(groups.astype(jnp.float32)) * mask.shape[1]
    total = {
        "sample": samples * jnp.maximum(lengths, 1.0),
        "token": jnp.sum(lengths),
        "constant": samples * (mask.shape[2] if budget is None else budget),
    }[normalization]
    return weights / jnp.maximum(total, 1.0)


def divergence(gap: Float[Array, "*shape"], kind: Divergence = "k3") -> Float[Array, "*shape"]:
    """Estimate of KL(policy, reference) from one sample, at each token.

        gap = log reference - log policy
        k1 = -gap,   k2 = gap^2 / 2,   k3 = exp(gap) - gap - 1

    As a loss k1 says nothing: its gradient is that of a log-probability, which averages to zero.
    It belongs into the reward, where its gradient is k2's on samples of the policy itself; so k1
    here has the value of k1 and the gradient of k2.

    Args:
        gap: nats, any shape; carries the gradient through the policy.
        kind: which of the three.

    Reference: Schulman, Approximating KL divergence, 2020 (joschu.net/blog/kl-approx.html).
    """
    squared = 0.5 * gap * gap
    if kind == "k2":
        return squared
    if kind == "k1":
        return squared + jax.lax.stop_gradient(-gap - squared)
    return jnp.exp(gap) - gap - 1.0


def grpo_loss(
    logprobs: Float[Array, "q g n"],
    old_logprobs: Float[Array, "q g n"],
    reference_logprobs: Float[Array, "q g n"],
    advantages: Float[Array, "q g"],
    mask: Bool[Array, "q g n"],
    *,
    weights: Float[Array, "q g n"] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_cap: float | None = None,
    importance: Importance = "token",
    kl_coefficient: float = 0.01,
    kl: Divergence = "k3",
    entropy: Float[Array, "q g n"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """GRPO's objective, summed over tokens by their weights.

        ratio = exp(logprob - old), or by sequence: exp of the mean of that over its tokens
        L = -sum weight ( min(ratio A, clip(ratio, 1 - low, 1 + high) A) - beta kl )

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
        weights: [q g n], of `token_weights`, over the whole batch where this is a part of it; a
            constant. None: each sample counts alike.
        clip_low: how far the ratio may fall before its gradient stops.
        clip_high: how far it may rise; above `clip_low` it is DAPO's clip-higher.
        ratio_cap: most that a ratio counts for, also where the advantage is negative and the clip
            does not bind; None for no cap.
        importance: a ratio for each token, or one for the sample (GSPO).
        kl_coefficient: beta.
        kl: estimate of the divergence, see `divergence`.
        entropy: [q g n], nats, of the policy at each token; only reported.

    Returns:
        The loss, float32, and metrics, weighted as the loss is: `loss`, `kl`, `ratio`,
        `clip_share` (tokens whose gradient the clip has stopped) and, where given, `entropy`.

    Reference: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1; Yu et al., DAPO, arXiv
    2503.14476 (clip-higher); Zheng et al., GSPO, arXiv 2507.18071 (ratio by sequence); Ye et al.,
    dual-clip PPO, arXiv 1912.09729 (the cap).
    """
    fixed = jax.lax.stop_gradient
    weights = fixed(token_weights(mask) if weights is None else weights)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, values, 0.0) * weights)

    def difference(left: jax.Array, right: jax.Array) -> jax.Array:
        # Masked before the subtraction: -inf - -inf would send NaN into the gradient.
        left = jnp.where(mask, left.astype(jnp.float32), 0.0)
        right = jnp.where(mask, right.astype(jnp.float32), 0.0)
        return jnp.clip(left - right, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)

    change = difference(logprobs, fixed(old_logprobs))
    if importance == "sequence":
        lengths = jnp.maximum(jnp.sum(mask.astype(jnp.float32), axis=-1, keepdims=True), 1.0)
        change = jnp.broadcast_to(jnp.sum(change, axis=-1, keepdims=True) / lengths, change.shape)
    ratio = jnp.exp(change)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    capped = ratio if ratio_cap is None else jnp.minimum(ratio, ratio_cap)
    advantage = fixed(advantages.astype(jnp.float32))[..., None]
    surrogate = jnp.minimum(capped * advantage, clipped * advantage)
    estimate = divergence(difference(fixed(reference_logprobs), logprobs), kl)
    loss = -mean(surrogate - kl_coefficient * estimate)
    stopped = (clipped * advantage < capped * advantage) | (capped < ratio)
    metrics = {
        "loss": loss,
        "kl": mean(estimate),
        "clip_share": mean(stopped.astype(jnp.float32)),
        "ratio": mean(ratio),
    }
    if entropy is not None:
        metrics["entropy"] = mean(fixed(entropy.astype(jnp.float32)))
    return loss, metrics
