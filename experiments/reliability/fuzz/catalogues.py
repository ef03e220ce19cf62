"""Targets: catalogues in JSON lines, Parquet and stores, and what a page makes of their texts."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Sequence
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.images import patchify
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.records import Catalogue, Listing, Problem
from afmrl_jax.errors import CatalogueError
from experiments.reliability.fuzz.case import AcceptedWrongError, Case, Room, target
from experiments.reliability.fuzz.guard import OUTSIDE
from experiments.reliability.fuzz.mutate import (
    Spoiled,
    pick,
    spoil_bytes,
    spoil_file,
    spoil_json,
    spoil_line,
    spoil_place,
)

TEXTS = ("listing_id", "product_id", "title", "category", "oracle", "seller", "family_id")
SMALL = ImageConfig(max_pixels=48 * 48)


def broken_text(text: object) -> bool:
    """Whether a text holds control characters or halves of surrogate pairs."""
    if not isinstance(text, str):
        return False
    return any(unicodedata.category(x) in ("Cc", "Cs") and x not in "\t\n\r" for x in text)


def check_texts(x: Listing) -> None:
    """Refuse a listing whose texts no terminal and no page should get."""
    for name in TEXTS:
        if broken_text(getattr(x, name)):
            raise AcceptedWrongError(f"control characters in {name} were taken")
    for key, value in (x.attributes or {}).items():
        if broken_text(key) or broken_text(value):
            raise AcceptedWrongError("control characters in an attribute were taken")


def use_catalogue(folder: Path) -> Catalogue:
    """Check a catalogue, and see that training can use what the check finds no fault with."""
    problems: list[Problem] = []
    check_catalogue(folder, problems.append)
    errors = [x for x in problems if x.severity == "error"]
    if errors:
        load_catalogue(folder, skip_bad=True)
        raise CatalogueError(str(errors[0]))
    try:
        catalogue = load_catalogue(folder)
        for x in catalogue.listings:
            check_texts(x)
            patchify(x.read_image_bytes(), SMALL)
    except CatalogueError as error:
        raise AcceptedWrongError(f"the check found nothing, but: {error}") from error
    return catalogue


def content_of(catalogue: Catalogue) -> list[Any]:
    """Everything in a catalogue, to compare."""
    return [
        [getattr(x, name) for name in (*TEXTS, "split", "role", "attributes")]
        + [sha256(x.read_image_bytes()).hexdigest()]
        for x in catalogue.listings
    ]


@target("jsonl")
def jsonl(room: Room) -> Case:
    """A folder with listings.jsonl, of which a line, a picture's name or the file is broken."""
    folder, rng = room.folder / "shop", room.rng
    shutil.copytree(room.good / "shop", folder)
    path = folder / "listings.jsonl"
    kind = pick(rng, ("value",) * 6 + ("bytes", "bytes", "place", "picture", "name", "beside"))
    wrong = False
    if kind == "value":
        lines = path.read_bytes().splitlines()
        number = int(rng.integers(len(lines)))
        found = spoil_json(json.loads(lines[number]), rng)
        lines[number] = found.text
        path.write_bytes(b"\n".join(lines) + b"\n")
        spoiled = found.spoiled
        nested = found.raw is not None and found.raw[:1] in "[{" and len(found.raw) > 2
        wrong = nested or spoiled.invalid
    elif kind == "bytes":
        data, spoiled = spoil_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
    elif kind == "place":
        spoiled = spoil_place(path, rng)
        wrong = True
    elif kind == "picture":
        spoiled = spoil_place(pick(rng, sorted((folder / "images").iterdir())), rng)
        wrong = True
    elif kind == "name":
        spoiled, wrong = _odd_name(folder, rng), True
    else:
        path.unlink()
        beside = folder / pick(rng, ("notes.json", "data.jsonl", "train.json"))
        beside.write_text("{}")
        spoiled, wrong = spoil_place(beside, rng), True
    return Case(spoiled.what, lambda: use_catalogue(folder), wrong=wrong)


def _odd_name(folder: Path, rng: Any) -> Spoiled:
    outside = folder.parent / OUTSIDE
    names = {
        "NUL": "images/a\0.png",
        "5,000 letters": "x" * 5000,
        "outside": "../outside/secret.png",
        "absolute": str(outside / "secret.png"),
        "a folder": "images",
        "a link to itself": "images/loop.png",
        "a link outside": "images/link.png",
        "half a surrogate": "images/\ud800.png",
        "an address": "https://192.0.2.1/a.png",
        "empty": " ",
    }
    what = pick(rng, list(names))
    (folder / "images" / "loop.png").symlink_to("loop.png")
    (folder / "images" / "link.png").symlink_to(outside / "secret.png")
    path = folder / "listings.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    pick(rng, lines)["image"] = names[what]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return Spoiled(f"the name of a picture: {what}", True)


@target("parquet")
def parquet(room: Room) -> Case:
    """listings.parquet with broken bytes, or something else in its place."""
    folder, rng = room.folder / "shop", room.rng
    shutil.copytree(room.good / "parquet", folder)
    path = folder / "listings.parquet"
    if rng.random() < 0.12:
        return Case(spoil_place(path, rng).what, lambda: use_catalogue(folder), wrong=True)
    data, spoiled = spoil_bytes(path.read_bytes(), rng)
    path.write_bytes(data)
    return Case(spoiled.what, lambda: use_catalogue(folder))


