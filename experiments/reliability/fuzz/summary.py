"""What came of a campaign over several seeds, by target, beside what the first one found.

python -m experiments.reliability.fuzz.summary experiments/results/reliability/fuzz_seed*.json

Prints a table in Markdown, as docs/reliability.md has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.setup import reported
from experiments.reliability.fuzz.case import FAILING, VERDICTS

FIRST = {
    "adapter": (71, 3, 12, 0, 0, 0),
    "attributes": (14, 2, 3, 0, 1, 0),
    "html": (27, 0, 0, 0, 0, 0),
    "hubconfig": (109, 16, 30, 1, 0, 0),
    "index": (106, 4, 49, 0, 1, 0),
    "jsonl": (200, 10, 17, 0, 0, 0),
    "oracle": (112, 6, 45, 3, 0, 2),
    "overwrite": (7, 4, 0, 0, 0, 0),
    "parquet": (80, 0, 11, 0, 0, 0),
    "picture": (184, 12, 1, 0, 0, 2),
    "portable": (53, 12, 14, 0, 0, 1),
    "queries": (76, 2, 6, 0, 0, 0),
    "report": (106, 0, 27, 0, 1, 0),
    "run": (123, 35, 33, 1, 0, 0),
    "store": (108, 2, 24, 0, 1, 0),
    "tokenizer": (53, 4, 35, 5, 0, 0),
    "weights": (147, 25, 3, 0, 0, 0),
    "remote": (28, 4, 6, 0, 0, 6),
    "all": (1604, 141, 316, 10, 4, 11),
}
"""Cases, accepted though wrong, foreign exceptions, hangs, too much memory and reaches outside of
the first campaign, at commit 35b8f45, before anything was mended."""
FAILED = tuple(x for x in FAILING if x != "refused")
"""The verdicts in `FIRST`; refusing what is good was not counted then."""


@dataclass(frozen=True)
class Summary:
    """Which results."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """What `python -m experiments.reliability.fuzz --out` wrote."""


def counted(files: Sequence[Path]) -> dict[str, Counter[str]]:
    """How many cases of each target ended how, over all files."""
    found: dict[str, Counter[str]] = {"all": Counter()}
    for path in files:
        for x in read_json(path)["details"]:
            if "verdict" in x:
                continue
            counts = Counter({name: x.get(name, 0) for name in VERDICTS})
            found.setdefault(x["target"], Counter()).update(counts)
            found["all"].update(counts)
    return found


def table(found: dict[str, Counter[str]]) -> str:
    """A table in Markdown."""
    names = ["cases", "clean", "ok", "accepted", *FAILING, "vague"]
    lines = ["| target | " + " | ".join(names) + " | first: cases | " + " | ".join(FAILED) + " |"]
    lines.append("| -- |" + " --: |" * (len(names) + 1 + len(FAILED)))
    for name in sorted(found, key=lambda x: (x == "all", x)):
        counts = found[name]
        cells = [str(counts.total()), *(str(counts[x]) for x in names[1:])]
        before = [str(x) for x in FIRST.get(name, ("",) * 6)]
        lines.append(f"| {name} | " + " | ".join([*cells, *before]) + " |")
    return "\n".join(lines)


def main(settings: Summary) -> None:
    """Print the table, and what was measured of the whole."""
    print(table(counted(settings.files)))
    figures = [read_json(x)["figures"] for x in settings.files]
    print(f"\nMost memory {max(x['peak_mb'] for x in figures)} MB", end="; ")
    print(f"longest case {max(x['longest_seconds'] for x in figures)} s")


if __name__ == "__main__":
    with reported():
        main(tyro.cli(Summary, description=__doc__))
