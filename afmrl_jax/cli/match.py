"""The command `afmrl match`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from afmrl_jax.cli.catalogue import OnCatalogue
from afmrl_jax.data.catalogue.readers import MARKETPLACE, RowSource, open_rows
from afmrl_jax.errors import ConfigError
from afmrl_jax.inference import annotate as serving
from afmrl_jax.inference.index import IndexSettings
from afmrl_jax.inference.shipped import models_of
from afmrl_jax.runs.match import MatchSettings
from afmrl_jax.runs.matched import PAGE, Inputs, match
from afmrl_jax.types import JsonObject


@dataclass(frozen=True)
class Match(OnCatalogue):
    """Find listings of one product, with their probability: duplicates, or matches in another shop.

    Writes pairs.csv, clusters.csv, and review.csv and review.html for a person to look at. The same
    command again embeds only what is new; if killed, it resumes.

    Examples:
        afmrl match --run runs/demo --catalogue my-shop --out duplicates
        afmrl match --run runs/demo --catalogue my-shop --against supplier --out matches
        afmrl match --run runs/demo --catalogue my-shop --out found --decisions found/review.csv
    """

    against: str | None = None
    """Another catalogue, in which the listings' products are looked for; without it they are looked
    for among themselves."""
    against_columns: str | None = None
    """Which columns of its table are which."""
    precision: float = MatchSettings.precision
    """Wanted share of right pairs among the accepted ones, as on held-out families."""
    neighbours: int = MatchSettings.neighbours
    """Nearest listings of each that are candidates; more than a product has listings."""
    method: Literal["platt", "isotonic"] = MatchSettings.method
    """How probabilities are learned: `platt` is a logistic regression, `isotonic` any ascending
    curve, for a thousand held-out pairs and more."""
    calibration_split: Literal["reward", "test"] = MatchSettings.calibration_split
    """Held-out listings of the run's own catalogue from which they are learned."""
    lowest: float = MatchSettings.lowest
    """Pairs of less probability are not written."""
    evaluate: bool = MatchSettings.evaluate
    """Also measure precision and recall on the test split of the run's own catalogue."""
    decisions: Path | None = None
    """review.csv with `same` or `different` in the column `decision`: the folder `labelled` is then
    the catalogue, and that of --against behind it, with product ids by them, for `afmrl train`."""
    system: str | None = None
    """Row of the results table, such as `infonce` or `agcl+distilled`; by default the last one."""
    index: Literal["exact", "scann"] = "exact"
    """Which index is searched."""
    split: Literal["all", "distill", "train", "reward", "test"] = "all"
    """Listings to match."""
    shown: int = 40
    """Pairs in each list to review."""

    def execute(self) -> None:
        """Run the command."""
        if self.decisions is not None and self.split != "all":
            raise ConfigError("--decisions writes the whole catalogue; leave --split out")
        run = models_of(self.run)
        catalogue = self.read(run, self.split)
        against = None
        if self.against is not None:
            against = serving.read(
                self.against,
                "all",
                skip_bad=self.skip_bad,
                marketplace=run.config.marketplace,
                columns=self.against_columns,
            )
        sources: list[RowSource] = []
        if self.decisions is not None:
            named = [(self.catalogue, self.columns), (self.against, self.against_columns)]
            for name, columns in named:
                drawn = asdict(run.config.marketplace) if name == MARKETPLACE else None
                sources += [] if name is None else [open_rows(name, drawn, columns)]
        found = match(
            run,
            self.system,
            Inputs(catalogue, against, tuple(sources)),
            self.out,
            MatchSettings(
                precision=self.precision,
                neighbours=self.neighbours,
                method=self.method,
                calibration_split=self.calibration_split,
                lowest=self.lowest,
                evaluate=self.evaluate,
            ),
            index=IndexSettings(kind=self.index),
            decisions=self.decisions,
            shown=self.shown,
        )
        print("\n".join(told(found)))
        print(self.out / PAGE)


def told(found: JsonObject) -> list[str]:
    """What the command says, by line.

    Args:
        found: the contents of `match.json`.
    """
    pairs, at = found["found"], found["calibration"]["threshold"]
    lines = [
        f"{pairs['accepted']} pairs accepted"
        + ("" if at is None else f" (probability {at:.3f} and more)")
        + f", {pairs['accepted_new']} of them under two product ids; {pairs['clusters']} clusters "
        f"of {pairs['listings_in_clusters']} listings"
    ]
    test = found["test"]
    if test is not None:
        rates = [
            f"{name} "
            + (
                "-"
                if x is None
                else f"{100 * x['value']:.1f} % [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"
            )
            for name, x in (("precision", test["precision"]), ("recall", test["recall"]))
        ]
        lines.append(
            f"test split of {test['catalogue']}: {', '.join(rates)}, {test['listings']} listings"
        )
    if "decisions" in found:
        said = found["decisions"]
        lines.append(
            f"{said['pairs']} decisions: {said['merged']} products merged, {said['split']} split, "
            f"{said['listings']} listings under another id"
        )
    return lines
