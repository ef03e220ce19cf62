"""The policy gradient of RAR: each prompt once for its group, groups in parts by token budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from afmrl_jax.config import RarConfig
from afmrl_jax.data.batching.row_packing import Prompts, pictured, with_pictures
from afmrl_jax.data.batching.tail_packing import TailRows
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.generation import completion_logprobs
from afmrl_jax.models.shared_prefix import unpacked
from afmrl_jax.objectives.grpo import dead_groups, group_advantages, grpo_loss, token_weights
from afmrl_jax.training.state import TrainState, apply_gradients
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int, PyTree


class Samples(NamedTuple):
    """A rollout as the update reads it: g continuations of each of q prompts."""

    prompts: Prompts
    """q of them."""
    tokens: Int[AnyArray, "q g n"]
    mask: Bool[AnyArray, "q g n"]
    old: Float[AnyArray, "q g n"]
    """Log-probabilities under the policy that sampled, adapters merged and weights rounded as
    there: with them the ratio is an unbiased weight of what was drawn."""
    reference: Float[AnyArray, "q g n"]
    """Under the distilled policy."""
    rewards: Float[AnyArray, "q g"]
    malformed: Bool[AnyArray, "q g"]
    greedy: Float[AnyArray, " q"] | None = None
    """Rewards of the greedy lists, for the baseline of that name."""
    rank: Int[AnyArray, "q g"] | None = None
    """Of the best positive, where groups must differ in it; see `RarConfig.live_by`."""
    tails: TailRows | None = None
    """Rows that several continuations share, for each part; None for a row each."""


class Part(NamedTuple):
    """What the loss reads of some groups."""

    prompts: Prompts
    """Without pictures."""
    tokens: Int[AnyArray, "q g n"]
    mask: Bool[AnyArray, "q g n"]
    old: Float[AnyArray, "q g n"]
    reference: Float[AnyArray, "q g n"]
    advantages: Float[AnyArray, "q g"]
    weights: Float[AnyArray, "q g n"]
    tails: TailRows | None = None


def num_microbatches(rows: int, row_tokens: int, budget: int | None, shares: int = 1) -> int:
    """In how many equal parts groups are worked on, so that a part holds at most `budget` tokens.

    Args:
        rows: groups.
        row_tokens: tokens of a group: its prompt, and its continuations at their padded length.
        budget: tokens at a time on all devices; None for all at once.
        shares: devices along `data`; a part holds as many groups of each, where that is possible.

    Example:
        >>> [num_microbatches(*case) for case in ((32, 500, 4000), (32, 500, None), (6, 500, 100))]
        [4, 1, 6]
    """
    if budget is None:
        return 1
    even = shares if rows % shares == 0 else 1
    options = [n for n in range(1, rows + 1) if rows % n == 0 and (rows // n) % even == 0]
    fitting = [n for n in options if rows // n * row_tokens <= budget]
    return min(fitting, default=options[-1])


def _split(tree: PyTree, parts: int) -> PyTree:
    """Leaves [q ...] as [parts q/parts ...]; each part takes rows from every device."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), tree
    )


def _first(tails: TailRows | None) -> TailRows | None:
    """Of a batch that is one part."""
    return jax.tree.map(lambda x: x[0], tails)


