"""Processes that run cases: forked when everything is imported, replaced when a case hangs."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reliability.fuzz.case import TARGETS, Outcome, Room, verdict_of
from experiments.reliability.fuzz.commands import tree_of
from experiments.reliability.fuzz.good import COMPILED
from experiments.reliability.fuzz.guard import (
    OUTSIDE,
    Guard,
    cpu_seconds,
    forget_peak,
    peak_mb,
    queued_seconds,
    resident_mb,
)

SECONDS = 20.0
"""A case that computes for longer hangs."""
PATIENCE = 60.0
"""A case that takes longer by the clock hangs too; what it waits for a processor does not count."""
STEP = 1.0
"""Most seconds that count between two looks: more pass only where the whole campaign is paused."""
TO_MAKE = 120.0
"""Seconds in which a case must be made; the first of a worker loads models."""
MEMORY_MB = 1500
CASES = 400
"""A worker is replaced after so many."""
Job = tuple[str, int]
"""Target and number of a case."""


def rng_of(seed: int, job: Job) -> np.random.Generator:
    """The generator that decides everything about a case."""
    return np.random.default_rng([seed, zlib.crc32(job[0].encode()), job[1]])


def _plant(folder: Path, good: Path) -> dict[str, str]:
    """What lies outside, and must neither be read nor changed."""
    outside = folder / OUTSIDE
    outside.mkdir(parents=True)
    shutil.copy(good / "texts" / "photo.png", outside / "secret.png")
    return tree_of(outside)


class _Worker:
    """What a process of cases does."""

    def __init__(self, good: Path, work: Path, seed: int, begin: Callable[[str], None]):
        self.begin = begin
        self.good, self.seed, self.kept = good, seed, dict[str, Any]()
        self.work = work / f"worker-{os.getpid()}"
        self.work.mkdir(parents=True)
        self.compiled = good / COMPILED
        self.guard = Guard()

    def run(self, job: Job) -> Outcome:
        folder = self.work / f"{job[0]}-{job[1]}"
        planted = _plant(folder, self.good)
        os.environ["TMPDIR"] = str(folder)
        import tempfile

        tempfile.tempdir = None
        os.chdir(folder)
        try:
            room = Room(self.good, folder, rng_of(self.seed, job), self.kept)
            return self._run(job, room, planted)
        finally:
            os.chdir(self.work)
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, job: Job, room: Room, planted: dict[str, str]) -> Outcome:
        case = TARGETS[job[0]](room)
        self.begin(case.what[:200])
        forget_peak()
        began, error = time.monotonic(), None
        with self.guard.armed(room.folder, self.compiled):
            try:
                case.act()
            # Rust's panics are not of class Exception.
            except BaseException as problem:
                error = problem
        seconds, peak = time.monotonic() - began, peak_mb()
        verdict, line = verdict_of(case, error)
        if peak > MEMORY_MB:
            verdict, line = "memory", f"{peak} MB at most; {line}"
        outside = [*self.guard.found]
        if tree_of(room.folder / OUTSIDE) != planted:
            outside.append("what lay outside has changed")
        if outside:
            verdict, line = "outside", outside[0][:300]
        return Outcome(*job, verdict, case.what[:200], line, round(seconds, 3), peak)


def _serve(pipe: Connection, good: Path, work: Path, seed: int, loud: bool) -> None:
    """The main function of a worker."""
    import jax

    if not loud:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    sys.dont_write_bytecode = True
    os.environ["NO_PROXY"] = "127.0.0.1"
    jax.config.update("jax_compilation_cache_dir", str(good / COMPILED))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    worker = _Worker(good, work, seed, pipe.send)
    while True:
        job = pipe.recv()
        if job is None:
            return
        try:
            pipe.send(worker.run(job))
        except Exception:
            # The campaign itself is broken; that must be seen.
            line = "the case could not be made: " + traceback.format_exc()
            pipe.send(Outcome(job[0], job[1], "foreign", "", line))


@dataclass
class _Slot:
    """A worker as its parent sees it."""

    process: Any
    pipe: Connection
    job: Job | None = None
    given: float = 0.0
    """When it got its job."""
    begun: float | None = None
    """When the case began to act; None while it is being made."""
    computed: float = 0.0
    """Seconds that its process had computed for until then."""
    queued: float = 0.0
    """Seconds that its threads had waited for a processor until then, or until it got its job."""
    what: str = ""
    cases: int = 0


@dataclass
class Pool:
    """Workers, and the cases that they are at."""

    good: Path
    work: Path
    seed: int
    count: int = 2
    loud: bool = False
    """Whether what the package prints is shown."""
    _slots: list[_Slot] = field(default_factory=list)
    _now: float = 0.0
    """Seconds in which the campaign has been running."""
    _looked: float = field(default_factory=time.monotonic)

    def _start(self) -> _Slot:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.good, self.work, self.seed, self.loud)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Slot(process, ours)

    def _end(self, slot: _Slot, *, kill: bool) -> None:
        if not kill:
            slot.pipe.send(None)
            slot.process.join(5)
        slot.process.kill()
        slot.process.join()
        slot.pipe.close()
        shutil.rmtree(self.work / f"worker-{slot.process.pid}", ignore_errors=True)

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcome of every job, as they end."""
        waiting = list(reversed(jobs))
        try:
            while waiting or any(x.job for x in self._slots):
                while len(self._slots) < self.count and len(self._slots) < len(waiting):
                    self._slots.append(self._start())
                for slot in self._slots:
                    if slot.job is None and waiting:
                        slot.job, slot.given = waiting.pop(), self._now
                        slot.begun, slot.what = None, ""
                        slot.queued = queued_seconds(slot.process.pid)
                        slot.pipe.send(slot.job)
                yield from self._ended()
        finally:
            for slot in self._slots:
                self._end(slot, kill=slot.job is not None)
            self._slots.clear()

    def _ended(self) -> Iterator[Outcome]:
        """Outcomes that have come, and those of workers that had to be killed."""
        busy = {x.pipe: x for x in self._slots if x.job is not None}
        ready = wait(list(busy), timeout=0.05)
        before, self._looked = self._looked, time.monotonic()
        self._now += min(self._looked - before, STEP)
        for pipe, slot in busy.items():
            assert slot.job is not None
            outcome = self._received(slot) if pipe in ready else self._too_much(slot)
            if outcome is not None:
                slot.job, slot.cases = None, slot.cases + 1
                yield outcome
                if slot in self._slots and slot.cases >= CASES:
                    self._end(slot, kill=False)
                    self._slots.remove(slot)

    def _received(self, slot: _Slot) -> Outcome | None:
        """The outcome that a worker has sent; None if it only says that its case begins."""
        assert slot.job is not None
        try:
            found = slot.pipe.recv()
        except (EOFError, ConnectionResetError):
            slot.process.join()
            line = f"the process ended with {slot.process.exitcode}"
            self._drop(slot)
            return Outcome(*slot.job, "foreign", slot.what, line)
        if isinstance(found, Outcome):
            seconds = found.seconds if slot.begun is None else round(self._now - slot.begun, 3)
            return replace(found, seconds=min(found.seconds, seconds))
        slot.begun, slot.what = self._now, str(found)
        slot.computed = cpu_seconds(slot.process.pid)
        slot.queued = queued_seconds(slot.process.pid)
        return None

    def _too_much(self, slot: _Slot) -> Outcome | None:
        """The outcome of a case that takes too long or too much memory; its worker is killed."""
        assert slot.job is not None
        size = resident_mb(slot.process.pid)
        seconds = 0.0 if slot.begun is None else self._now - slot.begun
        computed = 0.0 if seconds < SECONDS else cpu_seconds(slot.process.pid) - slot.computed
        idle = self._now - (slot.given if slot.begun is None else slot.begun)
        if idle > PATIENCE:
            idle -= max(0.0, queued_seconds(slot.process.pid) - slot.queued)
        if size > MEMORY_MB:
            verdict, line = "memory", f"{size} MB after {seconds:.0f} s"
        elif computed > SECONDS or (slot.begun is not None and idle > PATIENCE):
            verdict, line = "hang", f"killed after {seconds:.0f} s"
        elif slot.begun is None and idle > TO_MAKE:
            verdict, line = "foreign", f"the case was not made in {TO_MAKE:.0f} s"
        else:
            return None
        self._drop(slot)
        return Outcome(*slot.job, verdict, slot.what, line, round(seconds, 1), size)

    def _drop(self, slot: _Slot) -> None:
        self._end(slot, kill=True)
        self._slots.remove(slot)
