"""The training loop: pulls batches, calls a step, logs, checkpoints, resumes. No mathematics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import GuardConfig, KeptCheckpoints, RunConfig
from afmrl_jax.data.batching.shapes import PaddingShares, ShapeCounter
from afmrl_jax.data.sources.batches import Batch, ContrastiveBatch
from afmrl_jax.data.sources.loader import Reader, Source, iterate
from afmrl_jax.models.architecture import Params
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.runtime.distributed import barrier
from afmrl_jax.runtime.metrics_log import MetricsLog, resident_memory
from afmrl_jax.runtime.preemption import Preempted, deferred, reached
from afmrl_jax.runtime.profiling import StepTrace
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.runtime.trackers import BOARD, parse_trackers
from afmrl_jax.training.checkpoint import Checkpointer
from afmrl_jax.training.guard import LossGuard, Watchdog, stopped, write_batch
from afmrl_jax.training.state import HALTED, TrainState, scalars
from afmrl_jax.training.stopwatch import Stopwatch
from afmrl_jax.types import AnyArray, PyTree

Metrics = dict[str, AnyArray]
"""Of a step, by name; numbers, or arrays without dimensions that may not be computed yet."""
StepFunction = Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, Metrics]]
FrozenStepFunction = Callable[[Params, TrainState, PyTree, jax.Array], tuple[TrainState, Metrics]]
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
    kept: KeptCheckpoints = field(default_factory=KeptCheckpoints)
    guard: GuardConfig = field(default_factory=GuardConfig)
    trackers: tuple[str, ...] = (BOARD,)
    """Where metrics go besides the file; see `parse_trackers`."""
    profile: int = 0
    """Steps that are traced."""

    @classmethod
    def of(
        cls, config: RunConfig, name: str, folder: Path, steps: int, *, log_every: int | None = None
    ) -> LoopConfig:
        """The loop of a stage of a run; one of under 100 steps logs more often, for a curve."""
        log_every = log_every or max(1, min(10, steps // 10))
        mesh = make_mesh(config.mesh.data, config.mesh.model)
        return cls(
            name,
            folder,
            steps,
            config.seed,
            config.save_every,
            mesh,
            config.workers,
            log_every,
            config.checkpoints,
            config.guard,
            parse_trackers(config.log),
            config.profile,
        )


@dataclass(frozen=True)
class Refresh:
    """Work between segments of steps, on whose result the batches of the next segment depend."""

    every: int
    """Steps a segment."""
    work: Callable[[TrainState, int], None]
    """Called with the state and the number of a segment's first step, before its first batch is
    read. A resumed run may call it again for the same step."""
    reopen: Callable[[int], None] | None = None
    """Called with the number of a segment's first step where a resumed run begins further on in
    it: brings back into memory what `work` had put there. None where files are all it leaves."""

    def end(self, step: int) -> int:
        """First step after the segment that holds `step`."""
        return (step // self.every + 1) * self.every


def run_loop(
    config: LoopConfig,
    state: TrainState,
    source: Source[Batch],
    step_function: StepFunction,
    evaluate: Callable[[TrainState, int], dict[str, float] | None] | None = None,
    refresh: Refresh | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainState:
    """Train to `config.steps`, from the newest checkpoint if there is one.

    Args:
        config: name, folder, steps, seed and intervals.
        state: the state at step 0.
        source: random-access batches for Grain.
        step_function: (state, batch, key) -> (state, metrics); the key is `fold_in(seed, step)`,
            so a replayed step draws the same numbers. Of a step whose gradient is no number
            nothing is taken over, see `training.state`.
        evaluate: called with the state before the first step and after every step; returns
            metrics when it is due and None otherwise.
        refresh: what the batches of a segment of steps wait for; none is read ahead of it.
        stop: asked before the first step and after every one; True ends the stage there.

    Returns:
        The state after the last step.

    Raises:
        RunError: the loss is no number or explodes; the last good state and the batch are kept.
        Preempted: SIGTERM came; the state is saved.
    """
    checkpointer = Checkpointer(config.folder / "checkpoints", config.kept)
    state = place(state, config.mesh)
    restored = checkpointer.restore(state)
    state = state if restored is None else restored
    loop = _Loop(config, source, step_function, evaluate, refresh, stop, checkpointer)
    try:
        with jax.set_mesh(config.mesh), deferred():
            return loop.run(state)
    finally:
        loop.close()


class _Loop:
    """One stage's steps; see `run_loop`."""

    def __init__(
        self,
        config: LoopConfig,
        source: Source[Batch],
        step_function: StepFunction,
        evaluate: Callable[[TrainState, int], dict[str, float] | None] | None,
        refresh: Refresh | None,
        stop: Callable[[], bool] | None,
        checkpointer: Checkpointer,
    ):
        self._config = config
        self._source = source
        self._step_function = step_function
        self._evaluate = evaluate
        self._refresh = refresh
        self._stop = stop
        self._checkpointer = checkpointer
        self._log: MetricsLog | None = None
        self._trace: StepTrace | None = None
        self._iterator: Reader[Batch] | None = None
        self._shapes, self._padding, self._bad_pictures = ShapeCounter(), PaddingShares(), 0
        self._watchdog = Watchdog(config.name, config.guard.stall_after)
        self._losses = defaultdict[str | None, LossGuard](
            partial(LossGuard, config.guard.explosion)
        )
        """By the view of the batch: from words to pictures a loss is usually many times as large
        as between whole listings."""
        self._previous: Metrics | None = None
        """Metrics of the last step, not yet looked at: reading them waits for the device."""
        self._read: str | None = None
        """View of the batch that was read last."""
        self._view: str | None = None
        """View of the last step."""

    def run(self, state: TrainState) -> TrainState:
        """All steps that are left."""
        config = self._config
        start = int(state.step)
        # All have read what a killed run left before the first one changes it.
        barrier(f"{config.name} starts")
        self._log = MetricsLog(config.folder, start, config.trackers)
        trace = self._trace = StepTrace(config.folder, config.profile, start, config.steps)
        if start == 0 and self._evaluate is not None:
            self._log.write(0, self._evaluate(state, 0) or {})
        self._reopen(start)
        # What a stage that was killed after its last step would find again.
        ended = self._stop is not None and self._stop()
        base = jax.random.key(config.seed)
        with Progress(config.name, config.steps, start) as progress:
            watch = Stopwatch(start, config.name)
            for step in range(start, start if ended else config.steps):
                with watch.waiting():
                    self._watchdog.doing("reading a batch")
                    if self._refresh is not None and step % self._refresh.every == 0:
                        self._refresh.work(state, step)
                        self._stop_reading()
                    batch = self._next(step)
                self._watchdog.doing("computing")
                with trace.step(step):
                    key = jax.random.fold_in(base, step)
                    state, metrics = self._step_function(state, batch, key)
                trace.stepped(step, state)
                self._check(state, step)
                self._previous, self._view = metrics, self._read
                watch.stepped(metrics)
                done = step + 1
                extra = self._evaluate(state, done) if self._evaluate is not None else None
                ended = done == config.steps or (self._stop is not None and self._stop())
                leaving = not ended and reached()
                if done % config.log_every == 0 or ended or extra or leaving:
                    self._check(state, done)
                    found = scalars(metrics) | (extra or {})
                    self._write(done, found, watch)
                    progress.update(done, found)
                else:
                    progress.update(done)
                if done % config.save_every == 0 or ended or leaving:
                    self._check(state, done)
                    self._watchdog.doing("saving")
                    self._checkpointer.save(done, state)
                self._watchdog.step(done)
                if leaving:
                    log_info(f"{config.name}: asked to end; step {done} is saved")
                    raise Preempted
                if ended:
                    break
        if self._shapes:
            log_info(f"{config.name}: {self._shapes}; {self._padding}")
        return state

    def _reopen(self, start: int) -> None:
        refresh = self._refresh
        if refresh is None or refresh.reopen is None or start >= self._config.steps:
            return
        if within := start % refresh.every:
            refresh.reopen(start - within)

    def _batches(self, step: int) -> Reader[Batch]:
        """Batches from a step on, to the end of its segment where there are segments."""
        end = None if self._refresh is None else self._refresh.end(step)
        return iterate(self._source, workers=self._config.workers, begin=step, end=end)

    def _stop_reading(self) -> None:
        if self._iterator is not None:
            self._iterator.close()  # Ends its worker processes, if it has any.
            self._iterator = None

    def _next(self, step: int) -> Batch:
        self._iterator = self._iterator or self._batches(step)
        found = next(self._iterator)
        self._bad_pictures += int(found.bad_pictures or 0)
        self._shapes.add(found.rows)
        self._padding.add(found.rows)
        if isinstance(found, ContrastiveBatch):
            self._read, found = found.view, found._replace(view=None)
        return place_batch(found._replace(bad_pictures=None), self._config.mesh)

    def _write(self, done: int, found: dict[str, float], watch: Stopwatch) -> None:
        speed = watch.lap(done) | {"compiled_shapes": len(self._shapes)} | resident_memory()
        if self._bad_pictures:
            speed["bad_pictures"], self._bad_pictures = self._bad_pictures, 0
        if self._view is not None:
            speed[f"loss/{self._view}"] = found["loss"]
        assert self._log is not None
        self._log.write(done, found | self._padding.lap() | speed)

    def _check(self, state: TrainState, step: int) -> None:
        """End the stage if the last step but what was dispatched since went wrong.

        Args:
            state: its newest.
            step: number of the step that was dispatched last, or steps done.
        """
        metrics, self._previous = self._previous, None
        if metrics is None:
            return
        config, bad = self._config, step - 1
        loss, norm = (float(np.asarray(metrics[x])) for x in ("loss", "gradient_norm"))
        if bool(np.asarray(metrics[HALTED])):
            # Nothing was taken over since, so this is the state before the bad step.
            state = state._replace(halted=np.zeros((), bool), step=np.int32(bad))
            self._checkpointer.save(bad, place(state, config.mesh))
            why = f"the loss is {loss} and its gradient's norm {norm}"
            kept = f"The state after step {bad} is kept in {self._checkpointer.folder / str(bad)}"
        elif self._losses[self._view].exploded(loss):
            why = f"the loss exploded: it is {loss:.4g}, and was far lower a few steps ago,"
            newest = self._checkpointer.latest_step
            kept = f"The newest checkpoint is that of step {newest or 0}"
        else:
            return
        kept_batch = write_batch(config.folder, bad, self._source[bad])
        raise stopped(config.name, bad, why, kept, kept_batch)

    def close(self) -> None:
        """Release files, threads and processes."""
        self._watchdog.close()
        if self._trace is not None:
            self._trace.close()
        self._stop_reading()
        if self._log is not None:
            self._log.close()
        self._checkpointer.close()
