"""Pictures to patches: per core against Pillow and Hugging Face's processor, and with workers."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.images import patchify
from afmrl_jax.data.catalogue.pictures import open_picture
from afmrl_jax.data.sources.loader import iterate
from afmrl_jax.performance.record import check_writable, is_record_of, ratios, spread, write_record
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.testing import normalized_pixels
from afmrl_jax.types import JsonObject

FACTOR = 28
"""Pixels a side of a visual token."""


@dataclass(frozen=True)
class Settings:
    """The pictures, and how often they are decoded."""

    pictures: int = 40
    """Number of different JPEGs."""
    side: int = 800
    """Pixels a side."""
    visual_tokens: tuple[int, ...] = (196, 64, 256)
    """Budgets per picture; the first gives the figure with scaled decoding, the last the one at
    equal decoding."""
    repeats: int = 9
    """Pairs of measurements; the median of their ratios is reported."""
    workers: tuple[int, ...] = (0, 2, 4)
    """Loader processes whose throughput and batches are compared."""
    batches: int = 12
    """Batches of 8 that the loader reads for this comparison."""
    seed: int = 0


def photographs(settings: Settings) -> list[bytes]:
    """JPEGs with the detail of a product photograph: shapes, gradients, a little grain."""
    rng, side, out = np.random.default_rng(settings.seed), settings.side, []
    for _ in range(settings.pictures):
        coarse = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (side, side, 3))
        pixels = np.clip(np.asarray(smooth, np.float64) + grain, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        out.append(file.getvalue())
    return out


def _cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, whatever else the machine does."""
    began = time.process_time()
    work()
    return time.process_time() - began


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Measure, and write `out` at the end.

    Raises:
        ConfigError: `out` cannot be written.
        RuntimeError: patches differ from the reference's in any bit at equal decoding, or batches
            depend on the number of workers.
    """
    check_writable(out, is_record_of("input"))
    pictures = photographs(settings)
    figures: dict[str, float] = {}
    details: list[JsonObject] = []
    for tokens in settings.visual_tokens:
        detail = _per_core(settings, pictures, tokens)
        details.append(detail)
        log_info(f"{tokens} visual tokens: {detail['speedup']}")
    figures["images_per_core_speedup"] = details[0]["speedup_scaled"]["median"]
    figures["images_per_core_speedup_equal_decoding"] = details[-1]["speedup"]["median"]
    details.append(_with_workers(settings, pictures))
    write_record(out, "input", figures, details)
    return figures


def _per_core(settings: Settings, pictures: Sequence[bytes], tokens: int) -> JsonObject:
    from transformers import Qwen2VLImageProcessorPil

    config = ImageConfig.qwen(max_pixels=tokens * FACTOR**2)
    scaled = dataclasses.replace(config, scaled_decoding=True)
    processor = Qwen2VLImageProcessorPil(min_pixels=config.min_pixels, max_pixels=config.max_pixels)

    def reference(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
        picture = Image.open(io.BytesIO(data))
        if size is not None:
            picture.draft("RGB", size)
        found = processor(images=picture.convert("RGB"), return_tensors="np")
        return np.asarray(found["pixel_values"])

    difference = _compare(pictures, config, scaled, reference)
    seconds: dict[str, list[float]] = {"reference": [], "ours": [], "scaled": []}
    sides: dict[str, Callable[[], object]] = {
        "reference": lambda: [reference(x) for x in pictures],
        "ours": lambda: [patchify(x, config) for x in pictures],
        "scaled": lambda: [patchify(x, scaled) for x in pictures],
    }
    with Progress(f"{tokens} visual tokens", settings.repeats) as progress:
        for done in range(1, settings.repeats + 1):
            for name, work in sides.items():
                seconds[name].append(_cpu_seconds(work))
            progress.update(done)
    per_second = {k: spread([len(pictures) / s for s in v]) for k, v in seconds.items()}
    return {
        "part": "per_core",
        "visual_tokens": tokens,
        "side": settings.side,
        "speedup": ratios(seconds["reference"], seconds["ours"]),
        "speedup_scaled": ratios(seconds["reference"], seconds["scaled"]),
        "images_per_core_second": per_second,
        "scaled_difference": difference,
    }


def _compare(
    pictures: Sequence[bytes],
    config: ImageConfig,
    scaled: ImageConfig,
    reference: Callable[..., np.ndarray],
) -> dict[str, float]:
    """Bit equality at equal decoding; what scaled decoding changes, in units of 1/255."""
    mean, largest = [], []
    for data in pictures[:8]:
        ours, fast = (normalized_pixels(patchify(data, x), x) for x in (config, scaled))
        rows, columns = (n * config.patch_size for n in patchify(data, config).grid)
        drafted = reference(data, (columns, rows))
        if not (np.array_equal(ours, reference(data)) and np.array_equal(fast, drafted)):
            raise RuntimeError("the patches differ from those of Hugging Face's processor")
        # From standardized values back to byte values.
        apart = np.abs(ours - fast) * np.mean(config.std) * 255
        mean.append(float(apart.mean()))
        largest.append(float(apart.max()))
    width, height = open_picture(pictures[0]).size
    return {
        "mean": round(float(np.mean(mean)), 3),
        "largest": round(max(largest), 1),
        "pixels_decoded": width * height,
    }


@dataclass(frozen=True)
class Decoding:
    """Batches of 8 pictures as patches, for Grain."""

    pictures: tuple[bytes, ...]
    config: ImageConfig
    batches: int

    def __len__(self) -> int:
        return self.batches

    def __repr__(self) -> str:
        return f"Decoding({len(self.pictures)} pictures)"

    def __getitem__(self, step: int) -> np.ndarray:
        chosen = (self.pictures[(8 * step + n) % len(self.pictures)] for n in range(8))
        return np.stack([patchify(x, self.config).pixels for x in chosen])


def _with_workers(settings: Settings, pictures: Sequence[bytes]) -> JsonObject:
    config = ImageConfig.qwen(max_pixels=settings.visual_tokens[0] * FACTOR**2)
    source = Decoding(tuple(pictures), config, settings.batches)
    wanted = [source[step] for step in range(len(source))]
    rates = {}
    for workers in settings.workers:
        iterator = iterate(source, workers=workers)
        first, began, count = True, 0.0, 0
        for found, batch in zip(iterator, wanted, strict=True):
            if not np.array_equal(found, batch):
                raise RuntimeError(f"{workers} workers read different batches than no workers")
            if first:
                # The time of starting processes does not count.
                first, began = False, time.perf_counter()
            else:
                count += len(found)
        rates[str(workers)] = round(count / (time.perf_counter() - began), 1)
        log_info(f"{workers} workers: {rates[str(workers)]} images per second")
    return {
        "part": "workers",
        "images_per_second": rates,
        "visual_tokens": settings.visual_tokens[0],
    }
