"""What a service does, apart from HTTP: embed, write attributes, search, change listings."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from afmrl_jax.data.attributes.text_format import format_attributes
from afmrl_jax.data.catalogue.pictures import to_png
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import ConfigError, InputError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.inputs import Input
from afmrl_jax.runs.embedded import About
from afmrl_jax.runs.living.changes import Entry
from afmrl_jax.runs.living.filters import Where
from afmrl_jax.runs.living.index import Hits, LivingIndex
from afmrl_jax.runs.living.writing import FROM_FILE, entry_of, require_fitting, require_writer
from afmrl_jax.runtime.compilation import compiling
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.serving.batcher import Batcher
from afmrl_jax.serving.settings import ServiceSettings
from afmrl_jax.serving.shapes import KINDS, FixedShapes
from afmrl_jax.types import JsonObject

COMMAND = "afmrl serve"
FEW = 16
"""Results that most requests ask for: searches find so many, or as many as any may ask for, so that
two programs suffice."""
Wish = Literal["auto", "off", "on"]
_WRITE, _WRITE_WORDS = "write", "write words"


class Engine:
    """An embedder and an index, ready for many requests at once.

    Args:
        run: that embedded the index.
        folder: what `embed_catalogue` wrote; this process holds it for writing.
        settings: of the service.
        seen: called with each batch's kind, size and seconds.
        writes: whether the index may be changed; otherwise other processes may change it, and what
            was there at the start is searched.

    Raises:
        RunError: the folder is damaged, of another run, or held by another process.
    """

    def __init__(
        self,
        run: FinishedRun,
        folder: Path,
        settings: ServiceSettings,
        seen: Callable[[str, int, float], None] = lambda *_: None,
        *,
        writes: bool = True,
    ):
        about = About.read(folder)
        self.embedder = Embedder.of(run, run.system(about.system))
        require_fitting(run, about, folder)
        if settings.batch > self.embedder.encoder.batch_size:
            size = self.embedder.encoder.batch_size
            raise ConfigError(f"batch {settings.batch} is more than the run's {size}; choose less")
        if about.attributes not in (None, FROM_FILE):
            require_writer(self.embedder, about, folder)
        self.settings, self.about = settings, about
        self._shapes = FixedShapes(self.embedder, settings.batch)
        self._most = settings.limits.results
        self.index = LivingIndex(
            folder,
            embedder=self.embedder.identity,
            mesh=run.mesh,
            writer=COMMAND if writes else None,
        )
        self._singly: dict[str, int] = {}
        """Up to how many items of a kind take less time one by one than as a whole batch."""
        self._batcher = Batcher(self._work, most=settings.batch, wait=self._wait, seen=seen)
        self._writing = asyncio.Lock()
        self._changes = set[asyncio.Task[None]]()
        self.write_seconds: float | None = None
        """What the generator takes for one query; None before `warm_up`, or without a generator."""

    @property
    def has_generator(self) -> bool:
        """Whether its system's generator writes attributes."""
        return self.embedder.load_generator is not None

    @cached_property
    def _lone(self) -> bool:
        return self.has_generator and self._shapes.generator.lone

    async def finish(self) -> None:
        """Wait for changes that have begun."""
        await asyncio.gather(*self._changes, return_exceptions=True)

    def close(self) -> None:
        """Finish what was begun, and let go of the index."""
        self._batcher.close()
        self.index.close()

    def warm_up(self) -> None:
        """Compile every program that a request can need, and measure the generator."""
        began, before = time.monotonic(), compiling()
        gray = to_png(Image.new("RGB", (64, 64), "gray"))
        both = Input("words", gray)
        rows = {
            "words": self._shapes.prepare(Input("words"), 1 << 20),
            "picture": self._shapes.prepare(both, 1 << 20),
        }
        # Any row of words fits the longer form too.
        rows["attributed"] = rows["words"]
        vector = self._do("words", [rows["words"].row])[0]
        works: dict[str, Any] = {kind: rows[kind].row for kind in KINDS}
        works |= {_search(few): vector for few in (True, False)}
        if self.has_generator:
            works[_WRITE] = both
            if self._lone:
                works[_WRITE_WORDS] = Input("words")
        for kind, item in works.items():
            alone = self._timed(kind, [item])
            if kind == _WRITE:
                self.write_seconds = alone
            if self.settings.batch > 1:
                whole = self._timed(kind, [item] * self.settings.batch)
                self._singly[kind] = min(int(whole / alone), self.settings.batch - 1)
        done = compiling().since(before)
        log_info(f"serve: ready after {time.monotonic() - began:.1f} s, {done}")

    def _timed(self, kind: str, items: list[Any]) -> float:
        """Median seconds of some work, once it is compiled."""
        self._do(kind, items)
        took = []
        for _ in range(3):
            start = time.monotonic()
            self._do(kind, items)
            took.append(time.monotonic() - start)
        return statistics.median(took)

    def _do(self, kind: str, items: list[Any]) -> Sequence[Any]:
        """Some work on the device's thread, as one batch."""
        return cast(Sequence[Any], self._batcher.submit("together", (kind, items)).result())

    def _wait(self, kind: str) -> float:
        # Vectors that were embedded together come together.
        return 0.0 if kind.startswith("search") else self.settings.wait_ms / 1000

    def _work(self, kind: str, items: list[Any]) -> Sequence[Any]:
        """The work of a batch, on the device's thread."""
        if kind == "together":
            return [self._whole(*x) for x in items]
        if 1 < len(items) <= self._singly.get(kind, 1):
            return [self._whole(kind, [x])[0] for x in items]
        return self._whole(kind, items)

    def _whole(self, kind: str, items: list[Any]) -> Sequence[Any]:
        """The same by one program: that of one row, or that of a whole batch."""
        if kind in KINDS:
            return list(self._shapes.embed(kind, items))
        if kind in (_WRITE, _WRITE_WORDS):
            # The generator knows batches of 1, 8 and 64; fewer rows are filled up to one of ours.
            size = 1 if len(items) == 1 else self.settings.batch
            filled = [*items, *[items[-1]] * (size - len(items))]
            found = self._shapes.generator.write_for(list(enumerate(filled)), label=None)
            return found[: len(items)]
        k = FEW if kind == _search(True) else self._most
        size = 1 if len(items) == 1 else self.settings.batch
        queries = np.stack([*items, *[items[-1]] * (size - len(items))])
        return self.index.search(queries, k)[: len(items)]

    async def _on_device(self, kind: str, item: Any) -> Any:
        return await asyncio.wrap_future(self._batcher.submit(kind, item))

    async def embed(self, items: Sequence[Input]) -> np.ndarray:
        """Unit vectors of inputs, float32 [n d].

        Raises:
            InputError: one cannot be used; it is named by its number.
        """
        found = await asyncio.gather(*(self._embed(x, n) for n, x in enumerate(items)))
        return np.stack(found)

    async def _embed(self, x: Input, number: int) -> np.ndarray:
        try:
            prepared = await asyncio.to_thread(self._shapes.prepare, x, self.settings.limits.pixels)
        except InputError as error:
            raise InputError(f"items[{number}]: {error}") from error
        return cast(np.ndarray, await self._on_device(prepared.kind, prepared.row))

    def count_tokens(self, items: Sequence[Input]) -> int:
        """Tokens of the texts of inputs, before they are cut."""
        texts = (x.text for x in items if x.text is not None)
        return sum(len(self.embedder.tokenizer.encode(x)) for x in texts)

    async def write(self, items: Sequence[Input]) -> list[str]:
        """The generator's attribute lists of inputs.

        Raises:
            InputError: one has no picture, or one that cannot be used.
        """

        async def one(x: Input, number: int) -> str:
            if x.picture is None and not self._lone:
                raise InputError(f"items[{number}] has no picture, but the generator needs one")
            try:
                await asyncio.to_thread(self._shapes.prepare, x, self.settings.limits.pixels)
            except InputError as error:
                raise InputError(f"items[{number}]: {error}") from error
            kind = _WRITE_WORDS if x.picture is None else _WRITE
            return cast(str, await self._on_device(kind, x))

        return list(await asyncio.gather(*(one(x, n) for n, x in enumerate(items))))

    def would_write(self, x: Input, wish: Wish) -> bool:
        """Whether the generator writes for a query.

        Raises:
            InputError: it is wished for, and cannot.
        """
        can = self.has_generator and (self._lone or (x.text is not None and x.picture is not None))
        if wish == "on" and not can:
            raise InputError(
                "no attributes can be written for this query: "
                + ("give a text and a picture" if self.has_generator else "the system has none")
            )
        if wish == "auto" and can:
            return (self.write_seconds or 0) <= self.settings.write_within
        return wish == "on"

    async def search(
        self, x: Input, k: int, where: Where = (), wish: Wish = "auto"
    ) -> tuple[Hits, str | None]:
        """The k nearest listings of a query that fit, and the attributes written for it, if any.

        Raises:
            InputError: the query or a condition cannot be used.
        """
        written = None
        if x.attributes is None and self.would_write(x, wish):
            (written,) = await self.write([x])
            x = replace(x, attributes=written or None)
        vector = (await self.embed([x]))[0]
        if where:
            (hits,) = await asyncio.to_thread(self.index.search, vector[None], k, where)
        else:
            hits = await self._on_device(_search(k <= FEW), vector)
        return hits[:k], written

    async def put(self, listings: Sequence[Listing], given: Sequence[str | None]) -> None:
        """Add listings, or replace those of the same ids; on disk when this returns.

        Args:
            listings: with encoded bytes as their pictures.
            given: attributes of each, for an index that was embedded with a file of them.

        Raises:
            InputError: one cannot be used.
        """
        shown = [self._read(x) for x in listings]
        inputs = [
            Input(x.title, pictures[0], more=pictures[1:])
            for x, pictures in zip(listings, shown, strict=True)
        ]
        texts: list[str | None] = list(given)
        for n, text in enumerate(texts):
            if (self.about.attributes == FROM_FILE) != (text is not None):
                raise InputError(
                    f"items[{n}]: " + ("no attributes are taken here" if text else "attributes are "
                    "missing; the index was embedded with given ones")
                )  # fmt: skip
        if self.about.attributes not in (None, FROM_FILE):
            texts = list(await self.write(inputs))
        inputs = [replace(x, attributes=y or None) for x, y in zip(inputs, texts, strict=True)]
        vectors = await self.embed(inputs)
        entries = await asyncio.to_thread(self._entries, listings, vectors, texts)
        await self._write(lambda: self.index.put(entries))

    def _read(self, listing: Listing) -> tuple[bytes, ...]:
        """The pictures of a listing that models read."""
        most = self.embedder.image.max_pictures
        return cast(tuple[bytes, ...], listing.pictures[:most])

    def _entries(
        self, listings: Sequence[Listing], vectors: np.ndarray, texts: Sequence[str | None]
    ) -> list[Entry]:
        side = self.about.thumbnails
        return [
            entry_of(x, self._read(x), vector, text, side)
            for x, vector, text in zip(listings, vectors, texts, strict=True)
        ]

    async def remove(self, ids: Sequence[str]) -> None:
        """Remove listings; on disk when this returns.

        Raises:
            RunError: one is unknown; then none is removed.
        """
        await self._write(lambda: self.index.remove(ids))

    async def update(self, listing_id: str, extra: JsonObject) -> None:
        """Change carried columns of a listing, None to drop one; on disk when this returns.

        Raises:
            RunError: there is no such listing.
        """

        def change() -> None:
            entry = self.index.entry(listing_id)
            kept = {**(entry.line.get("extra") or {}), **extra}
            kept = {name: x for name, x in kept.items() if x is not None}
            line = {name: x for name, x in entry.line.items() if name not in ("extra", "content")}
            line |= {"extra": kept} if kept else {}
            line["content"] = entry.line.get("content")
            self.index.put([Entry(line, entry.vector, entry.thumbnail)])

        await self._write(change)

    async def _write(self, change: Callable[[], None]) -> None:
        """One change at a time; one that has begun is finished, whoever still waits for it."""

        async def alone() -> None:
            async with self._writing:
                await asyncio.to_thread(change)

        task = asyncio.create_task(alone())
        # The loop itself would forget one that nobody waits for.
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)


def _search(few: bool) -> str:
    return "search few" if few else "search many"


def attributes_text(value: str | dict[str, str] | None) -> str | None:
    """Attributes of a request as the text that the embedder reads."""
    if isinstance(value, dict):
        value = format_attributes(value.items())
    return value or None
