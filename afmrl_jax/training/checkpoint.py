"""Checkpoints by Orbax: state, data iterator and step, saved together or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from afmrl_jax.files import disk_full, is_disk_full


class Checkpointer:
    """The two newest checkpoints of a stage.

    A checkpoint that a killed process left unfinished never counts: Orbax renames it into place
    when it is whole.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """Finished steps of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, iterator: Any) -> None:
        """Save after `step` finished steps."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator)
        )
        try:
            self._manager.save(step, args=items)
            self._manager.wait_until_finished()
        except Exception as error:
            if is_disk_full(error):
                raise disk_full(self.folder) from error
            raise

    def restore(self, state: Any, iterator: Any) -> Any:
        """The newest state, laid out as `state` is; moves `iterator` to where it was saved."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target),
            data=grain.checkpoint.CheckpointRestore(iterator),
        )
        return self._manager.restore(self.latest_step, args=items)["state"]

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()
