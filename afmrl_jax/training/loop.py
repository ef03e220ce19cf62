"""The training loop: pulls batches, calls a step, logs, checkpoints, resumes. No mathematics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import RunConfig
from afmrl_jax.data.padding import padding_counts
from afmrl_jax.data.pipeline import iterate
from afmrl_jax.metrics_log import MetricsLog, resident_memory
from afmrl_jax.models.functional import Params
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.progress import Progress, ShapeCounter, say
from afmrl_jax.training.checkpoint import Checkpointer

StepFunction = Callable[[dict[str, Any], Any, jax.Array], tuple[dict[str, Any], dict[str, Any]]]
FrozenStepFunction = Callable[
    [Params, dict[str, Any], Any, jax.Array], tuple[dict[str, Any], dict[str, Any]]
]
"""A step whose first argument are the parameters that do not learn."""


@dataclass(frozen=True)
class LoopConfig:
    """What the loop itself needs to know of a stage."""

    name: str
    folder: Path
    steps: int
    seed: int
    save_every: int
    mesh: Mesh
    workers: int = 0
    log_every: int = 10

    @classmethod
    def of(
        cls, config: RunConfig, name: str, folder: Path, steps: int, *, log_every: int | None = None
    ) -> LoopConfig:
        """The loop of a stage of a run; one of under 100 steps logs more often, for a curve."""
        log_every = log_every or max(1, min(10, steps // 10))
        mesh = make_mesh(config.mesh.data, config.mesh.model)
        settings = (config.seed, config.save_every, mesh, config.workers, log_every)
        return cls(name, folder, steps, *settings)


@dataclass(frozen=True)
class Refresh:
    """Work between segments of steps, on whose result the batches of the next segment depend."""

    every: int
    """Steps a segment."""
    work: Callable[[dict[str, Any], int], None]
    """Called with the state and the number of a segment's first step, before its first batch is
    read. A resumed run may call it again for the same step."""

    def end(self, step: int) -> int:
        """First step behind the segment that holds `step`."""
        return (step // self.every + 1) * self.every


def run_loop(
    config: LoopConfig,
    state: dict[str, Any],
    source: Any,
    step_function: StepFunction,
    evaluate: Callable[[dict[str, Any], int], dict[str, float] | None] | None = None,
    refresh: Refresh | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train to `config.steps`, from the newest checkpoint if there is one.

    Args:
        config: name, folder, steps, seed and intervals.
        state: the state at step 0.
        source: random-access batches for Grain; each holds a `VLBatch` under `rows`.
        step_function: (state, batch, key) -> (state, metrics); the key is `fold_in(seed, step)`,
            so a replayed step draws the same numbers.
        evaluate: called with the state before the first step and after every step; returns
            metrics when it is due and None otherwise.
        refresh: what the batches of a segment of steps wait for; none is read ahead of it.
        stop: asked before the first step and after every one; True ends the stage there.

    Returns:
        The state after the last step.
    """
    state = place(state, config.mesh)
    checkpointer = Checkpointer(config.folder / "checkpoints")
    # The last step done lies in a segment that may be read.
    last = max((checkpointer.latest_step or 0) - 1, 0)
    iterator = _batches(config, source, refresh, last)
    if checkpointer.latest_step is not None:
        state = checkpointer.restore(state, iterator)
    start = int(state["step"])
    log = MetricsLog(config.folder, resume_step=start)
    base = jax.random.key(config.seed)
    shapes, padding, bad_pictures = ShapeCounter(), _Padding(), 0
    if start == 0 and evaluate is not None:
        log.write(0, evaluate(state, 0) or {})
    # What a stage that was killed behind its last step would find again.
    ended = stop is not None and stop()
    try:
        with jax.set_mesh(config.mesh), Progress(config.name, config.steps, start) as progress:
            watch = _Stopwatch(start)
            for step in range(start, start if ended else config.steps):
                with watch.waiting():
                    if refresh is not None and step % refresh.every == 0:
                        refresh.work(state, step)
                        done_so_far = iterator.get_state()
                        iterator = _batches(config, source, refresh, step)
                        iterator.set_state(done_so_far)
                    found = next(iterator)
                    bad_pictures += int(found.pop("bad_pictures", 0))
                    shapes.add(found["rows"])
                    padding.add(found["rows"])
                    batch = place_batch(found, config.mesh)
                state, metrics = step_function(state, batch, jax.random.fold_in(base, step))
                done = step + 1
                extra = evaluate(state, done) if evaluate is not None else None
                ended = done == config.steps or (stop is not None and stop())
                if done % config.log_every == 0 or ended or extra:
                    values = {k: float(np.asarray(v)) for k, v in metrics.items()}
                    speed = watch.lap(done) | {"compiled_shapes": len(shapes)}
                    speed |= resident_memory()
                    if bad_pictures:
                        speed["bad_pictures"], bad_pictures = bad_pictures, 0
                    log.write(done, values | (extra or {}) | padding.lap() | speed)
                    progress.update(done, values | (extra or {}))
                else:
                    progress.update(done)
                if done % config.save_every == 0 or ended:
                    checkpointer.save(done, state, iterator)
                if ended:
                    break
        if shapes:
            say(f"{config.name}: {shapes}; {padding}")
    finally:
        log.close()
        checkpointer.close()
    return state


def _batches(config: LoopConfig, source: Any, refresh: Refresh | None, step: int) -> Any:
    """Batches up to the end of the segment that holds `step`; all, without segments."""
    end = None if refresh is None else refresh.end(step)
    return iterate(source, workers=config.workers, end=end)


class _Padding:
    """Share of a batch's places that are padding, of text and of pictures."""

    def __init__(self) -> None:
        self._recent: Counter[tuple[str, str]] = Counter()
        self._all: Counter[tuple[str, str]] = Counter()

    def add(self, rows: Any) -> None:
        """Count a batch on the host."""
        for kind, (padded, places) in padding_counts(rows).items():
            self._recent.update({(kind, "padded"): padded, (kind, "places"): places})

    def lap(self) -> dict[str, float]:
        """The shares since the last call, as `text_padding` and `patch_padding`."""
        found = _shares(self._recent)
        self._all.update(self._recent)
        self._recent.clear()
        return found

    def __str__(self) -> str:
        shares = _shares(self._all + self._recent).items()
        return ", ".join(f"{name.replace('_', ' ')} {100 * x:.1f} %" for name, x in shares)


def _shares(counts: Counter[tuple[str, str]]) -> dict[str, float]:
    kinds = [kind for kind, what in counts if what == "places"]
    return {f"{k}_padding": round(counts[k, "padded"] / counts[k, "places"], 4) for k in kinds}


class _Stopwatch:
    """Seconds a step, and how many of them the data took, since the last line of the log.

    Steps are dispatched ahead of the device, so only a span that ends with reading metrics tells
    how long they took.
    """

    def __init__(self, step: int):
        self._start(step)

    def _start(self, step: int) -> None:
        self._step = step
        self._began = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def lap(self, step: int) -> dict[str, float]:
        steps, seconds = step - self._step, time.perf_counter() - self._began
        found = {"seconds_per_step": seconds / steps, "data_wait_share": self._waited / seconds}
        self._start(step)
        return {name: round(value, 5) for name, value in found.items()}
