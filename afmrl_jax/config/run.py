"""Every setting of the system, as frozen dataclasses that reject invalid values when built.

A run's settings are `RunConfig`; those of its stages are in `stages.py`, `contrastive.py` and
`rar.py`, those of its models in `model.py`, those of its inputs in `data.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import get_args

from afmrl_jax.config.contrastive import AgclConfig, BackboneConfig
from afmrl_jax.config.data import (
    ImageConfig,
    ListsConfig,
    OracleConfig,
    TextBudget,
    ViewShares,
)
from afmrl_jax.config.marketplace import MARKETPLACE, MarketplaceSettings
from afmrl_jax.config.model import DEMO_WEIGHTS, Execution, ModelSettings
from afmrl_jax.config.rar import CitConfig, RarConfig
from afmrl_jax.config.reads import Reads
from afmrl_jax.config.stages import DistillConfig, EvaluationConfig, OptimizerConfig
from afmrl_jax.config.validation import MAX_COUNT, MAX_ROWS, MAX_STEPS, Settings, require
from afmrl_jax.runtime.trackers import parse_trackers
from afmrl_jax.types import Role


@dataclass(frozen=True)
class MeshConfig(Settings):
    """How many devices share the batch and the matrices."""

    data: int = -1
    """Devices that share the batch and the stored parameters; -1 takes all available."""
    model: int = 1
    """Devices that share each matrix (tensor parallelism)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(data=(-1, MAX_ROWS), model=(1, MAX_ROWS))
        require(self.data != 0, "mesh.data must be -1 or a number of devices")


@dataclass(frozen=True)
class KeptCheckpoints(Settings):
    """Which checkpoints of a stage stay on disk."""

    newest: int = 2
    """How many of the newest to keep; if one is damaged, the one before it is used."""
    every: int | None = None
    """Also keep those whose step is a multiple of this. None keeps no others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(newest=(1, MAX_STEPS), every=(1, MAX_STEPS))


@dataclass(frozen=True)
class GuardConfig(Settings):
    """When training stops on its own."""

    explosion: float | None = 20.0
    """Stop the stage when the loss exceeds this multiple of its median over the last hundred steps
    for three steps in a row. None stops only for a non-finite loss. RAR, whose loss has no scale,
    has warnings of its own."""
    stall_after: int = 1800
    """Seconds without a finished step after which a process of a multi-process run ends with an
    error that says where it is stuck; 0 never does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.explosion is None or self.explosion > 1, "guard.explosion must exceed 1")
        self._within(stall_after=(0, MAX_COUNT))


PLACEMENT = ("save_every", "workers", "mesh", "checkpoints", "guard", "log", "profile")
"""Settings that change where and how safely a run is computed but not its result: a run may resume
with other values of these."""


