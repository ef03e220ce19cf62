"""How many pictures a second the machine beside the accelerator turns into patches."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.images import patchify
from afmrl_jax.performance.benchmarks import pictures
from afmrl_jax.performance.benchmarks.accelerator.kernels import Measured


def images_per_second(count: int, cores: list[int]) -> Measured:
    """JPEGs of 800 x 800 pixels to 256 visual tokens each, in a thread a core.

    Args:
        count: pictures that are timed.
        cores: of this process; NumPy and Pillow release Python's lock.
    """
    settings = pictures.Settings(pictures=min(count, 16))
    files = pictures.photographs(settings)
    config = ImageConfig.qwen(max_pixels=256 * pictures.FACTOR**2)
    chosen = [files[n % len(files)] for n in range(count)]
    with ThreadPoolExecutor(len(cores)) as pool:
        list(pool.map(lambda x: patchify(x, config), files))
        began = time.perf_counter()
        list(pool.map(lambda x: patchify(x, config), chosen))
        seconds = time.perf_counter() - began
    figures = {"input_images_per_second": count / seconds}
    return figures, {"pictures": count, "side": settings.side, "threads": len(cores)}
