"""Retrieval metrics of many queries against many listings: speed, and memory beyond the inputs."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import numpy as np

from afmrl_jax.evaluation.metrics import depth, metric_values
from afmrl_jax.evaluation.ranking import VectorScorer, rank_gallery
from afmrl_jax.evaluation.tasks import TASKS
from afmrl_jax.performance.record import check_writable, is_record_of, spread, write_record
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.types import JsonObject

FINE, COARSE = TASKS[:2]
BLOCK = 512


@dataclass(frozen=True)
class Settings:
    """How much is evaluated."""

    queries: int = 100_000
    gallery: int = 100_000
    """Number of listings; the first ones are the queries."""
    dim: int = 256
    product_size: int = 4
    """Listings per product."""
    categories: int = 500
    noise: float = 3.0
    """Scale of the noise added to a listing's product and category vectors."""
    repeats: int = 3
    checked: int = 256
    """Queries that are also ranked with plain NumPy."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.queries <= self.gallery:
            raise ValueError(f"{self.queries} queries of {self.gallery} listings")


class Corpus(NamedTuple):
    """Unit vectors of listings in random order, with their labels."""

    vectors: np.ndarray
    products: np.ndarray
    categories: np.ndarray

    @classmethod
    def of(cls, settings: Settings) -> Corpus:
        """Products scattered around their categories, and listings around their products."""
        rng = np.random.default_rng(settings.seed)
        count = -(-settings.gallery // settings.product_size)
        products = rng.permutation(settings.gallery) // settings.product_size
        category_of = rng.integers(0, settings.categories, count)
        scale = settings.dim**-0.5
        centres = rng.standard_normal((settings.categories, settings.dim), np.float32)
        own = rng.standard_normal((count, settings.dim), np.float32)
        vectors = rng.standard_normal((settings.gallery, settings.dim), np.float32)
        for begin in range(0, settings.gallery, BLOCK):
            part = slice(begin, begin + BLOCK)
            mine = products[part]
            vectors[part] *= settings.noise
            vectors[part] += own[mine] + centres[category_of[mine]]
            vectors[part] *= scale
            vectors[part] /= np.linalg.norm(vectors[part], axis=1, keepdims=True)
        return cls(vectors, products, category_of[products])


def evaluate(corpus: Corpus, queries: int, label: str | None = None) -> dict[str, np.ndarray]:
    """All metrics of the fine and the coarse task by `task.metric`, [queries] each."""
    chosen = np.arange(queries)
    scorer = VectorScorer(corpus.vectors[:queries], corpus.vectors)
    sets = [(x[chosen], x) for x in (corpus.products, corpus.categories)]
    k = max(depth(task.metrics) for task in (FINE, COARSE))
    with Progress(label, queries) as progress:
        found = rank_gallery(scorer, sets, k, chosen, progress=progress.update)
    out: dict[str, np.ndarray] = {}
    for task, ranked in zip((FINE, COARSE), found, strict=True):
        values = metric_values(ranked, task.metrics)
        out |= {f"{task.name}.{name}": each for name, each in values.items()}
    return out


def disagreements(corpus: Corpus, found: dict[str, np.ndarray], chosen: np.ndarray) -> int:
    """Number of queries whose R@10 or coarse mAP@10 differs from that of sorted scores."""
    scores = corpus.vectors[chosen] @ corpus.vectors.T
    scores[np.arange(len(chosen)), chosen] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    fine = corpus.products[order] == corpus.products[chosen][:, None]
    coarse = corpus.categories[order] == corpus.categories[chosen][:, None]
    total = np.bincount(corpus.categories)[corpus.categories[chosen]] - 1
    precision = (np.cumsum(coarse, axis=1) / np.arange(1, 11) * coarse).sum(1)
    precision = np.where(total > 0, precision / np.maximum(np.minimum(10, total), 1), np.nan)
    answerable = np.isfinite(found["fine.R@10"][chosen])
    wrong = answerable & (fine.any(1) != (found["fine.R@10"][chosen] > 0))
    same = np.isclose(precision, found["coarse.mAP@10"][chosen], atol=1e-9, equal_nan=True)
    return int((wrong | ~same).sum())


def _resident() -> int:
    """Resident memory of this process in bytes; its peak so far if that is unknown."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def watched(peak: list[int]) -> Iterator[None]:
    """Append the largest resident size during the block to `peak`, in bytes."""
    done, largest = Event(), [_resident()]

    def watch() -> None:
        while not done.wait(0.01):
            largest[0] = max(largest[0], _resident())

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        peak.append(largest[0])


def measure(settings: Settings) -> JsonObject:
    """Seconds of each repetition, memory beyond the inputs, and agreement with plain NumPy."""
    corpus = Corpus.of(settings)
    # Programs have the shapes of whole blocks and tiles, so a few queries compile them all.
    evaluate(corpus, min(settings.queries, 2048))
    before = _resident()
    seconds: list[float] = []
    peaks: list[int] = []
    found: dict[str, np.ndarray] = {}
    for number in range(settings.repeats):
        with watched(peaks):
            begin = time.perf_counter()
            found = evaluate(corpus, settings.queries, f"evaluate, {number + 1}")
            seconds.append(time.perf_counter() - begin)
    rng = np.random.default_rng(settings.seed)
    chosen = rng.permutation(settings.queries)[: settings.checked]
    values = sum(x.nbytes for x in found.values())
    return {
        "seconds": seconds,
        "input_bytes": corpus.vectors.nbytes,
        "bytes_beyond_inputs": max(peaks) - before,
        "bytes_of_results": values,
        "bytes_of_all_scores": 4 * settings.queries * settings.gallery,
        "disagreements": disagreements(corpus, found, chosen),
        "checked": len(chosen),
        "means": {name: round(float(np.nanmean(x)), 4) for name, x in found.items()},
    }


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Measure in a separate process, and write `out`.

    Raises:
        ConfigError: `out` cannot be written.
        RuntimeError: the metrics of more than one in a hundred checked queries differ; a few may,
            where scores differ only in the last digit.
    """
    check_writable(out, is_record_of("evaluate"))
    # A new process has none of this one's memory, so its peak is its own.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(measure, (settings,))
    if found["disagreements"] > 0.01 * found["checked"]:
        raise RuntimeError(f"{found['disagreements']} of {found['checked']} queries disagree")
    speeds = [settings.queries / x for x in found.pop("seconds")]
    figures = {"rows_per_second": round(float(np.median(speeds)), 1)}
    log_info(f"rows_per_second: {figures['rows_per_second']}")
    shape = {name: getattr(settings, name) for name in ("queries", "gallery", "dim", "categories")}
    detail = {"part": "evaluate", "rows_per_second": spread(speeds), "shape": shape}
    write_record(out, "evaluate", figures, [detail | found])
    return figures
