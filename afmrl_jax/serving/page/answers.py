"""What the page's buttons do: a search by one system or by two; the answer is always HTML."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from afmrl_jax.data.attributes.text_format import salvaged_pairs
from afmrl_jax.errors import AfmrlError, InputError
from afmrl_jax.inference.inputs import Input
from afmrl_jax.runs.living.filters import Where, parse_where
from afmrl_jax.runs.living.index import Hits
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.serving.batcher import Stopped
from afmrl_jax.serving.engine import Engine, Wish
from afmrl_jax.serving.guard import Refused
from afmrl_jax.serving.page.facets import SAMPLE, Facets, facets_of
from afmrl_jax.serving.page.shown import Shown, fragment
from afmrl_jax.serving.schemas import MAX_TEXT, input_of, picture_of
from afmrl_jax.serving.service import Service

COMPARED = 8
"""Listings that each of two systems shows."""


@dataclass(frozen=True)
class Asked:
    """The page's form."""

    text: str
    photo: str
    """A data: address; empty for none."""
    pairs: tuple[str, ...]
    """Conditions on attributes."""
    low: str
    """Lowest price; empty for any."""
    high: str
    where: str
    """Further conditions, one a line."""
    k: int
    wish: Wish

    @classmethod
    def of(cls, *values: Any) -> Asked:
        """The values of the form, in the order of the fields.

        Raises:
            InputError: one is not of its kind, which the page itself never sends.
        """
        text, photo, pairs, low, high, where, k, wish = values
        texts = [x or "" for x in (text, photo, low, high, where)]
        known = all(isinstance(x, str) for x in texts) and type(k) in (int, float) and 0 < k < 1e6
        listed = isinstance(pairs, list | None) and all(isinstance(x, str) for x in pairs or ())
        if not (known and listed and wish in ("auto", "on", "off")):
            raise InputError("the form cannot be read; load the page again")
        text, photo, low, high, where = texts
        return cls(text, photo, tuple(pairs or ()), low.strip(), high.strip(), where, int(k), wish)

    def query(self) -> Input:
        """What is searched for.

        Raises:
            InputError: nothing is, or the photo cannot be read.
        """
        if len(self.text) > MAX_TEXT:
            raise InputError(f"the text is longer than {MAX_TEXT} letters")
        if not self.text.strip() and not self.photo:
            raise InputError("type some words, drop a photo, or both")
        return input_of(self.text, (picture_of(self.photo),) if self.photo else ())

    def conditions(self, price: str | None) -> Where:
        """What all results fit.

        Raises:
            InputError: a condition cannot be read.
        """
        found = [*self.pairs, *(x for x in self.where.splitlines() if x.strip())]
        if price is not None:
            found += [f"{price}>={self.low}"] if self.low else []
            found += [f"{price}<={self.high}"] if self.high else []
        return parse_where(found)


class Answers:
    """Answers of a service to its page."""

    def __init__(self, service: Service):
        self._service = service
        self._facets: tuple[int, Facets] | None = None

    async def facets(self) -> Facets:
        """What the index can be filtered by."""
        index = self._service.engine.index
        written = index.log.end  # It grows with every change.
        if self._facets is None or self._facets[0] != written:
            found = await asyncio.to_thread(lambda: facets_of(index.lines(SAMPLE)))
            self._facets = written, found
        return self._facets[1]

    async def search(self, *values: Any) -> str:
        """The results of a form, or what is wrong with it."""
        return await _said(lambda: self._search(Asked.of(*values)))

    async def compare(self, *values: Any) -> str:
        """The results of two systems, side by side."""
        return await _said(lambda: self._compare(Asked.of(*values)))

    async def _search(self, asked: Asked) -> str:
        began, engine = time.monotonic(), self._service.get()
        k = self._few(asked.k)
        price = (await self.facets()).price
        where = asked.conditions(price)
        hits, written = await engine.search(asked.query(), k, where, asked.wish)
        cards = self._cards(engine, hits, written, price)
        return fragment(
            "results",
            {
                "cards": cards,
                "count": len(engine.index),
                "written": salvaged_pairs(written or ""),
                "seconds": time.monotonic() - began,
            },
        )

    async def _compare(self, asked: Asked) -> str:
        engines = (self._service.get(), self._service.get_compared())
        price = (await self.facets()).price
        query, where = asked.query(), asked.conditions(price)
        k = self._few(COMPARED)
        found = await asyncio.gather(*(x.search(query, k, where, asked.wish) for x in engines))
        sides: list[dict[str, Any]] = []
        for number, engine in enumerate(engines):
            (hits, written), (other, _) = found[number], found[1 - number]
            places = {name: place for place, (name, _) in enumerate(other, 1)}
            cards = self._cards(engine, hits, written, price, places)
            name = engine.about.system
            sides.append({"name": name, "written": salvaged_pairs(written or ""), "cards": cards})
        both = sum(x.elsewhere is not None for x in sides[0]["cards"])
        most = max(len(x["cards"]) for x in sides)
        return fragment("compared", {"sides": sides, "both": both, "most": most})

    def _few(self, k: int) -> int:
        return min(max(k, 1), self._service.settings.limits.results)

    def _cards(
        self,
        engine: Engine,
        hits: Hits,
        written: str | None,
        price: str | None,
        elsewhere: Mapping[str, int] | None = None,
    ) -> list[Shown]:
        own = self._service.engine  # It has the pictures.
        return [
            Shown.of(
                engine.index.shown(name),
                score,
                written,
                price,
                pictured=own.about.thumbnails is not None and name in own.index,
                elsewhere=(elsewhere or {}).get(name),
            )
            for name, score in hits
            if name in engine.index  # It may have been removed since it was found.
        ]


async def _said(answer: Callable[[], Awaitable[str]]) -> str:
    """An answer, or words about what went wrong."""
    try:
        return await answer()
    except InputError as error:
        return _problem("Please change the query.", _sentence(str(error)))
    except AfmrlError as error:
        return _problem("The index cannot answer.", _sentence(str(error)))
    except Refused as refused:
        return _problem("Not now.", _sentence(refused.reason))
    except Stopped as error:
        return _problem("Not now.", _sentence(str(error)))
    except Exception as error:  # The reader can do nothing with it; whoever runs the service can.
        log_info(f"serve: the page failed: {type(error).__name__}: {error}")
        return _problem("The service failed.", "Its log says why.")


def _sentence(text: str) -> str:
    # Items are numbered for programs that send many.
    text = text.removeprefix("items[0]: ").strip()
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."


def _problem(title: str, text: str) -> str:
    return fragment("problem", {"title": title, "text": text})
