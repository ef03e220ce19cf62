"""The folder of an embedded catalogue: an index, the listings that results show, and their seals.

`embedded.json` seals all other files, so that a file that was changed, cut or exchanged is noticed
when the folder is read; except the log of later changes, whose records have their own checksums.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.data.catalogue.pictures import DECODING
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import CatalogueError, RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import IndexSettings
from afmrl_jax.retrieval.index_file import NAME, PATTERNS, index_files
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import MAX_LINE, checked, open_regular, parse_json, read_json
from afmrl_jax.runtime.outputs import whole_record
from afmrl_jax.runtime.seals import Seal, require_sealed
from afmrl_jax.types import JsonObject, Plain

ABOUT = "embedded.json"
LISTINGS = "listings.jsonl"
INDEX = "index"
SEALED = (LISTINGS, f"{INDEX}/{NAME}")
THUMBNAILS = "thumbnails.bin"
"""Small pictures one after the other; a listing's line says where its own is. Sealed too."""
LOG = "changes.log"
"""Listings that were added, changed and removed since the folder was written."""
FORMAT = 2
"""Since 1, the folder is sealed and listings have the hash of their content; since 2, it may have
thumbnails and a log."""
HIDDEN = ("content", "thumbnail")
"""What a listing's line has that results do not show."""
READERS = 4
"""Threads that hash pictures; each holds one."""
READ_AT_ONCE = 1024
"""Listings that wait for them."""
AGAIN = "embed the catalogue again with `afmrl embed`"


@dataclass(frozen=True)
class About:
    """The contents of `embedded.json`."""

    system: str
    """Row of the run's results table."""
    catalogue: str
    embedder: str = ""
    """Identity of the embedder."""
    reads: str = ""
    """A hash of the run's settings of pictures and texts."""
    attributes: str | None = None
    """Identity of the generator that wrote them, `file`, or None if the embedder reads none."""
    settings: IndexSettings = field(default_factory=IndexSettings)
    thumbnails: int | None = None
    """Pixels of their longer side; None for none."""
    format: int = 0
    """0 for folders of older versions."""
    files: dict[str, Seal] = field(default_factory=dict)
    """The listings, and the file of the index that seals the others."""

    def write(self, folder: Path) -> None:
        """Write it last: it seals files that are in the folder by then."""
        files = {name: asdict(Seal.of(folder / name)) for name in self._sealed}
        write_json(folder / ABOUT, asdict(self) | {"format": FORMAT, "files": files})

    @classmethod
    def read(cls, folder: Path) -> About:
        """Read it, and check the files that it seals.

        Raises:
            RunError: the folder holds no embedded catalogue, or a file was changed.
        """
        path = folder / ABOUT
        if not path.is_file():
            raise RunError(f"{folder} holds no embedded catalogue; write one with `afmrl embed`")
        found = checked(cls, read_json(path, remedy=AGAIN), path, remedy=AGAIN)
        if found.format > FORMAT:
            raise RunError(
                f"{folder} has format {found.format} of a newer version; update afmrl-jax, or "
                f"{AGAIN}"
            )
        if found.format and found.files.keys() != set(found._sealed):
            raise RunError(f"{path} does not name {' and '.join(found._sealed)}; {AGAIN}")
        require_sealed(folder, found.files, remedy=AGAIN)
        return found

    @property
    def _sealed(self) -> tuple[str, ...]:
        return SEALED if self.thumbnails is None else (*SEALED, THUMBNAILS)

    @property
    def identity(self) -> str:
        """A hash of what is sealed."""
        return hashlib.sha256(str(sorted(self.files.items())).encode()).hexdigest()


def embedded_files(folder: Path) -> set[str] | None:
    """What `afmrl embed` wrote in a folder, by name; None if the folder is no output of it."""
    about = whole_record(folder / ABOUT)
    if not isinstance(about.get("system"), str):
        return None
    index = folder / INDEX
    files = index_files(index)
    if files is None:  # It is broken.
        files = {NAME, *(x.name for pattern in PATTERNS for x in index.glob(pattern))}
    return {ABOUT, LISTINGS, THUMBNAILS, LOG, *(f"{INDEX}/{name}" for name in files)}


def reads_of(run: FinishedRun) -> str:
    """A hash of what, besides the weights, turns a listing into a vector."""
    config = run.config
    settings = [asdict(x) for x in (config.image_of("embedder"), config.text_of("embedder"))]
    found = [DECODING, *settings]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def content_of(x: Listing, pictures: Sequence[bytes]) -> str:
    """A hash of what models read of a listing: title and encoded pictures."""
    found = [x.title, *(hashlib.sha256(picture).hexdigest() for picture in pictures)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]


