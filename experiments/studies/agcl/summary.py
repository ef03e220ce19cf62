"""The AGCL study summarized over its seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afmrl_jax.evaluation.metrics import recall_at_k
from afmrl_jax.evaluation.primary import verdict
from afmrl_jax.evaluation.statistics import crossed, holm, paired_difference, spread
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.types import JsonObject
from experiments.studies.agcl.pairs import PAIR_FIGURES
from experiments.studies.agcl.variations import Variation

METRICS = ("R@1", "MRR", "R@5")
BASELINE = "infonce"
MASKS = ("delta", "agreement_rho", "teacher_share", "oracle_mask")
"""Settings of which any leaves negatives out."""
LOGGED = ("masked", "masked_by_margin", "masked_by_agreement", "mean_weight")
"""Values from the training's log, averaged over its lines."""


@dataclass(frozen=True)
class SeedScores:
    """The results of one seed's run, by stage."""

    seed: int
    families: np.ndarray
    """[q], family of each test listing."""
    found: dict[str, JsonObject]
    """`scores.json` by stage."""

    @classmethod
    def read(
        cls, folder: Path, seed: int, families: np.ndarray, stages: Sequence[str]
    ) -> SeedScores:
        """From a run directory."""
        found = {x: read_json(folder / f"scores-{x}" / "scores.json") for x in stages}
        return cls(seed, families, found)

    def values(self, stage: str, metric: str) -> np.ndarray:
        """The metric of each query with a positive, in points."""
        ranks = np.array(self.found[stage]["ranks"])
        kind, _, k = metric.partition("@")
        if kind == "MRR":
            return 100 / ranks[ranks > 0]
        return 100 * recall_at_k(ranks, int(k))

    @property
    def asked(self) -> np.ndarray:
        """Families of the queries with a positive."""
        return self.families[np.array(self.found[BASELINE]["ranks"]) > 0]

    def difference(self, stage: str, metric: str, resamples: int) -> tuple[float, float, float]:
        """From `infonce` on the same queries, with the interval over families."""
        return paired_difference(
            self.values(BASELINE, metric),
            self.values(stage, metric),
            self.asked,
            resamples=resamples,
            seed=self.seed,
        )


def spread_known(values: Sequence[float | None]) -> JsonObject | None:
    """Spread of the known values; None if there are none."""
    known = [x for x in values if x is not None]
    if not known:
        return None
    return {"mean": float(np.mean(known)), "values": values}


def summarise(
    seeds: Sequence[SeedScores], chosen: Sequence[Variation], *, resamples: int = 2000
) -> JsonObject:
    """Recall, paired difference to `infonce` and the fate of the pairs, per variation."""
    out: JsonObject = {"seeds": [x.seed for x in seeds], "queries": []}
    out["queries"] = [len(x.asked) for x in seeds]

    def fate(name: str) -> JsonObject:
        found = [x.found[name] for x in seeds]
        return {
            "pairs": {k: spread_known([x["pairs"][k] for x in found]) for k in PAIR_FIGURES},
            "logged": {k: spread_known([x["logged"][k] for x in found]) for k in LOGGED},
        }

    def recalls(name: str) -> JsonObject:
        return {
            metric: spread([float(x.values(name, metric).mean()) for x in seeds])
            for metric in METRICS
        }

    out[BASELINE] = recalls(BASELINE) | fate(BASELINE)
    rows = {}
    for variation in chosen:
        row = {"settings": dataclasses.asdict(variation), **recalls(variation.name)}
        differences: JsonObject = {}
        for metric in METRICS:
            each = [x.difference(variation.name, metric, resamples) for x in seeds]
            differences[metric] = spread([x[0] for x in each])
            within = [[round(low, 2), round(high, 2)] for _, low, high in each]
            differences[metric] |= {"within_seed_intervals": within}
        rows[variation.name] = row | {"difference": differences} | fate(variation.name)
    _test(seeds, rows)
    return out | {"variations": rows}


def _test(seeds: Sequence[SeedScores], rows: JsonObject) -> None:
    """Add the tests of R@1 over seeds and families, corrected for the number of variations."""
    if len(seeds) < 2:
        for row in rows.values():
            row["difference"]["verdict"] = "one seed says nothing"
        return
    before = [x.values(BASELINE, "R@1") for x in seeds]
    found = {
        name: crossed(
            np.stack([x.values(name, "R@1") - y for x, y in zip(seeds, before, strict=True)]),
            seeds[0].asked,
        )
        for name in rows
    }
    for (name, x), p in zip(found.items(), holm([x.p for x in found.values()]), strict=True):
        rows[name]["difference"]["families_and_seeds"] = {
            "low": round(x.low, 3),
            "high": round(x.high, 3),
            "p_holm": p,
        }
        rows[name]["difference"]["verdict"] = verdict(x.low, x.high, p)


def table(result: JsonObject) -> str:
    """A Markdown table: differences to `infonce` in points, and what was masked at the end."""

    def points(found: JsonObject) -> str:
        inside = f" [{found['low']:+.1f}, {found['high']:+.1f}]" if "low" in found else ""
        return f"{found['mean']:+.1f}{inside}"

    def share(found: JsonObject | None) -> str:
        return "" if found is None else f"{100 * found['mean']:.2g} %"

    lines = ["| variation | R@1 | every seed | MRR | R@5 | masked | of it false | R@1 says |"]
    lines.append("|--|--:|--|--:|--:|--:|--:|--|")
    for row in result["variations"].values():
        differences, pairs = row["difference"], row["pairs"]
        seeds = ", ".join(f"{x:+.1f}" for x in differences["R@1"]["values"])
        masks = any(row["settings"].get(x) is not None for x in MASKS)
        cells = [
            row["settings"]["label"],
            points(differences["R@1"]),
            seeds,
            points(differences["MRR"]),
            points(differences["R@5"]),
            share(pairs["masked_at_end"]) if masks else "",
            share(pairs["masked_false"]) if masks else "",
            differences["verdict"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
