"""The effect of gamma, delta and the source of the attributes on `agcl`, against `infonce`.

    python -m experiments.studies.agcl_study  # five seeds, hours on two cores
    python -m experiments.studies.agcl_study --fast --out runs/study-smoke --seeds 0 1 \
        --result runs/study-smoke/study.json --plot runs/study-smoke/study.png

Rewrites results/agcl_study.json and docs/images/agcl_study.png after every seed. The same command
resumes an interrupted run. `--names` adds variations or leaves some out.

For each seed, training continues from one backbone with `infonce` and with every variation of AGCL:
the same batches, the same dropout, one factor changed at a time. The embedder never reads
attributes, as in the row `agcl` of the demo: they only set weights and masks. Each variation is
compared with `infonce` on the queries of the test split.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from afmrl_jax.config import AgclConfig, RunConfig, to_dict
from afmrl_jax.data.attributes.oracle import oracle_texts
from afmrl_jax.data.attributes.text_format import format_attributes, read_attributes
from afmrl_jax.errors import AfmrlError
from afmrl_jax.evaluation.metrics import positive_ranks
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import System
from afmrl_jax.runs.pipeline import TEXTS, Pipeline
from afmrl_jax.runtime.files import write_json, write_text
from afmrl_jax.runtime.metrics_log import read_metrics
from afmrl_jax.runtime.progress import log_info, print_result
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.runtime.setup import open_run, reported
from afmrl_jax.training.model_store import WEIGHTS
from afmrl_jax.types import JsonObject
from experiments.studies.agcl.pairs import PAIR_FIGURES, has_mask, judge_pairs
from experiments.studies.agcl.plot import draw_study
from experiments.studies.agcl.summary import BASELINE, LOGGED, SeedScores, summarise, table
from experiments.studies.agcl.variations import (
    DISTILLED,
    ORACLE,
    TRUE,
    Variation,
    hardening,
    variations,
)

HERE = Path(__file__).parents[1]
ON_REQUEST = ("delta-0.3", "default-oracle", *(x.name for x in hardening()))
"""Not run unless named: `default` minus `gamma-0.1` shows the effect of delta 0.3, no furniture
listing has its own oracle list, and weights that harden and masks that filter are for catalogues
with duplicates (`python -m experiments.studies.ladder`)."""


@dataclass(frozen=True)
class Study:
    """Which seeds, which variations, and where everything goes."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    catalogue: str = "furniture"
    names: tuple[str, ...] = tuple(x.name for x in variations() if x.name not in ON_REQUEST)
    """Variations by name."""
    out: Path = Path("runs/agcl_study")
    """Folder of the run directories."""
    result: Path = HERE / "results" / "agcl_study.json"
    plot: Path = HERE.parent / "docs" / "images" / "agcl_study.png"
    fast: bool = False
    """Few steps everywhere: shows that the script works, and says nothing about AGCL."""

    def __post_init__(self) -> None:
        unknown = sorted({*self.names} - {x.name for x in variations()})
        if unknown:
            known = ", ".join(x.name for x in variations())
            raise AfmrlError(f"no variation {', '.join(unknown)}; choose from {known}")

    @property
    def chosen(self) -> list[Variation]:
        """The variations, in the order of the study."""
        return [x for x in variations() if x.name in self.names]


def source_stages(pipeline: Pipeline, needed: set[str]) -> None:
    """Attribute lists of the train split from the catalogue's truth and from the oracle."""
    train, config = pipeline.catalogue.subset("train").listings, pipeline.config
    of_catalogue: JsonObject = {"catalogue": pipeline.catalogue.fingerprint}
    of_oracle = of_catalogue | {"oracle": to_dict(config.oracle), "seed": config.seed}

    def write(folder: Path, texts: Sequence[str]) -> None:
        pairs = zip(train, texts, strict=True)
        lines = [{"listing_id": x.listing_id, "attributes": text} for x, text in pairs]
        write_text(folder / TEXTS, "".join(f"{json.dumps(line)}\n" for line in lines))

    if TRUE in needed:
        truth = [format_attributes((x.attributes or {}).items()) for x in train]
        pipeline.run.stage(TRUE, of_catalogue, [TEXTS], lambda folder: write(folder, truth))
    if ORACLE in needed:
        lists = oracle_texts(train, config.oracle, config.seed)
        pipeline.run.stage(ORACLE, of_oracle, [TEXTS], lambda folder: write(folder, lists))


