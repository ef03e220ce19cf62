"""Grain input pipelines: batch number `i` is a pure function of the catalogue, the seed and `i`.

So a step count is all there is to resume from, and the batches are the same for any number of
workers. No JAX here: Grain's worker processes import this module.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

import grain
from absl import flags


def iterate(source: Any, *, workers: int = 0, begin: int = 0, end: int | None = None) -> Any:
    """A Grain iterator over `source`, in order, reading ahead in threads or worker processes.

    Args:
        source: random-access batches.
        workers: processes that read; 0 reads in a thread of this one.
        begin: number of the first batch; to resume is to begin there.
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


class _Workers:
    """An iterator whose processes start, with its first batch, without hearing of signals.

    What comes for this process meanwhile comes to it after that.
    """

    def __init__(self, iterator: Any):
        self._iterator = iterator
        self._started = False

    def __iter__(self) -> _Workers:
        return self

    def __next__(self) -> Any:
        if self._started:
            return next(self._iterator)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # A new process has it too.
        try:
            return next(self._iterator)
        finally:
            self._started = True
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """End the processes."""
        self._iterator.close()


def _as_worker(number: int, count: int) -> None:
    """What a process that reads does first.

    Schedulers and terminals signal all processes of a job, and the step at which it ends still
    wants its batch; so a reading process ends when it is told so by its reader, or when that is
    gone, in whichever way.
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
