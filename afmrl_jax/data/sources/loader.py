"""Grain input pipelines: batch number `i` is a pure function of the catalogue, the seed and `i`.

So a step count is all that resuming needs, and the batches are the same for any number of workers.
No JAX here: Grain's worker processes import this module.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Generic, Protocol, TypeVar, runtime_checkable

import grain
from absl import flags

Read = TypeVar("Read", covariant=True)


@runtime_checkable
class Source(Protocol[Read]):
    """Batches by their numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Read: ...


@runtime_checkable
class Reader(Protocol[Read]):
    """An iterator over batches that can be closed before its end."""

    def __iter__(self) -> Reader[Read]: ...

    def __next__(self) -> Read: ...

    def close(self) -> None:
        """Stop reading ahead."""
        ...


def iterate(
    source: Source[Read], *, workers: int = 0, begin: int = 0, end: int | None = None
) -> Reader[Read]:
    """A Grain iterator over `source`, in order, reading ahead in threads or worker processes.

    Args:
        source: random-access batches.
        workers: processes that read; 0 reads in a thread of this process.
        begin: number of the first batch; resuming begins there.
        end: no batch from this number on is read, not even ahead.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags.
    drawn = grain.MapDataset.source(source)
    if begin or end is not None:
        drawn = drawn.slice(slice(begin, end))
    dataset = drawn.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers)
        return _Workers(iter(dataset.mp_prefetch(options, worker_init_fn=_as_worker)))
    return iter(dataset)


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Workers(Generic[Read]):
    """An iterator whose processes start, at its first batch, with signals blocked.

    Signals that this process receives in the meantime are delivered to it afterwards.
    """

    def __init__(self, iterator: Reader[Read]):
        self._iterator = iterator
        self._started = False

    def __iter__(self) -> _Workers[Read]:
        return self

    def __next__(self) -> Read:
        if self._started:
            return next(self._iterator)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # New processes inherit it.
        try:
            return next(self._iterator)
        finally:
            self._started = True
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """End the processes."""
        self._iterator.close()


def _as_worker(number: int, count: int) -> None:
    """Set up a process that reads.

    Schedulers and terminals signal all processes of a job, but the last step of the job still needs
    its batch. So a reading process ignores them, and ends when its reader tells it to or is gone.
    """
    del number, count
    for asked in SIGNALS:
        signal.signal(asked, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_reader, daemon=True).start()


def _end_with_reader() -> None:
    reader = multiprocessing.parent_process()
    assert reader is not None
    reader.join()
    os._exit(1)
