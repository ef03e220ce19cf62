"""RAR's update with shared prompts and rows against plainer forms; the reward against sorting."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import Execution, QwenVLConfig, RarConfig
from afmrl_jax.data.batching.tail_packing import packed_tails
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.models.shared_prefix import unpacked
from afmrl_jax.objectives.ranks import rank_positives
from afmrl_jax.performance.benchmarks.grpo_naive import naive_gradient, repeated
from afmrl_jax.performance.benchmarks.workload import FIRST_WORD, TOKEN, Size, make_rows
from afmrl_jax.performance.record import check_writable, is_record_of, ratios, spread, write_record
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.training.rar.policy_gradient import Samples, completion_scores, policy_gradient
from afmrl_jax.training.rar.rollout import trimmed_length
from afmrl_jax.types import JsonObject

Part = Literal["update", "lengths", "flops", "reward"]
Side = Callable[[], object]
SETTINGS = RarConfig(temperature=1.0, kl_coefficient=0.05)
CLOSE = 1e-5
"""Largest difference of a gradient between the two forms."""
LENGTHS = 0.36, 0.1
"""Mean and deviation of a sampled list, in budgets, as of RAR's first steps on the marketplace."""
EXPECTED_FLOPS_RATIO = 4.3
"""Of the two forms for 3 B parameters, groups of 8, 256 visual, 64 text and 80 generated tokens."""


