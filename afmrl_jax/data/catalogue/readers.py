"""Raw records of a catalogue one by one: tabular files, a store, a published layout, the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.config.marketplace import MARKETPLACE
from afmrl_jax.data.catalogue import hub, tables
from afmrl_jax.data.catalogue.manifest import AGAIN, MANIFEST, lacks_manifest
from afmrl_jax.data.catalogue.published import LAYOUTS, Layout, hugging_face, layout_of
from afmrl_jax.data.catalogue.published.examples import stored_rows
from afmrl_jax.data.catalogue.records import Report, Row
from afmrl_jax.data.catalogue.store import Store
from afmrl_jax.data.catalogue.tables.columns import parse_columns
from afmrl_jax.data.catalogue.tfds_examples import PART, open_prepared
from afmrl_jax.errors import CatalogueError, ConfigError
from afmrl_jax.runtime.files import is_local, resolve_path
from afmrl_jax.runtime.json_files import checked

FILES = tuple(f"listings{end}" for end in tables.ENDS)
"""Names of a listings file that is found in its folder."""

WORKBOOKS = (".xlsx", ".xls", ".ods")


@dataclass(frozen=True)
class RowSource:
    """Where raw records come from; they can be read repeatedly, in the same order."""

    name: str
    file: str
    """The path that problems are reported under."""
    folder: Path
    """Names of pictures are relative to it; what they lead to must lie in `root`."""
    read: Callable[[Report], Iterator[Row]]
    """Gives the readable records; the others go to the report."""
    count: int | None = None
    """Number of records, if it is known."""
    store: Store | None = None
    trusted: bool = False
    """Whether pictures need no check."""

    inputs: tuple[Path, ...] = ()
    """Files that the records come from."""

    options: Mapping[str, object] = field(default_factory=dict)
    """How the files are read."""

    @property
    def root(self) -> Path:
        """Where pictures may lie."""
        return hub.picture_root(self.folder) if is_local(self.folder) else self.folder

    @property
    def stamp(self) -> str:
        """A text that changes if the files, or how they are read, change."""
        about: list[object] = []
        for path in self.inputs:
            found: Any = path.stat()
            local = is_local(path)
            size = found.st_size if local else found.length
            about.append([str(path), size, found.st_mtime_ns if local else found.mtime])
        return json.dumps([self.file, dict(self.options), about], sort_keys=True)


def catalogue_folder(
    name: str | Path, marketplace: MarketplaceSettings | None = None
) -> Path | None:
    """The folder of a catalogue, where other files of it may lie; None if it has none here.

    Args:
        name: as of `open_rows`.
        marketplace: its settings, where that is the catalogue; drawn if it was not yet.
    """
    if str(name) == MARKETPLACE:
        from afmrl_jax.data.marketplace.cache import marketplace_folder  # With Pillow's drawing.

        return marketplace_folder(marketplace or MarketplaceSettings())
    path = Path(name)
    return path if path.is_dir() else None


def open_rows(
    name_or_path: str | Path,
    options: Mapping[str, object] | None = None,
    columns: str | None = None,
) -> RowSource:
    """The records of a catalogue.

    Args:
        name_or_path: `furniture`; `marketplace`; a folder with a file of listings or a store, one
            written by a TFDS builder of this package, or one in a published layout; a table's file
            itself; or a data set of the Hugging Face hub, `hf://user/set`. Folders and files may be
            in object storage, stores may not. `#split` at the end names a split of a data set in a
            layout of Hugging Face.
        options: of a published layout's `rows`; settings of the marketplace.
        columns: which columns of tables are which, as in `title=name,product_id=sku`.

    Raises:
        CatalogueError: there is no catalogue, or it cannot be opened.
        ConfigError: the layout has no such option, or `columns` names no column of a listing.
    """
    options = dict(options or {})
    if columns:
        options["columns"] = parse_columns(columns)
    try:
        source = _open(name_or_path, options)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        # Too long a name, a NUL in it, or a folder that may not be read.
        reason = getattr(error, "strerror", None) or error
        raise CatalogueError(
            f"catalogue {str(name_or_path)[:200]!r} cannot be read ({reason}); give `furniture`, "
            "`marketplace` or a catalogue folder"
        ) from error
    if unused := options.keys() - source.options.keys():
        told = "--columns" if unused == {"columns"} else "--options"
        raise ConfigError(f"{source.file} is read without {told[2:]}; leave {told} out")
    return source


def _open(name_or_path: str | Path, options: Mapping[str, object]) -> RowSource:
    if str(name_or_path) == "furniture":
        path = Path(str(files("afmrl_jax.data.furniture") / "listings.parquet"))
        return _own(path, "furniture", trusted=True)
    if str(name_or_path) == MARKETPLACE:
        return _drawn(options)
    name, _, split = str(name_or_path).rpartition("#")
    if name and (name.startswith(hub.PREFIX) or not resolve_path(name_or_path).exists()):
        return _open(name, {**options, "split": split})
    if str(name_or_path).startswith(hub.PREFIX):
        source = _open(hub.hub_folder(str(name_or_path)), options)
        return replace(source, name=hub.set_name(str(name_or_path)))
    path = resolve_path(name_or_path)
    if (path / MANIFEST).is_file():
        store = Store.open(path)
        inputs = (path / MANIFEST,)
        return RowSource(path.name, str(path), path, store.rows, len(store), store, inputs=inputs)
    if lacks_manifest(path):
        raise CatalogueError(
            f"{path} has files of a store but no {MANIFEST}, without which nothing in it can be "
            f"checked; {AGAIN}"
        )
    if (path / "dataset_info.json").is_file() and not hugging_face.SAVED_LAYOUT.found(path):
        return _prepared(path)
    if any((path / x).is_file() for x in FILES):
        layout = None
    else:
        _refuse_misfits(path)
        layout = layout_of(path)
    if layout is not None:
        return _published(path, layout, options)
    path = find_listings(path)
    return _own(path, path.parent.name, options)


def _refuse_misfits(folder: Path) -> None:
    """Say so where a listings file is there, but is no file."""
    for name in FILES:
        path = folder / name
        if is_local(folder) and os.path.lexists(path) and not path.is_file():
            raise CatalogueError(
                f"{path} is a folder, a pipe, a device or a link that leads nowhere; put the file "
                "of listings there"
            )


def find_listings(path: Path) -> Path:
    """The listings file of a folder, or the file itself."""
    if path.name.lower().endswith(WORKBOOKS):
        raise CatalogueError(f"{path} is a workbook; save its sheet as a file of CSV UTF-8")
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    what = "does not exist"
    if is_local(path) and os.path.lexists(path):
        what = "is a pipe, a device or a link that leads nowhere"
    if path.is_dir():
        what = f"holds none of {', '.join(FILES)}, is not a store, and has no published layout "
        what += f"({', '.join(LAYOUTS)})"
        others = sorted(x.name for x in path.iterdir() if tables.format_of(x) and x.is_file())
        if others:
            what += f", but a table: give the file itself, as in {path / others[0]}"
    raise CatalogueError(
        f"catalogue {path} {what}; give `furniture`, `marketplace` or a catalogue folder"
    )


def _own(
    path: Path,
    name: str,
    options: Mapping[str, object] | None = None,
    *,
    trusted: bool = False,
) -> RowSource:
    """A file of listings, in columns of this package or under other names."""
    taken = {x: value for x, value in (options or {}).items() if x == "columns"}

    def read(report: Report) -> Iterator[Row]:
        return tables.rows([path], report, **taken)  # type: ignore[arg-type]

    return RowSource(
        name,
        str(path),
        path.parent,
        read,
        tables.count([path]),
        trusted=trusted,
        inputs=(path,),
        options=taken,
    )


def _drawn(options: Mapping[str, object]) -> RowSource:
    """The drawn marketplace; options are its settings."""
    # Imported here: it needs Pillow's drawing, and most catalogues do not.
    from afmrl_jax.data.marketplace.build import LISTINGS
    from afmrl_jax.data.marketplace.cache import marketplace_folder

    where = f"the options of {MARKETPLACE}"
    settings = checked(MarketplaceSettings, dict(options), where, error=ConfigError)
    path = marketplace_folder(settings) / LISTINGS
    return replace(_own(path, MARKETPLACE, trusted=True), options=options)


def _published(path: Path, layout: Layout, options: Mapping[str, object]) -> RowSource:
    kinds = get_type_hints(layout.rows)
    known = [x for x in kinds if x not in ("folder", "report", "files", "return")]
    unknown = [x for x in options if x not in known]
    if unknown:
        raise ConfigError(
            f"{path} is in the layout of {layout.name}, whose reader has no option {unknown[0]!r}; "
            f"it has {', '.join(known) or 'none'}"
        )
    for name, value in options.items():
        checked(kinds[name], value, f"option {name!r} of {layout.name}", error=ConfigError)
    inputs = tuple(layout.inputs(path))
    read = partial(layout.rows, path, **options)
    return RowSource(path.name, str(path), path, read, inputs=inputs, options=dict(options))


def _prepared(path: Path) -> RowSource:
    """A dataset written by a TFDS builder of this package; others lack the columns."""
    builder = open_prepared(path)
    missing = {"listing_id", "image"} - set(builder.info.features or ())
    if missing or PART not in builder.info.splits:
        raise CatalogueError(
            f"{path} is a TFDS dataset with other columns; write it with a builder of "
            "afmrl_jax.data.catalogue.published.builders"
        )
    try:
        source = builder.as_data_source(split=PART)
        count = len(source)
    except Exception as error:  # Of TFDS and ArrayRecord.
        reason = " ".join(str(error).split())[:200]
        raise CatalogueError(f"{path} cannot be read ({reason}); write it again") from error

    def read(report: Report) -> Iterator[Row]:
        return stored_rows(source, report, str(path))

    inputs = (path / "dataset_info.json",)
    return RowSource(path.name, str(path), path, read, count, inputs=inputs)