def _joined(x: jax.Array) -> jax.Array:
    """The opposite of `_split`, of one array."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _divisible(prompts: Prompts, parts: int) -> Prompts:
    """Prompts without pictures, which belong to no row; in rows that parts can be made of."""
    bins = pictured(prompts)._replace(
        patches=None, patch_segment=None, patch_position=None, normalization=None, visual=None
    )
    own = with_pictures(prompts, bins)
    return own if parts == 1 else unpacked(own)


@partial(jax.jit, static_argnames=("architecture", "temperature", "parts"))
def completion_scores(
    architecture: Architecture,
    params: Params,
    prompts: Prompts,
    tokens: jax.Array,
    mask: jax.Array,
    tails: TailRows | None = None,
    *,
    temperature: float,
    parts: int,
) -> jax.Array:
    """Log-probabilities [q g n] of sampled tokens under given parameters, part by part."""
    model = architecture.bind(params)
    visual = model.visual_of(pictured(prompts))

    def one(part: tuple[Prompts, jax.Array, jax.Array, TailRows | None]) -> jax.Array:
        prompts, tokens, mask, tails = part
        found, _ = completion_logprobs(
            model, prompts, tokens, mask, temperature=temperature, visual=visual, tails=tails
        )
        return found

    whole = _divisible(prompts, parts), tokens, mask
    if parts == 1:
        return one((*whole, _first(tails)))
    return _joined(jax.lax.map(one, (*_split(whole, parts), tails)))


def _advantages(
    settings: RarConfig, samples: Samples
) -> tuple[Bool[Array, " q"], Float[Array, "q g"]]:
    """Groups whose well-formed samples do not differ as they must to teach, and advantages."""
    malformed, alike = samples.malformed, None
    dead = dead_groups(samples.rewards, malformed, samples.greedy)
    if samples.rank is not None:
        alike = dead_groups(samples.rank.astype(jnp.float32), malformed)
        dead |= alike
    advantages = group_advantages(
        samples.rewards,
        malformed,
        baseline=settings.baseline,
        greedy=samples.greedy,
        dead=alike,
    )
    return dead, advantages


def _weights(
    settings: RarConfig, samples: Samples, advantages: Float[Array, "q g"], budget: int | None
) -> Float[Array, "q g n"]:
    """Of the tokens, in the loss of the whole step."""
    teaching = jnp.any(advantages != 0, axis=1)
    return token_weights(
        samples.mask,
        normalization=settings.normalization,
        groups=teaching if settings.drop_dead_groups else None,
        budget=budget,
    )


def _part_loss(
    architecture: Architecture,
    settings: RarConfig,
    frozen: Params,
    params: Params,
    visual: VisualFeatures | None,
    part: Part,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a part adds to the loss, and to its metrics."""
    logprobs, entropy = completion_logprobs(
        architecture.bind({**frozen, **params}),
        part.prompts,
        part.tokens,
        part.mask,
        temperature=settings.temperature,
        visual=visual,
        tails=part.tails,
    )
    return grpo_loss(
        logprobs,
        part.old,
        part.reference,
        part.advantages,
        part.mask,
        weights=part.weights,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        ratio_cap=settings.ratio_cap,
        importance=settings.importance,
        kl_coefficient=settings.kl_coefficient,
        kl=settings.kl,
        entropy=entropy,
    )


def policy_gradient(
    architecture: Architecture,
    settings: RarConfig,
    frozen: Params,
    params: Params,
    samples: Samples,
    parts: int = 1,
    budget: int | None = None,
) -> tuple[Params, dict[str, jax.Array]]:
    """Gradient of GRPO's loss by `params`, and its metrics; equal for any number of parts.

    `budget` is that of `token_weights`.

    Pictures pass the vision tower once; what the parts say of its output is summed and goes back
    through it once.
    """
    dead, advantages = _advantages(settings, samples)
    weights = _weights(settings, samples, advantages, budget)

    def see(params: Params) -> VisualFeatures | None:
        return architecture.bind({**frozen, **params}).visual_of(pictured(samples.prompts))

    visual, back = jax.vjp(see, params)
    arrays = Part(
        _divisible(samples.prompts, parts),
        samples.tokens,
        samples.mask,
        samples.old,
        samples.reference,
        advantages,
        weights,
    )
    loss = partial(_part_loss, architecture, settings, frozen)
    gradient: Callable = jax.grad(loss, argnums=(0, 1), has_aux=True)
    if parts == 1:
        own = arrays._replace(tails=_first(samples.tails))
        (by_params, by_visual), metrics = gradient(params, visual, own)
    else:
        each = _split(arrays, parts)._replace(tails=samples.tails)
        (by_params, by_visual), metrics = _summed(gradient, params, visual, each)
    through_tower = back(by_visual)[0]
    # Weights need not add up to 1, but a nat a token is one whatever they are.
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
    metrics |= {name: value / total for name, value in metrics.items() if name != "loss"}
    metrics |= {"dead_group_share": jnp.mean(dead.astype(jnp.float32))}
    return jax.tree.map(jnp.add, by_params, through_tower), metrics


def _summed(
    gradient: Callable, params: Params, visual: VisualFeatures | None, parts: Part
) -> PyTree:
    """Gradients and metrics of all parts, which are sums over tokens, added up."""

    def step(total: PyTree, part: Part) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(params, visual, part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradient, params, visual, first)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(step, start, parts)[0]


def update(
    architecture: Architecture,
    settings: RarConfig,
    optimizer: optax.GradientTransformation,
    frozen: Params,
    state: TrainState,
    samples: Samples,
    *,
    parts: int,
    budget: int | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on a rollout; pure, for use inside jit."""
    gradients, metrics = policy_gradient(
        architecture, settings, frozen, state.params, samples, parts, budget
    )
    return apply_gradients(state, gradients, metrics, optimizer)
