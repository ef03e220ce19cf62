"""The reference's side: transformers, peft and torch, eager, with scaled-dot-product attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import Qwen2VLForConditionalGeneration

from afmrl_jax.models.qwen_vl.pixels import normalized
from afmrl_jax.performance.benchmarks.jax_side import settings
from afmrl_jax.performance.benchmarks.profiles import profile_torch
from afmrl_jax.performance.benchmarks.workload import FRAMES, TOKEN, Size, make_rows


class TorchSide:
    """Holds the models and batches of the reference."""

    def __init__(self, folder: Path, size: Size, threads: int):
        torch.set_num_threads(threads)
        self._folder, self._size = folder, size
        self._model = self._load()
        self._calls: dict[str, Callable[[], object]] = {}

    def _load(self) -> Any:
        model = Qwen2VLForConditionalGeneration.from_pretrained(
            self._folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        # On both sides, every row generates all tokens.
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = TOKEN.pad_id
        return model

    def prepare(self, part: str) -> list[float]:
        """As `JaxSide.prepare`."""
        kind, _, count = part.partition("_b")
        self._calls[part] = getattr(self, f"_{kind}")(int(count or 2 * self._size.pairs))
        return np.asarray(self._calls[part](), np.float64).ravel().tolist()

    def seconds(self, part: str) -> float:
        """Time of one call."""
        began = time.perf_counter()
        self._calls[part]()
        return time.perf_counter() - began

    def profile(self, part: str) -> dict[str, float]:
        """As `JaxSide.profile`."""
        return profile_torch(self._calls[part])

    def _arguments(self, count: int) -> dict[str, torch.Tensor]:
        batch = make_rows(self._size, count)
        tokens = torch.tensor(batch.tokens, dtype=torch.long)
        side = 2 * self._size.side
        assert batch.patches is not None
        pixels = np.asarray(normalized(batch.patches, batch.normalization, FRAMES))
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": torch.tensor(pixels.reshape(-1, pixels.shape[-1])),
            "image_grid_thw": torch.tensor([[1, side, side]] * count),
            "mm_token_type_ids": (tokens == TOKEN.image_pad_id).int(),
        }

    def _forward(self, count: int) -> Callable[[], object]:
        arguments = self._arguments(count)

        @torch.inference_mode()
        def call() -> torch.Tensor:
            hidden = self._model.model(**arguments, use_cache=False).last_hidden_state
            return functional.normalize(hidden[:, -1], dim=-1)

        return call

    def _train(self, count: int) -> Callable[[], object]:
        lora, configured = self._size.lora, settings(1000)
        # PEFT changes a model in place, and decoding needs it unchanged.
        adapted: Any = get_peft_model(
            self._load(),
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                # The decoder's maps; some of the vision tower's have the same names.
                target_modules=rf"model\.language_model\..*\.({'|'.join(lora.targets)})",
            ),
        )
        inner = adapted.base_model.model.model
        own = [x for x in adapted.parameters() if x.requires_grad]
        options = configured.optimizer
        optimizer = torch.optim.AdamW(
            own, options.learning_rate, betas=(0.9, 0.98), weight_decay=options.weight_decay
        )
        arguments, labels = self._arguments(count), torch.arange(count // 2)

        def call() -> torch.Tensor:
            hidden = inner(**arguments, use_cache=False).last_hidden_state
            vectors = functional.normalize(hidden[:, -1], dim=-1)
            scores = vectors[: count // 2] @ vectors[count // 2 :].T / configured.temperature
            loss = functional.cross_entropy(scores, labels)
            loss = (loss + functional.cross_entropy(scores.T, labels)) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(own, options.clip_norm)
            optimizer.step()
            return loss.detach()

        return call

    def _decode(self, count: int) -> Callable[[], object]:
        arguments, length = self._arguments(count), self._size.side**2 + self._size.text_tokens

        @torch.inference_mode()
        def call() -> torch.Tensor:
            written = self._model.generate(
                **arguments, do_sample=False, max_new_tokens=self._size.new_tokens
            )
            return written[:, length:]

        return call