def score(
    pipeline: Pipeline, stage: str, settings: AgclConfig, attributes: str, folder: Path
) -> None:
    """Write the ranks of every test query, and the fate of the pairs, to `scores.json`."""
    run = FinishedRun(pipeline.run.folder)

    def embed(split: str, by: str = stage) -> np.ndarray:
        catalogue = pipeline.catalogue.subset(split)
        encoder = run.encoder(System(by, by, None))
        return encoder.embed(run.rows(catalogue), np.arange(len(catalogue)))

    pairs = judge_pairs(
        pipeline.catalogue.subset("train").listings,
        embed("train") if has_mask(settings) else None,
        read_attributes(run.folder / attributes / TEXTS),
        settings,
        teacher=None if settings.teacher_share is None else embed("train", BASELINE),
        max_terms=pipeline.config.text.max_terms,
        seed=pipeline.config.seed,
    )
    products = np.array([x.true_product for x in pipeline.catalogue.subset("test").listings])
    vectors = embed("test")
    ranks = positive_ranks(vectors, vectors, products, products, np.arange(len(products)))
    lines = [x for x in read_metrics(run.folder / stage / "metrics.jsonl") if "masked" in x]
    logged = {name: float(np.mean([x[name] for x in lines])) for name in LOGGED}
    write_json(folder / "scores.json", {"ranks": ranks.tolist(), "pairs": pairs, "logged": logged})


def score_stage(pipeline: Pipeline, stage: str, settings: AgclConfig, attributes: str) -> None:
    """`score`, once."""
    run = pipeline.run
    inputs = {
        "weights": run.output_hash(stage, WEIGHTS),
        "attributes": run.output_hash(attributes, TEXTS),
        "settings": to_dict(settings),
    }
    run.stage(
        f"scores-{stage}",
        inputs,
        ["scores.json"],
        lambda folder: score(pipeline, stage, settings, attributes, folder),
    )


def run_seed(folder: Path, config: RunConfig, chosen: Sequence[Variation]) -> np.ndarray:
    """Run all stages of one seed; returns the family of each test listing."""
    pipeline = Pipeline(folder, config, annotated=("train",))
    with closing(pipeline.run):
        pipeline.run_to(BASELINE)
        score_stage(pipeline, BASELINE, config.agcl.infonce(), DISTILLED)
        source_stages(pipeline, {x.attributes for x in chosen})
        for variation in chosen:
            settings = variation.settings(config.agcl)
            log_info(f"{folder.name}: {variation.label}")
            pipeline.train_r(variation.name, settings, variation.attributes, in_input=False)
            score_stage(pipeline, variation.name, settings, variation.attributes)
        return np.array([x.group for x in pipeline.catalogue.subset("test").listings])


def main(study: Study) -> None:
    """Run seed by seed; after each one write the summary and the plot."""
    base = (RunConfig.fast if study.fast else RunConfig.demo)(study.catalogue)
    chosen, done = study.chosen, []
    stages = [BASELINE, *(x.name for x in chosen)]
    for seed in study.seeds:
        folder = study.out / f"seed-{seed}"
        families = run_seed(
            folder, dataclasses.replace(base, catalogue=study.catalogue, seed=seed), chosen
        )
        done.append(SeedScores.read(folder, seed, families, stages))
        result = summarise(done, chosen, resamples=base.evaluation.bootstrap)
        result["pair_figures"] = PAIR_FIGURES
        write_json(study.result, provenance() | result)
        draw_study(result, study.plot)
    print_result(table(result))
    print_result(str(study.result))


if __name__ == "__main__":
    with reported():
        study = tyro.cli(Study, description=__doc__)
        open_run(study.out / "seed")
        main(study)