@target("store")
def store(room: Room) -> Case:
    """A store of which one file is broken: what is read must be what was written."""
    folder, rng = room.folder / f"store-{room.folder.name}", room.rng
    shutil.copytree(room.good / "store", folder)
    files = sorted(folder.iterdir())
    manifest = folder / "manifest.json"
    path = manifest if rng.random() < 0.4 else pick(rng, files)
    spoiled = spoil_file(path, rng)
    if "store" not in room.kept:
        good = load_catalogue(room.good / "store")
        room.kept["store"] = (content_of(good), good.fingerprint)

    def act() -> None:
        catalogue = use_catalogue(folder)
        content, fingerprint = room.kept["store"]
        if content_of(catalogue) != content:
            raise AcceptedWrongError("other listings were read than were written")
        if catalogue.fingerprint != fingerprint:
            raise AcceptedWrongError("it has another fingerprint")

    wrong = path == manifest and (spoiled.invalid or spoiled.gone)
    return Case(f"{path.name}: {spoiled.what}", act, wrong=wrong)


PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style><script src=//192.0.2.1/x></script>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<iframe src=https://192.0.2.1>",
    "]]><!-- <a href=https://192.0.2.1>x</a>",
    "\u202e<b onmouseover=alert(1)>x\u202c",
    "&lt;script&gt;<base href=//192.0.2.1/>",
)
_ACTIVE = ("script", "iframe", "object", "embed", "base", "link", "form", "img")


class _Page(HTMLParser):
    """Tags, handlers and addresses that a page must not have."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        own = tag == "img" and given.get("src", "").startswith("data:image/")
        if tag in _ACTIVE and not own:
            self.found.append(f"<{tag}>")
        for name, value in given.items():
            address = value.strip().lower()
            if name.startswith("on") or address.startswith("javascript:"):
                self.found.append(f"{name}={value[:40]}")
            if name in ("src", "href") and address.startswith(("http", "//")):
                self.found.append(f"{name}={value[:40]}")


def check_page(page: str) -> None:
    """Refuse a page with anything active that is not ours."""
    found = _Page()
    found.feed(page)
    if found.found:
        raise AcceptedWrongError(f"the page has {', '.join(found.found[:3])}")


@target("html")
def html(room: Room) -> Case:
    """Texts of a catalogue on their way into fragments of a page."""
    from afmrl_jax.reporting import fragments

    rng, run = room.rng, room.folder / "run"
    run.mkdir()
    payload = pick(rng, PAYLOADS)
    for name in ("gallery.json", "evaluation.json"):
        value = json.loads((room.good / "run" / name).read_text())
        _plant(value, payload, rng)
        (run / name).write_text(json.dumps(value))
    hits = [{"title": payload, "listing_id": payload, "score": 0.5, "attributes": payload}]
    photo = (room.good / "texts" / "photo.png").read_bytes()

    def act() -> None:
        check_page(fragments.results(run))
        check_page(fragments.gallery(run, 2))
        check_page(fragments.found(photo, payload, payload, hits, {payload: photo}))

    return Case(f"{payload} in texts", act, good=True)


def _plant(value: Any, payload: str, rng: Any) -> None:
    """Put a payload in the place of some texts, which a catalogue decides."""
    free = ("title", "listing_id", "attributes_before", "attributes_after", "true_attributes")
    for x in value if isinstance(value, list) else value.values():
        if isinstance(x, dict):
            for key in free:
                if key in x and rng.random() < 0.7:
                    x[key] = payload
            _plant(x, payload, rng)
        elif isinstance(x, list) and x and isinstance(x[0], dict):
            _plant(x, payload, rng)


@target("attributes")
def attributes(room: Room) -> Case:
    """A file of attributes, and attribute texts themselves."""
    from afmrl_jax.data.attributes.text_format import (
        is_malformed,
        parse_attributes,
        read_attributes,
        salvage_attributes,
    )

    rng, path = room.rng, room.folder / "attributes.jsonl"
    shutil.copy(room.good / "texts" / "attributes.jsonl", path)
    kind = pick(rng, ("line", "line", "line", "bytes", "place", "text"))
    wrong = False
    if kind == "text":
        count = int(pick(rng, (10, 20_000, 200_000)))
        text = pick(rng, ("{n}: b", ":{n}", "A{n}: b", "a: {n}; ", "\0{n}: \x1b"))
        long = "; ".join(text.replace("{n}", str(n)) for n in range(count))

        def many() -> None:
            if not is_malformed(long):
                parse_attributes(long)
            salvage_attributes(long)

        return Case(f"{count} pairs {text!r}", many)
    if kind == "line":
        data, spoiled = spoil_line(path.read_bytes(), rng)
        path.write_bytes(data)
        wrong = spoiled.invalid
    elif kind == "bytes":
        data, spoiled = spoil_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
    else:
        spoiled = spoil_place(path, rng)
        wrong = spoiled.gone

    def act() -> None:
        for name, text in read_attributes(path).items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise AcceptedWrongError(f"{name!r}: {text!r} was taken, which are no texts")
            if broken_text(text) or broken_text(name):
                raise AcceptedWrongError("control characters were taken")
            salvage_attributes(text)

    return Case(spoiled.what, act, wrong=wrong)
