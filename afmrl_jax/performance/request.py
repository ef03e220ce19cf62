"""What a memory plan is asked about: a model, what it does, and on which devices."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from afmrl_jax.config import Execution, LoraConfig
from afmrl_jax.config.validation import require
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.peft import read_adapter
from afmrl_jax.models.lora import with_lora
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.performance import memory


@dataclass(frozen=True)
class Request:
    """A model, the task it runs, and where."""

    preset: str = "qwen2vl_2b"
    """Size of the model, see `models/qwen_vl/presets.py`."""
    task: Literal["agcl", "distill", "generate"] = "agcl"
    """A step of contrastive training of the embedder, a step of distilling the generator, or
    writing attributes."""
    mesh: str = "data=1,model=1"
    """Devices on each axis."""
    device: str = "h200"
    """Kind of device, see `performance/memory.py`."""
    batch_size: int = 64
    """Of the whole mesh: pairs (agcl), rows (distill) or prompts (generate)."""
    visual_tokens: int = 256
    """Of each picture; each covers 4 patches."""
    text_tokens: int = 64
    """Of each row, without its picture."""
    trained: Literal["all", "decoder", "lora"] = "all"
    """What learns; `generate` learns nothing."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations."""
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapters, where those are trained."""
    adapters: str | None = None
    """Folder of a `peft` adapter that is trained on, with its ranks, patterns and targets, in place
    of `lora`."""
    group_size: int = 1
    """generate: continuations of each prompt."""
    max_new_tokens: int = 48
    """generate: length of each continuation."""

    def __post_init__(self) -> None:
        preset(self.preset)
        memory.device_bytes(self.device)
        memory.parse_mesh(self.mesh)
        names = ("batch_size", "text_tokens", "group_size", "max_new_tokens")
        for name in names:
            require(getattr(self, name) > 0, f"{name} must be positive")
        require(self.visual_tokens >= 0, "visual_tokens must not be negative")
        require(
            self.trained == "lora" or (self.adapters is None and self.lora == LoraConfig()),
            f"lora and adapters are of --trained lora, and it is {self.trained}",
        )

    @property
    def axes(self) -> tuple[int, int]:
        """Sizes of the axes data and model."""
        return memory.parse_mesh(self.mesh)

    @property
    def rows(self) -> int:
        """Sequences of the whole batch: a contrastive pair is two."""
        return self.batch_size * (2 if self.task == "agcl" else 1)

    @property
    def execution(self) -> Execution:
        """How the model is computed."""
        return Execution(dtype=self.dtype, remat=self.remat)

    def architecture(self) -> Architecture:
        """The model without weights; with adapters if those are trained."""
        adapted = self.task != "generate" and self.trained == "lora"
        lora = self.lora if adapted else None
        return _architecture(self.preset, self.execution, lora, self.adapters if adapted else None)


@functools.cache
def _architecture(
    name: str, execution: Execution, lora: LoraConfig | None, folder: str | None
) -> Architecture:
    # Tracing a published size takes seconds, and advice needs the same one many times.
    architecture = Architecture.of(preset(name), execution)
    if folder is not None:
        found = read_adapter(Path(folder), architecture)
        return with_lora(architecture, found.lora, found.maps)
    return architecture if lora is None else with_lora(architecture, lora)
