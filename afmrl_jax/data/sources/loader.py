"""Grain input pipelines: batch number `i` is a pure function of the catalogue, the seed and `i`.

So a step count is all there is to resume from, and the batches are the same for any number of
workers. No JAX here: Grain's worker processes import this module.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import grain
import numpy as np
from absl import flags

from afmrl_jax.config.model import ImageConfig
from afmrl_jax.config.run import TextBudget
from afmrl_jax.data.batching import collate as batches
from afmrl_jax.data.batching import prompts
from afmrl_jax.data.batching.collate import PatchStore, Row
from afmrl_jax.data.batching.host_share import HostShare
from afmrl_jax.data.batching.images import Patches
from afmrl_jax.data.batching.tokenizer import Tokenizer, open_keys, swap_words, word_pool
from afmrl_jax.data.batching.vision_cache import CachedPictures
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.sources.sampler import epoch_indices


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """What turns listings into rows: tokenizer, shapes and the pictures of one list of listings."""

    listings: Sequence[Listing]
    tokenizer: Tokenizer
    image: ImageConfig
    text: TextBudget
    pictures: PatchStore | CachedPictures
    host: HostShare = dataclasses.field(default_factory=HostShare)
    """Whose pictures are decoded."""

    @classmethod
    def of(
        cls,
        listings: Sequence[Listing],
        tokenizer: Tokenizer,
        image: ImageConfig,
        text: TextBudget,
        host: HostShare | None = None,
    ) -> RowBuilder:
        """A builder with an empty picture store, for one process or for one of several."""
        host = host or HostShare()
        store = PatchStore(listings, image, deferred=not host.whole)
        return cls(listings, tokenizer, image, text, store, host)

    def picture(self, index: int) -> tuple[Patches, ...]:
        """The picture of listing `index`; none where it is bad and such are left out."""
        found = self.pictures[index]
        return () if found is None else (found,)

    def bad_pictures(self, indices: Iterable[int]) -> dict[str, int]:
        """How many pictures of a batch's listings were left out, where that may happen."""
        if self.image.bad_pictures == "fatal":
            return {}
        return {"bad_pictures": self.pictures.bad(indices)}

    def embedder(
        self, index: int, attributes: str | None, *, title: bool = True, picture: bool = True
    ) -> Row:
        """Embedder row of listing `index`."""
        return prompts.embedder_row(
            self.tokenizer,
            self.text,
            self.image,
            title=self.listings[index].title if title else None,
            attributes=attributes,
            pictures=self.picture(index) if picture else (),
        )

    def prompt(self, index: int, title: str | None = None) -> Row:
        """Generator prompt of listing `index`, under another title where one is given."""
        return prompts.generator_prompt(
            self.tokenizer,
            self.text,
            self.image,
            title=self.listings[index].title if title is None else title,
            pictures=self.picture(index),
        )

    def batch(
        self,
        rows: Sequence[Row],
        length: int | None = None,
        *,
        with_patches: bool = True,
        side: Literal["right", "left"] = "right",
    ) -> batches.VLBatch:
        """Rows padded to the smallest bucket, or to `length`; see `collate`."""
        if length is None:
            length = batches.bucket_length(max(len(row.tokens) for row in rows), self.text)
        return batches.collate(
            rows,
            self.tokenizer,
            self.image,
            length,
            with_patches=with_patches,
            side=side,
            host=self.host,
        )


class DistillSource:
    """Teacher-forced rows for G: prompt, then the oracle's list; loss on the list alone.

    The first half of a batch walks through the listings epoch by epoch, the second half holds for
    each of them another listing of its product, where there is one. In `swap_share`
    of the rows the words that title and list have in common are replaced in both.
    """

    def __init__(
        self,
        builder: RowBuilder,
        oracle: Sequence[str],
        *,
        steps: int,
        batch_size: int,
        seed: int,
        structure_weight: float = 1.0,
        swap_share: float = 0.0,
    ):
        self._builder = builder
        self._oracle = oracle
        self._steps = steps
        self._pairs = max(1, min(batch_size, len(oracle)) // 2)
        self._seed = seed
        self._structure_weight = structure_weight
        self._swap_share = swap_share
        self._words = word_pool([x.title for x in builder.listings])
        self._open_keys = open_keys(oracle)
        names = sorted({x.product_id for x in builder.listings})
        number = {name: n for n, name in enumerate(names)}
        self._products = np.array([number[x.product_id] for x in builder.listings], np.int32)
        order = np.argsort(self._products, kind="stable")
        self._of_product = np.split(order, np.cumsum(np.bincount(self._products))[:-1])

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"DistillSource(listings={len(self._oracle)}, seed={self._seed})"

    def _partner(self, place: int, rng: np.random.Generator) -> int:
        others = self._of_product[self._products[place]]
        others = others[others != place]
        return int(rng.choice(others)) if len(others) else place

    def __getitem__(self, step: int) -> dict[str, Any]:
        builder, rng = self._builder, np.random.default_rng([self._seed, step, 2])
        first = epoch_indices(len(self._oracle), self._pairs, step, self._seed)
        places = [int(p) for p in first] + [self._partner(int(p), rng) for p in first]
        rows, starts, weights = [], [], []
        for place in places:
            title, text = builder.listings[place].title, self._oracle[place]
            if rng.random() < self._swap_share:
                title, text = swap_words(
                    title, text, keys=self._open_keys, pool=self._words, rng=rng
                )
            prompt = builder.prompt(place, title)
            wanted = prompts.completion_tokens(builder.tokenizer, text, builder.text)
            weights.append(prompts.value_weights(builder.tokenizer, wanted, self._structure_weight))
            starts.append(len(prompt.tokens))
            rows.append(Row(prompt.tokens + wanted, prompt.pictures))
        batch = builder.batch(rows)
        weight = np.zeros(batch.tokens.shape, np.float32)
        for number, (start, values) in enumerate(zip(starts, weights, strict=True)):
            # Position i predicts token i + 1, so everything moves one to the left.
            weight[number, start - 1 : start - 1 + len(values)] = values
        return {
            "rows": batch,
            "targets": np.roll(batch.tokens, -1, axis=1),
            "weights": weight,
            "prompt_last": np.array(starts, np.int32) - 1,
            "products": self._products[first],
            **builder.bad_pictures(places),
        }


class PromptSource:
    """Prompts of RAR's queries: generator prompts and the positions of their listings."""

    def __init__(
        self,
        builder: RowBuilder,
        queries: np.ndarray,
        *,
        length: int,
        steps: int,
        batch_size: int,
        seed: int,
    ):
        self._builder = builder
        self._queries = queries
        self._length = length
        self._steps = steps
        self._batch_size = min(batch_size, len(queries))
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"PromptSource(queries={len(self._queries)}, seed={self._seed})"

    def __getitem__(self, step: int) -> dict[str, Any]:
        chosen = epoch_indices(len(self._queries), self._batch_size, step, self._seed)
        index = self._queries[chosen]
        rows = [self._builder.prompt(int(i)) for i in index]
        return {
            "rows": self._builder.batch(rows, self._length),
            "index": index.astype(np.int32),
            **self._builder.bad_pictures(index),
        }


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
