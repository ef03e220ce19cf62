"""Queries for the report: what they find, and where an attribute list changed the answer."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from afmrl_jax.config import RunConfig
from afmrl_jax.data.attributes.text_format import format_attributes
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.evaluation.evaluate import Evaluated, EvaluationData, Texts
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.types import JsonObject

GAINED, LOST = 4, 2
"""Queries shown whose answer a list made right, and made wrong."""


def card(x: Listing) -> JsonObject:
    """A listing with its picture."""
    picture = base64.b64encode(x.read_image_bytes()).decode()
    return {
        "listing_id": x.listing_id,
        "product_id": x.product_id,
        "title": x.title,
        "image": picture,
    }


def _written(x: Listing, before: Texts, after: Texts) -> JsonObject:
    """What the generators wrote for a query, and the truth."""
    return {
        "attributes_before": before.get(x.listing_id, ""),
        "attributes_after": after.get(x.listing_id, ""),
        "true_attributes": format_attributes((x.attributes or {}).items()) or None,
    }


def _places(data: EvaluationData) -> tuple[np.ndarray, np.ndarray]:
    """Places of queries and of the gallery."""
    everything = np.arange(len(data.test.listings))
    queries, gallery = (everything if side is None else side for side in data.sides)
    return queries, gallery


def _hits(
    data: EvaluationData, vectors: np.ndarray, queries: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places and scores of the first listings found, [q count + 1]; the query may be among them."""
    gallery = _places(data)[1]
    ids = [data.test.listings[int(n)].listing_id for n in gallery]
    found = ExactIndex(ids, vectors[gallery]).search(vectors[queries], count + 1)
    return gallery[found.positions], found.scores


def gallery_cards(
    data: EvaluationData, vectors: np.ndarray | None, config: RunConfig, before: Texts, after: Texts
) -> list[JsonObject]:
    """Queries drawn at random with attributes before and after RAR and their first five hits.

    Args:
        data: the test listings.
        vectors: [n d], of the last system; None gives no cards.
        config: for the seed and the number of queries.
        before: attribute text by listing id, by the distilled generator.
        after: by the reinforced one.
    """
    if vectors is None:
        return []
    listings, products = data.test.listings, data.products
    queries, _ = _places(data)
    count = min(config.evaluation.gallery_queries, len(queries))
    chosen = queries[np.random.default_rng(config.seed).permutation(len(queries))[:count]]
    out = []
    for place, found, scores in zip(chosen, *_hits(data, vectors, chosen, 5), strict=True):
        results = [
            card(listings[int(p)])
            | {"score": round(float(s), 4), "correct": bool(products[p] == products[place])}
            for p, s in zip(found, scores, strict=True)
            if p != place
        ]
        query = listings[int(place)]
        out.append({"query": card(query), **_written(query, before, after), "results": results[:5]})
    return out


@dataclass(frozen=True)
class Change:
    """A query that finds its product with the lists and not without them, or the other way."""

    query: int
    right: int
    """Place of the listing of the same product that was found one way."""
    wrong: int
    """Place of the other product found the other way."""
    gained: bool
    """Whether the lists found the right one."""


def find_changes(
    data: EvaluationData, with_lists: np.ndarray, without: np.ndarray
) -> tuple[list[Change], int]:
    """The changes of the first hit, and the number of queries that have a right one.

    Args:
        data: the test listings.
        with_lists: vectors of an embedder that reads the lists, [n d].
        without: of the same embedder without them, [n d].
    """
    products = data.products
    queries, gallery = _places(data)
    known, counts = np.unique(products[gallery], return_counts=True)
    of_product = dict(zip(known.tolist(), counts.tolist(), strict=True))
    searched = {*gallery.tolist()}
    asked = [n for n in queries.tolist() if of_product.get(products[n], 0) > (n in searched)]
    places = np.array(asked, int)
    if not asked:
        return [], 0
    first = []
    for vectors in (with_lists, without):
        found, _ = _hits(data, vectors, places, 1)
        first.append(np.where(found[:, 0] == places, found[:, -1], found[:, 0]))
    right = [products[x] == products[places] for x in first]
    out = []
    for n in np.flatnonzero(right[0] != right[1]).tolist():
        gained = bool(right[0][n])
        one, other = (int(x[n]) for x in (first if gained else first[::-1]))
        out.append(Change(int(places[n]), right=one, wrong=other, gained=gained))
    return out, len(asked)


