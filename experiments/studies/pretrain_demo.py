"""Pretrain the demo's embedder and generator on the marketplace's endless stream.

    python -m experiments.studies.pretrain_demo --out runs/pretrain

draws a pool of pictures and words whose combinations occur in no catalogue, teaches the generator
first to see their attributes and then to write lists and captions of them, and the embedder to
bring photos and titles of a product together and then to read lists. It writes
`generator/` and `embedder/` as Hugging Face folders, and `report.json`: the loss curves, what the
generator reads off photos of combinations that it has never seen, and how often their titles,
photos and lists find each other. About two hours on two CPU cores; killed, it goes on from its last
checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import jax.numpy as jnp
import numpy as np
import optax
import tyro

from afmrl_jax.config import (
    AgclConfig,
    DistillConfig,
    Execution,
    ImageConfig,
    InitConfig,
    TextBudget,
)
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.sources.batches import Batch
from afmrl_jax.data.sources.loader import Source
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.demo_weights import Role
from afmrl_jax.models.families import ROLES, family
from afmrl_jax.models.huggingface.folder import save_model
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.metrics_log import read_metrics
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.runtime.setup import reported
from afmrl_jax.training.agcl import make_agcl_step
from afmrl_jax.training.distill import make_distill_step
from afmrl_jax.training.loop import FrozenStepFunction, LoopConfig, run_loop
from afmrl_jax.training.state import initial_state
from afmrl_jax.types import JsonObject
from experiments.studies.pretrain.accuracy import accuracy_by_key
from experiments.studies.pretrain.card import write_card
from experiments.studies.pretrain.matching import meeting_recall
from experiments.studies.pretrain.optimizer import make_muon
from experiments.studies.pretrain.pool import Pool
from experiments.studies.pretrain.reading import ReadingSource
from experiments.studies.pretrain.sources import Material, PairSource, WritingSource
from experiments.studies.pretrain.tower import TowerSource, make_tower_step, trainable

VOCABULARY_SAMPLES = 20_000
"""Samples whose words the tokenizer is learned from."""
HELD_OUT = 1
"""Added to the seed: the stream that the generator is examined on."""


@dataclass(frozen=True)
class Sizes:
    """Of both models, in the proportions of the demo's."""

    vision_depth: int = 3
    vision_dim: int = 96
    hidden_dim: int = 128
    layers: int = 3
    intermediate_dim: int = 320


@dataclass(frozen=True)
class Pretraining:
    """How long, on what, and where to."""

    out: Path = Path("runs/pretrain")
    """Folder of pool, checkpoints and models."""
    models: tuple[Role, ...] = ("generator", "embedder")
    """Which to train; neither depends on the other."""
    seed: int = 0
    samples: int = 64_000
    """Of the pool, two photos each; a multiple of 500."""
    tower_steps: int = 2_500
    """Of the generator's vision tower, before its decoder learns."""
    tower_batch: int = 32
    generator_steps: int = 2_000
    generator_batch: int = 32
    embedder_steps: int = 3_000
    embedder_batch: int = 64
    """Pairs."""
    reading_steps: int = 1_200
    """Of the embedder after these, with lists; 0: it never reads one."""
    reading_rate: float = 0.6
    """Learning rates of these steps, as a share of the others'."""
    learning_rate: float = 2e-3
    """Of Adam, for biases, scales and the token table."""
    muon_rate: float = 1.5e-2
    """Of Muon, for all other matrices."""
    vocab_size: int = 2048
    examined: int = 1000
    """Products of unseen combinations that the models are examined on."""
    save_every: int = 250
    workers: int = os.cpu_count() or 1
    """Processes that draw the pool."""
    sizes: Sizes = field(default_factory=Sizes)

    def trainings(self, role: Role) -> tuple[str, ...]:
        """Those of a model, one after the other."""
        if role == "generator":
            return "tower", "generator"
        return ("embedder", "reading") if self.reading_steps else ("embedder",)


IMAGE = ImageConfig(max_pixels=96 * 96, pack_shares=(0.25, 0.5, 0.75, 1.0))
TEXT = TextBudget(buckets=(32, 64, 96, 128, 192), max_attribute_tokens=96)


def material(settings: Pretraining) -> Material:
    """Pool and tokenizer, made where they are missing."""
    pool = Pool.drawn(settings.out / "pool", settings.seed, settings.samples, settings.workers)
    folder = settings.out / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        titles = [x.title for x in load_catalogue("furniture").listings]
        texts = [*pool.texts(VOCABULARY_SAMPLES), *titles]
        BpeTokenizer.train(texts, settings.vocab_size).save(folder)
    return Material(pool, BpeTokenizer.load(folder), IMAGE, TEXT)


