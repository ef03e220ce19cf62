"""Search among clustered vectors: exact against the bare product, ScaNN against exact."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.performance.record import check_writable, is_record_of, ratios, spread, write_record
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.index import load_index
from afmrl_jax.retrieval.scann import ScannIndex, ScannSettings, recall_of
from afmrl_jax.retrieval.types import SearchIndex
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.types import JsonObject

K = 50
BLOCK = 65_536


@dataclass(frozen=True)
class Settings:
    """The gallery, the queries, and how often they are searched."""

    gallery: int = 1_000_000
    dim: int = 256
    clusters: int = 20_000
    """Centers around which the vectors are placed, like products of a kind."""
    queries: int = 1024
    """Measured queries; as many others tune ScaNN."""
    recall: float = 0.95
    """Recall of the 50 nearest that ScaNN is tuned to."""
    changed: int = 10_000
    """Number of vectors added, and number deleted."""
    repeats: int = 5
    """Pairs of measurements; the median of their ratios is reported."""
    seed: int = 0


def clustered(count: int, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors [count d] around common centers, float32."""
    centres = np.random.default_rng(settings.seed).normal(size=(settings.clusters, settings.dim))
    out = np.empty((count, settings.dim), np.float32)
    for begin in range(0, count, BLOCK):
        own = rng.integers(0, settings.clusters, min(BLOCK, count - begin))
        noise = 0.6 * rng.standard_normal((len(own), settings.dim), np.float32)
        block = centres[own].astype(np.float32) + noise
        out[begin : begin + len(own)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return out


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Measure, and write `out` at the end.

    Raises:
        ConfigError: `out` cannot be written.
        RuntimeError: an index returns wrong results.
    """
    check_writable(out, is_record_of("search"))
    rng = np.random.default_rng([settings.seed, 1])
    vectors = clustered(settings.gallery, settings, rng)
    queries = clustered(settings.queries, settings, rng)
    tuning = clustered(settings.queries, settings, rng)
    ids = [str(n) for n in range(len(vectors))]
    exact = ExactIndex(ids, vectors)
    found, details = _exact(settings, exact, vectors, queries)
    figures = {"exact_time_ratio_matmul": found}
    began = time.perf_counter()
    scann = ScannIndex(ids, vectors)
    built = time.perf_counter() - began
    began = time.perf_counter()
    scann.tune(tuning, exact.search(tuning, K).positions, settings.recall)
    tuned = time.perf_counter() - began
    detail = _against_exact(settings, exact, scann, queries)
    detail |= {"build_seconds": round(built, 1), "tune_seconds": round(tuned, 1)}
    figures |= {
        "scann_qps_ratio": detail["qps_ratio"]["median"],
        "scann_recall_at_50": detail["recall"],
    }
    details.append(detail)
    details += [_saved(x, queries) for x in (exact, scann)]
    details += [_changed(settings, x, vectors, rng) for x in (exact, scann)]
    write_record(out, "search", figures, details)
    return figures


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


@jax.jit
def _product(queries: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.dot(block, queries.T, precision=jax.lax.Precision.HIGHEST)


def _exact(
    settings: Settings, index: ExactIndex, vectors: np.ndarray, queries: np.ndarray
) -> tuple[float, list[JsonObject]]:
    """Time of exact search over that of the bare product of the same vectors, on the device."""
    batch = queries[:256]
    blocks = [jnp.asarray(vectors[i : i + BLOCK]) for i in range(0, len(vectors), BLOCK)]
    asked = jnp.asarray(batch)
    ours, theirs = [], []
    index.search(batch, K)
    jax.block_until_ready([_product(asked, x) for x in blocks])
    with Progress("exact", settings.repeats) as progress:
        for done in range(1, settings.repeats + 1):
            theirs.append(_seconds(lambda: [_product(asked, x) for x in blocks]))
            ours.append(_seconds(lambda: index.search(batch, K).scores))
            progress.update(done)
    ratio = ratios(ours, theirs)
    detail = {
        "part": "exact",
        "queries": len(batch),
        "time_ratio_matmul": ratio,
        "queries_per_second": spread([len(batch) / s for s in ours]),
    }
    log_info(f"exact: {ratio['median']} times the bare product")
    return ratio["median"], [detail]


def _against_exact(
    settings: Settings, exact: ExactIndex, scann: ScannIndex, queries: np.ndarray
) -> JsonObject:
    wanted = exact.search(queries, K).positions
    ours, theirs, found = [], [], wanted
    with Progress("scann", settings.repeats) as progress:
        for done in range(1, settings.repeats + 1):
            theirs.append(_seconds(lambda: exact.search(queries, K).scores))
            began = time.perf_counter()
            found = scann.search(queries, K).positions
            ours.append(time.perf_counter() - began)
            progress.update(done)
    recall = round(recall_of(found, wanted), 4)
    ratio = ratios(theirs, ours)
    log_info(f"scann: {ratio['median']} times exact search's queries a second at recall {recall}")
    about: ScannSettings = scann.settings
    return {
        "part": "scann",
        "settings": vars(about),
        "recall": recall,
        "qps_ratio": ratio,
        "queries_per_second": spread([len(queries) / s for s in ours]),
    }


def _saved(index: SearchIndex, queries: np.ndarray) -> JsonObject:
    """Size on disk; checks that a moved folder gives the same results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "index"
        index.save(folder)
        size = sum(x.stat().st_size for x in folder.rglob("*") if x.is_file())
        shutil.move(folder, Path(name) / "moved")
        again = load_index(Path(name) / "moved")
        same = np.array_equal(
            again.search(queries[:64], K).positions, index.search(queries[:64], K).positions
        )
    if not same:
        raise RuntimeError(f"{index.kind}: results differ after the folder was moved")
    return {"part": "saved", "kind": index.kind, "bytes": size}


def _changed(
    settings: Settings, index: SearchIndex, vectors: np.ndarray, rng: np.random.Generator
) -> JsonObject:
    """Check that each added vector is found first, and no deleted one is found."""
    new = clustered(settings.changed, settings, rng)
    names = [f"new {n}" for n in range(len(new))]
    began = time.perf_counter()
    index.add(names, new)
    added = time.perf_counter() - began
    gone = [str(n) for n in rng.permutation(len(vectors))[: settings.changed]]
    began = time.perf_counter()
    index.delete(gone)
    deleted = time.perf_counter() - began
    firsts = [row[0] for row in index.search(new[:2048], 1).ids]
    right = float(np.mean([a == b for a, b in zip(firsts, names, strict=False)]))
    asked = vectors[[int(x) for x in gone[:2048]]]
    ghosts = sum(x in set(gone) for row in index.search(asked, K).ids for x in row)
    if ghosts or right < (1 if index.kind == "exact" else settings.recall):
        raise RuntimeError(f"{index.kind}: {ghosts} deleted vectors found, {right} of the new ones")
    return {
        "part": "changed",
        "kind": index.kind,
        "vectors": settings.changed,
        "added_found": right,
        "add_seconds": round(added, 3),
        "delete_seconds": round(deleted, 3),
    }
