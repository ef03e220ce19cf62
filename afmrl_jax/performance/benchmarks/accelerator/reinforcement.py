"""RAR end to end: sampling, the embedder's reward over its gallery, scoring and the update."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from afmrl_jax.config import (
    Execution,
    ImageConfig,
    LoraConfig,
    ModelSettings,
    OptimizerConfig,
    QwenVLConfig,
    RarConfig,
    TextBudget,
)
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.sources.batches import PromptBatch
from afmrl_jax.data.sources.prompts import PromptSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.models.shared_prefix import unpacked
from afmrl_jax.objectives.rewards import find_reward
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place_batch
from afmrl_jax.performance.benchmarks.accelerator.kernels import Measured, unit_vectors
from afmrl_jax.performance.benchmarks.accelerator.models import device_memory, random_params
from afmrl_jax.performance.flops import Passes
from afmrl_jax.performance.record import spread
from afmrl_jax.performance.sweep.work import catalogue, picture_budget
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.rar.environment import RarEnvironment
from afmrl_jax.training.rar.sample_log import SampleLog
from afmrl_jax.training.rar.stage import RarStep
from afmrl_jax.training.state import initial_state, make_optimizer, scalars

PHASES = ("seconds_sampling", "seconds_reward", "seconds_update")


@dataclass(frozen=True)
class RarSizes:
    """Models, catalogue and rollout."""

    generator: QwenVLConfig = dataclasses.field(default_factory=lambda: preset("qwen2_5vl_3b"))
    embedder: QwenVLConfig = dataclasses.field(default_factory=lambda: preset("qwen2vl_2b"))
    visual: int = 256
    """Visual tokens of a picture."""
    title: int = 58
    """Most tokens of a title."""
    new_tokens: int = 80
    queries: int = 32
    group_size: int = 8
    listings: int = 512
    """Listings that the embedder embeds; queries are drawn from them."""
    gallery: int = 200_000
    """Vectors in the gallery: those of the listings, filled up with random ones."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @classmethod
    def tiny(cls) -> RarSizes:
        """For a rehearsal on a CPU."""
        models = preset("demo_generator"), preset("demo_embedder")
        return cls(*models, 4, 24, 16, 4, 2, 64, 500, "float32")


def chosen_listings(listings: list[Listing], count: int) -> list[Listing]:
    """About `count` listings, whole products, those of the split `reward` first.

    Raises:
        ConfigError: the catalogue has no listings of that split.
    """
    found = sorted(listings, key=lambda x: (x.split != "reward", x.product_id))
    if not found or found[0].split != "reward":
        raise ConfigError("the catalogue has no listings of the split reward")
    products: dict[str, None] = {}
    kept: list[Listing] = []
    for listing in found:
        if len(kept) >= count and listing.product_id not in products:
            break
        products[listing.product_id] = None
        kept.append(listing)
    return kept