def architecture(role: Role, sizes: Sizes, tokenizer: BpeTokenizer) -> Architecture:
    """Of the embedder or the generator."""
    small = family(ROLES[role]).demo(tokenizer.vocab_size, tokenizer.image_pad_id)
    replace = dataclasses.replace
    half = sizes.hidden_dim // small.text.num_heads // 2
    section = (half - 2 * (half // 3), half // 3, half // 3)
    text = replace(
        small.text,
        hidden_dim=sizes.hidden_dim,
        num_layers=sizes.layers,
        intermediate_dim=sizes.intermediate_dim,
        mrope_section=section,
    )
    blocks = small.vision.full_attention_blocks
    vision = replace(
        small.vision,
        depth=sizes.vision_depth,
        embed_dim=sizes.vision_dim,
        intermediate=3 * sizes.vision_dim,
        out_dim=sizes.hidden_dim,
        full_attention_blocks=tuple(range(1, sizes.vision_depth, 2)) if blocks else (),
    )
    return Architecture.of(replace(small, vision=vision, text=text), Execution())


def train(
    settings: Pretraining,
    name: str,
    source: WritingSource | PairSource | ReadingSource | TowerSource,
    start: Params,
    made: Callable[[optax.GradientTransformation], FrozenStepFunction],
    frozen: Params | None = None,
    rate: float = 1.0,
) -> Params:
    """Run a loop to its end, or go on with it.

    Args:
        settings: seed, rates and folder.
        name: of the training.
        source: its batches.
        start: parameters that learn.
        made: the step of an optimizer.
        frozen: parameters that do not learn.
        rate: of the settings' learning rates, a share.
    """
    folder, steps = settings.out / f"train-{name}", len(source)
    folder.mkdir(parents=True, exist_ok=True)
    loop = LoopConfig(
        name, folder, steps, settings.seed, settings.save_every, make_mesh(1, 1), log_every=50
    )
    optimizer = make_muon(
        start,
        steps,
        muon_rate=rate * settings.muon_rate,
        adam_rate=rate * settings.learning_rate,
    )
    state = initial_state(start, optimizer)
    # The loop reads of a batch what all of them have.
    batches = cast(Source[Batch], source)
    return run_loop(loop, state, batches, partial(made(optimizer), frozen or {})).params


def pretrain_generator(settings: Pretraining, own: Material) -> dict[str, float]:
    """Train and save the generator; what it reads off photos that it has never seen."""
    built = architecture("generator", settings.sizes, own.tokenizer)
    whole = built.init(settings.seed, InitConfig.copying())
    frozen, start = trainable(whole, settings.sizes.hidden_dim, settings.seed)
    photos = TowerSource(own, settings.tower_steps, settings.tower_batch, settings.seed)
    tower = train(settings, "tower", photos, start, partial(make_tower_step, built), frozen)
    start = {name: tower.get(name, x) for name, x in whole.items()}
    config = DistillConfig(contrastive_weight=0.0, structure_weight=1.0, swap_share=0.0)
    source = WritingSource(own, settings.generator_steps, settings.generator_batch, settings.seed)
    params = train(settings, "generator", source, start, partial(make_distill_step, built, config))
    params = saved(settings, "generator", built, params, own)
    found = accuracy_by_key(built, params, own, settings.seed + HELD_OUT, settings.examined)
    return found.by_key | {"malformed": found.malformed}


def pretrain_embedder(settings: Pretraining, own: Material) -> dict[str, float]:
    """Train and save the embedder; whether titles, photos and lists that it has never seen find
    each other.
    """
    built = architecture("embedder", settings.sizes, own.tokenizer)
    config = dataclasses.replace(AgclConfig().infonce(), prefix_weight=0.0)
    source = PairSource(own, settings.embedder_steps, settings.embedder_batch, settings.seed)
    step = partial(make_agcl_step, built, config, None)
    params = train(settings, "embedder", source, built.init(settings.seed + 1), step)
    if settings.reading_steps:
        lists = ReadingSource(own, settings.reading_steps, settings.embedder_batch, settings.seed)
        params = train(settings, "reading", lists, params, step, rate=settings.reading_rate)
    params = saved(settings, "embedder", built, params, own)
    return meeting_recall(built, params, own, settings.seed + HELD_OUT, settings.examined)


PRETRAIN: dict[Role, Callable[[Pretraining, Material], dict[str, float]]] = {
    "generator": pretrain_generator,
    "embedder": pretrain_embedder,
}


def saved(
    settings: Pretraining, role: Role, built: Architecture, params: Params, own: Material
) -> Params:
    """Save a model in bfloat16; returns the parameters as they will be read."""
    small = {name: x.astype(jnp.bfloat16) for name, x in params.items()}
    save_model(settings.out / role, built, small, tokenizer=own.tokenizer)
    return {name: x.astype(jnp.float32) for name, x in small.items()}


def curve(settings: Pretraining, name: str) -> list[list[float]]:
    """Step and mean loss of every twentieth of a training."""
    lines = read_metrics(settings.out / f"train-{name}" / "metrics.jsonl")
    found = [(x["step"], x["loss"]) for x in lines if "loss" in x]
    parts: list[np.ndarray] = np.array_split(np.array(found), min(20, len(found)))
    return [[float(x[-1, 0]), round(float(x[:, 1].mean()), 4)] for x in parts]


def main() -> None:
    """Everything that is missing of the models that are asked for, and the report."""
    settings = tyro.cli(Pretraining, description=__doc__)
    own = material(settings)
    path = settings.out / "report.json"
    # A model that was trained by an earlier command keeps its part.
    report: JsonObject = read_json(path) if path.is_file() else {}
    for role in settings.models:
        found = PRETRAIN[role](settings, own)
        log_info(f"{role}: " + ", ".join(f"{x} {y:.3f}" for x, y in found.items()))
        report[role] = {
            "settings": dataclasses.asdict(settings) | {"out": settings.out.name},
            "examination": found,
            "loss": {name: curve(settings, name) for name in settings.trainings(role)},
            **provenance(),
        }
        write_json(path, report)
        built = architecture(role, settings.sizes, own.tokenizer)
        count = sum(math.prod(x.shape) for x in built.shapes.values())
        write_card(settings.out / role, role, built.config.family, count, IMAGE, report[role])


if __name__ == "__main__":
    with reported():
        main()
