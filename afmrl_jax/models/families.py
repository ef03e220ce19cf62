"""Backbone families: all that tells one from another, as one record in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

from afmrl_jax.config import Execution, QwenVLConfig
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.qwen_vl.hub_config import (
    read_config,
    read_qwen2_5_vision,
    read_qwen2_vision,
    write_config,
    write_qwen2_5_vision,
    write_qwen2_vision,
)
from afmrl_jax.models.qwen_vl.hub_qwen3 import read_qwen3_config, write_qwen3_config
from afmrl_jax.models.qwen_vl.layers import Keys
from afmrl_jax.models.qwen_vl.model import QwenVL
from afmrl_jax.models.qwen_vl.presets import DEMO_QWEN2_5_VL, DEMO_QWEN2_VL, DEMO_QWEN3_VL
from afmrl_jax.models.qwen_vl.rope import interleaved_angles
from afmrl_jax.models.qwen_vl.tower_parts import (
    QWEN2_5_VISION,
    QWEN2_VISION,
    QWEN3_VISION,
    VisionStyle,
)
from afmrl_jax.types import JsonObject


@runtime_checkable
class Build(Protocol):
    """Makes a model with random weights; a class with this constructor is one."""

    def __call__(self, config: QwenVLConfig, execution: Execution, *, keys: Keys) -> QwenVL:
        """Of this size, computed in this way, with weights drawn from `keys`."""
        ...


@dataclass(frozen=True)
class Processors:
    """Classes of transformers that make a family's inputs, by the names that its files have."""

    processor: str
    image: str
    video: str


@dataclass(frozen=True)
class Family:
    """A backbone family. Any serves as embedder and as generator."""

    name: str
    """As in `QwenVLConfig.family`, and the `model_type` of its config.json."""
    build: Build
    """Model class with its styles and rotary rule bound, as `partial(QwenVL, style=...)`."""
    vision: VisionStyle
    """Of its tower; what counts of operations and memory go by, too."""
    read_config: Callable[[JsonObject, str], QwenVLConfig]
    """From a config.json and its name in messages; raises RunError where it does not fit."""
    write_config: Callable[[QwenVLConfig], JsonObject]
    """The config.json, without special tokens and the type of the weights."""
    processors: Processors
    """What an exported folder names."""
    demo: Callable[[int, int], QwenVLConfig]
    """(vocab_size, image_token_id) -> the small model that a run without weights starts from."""
    hub_prefixes: tuple[tuple[str, str], ...] = ()
    """How published names of tensors begin, and how they do in the other families."""


FAMILIES: dict[str, Family] = {}
"""The families known by now, by name."""

ROLES: dict[Literal["embedder", "generator"], str] = {
    "embedder": "qwen2_vl",
    "generator": "qwen2_5_vl",
}
"""The family of a model that nobody chose one for, by what it serves as."""


def family(name: str) -> Family:
    """A family by name.

    Raises:
        ConfigError: there is none of that name; the message lists those there are.
    """
    if name not in FAMILIES:
        raise ConfigError(f"no model family {name!r}; choose from {', '.join(FAMILIES)}")
    return FAMILIES[name]


def register(new: Family) -> Family:
    """Make a family known, so that models of it can be built, trained, read and written.

    Raises:
        ConfigError: another family has the name.
    """
    if FAMILIES.setdefault(new.name, new) is not new:
        raise ConfigError(f"there is a model family {new.name!r} already; choose another name")
    return new


register(
    Family(
        name="qwen2_vl",
        build=partial(QwenVL, style=QWEN2_VISION),
        vision=QWEN2_VISION,
        read_config=partial(read_config, "qwen2_vl", read_qwen2_vision),
        write_config=partial(write_config, "Qwen2VLForConditionalGeneration", write_qwen2_vision),
        processors=Processors("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
        demo=DEMO_QWEN2_VL,
    )
)
register(
    Family(
        name="qwen2_5_vl",
        build=partial(QwenVL, style=QWEN2_5_VISION),
        vision=QWEN2_5_VISION,
        read_config=partial(read_config, "qwen2_5_vl", read_qwen2_5_vision),
        write_config=partial(
            write_config, "Qwen2_5_VLForConditionalGeneration", write_qwen2_5_vision
        ),
        processors=Processors(
            "Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"
        ),
        demo=DEMO_QWEN2_5_VL,
    )
)
register(
    Family(
        name="qwen3_vl",
        build=partial(QwenVL, style=QWEN3_VISION, rotary=interleaved_angles),
        vision=QWEN3_VISION,
        read_config=read_qwen3_config,
        write_config=write_qwen3_config,
        processors=Processors("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
        demo=DEMO_QWEN3_VL,
        hub_prefixes=(("model.language_model.", "model."), ("model.visual.", "visual.")),
    )
)
