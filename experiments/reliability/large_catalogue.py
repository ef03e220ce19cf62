"""Check, convert and embed a million generated listings in bounded memory, with kills in between.

    make demo ARGS="--fast --out runs/fast"            # a tiny embedder
    python -m experiments.reliability.large_catalogue --run runs/fast

Writes one Parquet file with a million listings and their pictures. `afmrl catalogue-check` reads
it; `afmrl catalogue-convert` and `afmrl embed` are killed with SIGKILL at random moments and
restarted until they finish. Then no listing may be missing or repeated, and the vectors of some of
them must equal those of a new embedding. The peak resident size of each command is recorded,
including pages of mapped files in memory.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image, ImageDraw

from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.errors import RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.performance.record import write_record
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.runtime.setup import reported
from afmrl_jax.types import JsonObject
from experiments.reliability.local_job import AFMRL

RESULTS = Path(__file__).parents[1] / "results"
KINDS = ("chair", "table", "lamp", "shelf", "sofa", "bed", "desk", "stool", "bench", "cabinet")
COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "yellow", "pink", "orange")
ROW_GROUP = 10_000
SIDE = 40


@dataclass(frozen=True)
class Settings:
    """What is generated, and how often commands are killed."""

    run: Path
    """Run directory of the embedder."""
    system: str = "infonce"
    """Row of the results table, without attributes: a generator takes far longer."""
    listings: int = 1_000_000
    pictures: int = 5_000
    """Distinct pictures among them."""
    kills: int = 3
    """Kills of each command that can resume."""
    seed: int = 0
    out: Path = Path("runs/large")
    result: Path = RESULTS / "large_catalogue.json"


def generate(settings: Settings, path: Path) -> None:
    """Listings of products with three offers each, in one file, a row group at a time."""
    rng = np.random.default_rng(settings.seed)
    pictures = [_picture(rng) for _ in range(settings.pictures)]
    path.parent.mkdir(parents=True, exist_ok=True)
    part, writer = path.with_suffix(".partial"), None
    with Progress("generate", settings.listings) as progress:
        for begin in range(0, settings.listings, ROW_GROUP):
            numbers = range(begin, min(begin + ROW_GROUP, settings.listings))
            table = pa.Table.from_pylist([_record(n, pictures) for n in numbers])
            writer = writer or pq.ParquetWriter(part, table.schema)
            writer.write_table(table)
            progress.update(numbers[-1] + 1)
    if writer is not None:
        writer.close()
    part.replace(path)


def _picture(rng: np.random.Generator) -> bytes:
    picture = Image.new("RGB", (SIDE, SIDE), tuple(rng.integers(180, 256, 3).tolist()))
    corners = np.sort(rng.integers(2, SIDE - 2, (2, 2)), axis=0).ravel().tolist()
    ImageDraw.Draw(picture).rectangle(corners, fill=tuple(rng.integers(0, 200, 3).tolist()))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def _record(number: int, pictures: list[bytes]) -> JsonObject:
    product = number // 3
    kind, colour = KINDS[product % 10], COLOURS[product // 10 % 10]
    return {
        "listing_id": f"offer-{number}",
        "product_id": f"product-{product}",
        "family_id": f"family-{product // 4}",
        "title": f"{colour} {kind} no. {product}, offer {number % 3 + 1}",
        "image": pictures[number % len(pictures)],
        "category": kind,
        "attributes": f'{{"type": "{kind}", "color": "{colour}"}}',
    }


def measured(command: list[str], kill_after: float | None = None) -> JsonObject:
    """Run `afmrl`, and maybe kill it; returns seconds, peak memory and whether it was killed.

    Raises:
        RunError: it failed without being killed.
    """
    log_info("afmrl " + " ".join(command))
    began = time.monotonic()
    process = subprocess.Popen([*AFMRL, *command])
    timer = threading.Timer(kill_after or 0, process.kill) if kill_after is not None else None
    if timer is not None:
        timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    # Popen did not wait for the process itself.
    process.returncode = os.waitstatus_to_exitcode(status)
    if timer is not None:
        timer.cancel()
    killed = process.returncode == -signal.SIGKILL
    if status and not (killed and kill_after is not None):
        raise RunError(f"afmrl {command[0]} ended with status {status}; its message is above")
    return {
        "command": command[0],
        "killed": killed,
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_gb": round(usage.ru_maxrss / 2**20, 2),
    }


def with_kills(command: list[str], out: Path, moments: np.ndarray) -> list[JsonObject]:
    """Run a command that is killed at some moments, and then left to finish."""
    found = []
    for moment in moments:
        if out.exists():
            break
        found.append(measured(command, float(moment)))
    if not out.exists():
        found.append(measured(command))
    return found


def check_result(settings: Settings, store: Path, index: Path) -> JsonObject:
    """Check that nothing is lost or repeated, and that vectors equal those of a new embedding.

    Raises:
        RunError: a check fails.
    """
    wanted = [f"offer-{n}" for n in range(settings.listings)]
    catalogue = load_catalogue(store)
    if catalogue.column("listing_id") != wanted:
        raise RunError("the store does not hold every listing once, in order")
    if read_json(index / "index" / "index.json")["ids"] != wanted:
        raise RunError("the index does not hold every listing once, in order")
    vectors = np.load(index / "index" / "vectors.npy", mmap_mode="r")
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(wanted))[:1000])
    run = FinishedRun(settings.run)
    some = tuple(catalogue.listings[int(n)] for n in chosen)
    builder = run.rows(Catalogue(catalogue.name, some))
    fresh = run.encoder(run.system(settings.system)).embed(builder, np.arange(len(chosen)))
    apart = float(np.abs(fresh - vectors[chosen]).max())
    if apart > 1e-4:
        raise RunError(f"vectors differ by {apart} from those of a new embedding")
    return {"listings": len(wanted), "dim": vectors.shape[1], "largest_difference": apart}


def main(settings: Settings) -> None:
    """Generate, check, convert, embed, and check the result."""
    shop, store, index = (settings.out / x for x in ("shop", "store", "index"))
    path, rng = shop / "listings.parquet", np.random.default_rng(settings.seed)
    if not path.is_file():
        generate(settings, path)
    details = [measured(["catalogue-check", "--catalogue", str(shop)])]
    # A conversion takes about as long as the check; moments after its end kill nothing.
    moments = np.sort(rng.uniform(0.1, 0.9, settings.kills)) * details[0]["seconds"]
    # Small shards, so that a kill loses little work.
    convert = ["catalogue-convert", "--catalogue", str(shop), "--out", str(store)]
    convert += ["--shard-bytes", str(1 << 24)]
    details += with_kills(convert, store, np.diff(moments, prepend=0))
    embed = ["embed", "--run", str(settings.run), "--system", settings.system]
    embed += ["--catalogue", str(store), "--out", str(index)]
    moments = rng.uniform(20, 120, settings.kills)
    details += with_kills(embed, index, moments)
    found = check_result(settings, store, index)
    figures = {
        **found,
        "kills": sum(x["killed"] for x in details),
        "peak_memory_gb": max(x["peak_memory_gb"] for x in details),
        "catalogue_bytes": path.stat().st_size,
    }
    write_record(settings.result, "large_catalogue", figures, details)
    print(figures)
    print(settings.result)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(Settings, description=__doc__))
