"""Kill a process that adds to, removes from and compacts an index at random moments.

    python -m experiments.reliability.kill_index --kills 100

A process changes an index as fast as it can, and says of each change what it begins and what it was
told is done. It gets SIGKILL at a random moment. Then the index must open and hold exactly what
was acknowledged, with at most the one change that was under way, whole: ids, vectors, titles,
prices and thumbnails. The next process goes on with the same index. Neither a lock nor half of a
folder may be in the way. Writes experiments/results/reliability/kill_index.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from afmrl_jax.inference.index import IndexSettings
from afmrl_jax.performance.record import write_record
from afmrl_jax.runs.embedded import About
from afmrl_jax.runs.living.changes import Entry
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.runs.living.maintenance import compact
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.runtime.setup import reported
from afmrl_jax.types import JsonObject
from experiments.reliability.made_index import made_entry, write_made

RESULTS = Path(__file__).parents[1] / "results" / "reliability"
DIM, FIRST = 32, 200
"""Length of the vectors, and how many listings there are at first."""
LIMIT = 120
"""Seconds after which checking counts as hung."""

Held = dict[str, int]
"""What an index should hold: the version of each listing, by id."""


@dataclass(frozen=True)
class KillIndex:
    """How often, and where."""

    kills: int = 100
    seed: int = 0
    longest: float = 0.4
    """Most seconds that a process works before it is killed."""
    kind: str = "exact"
    """`exact` or `scann`."""
    out: Path | None = RESULTS / "kill_index.json"
    """JSON file to write; None writes none."""


def entry(listing_id: str, version: int) -> Entry:
    """A listing that follows from its id and version."""
    return made_entry(
        listing_id, version, DIM, lambda rng: bytes(rng.bytes(300)), extra={"price": version}
    )


def write_index(folder: Path, held: Held, kind: str) -> None:
    """The folder that everything begins with."""
    settings = IndexSettings(kind="scann" if kind == "scann" else "exact")
    about = About("infonce", "kills", "e", settings=settings, thumbnails=256)
    write_made(folder, [entry(*x) for x in held.items()], about)


def changes(rng: np.random.Generator, held: Held) -> Iterator[JsonObject]:
    """Endless changes of what is held: a few listings added or replaced, removed, a compaction."""
    number = max(held.values(), default=0)
    while True:
        number += 1
        what = rng.choice(["put", "put", "put", "remove", "compact"])
        if what == "put":
            ids = [f"new-{number}-{n}" for n in range(rng.integers(1, 6))]
            ids += rng.choice(sorted(held), min(2, len(held)), replace=False).tolist()
            yield {"put": ids, "version": number}
        elif what == "remove" and len(held) > FIRST // 2:
            count = int(rng.integers(1, 5))
            yield {"remove": rng.choice(sorted(held), count, replace=False).tolist()}
        elif what == "compact":
            yield {"compact": True}


def changed(held: Held, change: JsonObject) -> Held:
    """What is held after a change."""
    held = dict(held)
    held |= dict.fromkeys(change.get("put", ()), change.get("version", 0))
    for x in change.get("remove", ()):
        del held[x]
    return held


def work(folder: Path, held: Held, seed: int, said: int) -> None:
    """Change the index for ever, and say on a pipe what begins and what is acknowledged."""

    def say(value: object) -> None:
        os.write(said, json.dumps(value).encode() + b"\n")

    index = LivingIndex(folder, writer="kill_index")
    say("open")
    for change in changes(np.random.default_rng(seed), held):
        say(change)
        if "put" in change:
            index.put([entry(x, change["version"]) for x in change["put"]])
        elif "remove" in change:
            index.remove(change["remove"])
        else:
            index.close()
            compact(folder)
            index = LivingIndex(folder, writer="kill_index")
        held = changed(held, change)
        say("done")


def differs(folder: Path, held: Held) -> str | None:
    """The first difference between an index and what it should hold; None if there is none."""
    with LivingIndex(folder, writer="kill_index") as index:
        found = {x.listing_id: x for x in index.entries()}
    if found.keys() != held.keys():
        return f"lacks {sorted(held.keys() - found)[:3]}, has {sorted(found.keys() - held)[:3]}"
    for name, version in held.items():
        one, other = entry(name, version), found[name]
        line = {key: x for key, x in other.line.items() if key != "thumbnail"}
        same = one.line == line and one.thumbnail == other.thumbnail
        if not same or not np.array_equal(one.vector, other.vector):
            return f"{name} is not version {version}"
    return None


def aside(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function gives in a process of its own: the one that forks must not start JAX."""
    reader, writer = multiprocessing.Pipe(duplex=False)

    def tell() -> None:
        writer.send(function(*arguments))

    process = multiprocessing.get_context("fork").Process(target=tell)
    process.start()
    process.join(LIMIT)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"{function.__name__} ended with {process.exitcode}")
    return reader.recv()


