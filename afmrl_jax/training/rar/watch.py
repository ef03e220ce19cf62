"""What a stage of RAR looks at between its steps: its log, held-out queries, the best generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import RarConfig
from afmrl_jax.models.architecture import Params
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, stored_tensors, write_tensors
from afmrl_jax.parallel.sharding import shardings
from afmrl_jax.runtime.distributed import barrier, check_on_first, to_devices, to_host
from afmrl_jax.training.loop import Metrics, StepFunction
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.rar.galleries import PolicyGalleries
from afmrl_jax.training.rar.held_out import HeldOutEvaluator, Rollouts
from afmrl_jax.training.rar.monitor import RarMonitor, remembered
from afmrl_jax.training.state import TrainState, scalars
from afmrl_jax.types import JsonObject, PyTree

BEST = "params.safetensors"
"""What learns of the best generator, in the stage's folder `best`."""
REPORT = "report.json"
"""What the queries of the part `report` say, in the stage's folder."""


@dataclass(frozen=True)
class Watch:
    """The evaluations of a stage, and what follows from them."""

    settings: RarConfig
    folder: Path
    trainee: Partition
    judge: HeldOutEvaluator
    health: RarMonitor
    galleries: PolicyGalleries | None
    """None where the gallery stays as it is."""
    lines: list[JsonObject]
    """Of the stage's metrics so far, the last one and what is `remembered`."""

    @contextmanager
    def _deployed(self, params: Params, step: int) -> Iterator[None]:
        """The gallery that a generator is judged with."""
        if self.galleries is None:
            yield
        else:
            with self.galleries.shown(params, step):
                yield

    def stepping(self, step: StepFunction) -> StepFunction:
        """The step with its alarms, and its metrics among the lines."""

        def watched(state: TrainState, batch: PyTree, key: jax.Array) -> tuple[TrainState, Metrics]:
            state, metrics = step(state, batch, key)
            done = int(state.step)
            # A resumed stage repeats the steps after its checkpoint.
            self.lines[:] = remembered([x for x in self.lines if x["step"] < done])
            self.lines.append({"step": done} | scalars(metrics))
            return state, {**metrics, **self.health.watch(self.lines)}

        return watched

    def evaluate(self, state: TrainState, done: int) -> dict[str, float] | None:
        """Held-out figures after `done` steps, where they are due; keeps the best generator."""
        settings = self.settings
        if done and done % settings.evaluate_every and done != settings.steps:
            return None
        found = self.judge.at_start
        if done:
            with self._deployed(state.params, done):
                found = self.judge(self.trainee.whole(state.params))
        value = found[f"held_out/{settings.choose_by}"]
        self.health.evaluated(done, value, partial(_save, state.params))
        if not done:
            self.lines[:] = [{"step": 0}]
        self.lines[-1] |= found
        return {**found, **self.health.watch(self.lines)}

    def should_stop(self) -> bool:
        """Whether the stage ends here."""
        return self.health.should_stop(self.lines)

    def reported_at_start(self) -> Rollouts | None:
        """Lists of the generator that the stage starts from, for the report; None if it is written.

        To be called before the first step, which takes the memory of what it starts from.
        """
        if not len(self.judge.report_queries) or check_on_first((self.folder / REPORT).is_file):
            return None
        return self.judge.reported(self.trainee.whole(self.trainee.trainable))

    def best(self, state: TrainState, mesh: Mesh, before: Rollouts | None) -> Params:
        """What learns of the best generator; writes the report on it.

        Args:
            state: the last one.
            mesh: of the stage.
            before: of `reported_at_start`.
        """
        params, step = state.params, int(state.step)
        if self.health.best is not None:
            barrier("the best parameters are written")
            params, step = _load(self.folder / "best", params, mesh), self.health.best.step
        if before is not None:
            with self._deployed(params, step):
                after = self.judge.reported(self.trainee.whole(params))
            self.judge.report(self.folder / REPORT, before, after)
        return params


def _save(params: Params, folder: Path) -> None:
    """Write what learns as it is; the layout is that of the parameters, not of a hub's file."""
    tensors = [
        TensorToWrite(name, x.shape, np.dtype(x.dtype), partial(to_host, x))
        for name, x in params.items()
    ]
    write_tensors(folder / BEST, tensors)


def _load(folder: Path, like: Params, mesh: Mesh) -> Params:
    stored = {name: x.open() for name, x in stored_tensors(folder / BEST).items()}
    found: Params = to_devices({name: stored[name] for name in like}, shardings(like, mesh))
    return found