@dataclass(frozen=True)
class Settings:
    """Sizes, and how often each pair of sides is measured."""

    parts: tuple[Part, ...] = ("update", "lengths", "flops", "reward")
    size: Size = field(default_factory=lambda: Size(new_tokens=32))
    """Of the generator and its prompts; new_tokens is the length of a sample."""
    groups: int = 2
    group_size: int = 8
    length_groups: int = 8
    """Groups where lists differ in length."""
    budget: int = 80
    """Most tokens of a list there."""
    preset: str | None = "qwen2_5vl_3b"
    """Model whose floating-point operations are counted, without running it, for 256 visual, 64
    text and 80 generated tokens and groups of 8; None: the model and lengths of `size`."""
    queries: int = 4096
    gallery: int = 100_000
    dim: int = 256
    positives: int = 4
    sorted_queries: int = 128
    """Number of queries whose scores are sorted; the time is scaled up to all queries."""
    repeats: int = 7
    seed: int = 0


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Measure every part, and write `out` at the end.

    Raises:
        ConfigError: `out` cannot be written.
        RuntimeError: two sides disagree, so timing is meaningless.
    """
    check_writable(out, is_record_of("grpo"))
    parts = {
        "update": measure_update,
        "lengths": measure_lengths,
        "flops": count_flops,
        "reward": measure_reward,
    }
    figures: dict[str, float] = {}
    details = []
    for name in settings.parts:
        found, detail = parts[name](settings)
        figures |= found
        details.append({"part": name, **detail})
        log_info(f"{name}: {found}")
    write_record(out, "grpo", figures, details)
    return figures


def make_samples(size: Size, groups: int, group_size: int, seed: int) -> Samples:
    """Prompts of the workload, and full-length samples with random probabilities."""
    rng = np.random.default_rng(seed)
    shape = (groups, group_size, size.new_tokens)
    return Samples(
        prompts=make_rows(size, groups, seed),
        tokens=rng.integers(FIRST_WORD, size.vocab_size, shape).astype(np.int32),
        mask=np.ones(shape, bool),
        old=-rng.uniform(8, 10, shape).astype(np.float32),
        reference=-rng.uniform(8, 10, shape).astype(np.float32),
        rewards=rng.integers(0, 2, shape[:2]).astype(np.float32),
        malformed=np.zeros(shape[:2], bool),
    )


def _in_turn(name: str, sides: dict[str, Side], repeats: int) -> dict[str, list[float]]:
    """Seconds of all sides, one after another in every round; the first round is not counted."""
    kept: dict[str, list[float]] = {side: [] for side in sides}
    with Progress(name, repeats) as progress:
        for done in range(repeats + 1):
            for side, call in sides.items():
                start = time.perf_counter()
                jax.block_until_ready(call())
                if done:
                    kept[side].append(time.perf_counter() - start)
            progress.update(done)
    return kept


def measure_update(settings: Settings) -> tuple[dict[str, float], JsonObject]:
    """Gradient of the loss in both forms, on the same weights and samples."""
    size = settings.size
    architecture = Architecture.of(size.config, Execution())
    params = architecture.init(settings.seed)
    samples = make_samples(size, settings.groups, settings.group_size, settings.seed)
    # Ratios near 1, as after a rollout of the policy itself.
    arguments = (samples.prompts, samples.tokens, samples.mask)
    own = np.asarray(
        completion_scores(
            architecture, params, *arguments, temperature=SETTINGS.temperature, parts=1
        )
    )
    rng = np.random.default_rng(settings.seed)
    old, reference = (own + rng.normal(0, 0.05, own.shape).astype(np.float32) for _ in range(2))
    samples = samples._replace(old=old, reference=reference)
    rows = jax.device_put(repeated(samples))
    samples = jax.device_put(samples)
    shared = jax.jit(partial(policy_gradient, architecture, SETTINGS, {}))
    naive = jax.jit(partial(naive_gradient, architecture, SETTINGS))
    ours, _ = shared(params, samples)
    theirs, _ = naive(params, rows, samples)
    difference = max(float(jnp.max(jnp.abs(ours[n] - theirs[n]))) for n in params)
    largest = max(float(jnp.max(jnp.abs(x))) for x in theirs.values())
    if not difference <= CLOSE:
        raise RuntimeError(f"gradients differ by {difference:.2g}")
    seconds = _in_turn(
        "update",
        {"shared": lambda: shared(params, samples), "naive": lambda: naive(params, rows, samples)},
        settings.repeats,
    )
    speedup = ratios(seconds["naive"], seconds["shared"])
    detail = {
        "seconds": {name: spread(x) for name, x in seconds.items()},
        "speedup": speedup,
        "largest_difference": difference,
        "largest_gradient": largest,
        "shape": size.describe() | {"groups": settings.groups, "group_size": settings.group_size},
    }
    return {"shared_prefix_speedup": speedup["median"]}, detail


def measure_lengths(settings: Settings) -> tuple[dict[str, float], JsonObject]:
    """Gradient with lists of unlike length: several to a row, and cut to the longest of all."""
    size = dataclasses.replace(settings.size, new_tokens=settings.budget)
    architecture = Architecture.of(size.config, Execution())
    params, rng = architecture.init(settings.seed), np.random.default_rng(settings.seed)
    samples = make_samples(size, settings.length_groups, settings.group_size, settings.seed)
    mean, deviation = (settings.budget * x for x in LENGTHS)
    drawn = rng.normal(mean, deviation, samples.rewards.shape).round()
    lengths = np.clip(drawn, 1, settings.budget).astype(np.int32)
    mask = np.arange(settings.budget) < lengths[..., None]
    longest = trimmed_length(mask)
    names = ("tokens", "mask", "old", "reference")
    whole = samples._replace(mask=mask)
    cut = whole._replace(**{x: getattr(whole, x)[..., :longest] for x in names})
    tails = packed_tails(lengths, settings.budget)
    packed = whole._replace(tails=tails)
    sides = {"longest": jax.device_put(cut), "packed": jax.device_put(packed)}
    call = jax.jit(partial(policy_gradient, architecture, SETTINGS, {}))
    one, other = (call(params, x)[0] for x in sides.values())
    largest = max(float(jnp.max(jnp.abs(x))) for x in one.values())
    difference = max(float(jnp.max(jnp.abs(one[n] - other[n]))) for n in one) / largest
    if not difference <= CLOSE:
        raise RuntimeError(f"gradients differ by {difference:.2g} of the largest")
    seconds = _in_turn(
        "lengths",
        {name: partial(call, params, x) for name, x in sides.items()},
        settings.repeats,
    )
    speedup = ratios(seconds["longest"], seconds["packed"])
    detail = {
        "seconds": {name: spread(x) for name, x in seconds.items()},
        "speedup": speedup,
        "largest_relative_difference": difference,
        "mean_length": float(lengths.mean()),
        "longest": longest,
        "rows": int(tails.segment.shape[1]),
        "shape": size.describe()
        | {"groups": settings.length_groups, "group_size": settings.group_size},
    }
    return {"packed_lists_speedup": speedup["median"]}, detail


def count_flops(settings: Settings) -> tuple[dict[str, float], JsonObject]:
    """Floating-point operations of both forms at real size, counted by XLA; nothing is run."""
    if settings.preset is None:
        size, config = settings.size, settings.size.config
    else:
        config = preset(settings.preset)
        size = Size(side=16, text_tokens=64, new_tokens=80, vocab_size=config.text.vocab_size)
    # XLA counts a loop's body once, so layers are unrolled, and all logits are one chunk.
    architecture = Architecture.of(config, Execution(scan=False))
    samples = _named(make_samples(size, 1, settings.group_size, settings.seed), config)
    rows = repeated(samples)
    params = architecture.shapes
    one = partial(policy_gradient, architecture, SETTINGS, {})
    counted = {}
    for name, lowered in (
        ("shared", jax.jit(one).lower(params, samples)),
        (
            "naive",
            jax.jit(partial(naive_gradient, architecture, SETTINGS)).lower(params, rows, samples),
        ),
    ):
        counted[name] = float((lowered.cost_analysis() or {})["flops"])
    ratio = counted["naive"] / counted["shared"]
    detail = {
        "preset": settings.preset,
        "flops": counted,
        "expected_ratio": EXPECTED_FLOPS_RATIO,
        "shape": {
            "visual_tokens": size.side**2,
            "text_tokens": size.text_tokens,
            "new_tokens": size.new_tokens,
            "group_size": settings.group_size,
        },
    }
    return {"shared_prefix_flops_ratio": round(ratio, 3)}, detail


def _named(samples: Samples, config: QwenVLConfig) -> Samples:
    """The samples with the model's own image token id."""
    prompts = unpacked(samples.prompts)
    tokens = np.where(prompts.tokens == TOKEN.image_pad_id, config.image_token_id, prompts.tokens)
    return samples._replace(prompts=prompts._replace(tokens=tokens.astype(np.int32)))


