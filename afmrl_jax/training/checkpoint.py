"""Checkpoints by Orbax: the whole state of a stage, saved or not at all.

The state holds the number of finished steps, and batch number `i` is a function of the catalogue,
the seed and `i`, so the step is all there is to know of the data: a run goes on with the same
batches on another mesh, with another number of processes and of loader workers.

On disk the state is a dictionary by the names of its fields.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from afmrl_jax.config import KeptCheckpoints
from afmrl_jax.runtime.distributed import barrier, broadcast_from_first, is_first_process
from afmrl_jax.runtime.files import disk_full, first_unused, is_disk_full, write_json
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.runtime.object_store import keep
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.training.state import TrainState

DAMAGED = "damaged"
"""First part of the names of folders that hold what could not be read, beside the checkpoints."""
BLOCK = 1 << 24
Sum = tuple[int, int]
"""Size and CRC-32 of a file."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, which does not ask whether the job is to end.

    JAX agrees on a moment by the highest number with which it was asked (`preemption.reached`).
    Orbax would ask with the number of the step it saves; a moment agreed on by those is one that
    the training loop, which counts its questions, may never meet.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpointer:
    """The checkpoints of a stage that are kept.

    One that a killed process left unfinished never counts: Orbax renames it into place when it is
    whole. One that was cut off or changed since is moved aside with a warning, and the one before
    it is taken.
    """

    def __init__(self, folder: Path, kept: KeptCheckpoints | None = None):
        kept = kept or KeptCheckpoints()
        self.folder = folder.absolute()
        self._sums = self.folder.with_name("checkpoint_sums.json")
        self._manager = _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=kept.newest,
                keep_period=kept.every,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """Finished steps of the newest checkpoint."""
        found = broadcast_from_first(-1 if (step := self._manager.latest_step()) is None else step)
        return None if found < 0 else int(found)

    def save(self, step: int, state: TrainState) -> None:
        """Save after `step` finished steps; a step that is saved already stays as it is."""
        if step == self.latest_step:
            return
        try:
            items = ocp.args.Composite(state=ocp.args.StandardSave(state._asdict()))
            self._manager.save(step, args=items)
            self._manager.wait_until_finished()
        except Exception as error:
            if is_disk_full(error):
                raise disk_full(self.folder) from error
            raise
        if is_first_process():
            kept = {str(x) for x in self._manager.all_steps()}
            known = {x: sums for x, sums in self._known_sums().items() if x in kept}
            write_json(self._sums, known | {str(step): _sums(self.folder / str(step))})
            keep(self.folder)

    def restore(self, state: TrainState) -> TrainState | None:
        """The newest state that is whole, laid out as `state` is; None where there is none.

        Only what is seen to be damaged is put aside; an error of the reading itself is raised.

        Args:
            state: what a stage begins with. It is deleted where another takes its place, as a
                step that donates it would have done: a device need not hold both.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state._asdict())
        while (step := self.latest_step) is not None:
            problem = self._damage(step) if is_first_process() else None
            if broadcast_from_first(problem is None):
                jax.tree.map(lambda x: x.delete(), state)
                try:
                    items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
                    return TrainState(**self._manager.restore(step, args=items)["state"])
                except Exception as error:
                    error.add_note(
                        f"It came of reading {self.folder / str(step)}; with that folder moved "
                        "away, the checkpoint before it is taken"
                    )
                    raise
            self._put_aside(step, problem)
        return None

    def _known_sums(self) -> dict[str, dict[str, Sum]]:
        if not self._sums.is_file():
            return {}
        remedy = f"delete {self._sums.parent} to do this stage from its start"
        return read_checked(self._sums, dict[str, dict[str, Sum]], remedy=remedy)

    def _damage(self, step: int) -> str | None:
        """What differs between a checkpoint's files and those that were written, if anything."""
        folder, wanted = self.folder / str(step), self._known_sums().get(str(step))
        if wanted is None:
            return None  # Killed between the two; Orbax had finished.
        sizes = {x.relative_to(folder).as_posix(): x.stat().st_size for x in _files(folder)}
        for name, (size, _) in wanted.items():
            if sizes.get(name) != size:
                state = "is gone" if name not in sizes else f"has {sizes[name]} bytes"
                return f"{name} {state} where {size} bytes were written"
        found = _sums(folder)
        changed = next((x for x in wanted if found[x] != wanted[x]), None)
        return changed and f"{changed} has other bytes than were written"

    def _put_aside(self, step: int, problem: str | None) -> None:
        """Move a checkpoint to where it is not taken for one."""
        log_info(
            f"warning: the checkpoint {self.folder / str(step)} is damaged ({problem}); it is "
            f"moved to {DAMAGED}-{step} beside it, and the one before it is taken"
        )
        if is_first_process():
            name = f"{DAMAGED}-{step}"
            place = first_unused(lambda n: self.folder.with_name(name if n == 1 else f"{name}-{n}"))
            (self.folder / str(step)).rename(place)
            # Another may be saved under the same number.
            write_json(self._sums, {x: y for x, y in self._known_sums().items() if x != str(step)})
        barrier(f"checkpoint {step} is put aside")
        self._manager.reload()

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()


def _files(folder: Path) -> list[Path]:
    return sorted(x for x in folder.rglob("*") if x.is_file())


def _sums(folder: Path) -> dict[str, Sum]:
    """Size and CRC-32 of each file below a folder. Orbax does not notice a bit that has changed."""
    paths = _files(folder)
    with ThreadPoolExecutor() as pool:
        sums = pool.map(_sum, paths)
        return {x.relative_to(folder).as_posix(): y for x, y in zip(paths, sums, strict=True)}


def _sum(path: Path) -> Sum:
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