def kill_once(folder: Path, held: Held, seed: int, seconds: float) -> tuple[Held, str, int]:
    """Let a process work for so long, and kill it.

    Returns:
        What is held now, what was under way, and how many changes were acknowledged.

    Raises:
        AssertionError: something acknowledged is missing, or something else is there.
    """
    reader, writer = os.pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=work, args=(folder, held, seed, writer))
    process.start()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        first = pipe.readline()
        assert first == b'"open"\n', "the index could not be opened for writing"
        time.sleep(seconds)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        # The last line may be torn; then it was not said.
        lines = [json.loads(x) for x in pipe.read().split(b"\n")[:-1]]
    count = 0
    begun: JsonObject | None = None
    for x in lines:
        if x == "done":
            assert begun is not None
            held, begun, count = changed(held, begun), None, count + 1
        else:
            begun = x
    problem = aside(differs, folder, held)
    under_way = "nothing" if begun is None else next(iter(begun))
    if problem is not None and begun is not None:
        after = changed(held, begun)
        problem, held = aside(differs, folder, after), after
    assert problem is None, f"after a kill during {under_way}: {problem}"
    return held, under_way, count


def kill_index(settings: KillIndex, folder: Path) -> JsonObject:
    """Kill so many processes, one after the other, on one index; counts of what was under way.

    Raises:
        AssertionError: an acknowledged change is lost.
    """
    held: Held = {f"old-{n}": 0 for n in range(FIRST)}
    aside(write_index, folder, held, settings.kind)
    rng = np.random.default_rng(settings.seed)
    under_way: Counter[str] = Counter()
    acknowledged = 0
    with Progress("kills", settings.kills) as progress:
        for number in range(settings.kills):
            seconds = float(rng.uniform(0, settings.longest))
            held, what, count = kill_once(folder, held, settings.seed * 10**6 + number, seconds)
            under_way[what] += 1
            acknowledged += count
            progress.update(number + 1)
    left = sorted(x.name for x in folder.parent.iterdir() if x.name != folder.name)
    # A killed process leaves its lock's file, unlocked, and half a folder, which the next removes.
    foreign = [x for x in left if not x.startswith(f".{folder.name}.")]
    assert not foreign, foreign
    figures = {
        "kills": settings.kills,
        "acknowledged": acknowledged,
        "lost": 0,
        "listings": len(held),
    }
    return {"figures": figures, "under_way": dict(sorted(under_way.items()))}


def main() -> None:
    """Run from the command line."""
    with reported():
        settings = tyro.cli(KillIndex, description=__doc__)
        folder = Path(tempfile.mkdtemp()) / "index"
        try:
            found = kill_index(settings, folder)
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)
        print(json.dumps(found))
        if settings.out is not None:
            write_record(settings.out, "kill_index", found["figures"], [found["under_way"]])


if __name__ == "__main__":
    main()
