"""The models of a run directory: where each stage's comes from, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from afmrl_jax.config import ImageConfig, InitConfig, ModelSettings, RunConfig, VisionConfig
from afmrl_jax.config.validation import require
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.demo_weights import Role, weights_folder
from afmrl_jax.models.families import ROLES, family
from afmrl_jax.models.huggingface.folder import base_folder, save_model
from afmrl_jax.models.huggingface.manifest import MANIFEST, require_manifest
from afmrl_jax.training.list_grammar import grammar_on, read_keys
from afmrl_jax.training.partition import pretrained, read_model

WEIGHTS = f"model/{MANIFEST}"
"""The output of a stage that stands for its model."""
GENERATORS = ("distill", "rar")
"""Stages that train the generator, or first parts of their names; all others train the
embedder."""


def check_patches(image: ImageConfig, vision: VisionConfig, where: str) -> None:
    """Refuse a model whose patches are not those that pictures are cut into.

    Raises:
        ConfigError: names the settings that would fit.
    """
    names = ("patch_size", "merge_size", "temporal_patch_size")
    wrong = {x: getattr(vision, x) for x in names if getattr(vision, x) != getattr(image, x)}
    if wrong:
        fit = " ".join(f"--image.{x.replace('_', '-')} {value}" for x, value in wrong.items())
        raise ConfigError(
            f"{where} reads other patches than pictures are cut into: it needs {fit}; both models "
            "of a run read the same pictures, so their patches must be alike"
        )


def _writes(stage: str) -> bool:
    return stage.split("-")[0] in GENERATORS


@dataclass(frozen=True)
class ModelStore:
    """Models by stage."""

    folder: Path
    """The run directory."""
    config: RunConfig
    mesh: Mesh

    def settings(self, stage: str) -> ModelSettings:
        """Of the embedder or the generator, whichever the stage trains."""
        return self.config.generator if _writes(stage) else self.config.embedder

    def _folder(self, stage: str) -> Path | None:
        role: Role = "generator" if _writes(stage) else "embedder"
        return weights_folder(self.settings(stage).weights, role)

    def start(self, stage: str, tokenizer: BpeTokenizer) -> tuple[Architecture, Params]:
        """What the stage starts from before any training: the user's weights, or random ones."""
        settings, writes = self.settings(stage), _writes(stage)
        seed = self.config.seed + writes
        folder = self._folder(stage)
        if folder is not None:
            architecture, params = pretrained(folder, settings, self.mesh, seed)
            config = architecture.config
            tokenizer.check_model(config.text.vocab_size, config.image_token_id)
            check_patches(self.config.image, config.vision, str(folder))
            return architecture, params
        require(
            settings.trained == "all",
            f"trained {settings.trained!r} needs weights to start from: name a folder with "
            f"--{'generator' if writes else 'embedder'}.weights",
        )
        named = settings.family or ROLES["generator" if writes else "embedder"]
        config = family(named).demo(tokenizer.vocab_size, tokenizer.image_pad_id)
        architecture = Architecture.of(config, settings.execution)
        return architecture, architecture.init(seed, InitConfig.copying() if writes else None)

    def grammar(self, tokenizer: BpeTokenizer, vocab_size: int) -> Grammar | None:
        """What the generators keep to; None where they write freely.

        Args:
            tokenizer: of the run.
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
