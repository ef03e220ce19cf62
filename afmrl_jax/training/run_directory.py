"""Run directories: a chain of stages, each with the hashes of its inputs and outputs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from afmrl_jax.config import (
    ModelSettings,
    RunConfig,
    fingerprint,
    from_dict,
    migrated,
    to_dict,
)
from afmrl_jax.config.run import PLACEMENT
from afmrl_jax.errors import RunError
from afmrl_jax.runtime.distributed import (
    check_on_first,
    check_shared,
    is_first_process,
    run_on_first,
)
from afmrl_jax.runtime.files import claim, file_hash, write_json
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.runtime.object_store import hold, keep
from afmrl_jax.runtime.preemption import heed
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.run_mirror import LOCK
from afmrl_jax.runtime.seals import check_hashes
from afmrl_jax.types import JsonObject

DONE, BEGUN = "DONE.json", "inputs.json"


@dataclass(frozen=True)
class Begun:
    """`inputs.json` of a stage: what its result depends on."""

    inputs: JsonObject
    fingerprint: str

    def fits(self, wanted: Begun) -> bool:
        """Whether the result depends on the same as `wanted`.

        Older versions kept the whole numbers that a notebook gave for numbers, and 1 and 1.0 are
        equal but have other fingerprints.
        """
        if self.fingerprint == wanted.fingerprint:
            return True
        sound = self.fingerprint == fingerprint(self.inputs)
        return sound and migrated(self.inputs) == migrated(wanted.inputs)


@dataclass(frozen=True)
class Done(Begun):
    """`DONE.json` of a finished stage."""

    outputs: dict[str, str]
    """SHA-256 by file, relative to the stage's folder."""
    seconds: float


def check_finished(folder: Path, outputs: Sequence[str] | None = None) -> None:
    """Compare the outputs of a finished stage with what it recorded.

    Args:
        folder: of the stage.
        outputs: files below it; None for all that it recorded.

    Raises:
        RunError: the record is broken, or an output is gone, has changed or is not in it.
    """
    path, remedy = folder / DONE, _again(folder)
    done = read_checked(path, Done, remedy=remedy)
    outputs = [*done.outputs] if outputs is None else outputs
    unknown = sorted(set(outputs) - set(done.outputs))
    if unknown:
        raise RunError(f"{path} has no hash of {', '.join(unknown)}; {remedy}")
    check_hashes(folder, {x: done.outputs[x] for x in outputs}, f"put it back, or {remedy}")


def _again(folder: Path) -> str:
    return f"delete {folder} and start its command again to do this stage and those after it again"


NO_CONFIG = "put it back, or choose another --out"


def _with_remat_of(begun: ModelSettings, model: ModelSettings) -> ModelSettings:
    """The settings with the choice of a run that began, where they leave it open."""
    execution = model.execution
    if execution.remat == "auto":
        execution = dataclasses.replace(execution, remat=begun.execution.remat)
    return dataclasses.replace(model, execution=execution)


