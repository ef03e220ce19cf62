"""The processes of one job: how they find each other, and how they agree.

Every process runs the same program. Arrays may be spread over the devices of all of them; host
data (settings, texts, ranks) is the same everywhere, and only the first process writes files
(`files.only_first_writes`). With one process all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.runtime import files, progress
from afmrl_jax.types import AnyArray

if TYPE_CHECKING:
    from jaxtyping import PyTree

Number = TypeVar("Number", bool, int)
COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
MODE = "AFMRL_CLUSTER"


@dataclass(frozen=True)
class ClusterConfig:
    """How the processes of a job find each other."""

    mode: Literal["auto", "on", "off"] | None = None
    """auto: connect where SLURM, Open MPI, GKE or the settings below say that there are several
    processes. on: always connect and let JAX find the others, as on a TPU pod. off: this process is
    the only one. Default: AFMRL_CLUSTER, or auto."""
    coordinator: str | None = None
    """host:port of process 0, on hosts without a scheduler. Default: JAX_COORDINATOR_ADDRESS."""
    processes: int | None = None
    """Number of processes. Default: JAX_NUM_PROCESSES."""
    process: int | None = None
    """Index of this process, from 0. Default: JAX_PROCESS_ID."""
    lost_after: int = 30
    """Seconds without a heartbeat after which a process counts as lost, and the others exit."""
    connect_within: int = 300
    """Seconds within which all processes must have started."""

    def __post_init__(self) -> None:
        if self.lost_after < 5 or self.connect_within < 1:
            raise ConfigError("cluster.lost_after must be 5 seconds or more, connect_within 1")

    def asked_mode(self) -> str:
        """The mode, from the settings or the environment.

        Raises:
            ConfigError: the mode is unknown.
        """
        mode = self.mode or os.environ.get(MODE, "auto")
        if mode not in ("auto", "on", "off"):
            raise ConfigError(f"{MODE} must be auto, on or off, found {mode!r}")
        return mode

    def told(self) -> tuple[str | None, int | None, int | None]:
        """Coordinator, number of processes and index of this one, as far as they are given."""
        return (
            self.coordinator or os.environ.get(COORDINATOR),
            _number(self.processes, COUNT),
            _number(self.process, INDEX),
        )


_lost_after = ClusterConfig.lost_after


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    if not text.isdigit():
        raise ConfigError(f"{variable} must be a whole number, found {text!r}")
    return int(text)


def first_task() -> bool:
    """Whether a launcher started this as the first of its processes; for a process that must not
    connect itself, because its child processes do.
    """
    variables = (INDEX, "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID")
    return all(os.environ.get(x, "0") == "0" for x in variables)


def launched_together(cluster: ClusterConfig | None = None) -> bool:
    """Whether this process is one of several of a job, connected or not.

    Raises:
        ConfigError: the mode is unknown.
    """
    cluster = cluster or ClusterConfig()
    mode = cluster.asked_mode()
    if mode == "auto":
        told = cluster.told()
        return _found() if told == (None, None, None) else told[1] != 1
    return mode == "on"


def _found() -> bool:
    """Whether a launcher that JAX knows has started more than one process."""
    sizes = (os.environ.get(x, "") for x in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    several = any(x.isdigit() and int(x) > 1 for x in sizes)
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return several or "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ


def connect(cluster: ClusterConfig | None = None) -> None:
    """Join the other processes of the job, if there are any; to be called before JAX is used.

    Raises:
        ConfigError: the settings are incomplete, or JAX cannot find the others.
    """
    cluster = cluster or ClusterConfig()
    if jax.distributed.is_initialized() or not launched_together(cluster):
        return
    told = cluster.told()
    names = (COORDINATOR, COUNT, INDEX)
    missing = ", ".join(n for n, x in zip(names, told, strict=True) if x is None)
    found_by_jax = cluster.asked_mode() == "on" or _found()
    if missing and not found_by_jax:
        raise ConfigError(
            f"this job has several processes, but {missing} is not given; set it (or "
            "--cluster.coordinator, --cluster.processes, --cluster.process) for each process"
        )
    try:
        jax.distributed.initialize(
            *told,
            heartbeat_timeout_seconds=cluster.lost_after,
            initialization_timeout=cluster.connect_within,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes of this job did not find each other: {error}; all must run at the "
            f"same time, reach the coordinator ({told[0] or 'found by JAX'}) and have different "
            "indices"
        ) from error
    global _lost_after
    _lost_after = cluster.lost_after
    only_first(jax.process_index() == 0)


def lost_after() -> int:
    """Seconds of silence after which a process of this job counts as lost."""
    return _lost_after


def only_first(is_first: bool) -> None:
    """Let this process write files and log, or do neither."""
    files.only_first_writes(is_first)
    progress.only_first_speaks(is_first)


def is_multiprocess() -> bool:
    """Whether there are other processes; does not start JAX's backend to find out."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first_process() -> bool:
    """Whether this is the process that writes files and logs."""
    return not is_multiprocess() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all processes; files the first one wrote before are then visible to all."""
    if is_multiprocess():
        multihost_utils.sync_global_devices(name)


def broadcast_from_first(value: Number) -> Number:
    """A number as the first process has it."""
    if not is_multiprocess():
        return value
    return multihost_utils.broadcast_one_to_all(np.asarray(value)).item()


def all_processes(value: bool) -> bool:
    """Whether a condition holds on every process."""
    if not is_multiprocess():
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def to_host(tree: PyTree) -> PyTree:
    """Arrays as NumPy arrays, gathered from all processes; all processes must call this."""

    def one(x: AnyArray) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, tree)


def to_devices(tree: PyTree, shardings: PyTree) -> PyTree:
    """Values that every process has, as arrays on all devices; each copies only its own parts.

    `shardings` is one sharding for all arrays, or a tree of them. Arrays that are already spread
    over several processes are moved to the new sharding.
    """
    if not is_multiprocess():
        return jax.device_put(tree, shardings)

    def one(x: AnyArray, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(partial(one, sharding=shardings), tree)
    return jax.tree.map(one, tree, shardings)


def run_on_first(work: Callable[[], None], name: str) -> None:
    """Let the first process do what only writes files; the others wait until it is done.

    Raises:
        RunError: on the others, where the first one failed; its own error is the cause.
    """
    error: BaseException | None = None
    if is_first_process():
        try:
            work()
        except BaseException as raised:
            error = raised
    failed = broadcast_from_first(error is not None)
    if error is not None:
        raise error
    if failed:
        raise RunError(f"{name} failed on process 0; its log says why")


def check_on_first(look: Callable[[], bool]) -> bool:
    """What the first process finds by looking, for all.

    The others must not look themselves for a file that the first one is going to write: where a
    shared folder had none, they may go on seeing none for a while (NFS remembers that).
    """
    return bool(broadcast_from_first(is_first_process() and look()))


def check_shared(folder: Path) -> None:
    """See that all processes have the same run directory.

    Raises:
        RunError: it is another one on this process.
    """
    if not is_multiprocess():
        return
    mark = folder / ".shared"
    number = int(broadcast_from_first(int.from_bytes(os.urandom(4))))
    if is_first_process():
        files.write_text(mark, str(number))
    barrier(f"shared {folder}")
    seen = mark.is_file() and mark.read_text(encoding="ascii") == str(number)
    everywhere = all_processes(seen)
    if is_first_process():
        mark.unlink(missing_ok=True)
    if not everywhere:
        raise RunError(
            f"{folder} is not the same folder on all {jax.process_count()} processes"
            f"{'' if seen else f' (process {jax.process_index()} does not see what 0 wrote)'}; "
            "choose an --out on storage that all of them share"
        )
