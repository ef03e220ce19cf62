"""Data sets as Hugging Face has them: a repository's files by split, and folders of `save_to_disk`.

`data/train-00000-of-00002.parquet`   files of a split, in `data/` or at the top; also `train.csv`,
                                      other formats of tables, and `train/0000.parquet`
`state.json`, `data-00000-of-00001.arrow`   a saved `Dataset`
`dataset_dict.json`, `train/state.json`     a saved `DatasetDict`

Columns have the authors' names, so `columns` says which is which. Names of pictures are relative to
the folder; most sets hold the pictures themselves.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from afmrl_jax.data.catalogue.published.reading import Layout
from afmrl_jax.data.catalogue.records import Report, Row
from afmrl_jax.data.catalogue.tables import format_of
from afmrl_jax.data.catalogue.tables import rows as rows_of
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import read_json

Splits = dict[str, list[Path]]
"""The files of each split, in order."""

SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?")
USUAL = ("train", "validation", "valid", "val", "dev", "test", "eval")
"""Splits that a file at the top may be named after."""
ALL = "all"
STATE, SPLITS = "state.json", "dataset_dict.json"
AGAIN = "download it again"


def _stem(path: Path) -> str:
    return path.name[: path.name.index(".")]


def _split_of(path: Path, folder: Path) -> str | None:
    """The split that a file is part of; None for any other file."""
    if format_of(path) is None or path.name.startswith(".") or not path.is_file():
        return None
    stem = _stem(path)
    if shard := SHARD.fullmatch(stem):
        return shard["split"]
    if stem.isdigit():
        return folder.name
    return stem if stem in USUAL or folder.name == "data" else None


def repository_splits(folder: Path) -> Splits:
    """The splits of a repository's folder; none if it has no such files.

    Raises:
        CatalogueError: one of the files that belong together is missing.
    """
    for place in (folder / "data", folder):
        found: Splits = defaultdict(list)
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            split = _split_of(path, place)
            if split is not None:
                found[split].append(path)
        for split, paths in found.items():
            _require_all(split, paths)
        if found:
            return dict(found)
    return {}


def _require_all(split: str, paths: Sequence[Path]) -> None:
    """Check that the numbered files of a split are all there."""
    shards = [x for path in paths if (x := SHARD.fullmatch(_stem(path)))]
    counts = {int(x["count"]) for x in shards}
    numbers = sorted(int(x["number"]) for x in shards)
    if shards and (len(counts) > 1 or numbers != list(range(*counts)) or len(shards) < len(paths)):
        raise CatalogueError(
            f"{paths[0].parent}: split {split!r} has {len(paths)} file(s), but their names tell of "
            f"{' or '.join(map(str, sorted(counts)))}; {AGAIN}"
        )


def saved_splits(folder: Path) -> Splits:
    """The splits of a folder that `save_to_disk` wrote; none if it has another layout.

    Raises:
        CatalogueError: a description cannot be read or names files elsewhere, or a file is missing.
    """
    if (folder / SPLITS).is_file():
        content = read_json(folder / SPLITS, error=CatalogueError, remedy=AGAIN)
        names = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(names, list) or not all(_is_name(x) for x in names):
            raise CatalogueError(f"{folder / SPLITS} does not name splits; {AGAIN}")
        return {name: _saved_files(folder / name) for name in names}
    if (folder / STATE).is_file():
        files = _saved_files(folder, guess=True)
        return {ALL: files} if files else {}
    return {}


def _saved_files(folder: Path, *, guess: bool = False) -> list[Path]:
    """The files of a saved split; none if `guess` and the folder is something else."""
    path = folder / STATE
    content = read_json(path, error=CatalogueError, remedy=AGAIN)
    files = content.get("_data_files") if isinstance(content, dict) else None
    if files is None and guess:
        return []
    files = files if isinstance(files, list) else []
    names = [x.get("filename") if isinstance(x, dict) else None for x in files]
    if not names or not all(_is_name(x) for x in names):
        raise CatalogueError(f"{path} does not name the files of the data set; {AGAIN}")
    if content.get("_indices_files") or content.get("_indices_data_files"):
        raise CatalogueError(
            f"{path} selects some of the rows in its files; load it with `datasets`, and save "
            "`flatten_indices()` of it"
        )
    found = [folder / str(name) for name in names]
    missing = next((x for x in found if not x.is_file()), None)
    if missing is not None:
        raise CatalogueError(f"{missing} is missing, of which {path} tells; {AGAIN}")
    return found


def _is_name(value: object) -> bool:
    """Whether a value names something inside a folder."""
    return isinstance(value, str) and value == Path(value).name and "\0" not in value


def repository_rows(
    folder: Path,
    report: Report,
    *,
    files: Sequence[Path] | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """The rows of a split of a repository.

    Args:
        folder: of the data set.
        report: called with each broken record, and with files that cannot be read.
        files: some of the inputs, instead of a split.
        split: one, several as in `train+test`, or `all`; may be left out where there is only one.
        columns: by our names, those of the files, where they differ.

    Raises:
        CatalogueError: there is no such split, or there are several and none is named.
        ConfigError: a file lacks a column of `columns`.
    """
    chosen = _chosen(folder, repository_splits(folder), split) if files is None else files
    yield from rows_of(chosen, report, columns)


def saved_rows(
    folder: Path,
    report: Report,
    *,
    files: Sequence[Path] | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """The rows of a split of a saved folder; see `repository_rows`."""
    chosen = _chosen(folder, saved_splits(folder), split) if files is None else files
    yield from rows_of(chosen, report, columns)


def _chosen(folder: Path, splits: Splits, split: str | None) -> list[Path]:
    if split is None and len(splits) > 1:
        raise CatalogueError(
            f"{folder} has the splits {', '.join(splits)}; name one, as in "
            f"{folder.name}#{next(iter(splits))}, or #{ALL}"
        )
    names = list(splits) if split in (None, ALL) else str(split).split("+")
    unknown = next((name for name in names if name not in splits), None)
    if unknown is not None:
        raise CatalogueError(f"{folder} has no split {unknown[:60]!r}; it has {', '.join(splits)}")
    return [path for name in dict.fromkeys(names) for path in splits[name]]


def _inputs(splits_of: Callable[[Path], Splits], folder: Path) -> list[Path]:
    return [path for paths in splits_of(folder).values() for path in paths]


SAVED_LAYOUT = Layout(
    name="datasets-folder",
    description="a folder that `save_to_disk` of Hugging Face's `datasets` wrote",
    citation="huggingface.co/docs/datasets/process#save",
    download="give a folder that `save_to_disk` wrote",
    inputs=partial(_inputs, saved_splits),
    rows=saved_rows,
)
LAYOUT = Layout(
    name="datasets-repository",
    description="a data set's repository on the Hugging Face hub: tables by split",
    citation="huggingface.co/docs/hub/datasets-data-files-configuration",
    download="download the repository of a data set: hf download USER/SET --repo-type dataset",
    inputs=partial(_inputs, repository_splits),
    rows=repository_rows,
)
