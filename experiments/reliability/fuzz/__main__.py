"""Many broken and hostile inputs against everything that reads one.

    python -m experiments.reliability.fuzz --cases 2000 --seed 0
    python -m experiments.reliability.fuzz --seed 0 --only store:17     # one case again, in full

Each case mutates a small good input, decided by seed, target and number, and uses it as a command
would, in a process that is killed when it computes for 20 s, takes a minute, or takes 1.5 GB. Exit
status 1 if any case ends with an exception that is not the package's own, hangs, takes too much
memory, touches anything outside its folder, takes what is known to be broken, or refuses what is
good.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.runtime.setup import reported
from experiments.reliability.fuzz.case import FAILING, TARGETS, VERDICTS, Outcome
from experiments.reliability.fuzz.workers import Job, Pool
from experiments.reliability.record import write_record_aside

WEIGHTS = {
    "adapter": 71,
    "attributes": 30,
    "csv": 80,
    "datasets": 60,
    "html": 27,
    "hubconfig": 109,
    "index": 106,
    "jsonl": 200,
    "living": 90,
    "oracle": 112,
    "overwrite": 20,
    "parquet": 80,
    "picture": 184,
    "portable": 53,
    "queries": 76,
    "report": 60,
    "run": 123,
    "store": 108,
    "tokenizer": 53,
    "weights": 147,
    "remote": 60,
}
"""Shares of the targets in the cases."""
NOTED = 200
"""After so many cases each, what came of them so far is written."""
NEEDS = {"portable": "torch"}
"""Packages without which a target is left out."""


@dataclass(frozen=True)
class Settings:
    """Which cases, and where."""

    cases: int = 1600
    """How many, over all targets."""
    skip: int = 0
    """Leave out so many of them, which an interrupted campaign has done."""
    seed: int = 0
    target: tuple[str, ...] = ()
    """Only these targets."""
    only: str | None = None
    """One case, TARGET:NUMBER; its output and trace are shown."""
    out: Path | None = None
    """JSON file to write."""
    good: Path = Path("runs/fuzz/good")
    """Folder of the good inputs, built if it is not there."""
    run: Path | None = None
    """A finished run of tiny models for the good inputs; by default one is trained, which takes a
    minute or two."""
    workers: int = 2
    show: Literal["failing", "all"] = "failing"
    """Which cases are listed."""


def load_targets() -> None:
    """Import everything that cases use, before workers are forked."""
    import platform

    import matplotlib.pyplot  # noqa: F401
    import openai  # noqa: F401
    import scann  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    import afmrl_jax.cli.main
    import afmrl_jax.reporting.fragments
    import afmrl_jax.reporting.report  # noqa: F401
    from experiments.reliability.fuzz import (  # noqa: F401
        catalogues,
        commands,
        living,
        models,
        network,
        pictures,
        runs,
        tables,
    )

    # Where it is installed, the client's transport imports it at the first request, and it starts
    # a process to look for a library.
    with suppress(ImportError):
        import trio  # noqa: F401

    # The endpoint's client asks for it, by starting a program, and it is kept.
    platform.platform()
    platform.processor()


def jobs_of(cases: int, targets: Sequence[str]) -> list[Job]:
    """So many cases, shared out among targets, each target's spread over the whole."""
    total = sum(WEIGHTS[x] for x in targets)
    counts = {x: max(1, round(cases * WEIGHTS[x] / total)) for x in targets}
    spread = [((n + 0.5) / counts[x], x, n) for x in targets for n in range(counts[x])]
    return [(x, n) for _, x, n in sorted(spread)]