@dataclass(frozen=True)
class RunConfig(Settings):
    """One run of the whole method, stage by stage."""

    catalogue: str = "furniture"
    """`furniture` (embedded), `marketplace` (drawn), a folder in the catalogue format, a CSV or
    another table, or a data set of the Hugging Face hub (`hf://user/set`)."""
    columns: str | None = None
    """Which columns of a table are which, as in `title=name,product_id=sku`."""
    seed: int = 0
    vocab_size: int = 2048
    """Entries of the byte-level BPE trained on the catalogue."""
    skip_bad: bool = False
    """Skip unusable records, counted and listed, instead of stopping."""
    save_every: int = 25
    """Steps between checkpoints."""
    packed: bool = True
    """Rows stand one after the other in bins of one length, in training, annotation and
    evaluation, so that few of the places that are computed are padding. Off, each row is padded to
    a text bucket. Vectors and gradients are the same but for rounding. Batches in chunks
    (agcl.chunk_tokens) are sorted by length instead. A run keeps what it began with."""
    workers: int = 0
    """Grain worker processes; 0 reads in threads of this process."""
    visual_cache: str | None = None
    """Folder that caches the visual tokens of the embedder's frozen vision tower, in its compute
    type, for repeated runs over the same catalogue; several runs may share it. Needs a frozen tower
    (embedder.trained lora or decoder) and agcl.dropout.patches 0. None decodes pictures and runs
    the tower in every step."""
    controls: bool = False
    """Also train and evaluate what the attribute lists are judged against: `agcl+shuffled`, trained
    and tested with lists of other products, and `agcl+distilled-bare`, the embedder of
    `agcl+distilled` without any list; and what CIT is judged against, `afmrl+cit-old-lists`, which
    trains for as many steps on the same pairs with the distilled generator's lists."""
    log: str = "tensorboard"
    """Where metrics go besides metrics.jsonl: `tensorboard`, `trackio`, `wandb`, several of these
    with commas, or `none`. WANDB_MODE=offline and TRACKIO_DIR keep them on this machine."""
    profile: int = 0
    """Steps of each stage that are traced, from the third of this process on, for XProf: the trace
    is in STAGE/profile. 0 traces none."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoints: KeptCheckpoints = field(default_factory=KeptCheckpoints)
    guard: GuardConfig = field(default_factory=GuardConfig)
    embedder: ModelSettings = field(default_factory=ModelSettings)
    generator: ModelSettings = field(default_factory=ModelSettings)
    marketplace: MarketplaceSettings = field(default_factory=MarketplaceSettings)
    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextBudget = field(default_factory=TextBudget)
    oracle: OracleConfig = field(default_factory=OracleConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    lists: ListsConfig = field(default_factory=ListsConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    agcl: AgclConfig = field(default_factory=AgclConfig)
    rar: RarConfig = field(default_factory=RarConfig)
    cit: CitConfig = field(default_factory=CitConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A vocabulary holds 256 bytes and the special tokens; stages add to the seed.
        self._within(
            seed=(0, MAX_COUNT - 10**6),
            vocab_size=(264, 10**6),
            save_every=(1, MAX_STEPS),
            workers=(0, 1024),
            profile=(0, 10_000),
        )
        parse_trackers(self.log)
        if self.visual_cache is not None:
            require(
                self.embedder.trained != "all",
                "visual_cache keeps the tokens of a frozen vision tower, and embedder.trained is "
                "all: set --embedder.trained to lora or decoder, or leave visual_cache out",
            )
            require(
                self.embedder.trained != "lora" or not self.embedder.lora.adapts_tower,
                "visual_cache keeps the tokens of a frozen vision tower, and "
                f"embedder.lora.tower_targets {self.embedder.lora.tower_targets} train in it: "
                "leave one of them out",
            )
            require(
                self.agcl.dropout.patches == 0,
                f"visual_cache holds tokens of whole pictures, and agcl.dropout.patches "
                f"{self.agcl.dropout.patches} erases parts of them: set --agcl.dropout.patches 0, "
                "or leave visual_cache out",
            )
        require(
            not self.lists.lone
            or not self.generator.starts_random
            or min(self.distill.title_dropout, self.distill.picture_dropout) > 0,
            "lists.lone lets the generator write for a lone picture and a lone title, which one "
            "with random weights has never seen: set --distill.title-dropout and "
            "--distill.picture-dropout above 0, or name --generator.weights",
        )
        for role in get_args(Role):
            image, longest = self.image_of(role), self.text_of(role).buckets[-1]
            visual = image.bin_patches // image.merge_size**2
            require(
                visual < longest,
                f"image.max_pixels and image.max_pictures allow {visual} visual tokens in rows of "
                f"the {role}, and text.buckets end at {longest}; lower one or add a longer bucket",
            )

    def model(self, role: Role) -> ModelSettings:
        """Settings of one of the two models."""
        return self.embedder if role == "embedder" else self.generator

    def image_of(self, role: Role) -> ImageConfig:
        """How a model cuts pictures into patches."""
        return self.model(role).reads.image(self.image)

    def text_of(self, role: Role) -> TextBudget:
        """Lengths and layout of a model's rows."""
        return self.model(role).reads.text(self.text)

    @classmethod
    def demo(cls, catalogue: str = MARKETPLACE) -> RunConfig:
        """The default run: minutes on two cores.

        On the drawn marketplace both models start from the shipped weights, which have seen its
        like. For any other catalogue these are the settings of small models with random weights.
        """
        return _on_the_marketplace(cls()) if catalogue == MARKETPLACE else cls()

    @classmethod
    def fast(cls, catalogue: str = MARKETPLACE) -> RunConfig:
        """Every stage of the demo with few steps on small pictures: a smoke test, not a result."""
        demo = cls.demo(catalogue)
        replace = dataclasses.replace
        drawn = catalogue == MARKETPLACE
        # Programs are compiled once per shape, which takes most of the time here.
        short = TextBudget(buckets=(16, 56, 76), max_attribute_tokens=20)
        return replace(
            demo,
            marketplace=MarketplaceSettings.small(),
            image=demo.image if drawn else ImageConfig(max_pixels=48 * 48),
            text=demo.text if drawn else short,
            lists=replace(demo.lists, samples=0),
            distill=replace(demo.distill, steps=12),
            backbone=replace(demo.backbone, steps=min(8, demo.backbone.steps)),
            agcl=replace(demo.agcl, steps=4, batch_size=32),
            # The same shapes as the held-out evaluation, so its programs need no second compile.
            rar=replace(
                demo.rar,
                steps=3,
                queries=32,
                group_size=4,
                evaluate_every=3,
                held_out_share=0.1,
            ),
            cit=replace(demo.cit, steps=4),
            evaluation=replace(demo.evaluation, bootstrap=200, latency=False),
            save_every=20,
        )

    @classmethod
    def pretrained(cls) -> RunConfig:
        """Qwen2-VL as embedder, Qwen2.5-VL as generator: chat layout, 256 visual tokens a picture.

        Learning rates and numbers of steps are guesses based on common practice, because they could
        not be tried on real weights.
        """
        demo = cls()
        replace = dataclasses.replace
        execution = Execution(dtype="bfloat16", remat="auto")
        return replace(
            demo,
            # Pictures make rows alike in length, and on a GPU rows that share a bin need a mask.
            packed=False,
            embedder=ModelSettings(trained="lora", execution=execution),
            generator=ModelSettings(trained="decoder", execution=execution),
            image=ImageConfig.qwen(),
            text=TextBudget(
                buckets=(128, 320, 384, 448, 512),
                max_title_tokens=64,
                max_attribute_tokens=96,
                layout="chat",
            ),
            # What helps random weights would harm pretrained ones.
            distill=replace(
                demo.distill,
                swap_share=0.0,
                contrastive_weight=0.0,
                structure_weight=1.0,
                logits_at_once=64,
                optimizer=OptimizerConfig(1e-5, weight_decay=0.0),
            ),
            backbone=replace(demo.backbone, steps=0),
            agcl=replace(
                demo.agcl,
                steps=1000,
                temperature=0.02,
                dropout=replace(demo.agcl.dropout, patches=0.0, words=0.0),
                optimizer=OptimizerConfig(5e-5),
            ),
            rar=replace(
                demo.rar,
                steps=200,
                temperature=1.0,
                optimizer=OptimizerConfig(1e-6, warmup_share=0.05, final_share=1.0),
            ),
            cit=replace(demo.cit, steps=200, learning_rate=2e-5),
        )

    @classmethod
    def qwen3(cls) -> RunConfig:
        """As `pretrained`, for Qwen3-VL in both roles: its patches and its chat format."""
        other = cls.pretrained()
        text = dataclasses.replace(
            other.text, layout="qwen3", embedder_instruction="Represent this product for retrieval."
        )
        return dataclasses.replace(other, image=ImageConfig.qwen3(), text=text)