def contents_of(listings: Sequence[Listing], most: int = 1) -> list[str]:
    """`content_of` each listing with `most` pictures at most, read by a few threads."""

    def read(x: Listing) -> str:
        with x.all_encoded(most) as pictures:
            return content_of(x, pictures)

    out: list[str] = []
    with ThreadPoolExecutor(READERS) as readers:
        for begin in range(0, len(listings), READ_AT_ONCE):
            end = min(begin + READ_AT_ONCE, len(listings))
            out += readers.map(read, [listings[n] for n in range(begin, end)])
    return out


def line_of(x: Listing, content: str, attributes: str | None) -> JsonObject:
    """What the folder says of a listing."""
    found: JsonObject = {"listing_id": x.listing_id, "product_id": x.product_id, "title": x.title}
    if attributes is not None:
        found["attributes"] = attributes
    if x.extra:
        found["extra"] = dict(x.extra)
    return found | {"content": content}


def encoded_line(line: JsonObject) -> bytes:
    """A line of the listings' file.

    Raises:
        CatalogueError: a text cannot be written in UTF-8.
    """
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise CatalogueError(
            f"listing {line['listing_id']!r} has half of a surrogate pair in a text; correct the "
            "text, or leave the listing out"
        ) from error


def checked_line(line: Any, where: object) -> JsonObject:
    """A line of the listings' file, or of its log.

    Raises:
        RunError: it is no object with a listing's texts, or something else in it has a wrong type.
    """
    names = ("listing_id", "product_id", "title")
    if not isinstance(line, dict) or not all(isinstance(line.get(x), str) for x in names):
        raise RunError(f"{where} is not an object with texts {', '.join(names)}; {AGAIN}")
    for name in ("attributes", "content"):
        if not isinstance(line.get(name), str | None):
            raise RunError(f"{where}: {name} of {line['listing_id']!r} is no text; {AGAIN}")
    extra = line.get("extra")
    plain = isinstance(extra, dict) and all(isinstance(x, Plain | None) for x in extra.values())
    if extra is not None and not plain:
        raise RunError(
            f"{where}: extra of {line['listing_id']!r} is no object of texts and numbers; {AGAIN}"
        )
    return line


def shown_of(line: JsonObject) -> JsonObject:
    """What results show of a line."""
    return {name: x for name, x in line.items() if name not in HIDDEN}


class EmbeddedListings:
    """The listings that results show, in the order of an index; their file is mapped.

    Args:
        folder: of the embedded catalogue.
        ids: of the index, by place.

    Raises:
        RunError: the file cannot be read, or its listings are not those of the index.
    """

    def __init__(self, folder: Path, ids: Iterable[str]):
        self.path = path = folder / LISTINGS
        place = {x: n for n, x in enumerate(ids)}
        self._bounds = np.full((len(place), 2), -1, np.int64)
        self._data = _mapped(path)
        begin, number = 0, 0
        while begin < len(self._data):
            number += 1
            end = self._data.find(b"\n", begin, begin + MAX_LINE)
            end = len(self._data) if end < 0 else end
            if end - begin > MAX_LINE:
                raise RunError(f"{path}:{number} is longer than {MAX_LINE:,} bytes; {AGAIN}")
            found = self._parsed(begin, end, f"{path}:{number}")
            at = place.get(found["listing_id"])
            if at is None or self._bounds[at, 0] >= 0:
                what = "is not in the index" if at is None else "stands twice"
                raise RunError(f"{path}:{number}: listing {found['listing_id']!r} {what}; {AGAIN}")
            self._bounds[at] = begin, end
            begin = end + 1
        missing = np.flatnonzero(self._bounds[:, 0] < 0)
        if len(missing):
            name = list(place)[missing[0]]
            raise RunError(
                f"{path} lacks listing {name!r} of the index and {len(missing) - 1} more; {AGAIN}"
            )

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, place: int) -> JsonObject:
        """The line of the listing at a place of the index."""
        begin, end = self._bounds[place].tolist()
        return self._parsed(begin, end, self.path)

    def _parsed(self, begin: int, end: int, where: object) -> JsonObject:
        return checked_line(parse_json(self._data[begin:end], where, remedy=AGAIN), where)


class EmbeddedThumbnails:
    """The small pictures of a folder, mapped.

    Raises:
        RunError: their file cannot be read.
    """

    def __init__(self, folder: Path):
        self.path = folder / THUMBNAILS
        self._data = _mapped(self.path) if self.path.stat().st_size else b""

    def of(self, line: JsonObject) -> bytes | None:
        """The JPEG of a listing's line; None if it has none.

        Raises:
            RunError: the line does not say where it is.
        """
        place = line.get("thumbnail")
        if place is None:
            return None
        fits = isinstance(place, list) and [type(x) for x in place] == [int, int]
        if not fits or not 0 <= place[0] <= place[0] + place[1] <= len(self._data):
            raise RunError(f"{self.path} has no place {place!r}; {AGAIN}")
        return bytes(self._data[place[0] : sum(place)])


def _mapped(path: Path) -> mmap.mmap:
    try:
        with open_regular(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); {AGAIN}") from error
