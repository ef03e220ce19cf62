"""What stands beside the weights of an exported model, so that other programs build its rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching.prompts import embedder_turns, generator_turns
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.folder import EXPORTED, EXPORTED_GENERATOR
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.families import family
from afmrl_jax.runtime.files import write_json, write_text
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.types import JsonObject, Role

PORTABLE = Path(__file__).parent / "portable"
MODULE = "afmrl_embedder.py"
TEMPLATE = "chat_template.jinja"
OTHERS = ("chat_template.json", "processor_config.json")
"""Files of a base that would be read in place of ours."""


@dataclass(frozen=True)
class Turns:
    """What stands around pictures, title and attributes in a row, as a chat template writes it."""

    head: str
    """Before the pictures."""
    before: str
    """Before the title."""
    alone: str
    """In place of both where there is no title."""
    tail: str
    """After them: the end of the user's turn."""
    opening: str
    """The beginning of the turn in which attributes stand."""
    always: bool
    """Whether a row without attributes has that beginning, too."""


def turns(budget: TextBudget, role: Role) -> Turns:
    """Those of a model's rows; see `afmrl_jax.data.batching.prompts`."""
    start, end, embeds = "<|im_start|>", "<|im_end|>", role == "embedder"
    if budget.layout == "bare":
        return Turns(start, "", "", end, "" if embeds else start, always=False)
    system, before = embedder_turns(budget) if embeds else generator_turns(budget)
    told = f"{start}{system}{end}\n" if system else ""
    head, opening = f"{told}{start}user\n", f"{start}assistant\n"
    return Turns(head, before, before.rstrip(), f"{end}\n", opening, always=embeds)


def chat_template(
    budget: TextBudget, role: Role, tokenizer: BpeTokenizer, max_pictures: int
) -> str:
    """A chat template whose text, tokenized, is the model's row.

    A title is not cut, because templates do not count tokens. A text with a special token in it is
    refused: other programs would read it as one.

    Args:
        budget: layout and instructions.
        role: of the model.
        tokenizer: of the model.
        max_pictures: most that a row has.
    """
    rows = vars(turns(budget, role)) | {"marks": tokenizer.marks(), "pictures": max_pictures}
    body = (PORTABLE / TEMPLATE).read_text(encoding="utf-8")
    # JSON's strings, numbers and constants are Jinja's, too.
    return f"{{%- set rows = {json.dumps(rows, ensure_ascii=False)} -%}}\n{body}"


def write_companions(
    folder: Path, run: FinishedRun, architecture: Architecture, role: Role
) -> None:
    """Everything except weights and model card: tokenizer, processors, template, settings."""
    image, text = run.config.image_of(role), run.config.text_of(role)
    tokenizer = run.tokenizers[role]
    # The run's own file, because with a hub's some tokens of a title stay special.
    tokenizer.save(folder)
    for name in OTHERS:
        (folder / name).unlink(missing_ok=True)
    _write_tokenizer_config(folder / "tokenizer_config.json")
    template = chat_template(text, role, tokenizer, image.max_pictures)
    write_text(folder / TEMPLATE, template)
    _write_processors(folder, image, architecture)
    patches = {
        "patch_size": image.patch_size,
        "merge_size": image.merge_size,
        "temporal_patch_size": image.temporal_patch_size,
        "min_pixels": image.min_pixels,
        "max_pixels": image.max_pixels,
        "max_patches": image.max_patches,
        "max_pictures": image.max_pictures,
        "mean": list(image.mean),
        "std": list(image.std),
    }
    system, instruction = embedder_turns(text) if role == "embedder" else generator_turns(text)
    settings = {
        # Chats differ in what is said, and that is written here.
        "layout": "bare" if text.layout == "bare" else "chat",
        "system": system,
        "instruction": instruction,
        "max_text_tokens": text.max_title_tokens,
        "max_attribute_tokens": text.max_attribute_tokens,
        **patches,
    }
    if role == "embedder":
        write_json(folder / EXPORTED, settings)
        _write_modules(folder, architecture.config.text.hidden_dim)
        return
    write_json(folder / EXPORTED_GENERATOR, settings)
    # Greedy, as the run writes; a base's sampling and repetition penalty would write other lists.
    # No temperature: transformers takes one without sampling for a mistake.
    greedy = {"do_sample": False, "max_new_tokens": text.max_attribute_tokens}
    tokens = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    write_json(folder / "generation_config.json", {**greedy, **tokens})


def _write_tokenizer_config(path: Path) -> None:
    if not path.is_file():
        # Without a class AutoTokenizer uses Qwen's, which normalizes differently.
        config: JsonObject = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
        write_json(path, config)
        return
    config = read_json(path, remedy="copy the base model's folder again")
    if config.pop("chat_template", None) is not None:  # The base's, of other rows.
        write_json(path, config)


def _write_processors(folder: Path, image: ImageConfig, architecture: Architecture) -> None:
    names = family(architecture.config.family).processors
    common = {
        "processor_class": names.processor,
        "do_resize": True,
        "resample": 3,  # Pillow's number of bicubic.
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "patch_size": image.patch_size,
        "merge_size": image.merge_size,
        "temporal_patch_size": image.temporal_patch_size,
        "min_pixels": image.min_pixels,
        "max_pixels": image.max_pixels,
        "size": {"shortest_edge": image.min_pixels, "longest_edge": image.max_pixels},
    }
    write_json(folder / "preprocessor_config.json", common | {"image_processor_type": names.image})
    # No model here reads videos, but the processors of the library want the file.
    video = common | {"video_processor_type": names.video}
    write_json(folder / "video_preprocessor_config.json", video)


def _write_modules(folder: Path, size: int) -> None:
    """What sentence-transformers reads beside them, for vectors of this size; vLLM reads the
    pooling from it.
    """
    shutil.copyfile(PORTABLE / MODULE, folder / MODULE)
    stock = "sentence_transformers.models"
    kinds = {
        "": f"{MODULE.removesuffix('.py')}.AfmrlEmbedder",
        "1_Pooling": f"{stock}.Pooling",
        "2_Normalize": f"{stock}.Normalize",
    }
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": size, "pooling_mode_lasttoken": True}
    write_json(
        folder / "1_Pooling" / "config.json",
        pooling | {"pooling_mode_mean_tokens": False, "include_prompt": True},
    )
    write_json(folder / "2_Normalize" / "config.json", {})
    write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}},
    )