def _on_the_marketplace(base: RunConfig) -> RunConfig:
    """The demo: models of the shipped weights on a small marketplace."""
    replace = dataclasses.replace
    # Nearly all errors of an embedder that knows this world are between near-twins, and high rates
    # make it forget how words and pictures meet; by R@1 on the reward split, one seed. It reads
    # lists already, and one that leaves out what tells twins apart would teach it not to.
    whole = replace(base.agcl.dropout, attributes=0.0)
    twins = replace(base.agcl, steps=45, batch_size=64, sibling_share=1.0, dropout=whole)
    return replace(
        base,
        catalogue=MARKETPLACE,
        marketplace=MarketplaceSettings(
            distill_families=150,
            train_families=250,
            reward_families=90,
            test_families=200,
            products=(2, 2),
            offers=(3, 3),
        ),
        embedder=ModelSettings(weights=DEMO_WEIGHTS),
        generator=ModelSettings(weights=DEMO_WEIGHTS),
        # As the weights were pretrained.
        image=ImageConfig(max_pixels=96 * 96, pack_shares=(0.25, 0.5, 0.75, 1.0)),
        text=TextBudget(buckets=(32, 64, 96, 128, 192), max_attribute_tokens=80),
        lists=ListsConfig(lone=True, grammar=True),
        # What helps random weights would harm pretrained ones.
        distill=replace(
            base.distill,
            steps=100,
            swap_share=0.0,
            contrastive_weight=0.0,
            title_dropout=0.3,
            picture_dropout=0.1,
            optimizer=OptimizerConfig(5e-4, warmup_share=0.05, weight_decay=0.05),
        ),
        backbone=replace(base.backbone, steps=0),
        agcl=replace(twins, views=ViewShares.mixed(), optimizer=OptimizerConfig(1e-4)),
        rar=replace(base.rar, steps=20),
    )


def pretrained_for(embedder: str | None, generator: str | None = None) -> RunConfig:
    """The preset for pretrained weights of these families.

    Args:
        embedder: family of that model; None: as the other's, or the one of `pretrained`.
        generator: likewise. Where it reads otherwise than the embedder, its `reads` says how.
    """
    first, second = (
        RunConfig.qwen3() if x == "qwen3_vl" else RunConfig.pretrained()
        for x in (embedder or generator, generator or embedder)
    )
    reads = Reads.between((second.image, second.text), (first.image, first.text))
    return dataclasses.replace(first, generator=dataclasses.replace(first.generator, reads=reads))
