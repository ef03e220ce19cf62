"""The command that compares an endpoint with a run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from afmrl_jax.inference import annotate as serving
from afmrl_jax.inference.shipped import models_of
from afmrl_jax.runs.check_endpoint import CheckSettings, Report, check_endpoint
from afmrl_jax.runtime.json_files import json_text
from afmrl_jax.runtime.terminal import printable


@dataclass(frozen=True)
class CheckEndpoint:
    """Post listings to an OpenAI-style endpoint, and compare its answers with the run's own.

    For models that `afmrl export` wrote and another program serves, and for `afmrl serve` itself.
    Exit status 1 if an answer is wrong or differs.

    Examples:
        afmrl check-endpoint http://localhost:8000/v1 --run runs/demo
        afmrl check-endpoint http://localhost:8000/v1/chat/completions --run runs/demo
    """

    url: tyro.conf.Positional[str]
    """Base of the endpoint, or the whole address of its /v1/embeddings or, to compare attribute
    lists, /v1/chat/completions."""
    run: Path
    """Run directory of the models that are served, or `demo-weights`."""
    system: str | None = None
    """Row of the results table, such as `infonce` or `agcl+distilled`; by default the last one."""
    catalogue: str | None = None
    """Where the listings come from; by default the run's own catalogue."""
    columns: str | None = None
    """Which columns of a table are which, as in `--columns title=name,product_id=sku`."""
    skip_bad: bool = False
    """Skip unusable records, counted and listed, instead of stopping."""
    split: Literal["all", "distill", "train", "reward", "test"] = "all"
    """Listings to choose from."""
    settings: Annotated[CheckSettings, tyro.conf.arg(name="")] = field(
        default_factory=CheckSettings
    )
    as_json: bool = False
    """Print a JSON object."""

    def execute(self) -> None:
        """Run the command."""
        run = models_of(self.run)
        own = self.catalogue is None
        catalogue = serving.read(
            run.config.catalogue if self.catalogue is None else self.catalogue,
            self.split,
            skip_bad=self.skip_bad,
            marketplace=run.config.marketplace,
            columns=run.config.columns if own else self.columns,
        )
        report = check_endpoint(self.url, run, self.system, catalogue.listings, self.settings)
        if self.as_json:
            print(json_text(report.as_dict(self.settings)))
        else:
            print(printable_report(report, self.settings))
        if not report.same(self.settings):
            sys.exit(1)


def printable_report(report: Report, settings: CheckSettings) -> str:
    """What was found, by line."""
    lines = [
        f"{report.address}: {report.sent} of {report.asked} requests in {report.seconds:.1f} s"
    ]
    if report.left_out:
        lines.append(
            f"{report.left_out} listings left out: their titles are longer than the model reads, "
            "or hold special tokens"
        )
    for name, found in report.cosines.items():
        worst, least = min(found, key=lambda x: x[1])
        low = sum(x < settings.cosine for _, x in found)
        verdict = f"{low} below {settings.cosine:g}" if low else "the same"
        lines.append(f"{name}: {len(found)} vectors, least cosine {least:.6f} ({worst}): {verdict}")
    if report.lists:
        exact = sum(ours == theirs for _, ours, theirs, _ in report.lists)
        mean = float(np.mean([x[3] for x in report.lists]))
        verdict = "the same" if mean >= settings.agreement else f"below {settings.agreement:g}"
        lines.append(
            f"lists: {exact} of {len(report.lists)} the same to the letter, {100 * mean:.1f} % of "
            f"attributes agree: {verdict}"
        )
        name, ours, theirs, agreed = min(report.lists, key=lambda x: x[3])
        if agreed < 1:
            lines += [f"  {name}: run      {ours}", f"  {name}: endpoint {theirs}"]
    lines += [f"WRONG ({count} times): {what}" for what, count in report.faults.items()]
    if report.stopped:
        lines.append(f"STOPPED: {report.stopped}")
    lines.append("same as the run" if report.same(settings) else "NOT the same as the run")
    return "\n".join(printable(x) for x in lines)