def measure_reward(settings: Settings) -> tuple[dict[str, float], JsonObject]:
    """Rank of the best positive: counted, sorted, and the bare product of queries and gallery."""
    rng = np.random.default_rng(settings.seed)

    def unit(*shape: int) -> jax.Array:
        x = rng.normal(size=shape).astype(np.float32)
        return jax.device_put(x / np.linalg.norm(x, axis=1, keepdims=True))

    queries, gallery = unit(settings.queries, settings.dim), unit(settings.gallery, settings.dim)
    places = rng.choice(settings.gallery, (settings.queries, settings.positives + 1)).astype(
        np.int32
    )
    places = jax.device_put(places)
    positives, own = places[:, :-1], places[:, -1]
    count = jax.jit(lambda q, g, p, o: rank_positives(q, g, p, o).rank)
    product = jax.jit(lambda q, g: jnp.dot(q, g.T, precision="highest"))

    @jax.jit
    def ranks_by_sorting(
        queries: jax.Array, gallery: jax.Array, positives: jax.Array, own: jax.Array
    ) -> jax.Array:
        scores = jnp.dot(queries, gallery.T, precision="highest")
        rows = jnp.arange(len(queries), dtype=jnp.int32)
        scores = scores.at[rows, own].set(-jnp.inf)
        order = jnp.argsort(-scores, axis=1)
        hit = jnp.any(order[:, :, None] == positives[:, None, :], axis=-1)
        return jnp.argmax(hit, axis=1).astype(jnp.int32) + 1

    few = settings.sorted_queries
    part = (queries[:few], gallery, positives[:few], own[:few])
    # The best positive's place in the whole list is its rank among negatives.
    if not np.array_equal(count(*part), ranks_by_sorting(*part)):
        raise RuntimeError("ranks by counting and by sorting differ")
    seconds = _in_turn(
        "reward",
        {
            "counted": lambda: count(queries, gallery, positives, own),
            "product": lambda: product(queries, gallery),
            "sorted": lambda: ranks_by_sorting(*part),
        },
        settings.repeats,
    )
    scale = settings.queries / few
    seconds["sorted"] = [scale * x for x in seconds["sorted"]]
    faster = ratios(seconds["sorted"], seconds["counted"])
    slower = ratios(seconds["counted"], seconds["product"])
    shape = {x: getattr(settings, x) for x in ("queries", "gallery", "dim", "positives")}
    detail = {
        "seconds": {name: spread(x) for name, x in seconds.items()},
        "sorted_queries": few,
        "speedup_argsort": faster,
        "time_ratio_matmul": slower,
        "shape": shape,
    }
    figures = {
        "reward_speedup_argsort": faster["median"],
        "reward_time_ratio_matmul": slower["median"],
    }
    return figures, detail


def tiny() -> Settings:
    """For tests: every part takes seconds."""
    size = dataclasses.replace(Size.tiny(), new_tokens=3)
    return Settings(
        size=size,
        preset=None,
        group_size=4,
        length_groups=4,
        budget=20,
        queries=64,
        gallery=500,
        dim=16,
        sorted_queries=16,
        repeats=2,
    )
