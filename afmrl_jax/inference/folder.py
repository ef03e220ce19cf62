"""Whether a folder is a run or a model, and what rows the model of a folder takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from afmrl_jax.config import (
    Execution,
    ImageConfig,
    ModelSettings,
    QwenVLConfig,
    TextBudget,
    pretrained_for,
)
from afmrl_jax.data.batching.prompts import SYSTEM
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.huggingface.folder import base_folder
from afmrl_jax.models.huggingface.peft import is_peft_folder
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.object_store import working_copy
from afmrl_jax.training.partition import read_model
from afmrl_jax.types import JsonObject

EXPORTED, EXPORTED_GENERATOR = "afmrl_embedder.json", "afmrl_generator.json"
"""What `afmrl export` writes about the rows that its model was trained on."""


def is_model_folder(folder: Path | str) -> bool:
    """Whether a folder holds a model or an adapter; a run's config.json has no `model_type`."""
    folder = working_copy(folder)
    path = folder / "config.json"
    if is_peft_folder(folder):
        return True
    found = read_json(path, remedy="copy the folder again") if path.is_file() else None
    return isinstance(found, dict) and "model_type" in found


@dataclass(frozen=True)
class FolderModel:
    """The model of a folder, with everything that makes rows for it."""

    architecture: Architecture
    params: Params
    tokenizer: BpeTokenizer
    image: ImageConfig
    text: TextBudget
    mesh: Mesh

    @classmethod
    def read(
        cls,
        folder: Path | str,
        image: ImageConfig | None = None,
        text: TextBudget | None = None,
    ) -> FolderModel:
        """A Hugging Face folder, or an adapter and the folder of its base.

        It computes in bfloat16 if its weights are bfloat16, and in float32 otherwise.

        Args:
            folder: the model.
            image: how pictures become patches; None for what `afmrl export` wrote to the folder, or
                otherwise for the model's own patches and at most 256 visual tokens.
            text: lengths and layout; None for what was exported, or otherwise Qwen's chat layout.

        Raises:
            RunError: the folder cannot be read, or has no tokenizer.
        """
        folder, mesh = working_copy(folder), make_mesh(-1, 1)
        architecture, params = read_model(folder, ModelSettings(), mesh)
        if params["model/embed_tokens"].dtype == jnp.bfloat16:
            architecture = architecture.with_execution(Execution(dtype="bfloat16"))
        tokenizer, config = _tokenizer(folder), architecture.config
        tokenizer.check_model(config.text.vocab_size, config.image_token_id)
        exported: JsonObject | None = None
        for path in (folder / EXPORTED_GENERATOR, folder / EXPORTED):
            if path.is_file():
                exported = read_json(path) | {"writes": path.name == EXPORTED_GENERATOR}
        return cls(
            architecture,
            params,
            tokenizer,
            image or _image(config, exported),
            text or _text(pretrained_for(config.family).text, exported),
            mesh,
        )


def _tokenizer(folder: Path) -> BpeTokenizer:
    # An adapter's folder may leave the tokenizer to its base.
    own = (folder / "tokenizer.json").is_file()
    return BpeTokenizer.load(folder if own else base_folder(folder))


def _image(config: QwenVLConfig, exported: JsonObject | None) -> ImageConfig:
    names = ("patch_size", "merge_size", "temporal_patch_size")
    if exported is None:
        found = pretrained_for(config.family).image
        return replace(found, **{name: getattr(config.vision, name) for name in names})
    kept = {name: exported[name] for name in (*names, "min_pixels", "max_pixels")}
    # Earlier versions exported models of one picture.
    kept["max_pictures"] = exported.get("max_pictures", 1)
    return ImageConfig(**kept, mean=tuple(exported["mean"]), std=tuple(exported["std"]))


def _text(budget: TextBudget, exported: JsonObject | None) -> TextBudget:
    if exported is None:
        return budget
    if exported["layout"] == "bare":
        budget = TextBudget()
    layout, system, instruction = (exported[x] for x in ("layout", "system", "instruction"))
    if layout == "chat" and system != SYSTEM:
        layout = "qwen3"
        if not exported["writes"]:
            instruction = system.removeprefix("system\n")
    budget = replace(
        budget,
        layout=layout,
        max_title_tokens=exported["max_text_tokens"],
        max_attribute_tokens=exported["max_attribute_tokens"],
        buckets=_buckets(budget, exported),
    )
    if exported["writes"]:
        return replace(budget, generator_instruction=instruction)
    return replace(budget, embedder_instruction=instruction)


def _buckets(budget: TextBudget, exported: JsonObject) -> tuple[int, ...]:
    """The budget's lengths and, if a row of the exported model may be longer, one that holds it."""
    side = exported["patch_size"] * exported["merge_size"]
    visual = exported["max_pixels"] // side**2 + 2
    # A byte is at least a token's share; marks and names of turns take fewer than 32.
    words = 32 + len((exported["system"] + exported["instruction"]).encode())
    words += exported["max_text_tokens"] + exported["max_attribute_tokens"]
    longest = exported.get("max_pictures", 1) * visual + words
    more = (-(-longest // 64) * 64,) if longest > budget.buckets[-1] else ()
    return (*budget.buckets, *more)
