"""One process of a job on the drawn badges with tiny models; `jobs.py` starts it."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np

from afmrl_jax.config import (
    AgclConfig,
    BackboneConfig,
    CitConfig,
    DistillConfig,
    EvaluationConfig,
    GuardConfig,
    InputDropout,
    OptimizerConfig,
    RarConfig,
    RunConfig,
)
from afmrl_jax.data.batching.row_packing import PackedPrompts, PackedRows
from afmrl_jax.models.families import FAMILIES
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.distributed import ClusterConfig
from afmrl_jax.runtime.setup import open_run, reported
from afmrl_jax.testing import tiny_demo
from afmrl_jax.training import loop


def config(told):
    """Batches that eight devices divide, a checkpoint every few steps.

    Processes add up in another order than devices of one process do, and training at a high rate
    makes of the last bit of a sum the third digit of a loss within fifty steps; at a low rate it
    stays the last bit.
    """
    steps, slow = told["steps"], OptimizerConfig(1e-4)
    # Who only needs a G that writes lists takes more steps at a higher rate.
    taught = DistillConfig(steps=steps, batch_size=16, optimizer=slow)
    if "taught" in told:
        taught = DistillConfig(steps=told["taught"], batch_size=16)
    # Hardly a row with a picture, so that some devices have none.
    blind = InputDropout(title=0.0, picture=0.95)
    dropout = blind if told.get("blind") else InputDropout()
    return RunConfig(
        catalogue=told["catalogue"],
        vocab_size=300,
        save_every=told.get("save_every", 5),
        workers=told.get("workers", 0),
        guard=GuardConfig(stall_after=told.get("stall_after", 1800)),
        distill=taught,
        backbone=BackboneConfig(steps=0),
        agcl=AgclConfig(steps=steps, batch_size=8, dropout=dropout, optimizer=slow),
        rar=RarConfig(
            steps=steps,
            queries=8,
            group_size=2,
            evaluate_every=25,
            evaluation_samples=1,
            k=3,
            constrained=True,
            optimizer=slow,
        ),
        cit=CitConfig(steps=2),
        evaluation=EvaluationConfig(batch_size=16, bootstrap=20, gallery_queries=2, latency=False),
    )


def record_batches(folder):
    """Write down which batches this process was given, by a hash of their text."""
    plain = loop.place_batch
    path = folder / f"batches-{jax.process_index()}.jsonl"

    def recorded(batch, mesh):
        rows = batch.rows
        rows = rows.packed if isinstance(rows, PackedPrompts) else rows
        tokens = np.asarray(rows.bins.tokens if isinstance(rows, PackedRows) else rows.tokens)
        with path.open("a") as file:
            file.write(json.dumps(hashlib.sha256(tokens.tobytes()).hexdigest()) + "\n")
        return plain(batch, mesh)

    loop.place_batch = recorded


def main(told):
    """Run to a stage, or all."""
    for name, family in FAMILIES.items():
        FAMILIES[name] = dataclasses.replace(family, demo=tiny_demo(name))
    folder = Path(told["folder"])
    cluster = dataclasses.replace(ClusterConfig(), lost_after=told.get("lost_after", 30))
    folder = open_run(folder, cluster)
    folder.mkdir(parents=True, exist_ok=True)
    if told.get("record"):
        record_batches(folder)
    pipeline = Pipeline(folder, config(told))
    if told.get("to"):
        pipeline.run_to(told["to"])
    else:
        pipeline.execute()
    pipeline.run.close()


if __name__ == "__main__":
    with reported():
        main(json.loads(sys.argv[1]))