def _pairs(text: str) -> list[tuple[str, str]]:
    """Key and whole part of each pair."""
    return [(x.partition(":")[0].strip(), x.strip()) for x in text.split(";") if x.strip()]


def decisive_keys(
    data: EvaluationData, encoder: Encoder, texts: Texts, changes: list[Change]
) -> list[dict[str, float]]:
    """How much each key moved the right listing ahead of the wrong one, by change, largest first.

    The key is taken out of the lists of query, right and wrong listing; the effect is what the
    margin between the two cosine similarities loses by it.

    Args:
        data: the test listings.
        encoder: the embedder.
        texts: the lists that it reads, by listing id.
        changes: the queries.
    """
    rows, owners = [], []
    for change in changes:
        places = (change.query, change.right, change.wrong)
        lists = [_pairs(texts.get(data.test.listings[n].listing_id, "")) for n in places]
        for key in (None, *dict.fromkeys(key for pairs in lists for key, _ in pairs)):
            owners.append((change, key))
            for place, pairs in zip(places, lists, strict=True):
                kept = "; ".join(part for name, part in pairs if name != key)
                rows.append(data.test.embedder(place, kept or None))
    if not rows:
        return []
    query, right, wrong = np.moveaxis(
        encoder.embed_rows(data.test, rows).reshape(len(owners), 3, -1), 1, 0
    )
    margins: dict[Change, dict[str | None, float]] = {x: {} for x in changes}
    for (change, key), margin in zip(owners, (query * (right - wrong)).sum(-1), strict=True):
        margins[change][key] = float(margin)
    out = []
    for each in margins.values():
        whole = each.pop(None)
        effects = {str(key): round(whole - left, 4) for key, left in each.items()}
        out.append(dict(sorted(effects.items(), key=lambda x: -x[1])))
    return out


def changed_cards(
    data: EvaluationData, found: Evaluated, texts: Mapping[str, str] | None, config: RunConfig
) -> tuple[list[JsonObject], JsonObject | None]:
    """Queries drawn at random from those whose first hit the lists changed, and their number.

    Args:
        data: the test listings.
        found: the evaluation, with its last system.
        texts: the lists that system read, by listing id; None if it reads none.
        config: for the seed, and for whether the report has a gallery.

    Returns:
        Cards for `gallery.json`; `system`, `queries`, `gained` and `lost`, or None.
    """
    if found.vectors is None or found.subject is None or texts is None:
        return [], None
    encoder, listings = found.subject.encoder, data.test.listings
    bare = encoder.embed(data.test, np.arange(len(listings)))
    changes, asked = find_changes(data, found.vectors, bare)
    gained = [x for x in changes if x.gained]
    lost = [x for x in changes if not x.gained]
    about = {
        "system": found.subject.name,
        "queries": asked,
        "gained": len(gained),
        "lost": len(lost),
    }
    if not config.evaluation.gallery_queries:
        return [], about
    rng = np.random.default_rng([config.seed, 5])
    shown = [
        side[n]
        for side, most in ((gained, GAINED), (lost, LOST))
        for n in rng.permutation(len(side))[:most].tolist()
    ]
    out = []
    for x, effects in zip(shown, decisive_keys(data, encoder, texts, shown), strict=True):
        query, right, wrong = (listings[n] for n in (x.query, x.right, x.wrong))
        sides = {
            name: card(each) | {"attributes": texts.get(each.listing_id, "")}
            for name, each in (("right", right), ("wrong", wrong))
        }
        changed = {"gained": x.gained, **sides, "effects": effects}
        changed["attributes"] = texts.get(query.listing_id, "")
        out.append({"query": card(query), "results": [], "changed": changed})
    return out, about


def key_shares(texts: Texts, listings: EvaluationData) -> dict[str, float]:
    """Share of the test listings whose list has each key, in percent, most frequent first.

    Args:
        texts: attribute text by listing id.
        listings: the evaluated ones.
    """
    ids = [x.listing_id for x in listings.test.listings]
    counts: dict[str, int] = {}
    for name in ids:
        for key in dict.fromkeys(key for key, part in _pairs(texts.get(name, "")) if ":" in part):
            counts[key] = counts.get(key, 0) + 1
    shares = {key: round(100 * count / len(ids), 2) for key, count in counts.items()}
    return dict(sorted(shares.items(), key=lambda x: (-x[1], x[0])))
