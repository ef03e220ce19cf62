"""The models of a run directory: where each stage's comes from, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from afmrl_jax.config import InitConfig, ModelSettings, RunConfig, VisionConfig
from afmrl_jax.config.validation import require
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.demo_weights import weights_folder
from afmrl_jax.models.families import ROLES, family
from afmrl_jax.models.huggingface.folder import base_folder, save_model
from afmrl_jax.models.huggingface.manifest import MANIFEST, require_manifest
from afmrl_jax.training.list_grammar import grammar_on, read_keys
from afmrl_jax.training.partition import pretrained, read_model
from afmrl_jax.types import Role

WEIGHTS = f"model/{MANIFEST}"
"""The output of a stage that stands for its model."""
GENERATORS = ("distill", "rar")
"""Stages that train the generator, or first parts of their names; all others train the
embedder."""


def check_patches(config: RunConfig, role: Role, vision: VisionConfig, where: str) -> None:
    """Refuse a model whose patches are not those that its pictures are cut into.

    Raises:
        ConfigError: names the settings that would fit.
    """
    image, names = config.image_of(role), ("patch_size", "merge_size", "temporal_patch_size")
    wrong = {x: getattr(vision, x) for x in names if getattr(vision, x) != getattr(image, x)}
    if wrong:
        fit = [f"{x.replace('_', '-')} {value}" for x, value in wrong.items()]
        shared, own = (" ".join(part + x for x in fit) for part in ("--image.", f"--{role}.reads."))
        raise ConfigError(
            f"{where} reads other patches than pictures are cut into: it needs {shared}, or {own} "
            "where the run's other model reads other patches"
        )


def load_tokenizer(folder: Path, role: Role) -> BpeTokenizer:
    """The tokenizer of a role.

    Args:
        folder: of the stage that writes them: one for both models, and beside it one of the
            generator's own where the two differ.
        role: of the model.
    """
    own = folder / role
    return BpeTokenizer.load(own if own.is_dir() else folder)


def role_of(stage: str) -> Role:
    """Which of the two models a stage trains.

    Example:
        >>> role_of("rar-2"), role_of("cit-1")
        ('generator', 'embedder')
    """
    return "generator" if stage.split("-")[0] in GENERATORS else "embedder"


@dataclass(frozen=True)
class ModelStore:
    """Models by stage."""

    folder: Path
    """The run directory."""
    config: RunConfig
    mesh: Mesh

    def settings(self, stage: str) -> ModelSettings:
        """Of the embedder or the generator, whichever the stage trains."""
        return self.config.model(role_of(stage))

    def _folder(self, stage: str) -> Path | None:
        return weights_folder(self.settings(stage).weights, role_of(stage))

    def start(self, stage: str, tokenizer: BpeTokenizer) -> tuple[Architecture, Params]:
        """What the stage starts from before any training: the user's weights, or random ones.

        Args:
            stage: by name.
            tokenizer: of the model that it trains.
        """
        settings, role = self.settings(stage), role_of(stage)
        writes = role == "generator"
        seed = self.config.seed + writes
        folder = self._folder(stage)
        if folder is not None:
            architecture, params = pretrained(folder, settings, self.mesh, seed)
            config = architecture.config
            tokenizer.check_model(config.text.vocab_size, config.image_token_id)
            check_patches(self.config, role, config.vision, str(folder))
            return architecture, params
        require(
            settings.trained == "all",
            f"trained {settings.trained!r} needs weights to start from: name a folder with "
            f"--{role}.weights",
        )
        named = settings.family or ROLES[role]
        config = family(named).demo(tokenizer.vocab_size, tokenizer.image_pad_id)
        architecture = Architecture.of(config, settings.execution)
        return architecture, architecture.init(seed, InitConfig.copying() if writes else None)

    def grammar(self, tokenizer: BpeTokenizer, vocab_size: int) -> Grammar | None:
        """What the generators keep to; None where they write freely.

        Args:
            tokenizer: of the generators.
            vocab_size: rows of the generator's token table.
        """
        if not self.config.lists.grammar:
            return None
        keys = read_keys(self.folder / GENERATORS[0])
        budget = self.config.text.max_attribute_tokens
        return grammar_on(self.mesh, keys, tokenizer, budget, vocab_size)

    def load(self, stage: str) -> tuple[Architecture, Params]:
        """What a stage has trained.

        Raises:
            RunError: its weights are missing, or not those that were written.
        """
        folder = self.folder / stage / "model"
        require_manifest(folder)
        return read_model(folder, self.settings(stage), self.mesh)

    def save(
        self, stage: str, architecture: Architecture, params: Params, tokenizer: BpeTokenizer
    ) -> None:
        """Write what a stage has trained, whole or not at all."""
        folder = self._folder(stage)
        save_model(
            self.folder / stage / "model",
            architecture,
            params,
            like=base_folder(folder) if folder is not None else None,
            tokenizer=tokenizer,
        )