def table_of(outcomes: Sequence[Outcome]) -> str:
    """Verdicts by target."""
    names = sorted({x.target for x in outcomes})
    lines = ["| target | cases | " + " | ".join(VERDICTS) + " |"]
    lines.append("| -- |" + " --: |" * (1 + len(VERDICTS)))
    for name in [*names, "all"]:
        own = [x.verdict for x in outcomes if name in ("all", x.target)]
        counts = Counter(own)
        cells = [str(counts[x] or "") for x in VERDICTS]
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kinds_of(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Failing cases that ended alike, the most frequent first."""
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for x in outcomes:
        if x.verdict in FAILING:
            _, bracket, place = x.line.rpartition(" [")
            # Names and numbers differ from case to case.
            plain = re.sub(r"\S*[/\d]\S*|'[^']*'", "", x.line)[:60]
            what = (place, x.line.partition(":")[0]) if bracket else ("", plain)
            groups.setdefault((x.target, x.verdict, *what), []).append(x)
    return sorted(groups.values(), key=len, reverse=True)


def write_outcomes(settings: Settings, outcomes: Sequence[Outcome]) -> None:
    """Counts by target and verdict, and every failing case, as JSON."""
    if settings.out is None:
        return
    counts = Counter(x.verdict for x in outcomes)
    figures: dict[str, float] = {"cases": len(outcomes), "seed": settings.seed}
    figures |= {x: counts[x] for x in VERDICTS}
    figures["longest_seconds"] = max((x.seconds for x in outcomes), default=0.0)
    figures["peak_mb"] = max((x.peak_mb for x in outcomes), default=0)
    by_target = [
        {"target": name, **Counter(x.verdict for x in outcomes if x.target == name)}
        for name in sorted({x.target for x in outcomes})
    ]
    failing = [asdict(x) for x in outcomes if x.verdict in (*FAILING, "vague")]
    write_record_aside(settings.out, "fuzz", figures, by_target + failing)


def good_inputs(settings: Settings) -> Path:
    """The folder of good inputs; another process builds it, so that forks find no threads."""
    code = (
        "import sys; from pathlib import Path; from experiments.reliability.fuzz.good import build;"
        "build(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None)"
    )
    command = [sys.executable, "-c", code, str(settings.good), str(settings.run or "")]
    if subprocess.run(command, check=False).returncode:
        raise ConfigError(f"the good inputs in {settings.good} could not be built; see above")
    return settings.good.absolute()


def _require_target(name: str) -> None:
    if name not in TARGETS:
        why = f"needs {NEEDS[name]}, which is not installed" if name in NEEDS else "does not exist"
        raise ConfigError(f"target {name!r} {why}; choose from {', '.join(sorted(TARGETS))}")


def run_cases(settings: Settings) -> list[Outcome]:
    """Run the chosen cases.

    Raises:
        ConfigError: there is no such target or case.
    """
    good = good_inputs(settings)
    load_targets()
    for name in settings.target:
        _require_target(name)
    for name in sorted(NEEDS.keys() - TARGETS.keys()):
        print(f"{name} is left out: it needs {NEEDS[name]}", file=sys.stderr)
    jobs = jobs_of(settings.cases, settings.target or sorted(TARGETS))[settings.skip :]
    if settings.only is not None:
        name, colon, number = settings.only.partition(":")
        _require_target(name)
        if not colon or not number.isdigit():
            raise ConfigError(f"--only {settings.only}: give TARGET:NUMBER, such as store:17")
        jobs = [(name, int(number))]
    work = Path(tempfile.mkdtemp(prefix="afmrl-fuzz-"))
    count = min(settings.workers, len(jobs))
    pool = Pool(good, work, settings.seed, count, loud=settings.only is not None)
    outcomes = []
    try:
        with Progress("fuzz", len(jobs)) as progress:
            for outcome in pool.run(jobs):
                outcomes.append(outcome)
                if len(outcomes) % NOTED == 0:
                    write_outcomes(settings, outcomes)
                progress.update(len(outcomes))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return sorted(outcomes, key=lambda x: (x.target, x.number))


def main(settings: Settings) -> None:
    """Run the cases, print the table and the failing ones."""
    outcomes = run_cases(settings)
    if settings.only is not None or settings.show == "all":
        for x in outcomes:
            print(json.dumps(asdict(x), ensure_ascii=False))
    print(table_of(outcomes))
    kinds = kinds_of(outcomes)
    for same in kinds:
        first = same[0]
        print(
            f"{first.verdict}, {len(same)} x: --seed {settings.seed} --only "
            f"{first.target}:{first.number} ({first.what}): {first.line}"
        )
    write_outcomes(settings, outcomes)
    sys.exit(bool(kinds))


if __name__ == "__main__":
    with reported():
        main(tyro.cli(Settings, description=__doc__))