class Run:
    """One run directory, held by one job at a time.

    `stage` runs a piece of work unless it is done, and refuses to continue work whose inputs have
    changed since.
    """

    def __init__(self, folder: Path, config: RunConfig):
        self.folder = folder
        self.config = config
        self.did_something = False
        folder.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] | None = None
        try:
            run_on_first(self._hold, f"taking {folder}")
            check_shared(folder)
            self._keep_layout()
            run_on_first(self._check_config, f"opening {folder}")
        except BaseException:
            self.close()
            raise

    def _hold(self) -> None:
        busy = f"{self.folder} is in use by another process; wait for it or choose another --out"
        self._lock = claim(self.folder / LOCK, busy)
        hold(self.folder, True)

    def _keep_layout(self) -> None:
        """Arrange batches and memory as the run did when it began, whatever the default is by now.

        Raises:
            ConfigError: a setting in the run's config is broken.
        """
        path = self.folder / "config.json"
        if path.is_file():
            found = read_checked(path, dict[str, Any], remedy=NO_CONFIG)
            begun = from_dict(RunConfig, found, path, stored=True)
            self.config = dataclasses.replace(
                self.config,
                packed=begun.packed,
                cit=dataclasses.replace(self.config.cit, fresh_batches=begun.cit.fresh_batches),
                embedder=_with_remat_of(begun.embedder, self.config.embedder),
                generator=_with_remat_of(begun.generator, self.config.generator),
            )

    def _check_config(self) -> None:
        path = self.folder / "config.json"
        wanted = migrated(to_dict(self.config))
        found = wanted
        if path.is_file():
            found = migrated(read_checked(path, dict[str, Any], remedy=NO_CONFIG))
        # Where a run is computed may change; what is computed may not.
        before, now = ({k: v for k, v in x.items() if k not in PLACEMENT} for x in (found, wanted))
        if before == now:
            # That of a new run is written by its first stage.
            if found != wanted:
                write_json(path, to_dict(self.config))
        else:
            differing = ", ".join(_differences(before, now)[:6])
            raise RunError(
                f"{self.folder} belongs to another config ({differing}); choose another --out, "
                "repeat its settings, or delete the folder"
            )

    def _begin(self, begun: Path, current: Begun) -> None:
        path = self.folder / "config.json"
        if not path.is_file():
            write_json(path, to_dict(self.config))
        write_json(begun, dataclasses.asdict(current))

    def _forget(self, begun: Path) -> None:
        """Remove the config and the inputs of a stage unless some stage has made a step: the next
        start may have other settings.
        """
        logs = self.folder.glob("*/metrics.jsonl")
        if not any(x.stat().st_size for x in logs) and not any(self.folder.glob("*/checkpoints/*")):
            begun.unlink(missing_ok=True)
            (self.folder / "config.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None and not self._lock.closed:
            self._lock.close()
            hold(self.folder, False)

    def stage(
        self,
        name: str,
        inputs: JsonObject,
        outputs: list[str],
        work: Callable[[Path], None],
    ) -> Path:
        """Do a stage once.

        Args:
            name: also its folder below the run.
            inputs: hashes and settings that the result depends on.
            outputs: files below the stage's folder that `work` writes.
            work: called with the stage's folder; resumes by itself what was begun. Every process
                calls it, and the first one's files count.

        Returns:
            The stage's folder.

        Raises:
            RunError: it was begun with other inputs, or is finished and its outputs are not those
                that it recorded.
            Preempted: SIGTERM came during what was done before.
        """
        folder = self.folder / name
        done, begun = folder / DONE, folder / BEGUN
        current = Begun(inputs, fingerprint(inputs))
        kinds: tuple[tuple[Path, type[Begun]], ...] = ((done, Done), (begun, Begun))
        found = {
            path: read_checked(path, kind, remedy=_again(folder))
            for path, kind in kinds
            if check_on_first(path.is_file)
        }
        for before in found.values():
            if not before.fits(current):
                changed = ", ".join(_differences(migrated(before.inputs), migrated(inputs)))
                raise RunError(
                    f"{folder} was begun with other inputs ({changed}); choose another --out or "
                    f"delete {folder} to do this stage and those after it again"
                )
        if done in found:
            run_on_first(partial(check_finished, folder, outputs), f"checking {name}")
            return folder
        current = found.get(begun, current)
        heed()
        self.did_something = True
        run_on_first(partial(self._begin, begun, current), name)
        started = time.monotonic()
        try:
            work(folder)
        except Exception:
            # Without waiting for the others, which may never come here.
            if is_first_process():
                self._forget(begun)
            raise
        seconds = round(time.monotonic() - started, 1)

        def finish() -> None:
            hashes = {x: file_hash(folder / x) for x in outputs}
            write_json(done, dataclasses.asdict(current) | {"outputs": hashes, "seconds": seconds})
            keep(folder)

        run_on_first(finish, name)
        log_info(f"{name}: done in {seconds:.0f} s")
        return folder

    def output_hash(self, stage: str, output: str) -> str:
        """Hash of an output of a finished stage.

        Raises:
            RunError: its record is broken.
        """
        folder = self.folder / stage
        hashes = read_checked(folder / DONE, Done, remedy=_again(folder)).outputs
        if output not in hashes:
            raise RunError(f"{folder / DONE} has no hash of {output}; {_again(folder)}")
        return hashes[output]

    def seconds(self) -> dict[str, float]:
        """Seconds of each finished stage, in the order they ended."""
        done = sorted(self.folder.glob(f"*/{DONE}"), key=lambda p: p.stat().st_mtime)
        return {p.parent.name: read_checked(p, Done, remedy=_again(p.parent)).seconds for p in done}


def _differences(before: object, after: object, prefix: str = "") -> list[str]:
    """Names of the values that differ between two JSON objects, with both values."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [f"{prefix}: {before} -> {after}"]
    out = []
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            name = f"{prefix}.{key}" if prefix else key
            out += _differences(before.get(key), after.get(key), name)
    return out