class Reinforcement:
    """The stage's own step, on random weights."""

    def __init__(self, sizes: RarSizes, folder: Path):
        self._sizes = sizes
        self._mesh = make_mesh(1, 1)
        listings, texts, tokenizer = catalogue("furniture")
        by_listing = {x.listing_id: t for x, t in zip(listings, texts, strict=True)}
        chosen = chosen_listings(listings, sizes.listings)
        vision = sizes.generator.vision
        image, text = _budgets(sizes)
        self._builder = RowBuilder.of(chosen, tokenizer, image, text)
        self.settings = RarConfig(
            queries=sizes.queries,
            group_size=sizes.group_size,
            temperature=1.0,
            k=10,
            held_out_share=0.1,
            gallery_dtype=sizes.dtype,
            optimizer=OptimizerConfig(1e-5),
        )
        assert vision.patch_size == sizes.embedder.vision.patch_size
        execution = Execution(dtype=sizes.dtype, remat="full")
        token = tokenizer.image_pad_id
        embedder = dataclasses.replace(sizes.embedder, image_token_id=token)
        generator = dataclasses.replace(sizes.generator, image_token_id=token, lora=LoraConfig())
        own = Architecture.of(embedder, execution)
        encoder = Encoder.on(self._mesh, own, random_params(own.shapes, sizes.dtype), 32)
        self.environment = RarEnvironment(self._builder, encoder, by_listing, self.settings, 0)
        self.environment.fill_up(
            unit_vectors(
                max(0, sizes.gallery - len(chosen)), embedder.text.hidden_dim, "float32", 7
            )
        )
        trained = Architecture.of(generator, execution)
        self._trainee = Partition.of(
            trained,
            random_params(trained.shapes, sizes.dtype),
            ModelSettings(trained="lora", frozen_dtype=sizes.dtype),
            self._mesh,
        )
        self._step = self._make_step(folder)
        self._source = PromptSource(
            self.environment.prompts,
            self.environment.training_queries,
            steps=1000,
            batch_size=sizes.queries,
            seed=0,
        )

    def _make_step(self, folder: Path) -> RarStep:
        trainee, settings = self._trainee, self.settings
        reference = trainee.whole(trainee.architecture.as_computed(trainee.trainable))
        optimizer = make_optimizer(settings.optimizer, settings.steps)
        self._state = initial_state(trainee.trainable, optimizer)
        log = SampleLog(folder, 1000, self._builder)
        reward = find_reward(settings.reward, settings)
        return RarStep(
            settings,
            trainee,
            reference,
            self.environment,
            reward,
            optimizer,
            settings.k or 1,
            self._mesh,
            log,
        )

    def batch(self, number: int) -> PromptBatch:
        """Prompts on the host."""
        return self._source[number]

    def step(self, batch: PromptBatch, number: int) -> dict[str, float]:
        """One step of the stage; its metrics, once all of it has been done."""
        placed = place_batch(batch._replace(bad_pictures=None), self._mesh)
        with jax.set_mesh(self._mesh):
            self._state, metrics = self._step(
                self._state, placed, jax.random.fold_in(jax.random.key(0), number)
            )
        jax.block_until_ready(self._state)
        return scalars(metrics)

    def useful(self, batch: PromptBatch, written: float) -> float:
        """Operations of a step that the task needs, see `performance.flops`."""
        sizes, lengths = self._sizes, np.asarray(unpacked(batch.rows).token_mask).sum(1)
        patches = np.full(len(lengths), sizes.visual * sizes.generator.vision.merge_size**2)
        config = self._trainee.architecture.config
        lists = Passes.behind(config, lengths, sizes.group_size, written)
        own = (Passes.over(config, patches, lengths) + lists).reinforcement("lora")
        tails = Passes.behind(sizes.embedder, lengths, sizes.group_size, written).decoder
        reward = Passes.over(sizes.embedder, patches, lengths).forward + tails
        vectors = len(lengths) * sizes.group_size * sizes.gallery
        return own + reward + 2.0 * vectors * sizes.embedder.text.hidden_dim


def _budgets(sizes: RarSizes) -> tuple[ImageConfig, TextBudget]:
    prompt = sizes.visual + sizes.title + 6
    text = TextBudget(
        buckets=(prompt, prompt + sizes.new_tokens + 2),
        max_title_tokens=sizes.title,
        max_attribute_tokens=sizes.new_tokens,
    )
    return picture_budget(sizes.generator.vision, sizes.visual), text


def reinforcement(sizes: RarSizes, peak: float, repeats: int) -> Measured:
    """Rollouts a second of whole steps, and where their time goes.

    Args:
        sizes: of models and rollout.
        peak: measured FLOP/s.
        repeats: timed steps, after two that compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Reinforcement(sizes, Path(folder))
        taken: dict[str, list[float]] = {name: [] for name in (*PHASES, "samples_per_second")}
        written, useful = [], []
        for number in range(repeats + 2):
            batch = work.batch(number)
            metrics = work.step(batch, number)
            log_info(f"rar: {metrics['samples_per_second']:.3g} rollouts/s")
            if number < 2:
                continue
            for name, samples in taken.items():
                samples.append(metrics[name])
            written.append(metrics["attribute_tokens"])
            useful.append(work.useful(batch, metrics["attribute_tokens"]))
    rate = float(np.median(taken["samples_per_second"]))
    rollouts = len(batch.queries) * sizes.group_size
    figures = {
        "rar_rollouts_per_second": rate,
        "rar_share_of_peak": float(np.median(useful)) * rate / rollouts / peak,
    }
    detail = {name: spread(samples) for name, samples in taken.items()}
    about = {
        "queries": len(batch.queries),
        "group_size": sizes.group_size,
        "prompt_tokens": work.environment.prompts.length,
        "tokens_written": float(np.mean(written)),
        "gallery": int(work.environment.gallery.shape[0]),
    }
    return figures, {**about, **detail, **device_memory()}
