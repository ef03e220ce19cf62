"""M5Product: 6.3 million products of Taobao with picture, title and property table.

The authors' pages (xiaodongsuper.github.io/M5Product_dataset: documentation, download) offer
archives of pictures with annotation, and id lists for coarse and fine retrieval (gallery, query)
and for classification and clustering (fine-tuning, test). Their toolkit
(Xiaodongsuper/M5Product_toolkit) reads:

    id_label.json                       {id: {"title": ..., "pv": "key#:#value#;#key#:#value",
                                        "label": ...}}; a `pv` of one character is an empty table
    product1m_product5m_id_label.json   {id: {"title": ..., "label": ..., "url": ...}}: whose
                                        listings show one product, for fine retrieval
    gallery_fg_image_ids.json           [id, ...], the gallery of fine retrieval
    <images>/<id>.jpg

Neither publishes the names of the files inside the archives, of the folder of pictures, and of the
other five lists. This module reads `images/`, and lists named by the same pattern:
`query_fg_image_ids.json`, `gallery_cg_image_ids.json`, `query_cg_image_ids.json`,
`train_cls_image_ids.json`, `test_cls_image_ids.json`; a list may also be text with one id per line.
Rename the downloaded lists. The documentation page calls title and table `caption` and `tabular` (a
dictionary), and those are read as well. Video and audio are not read.

`label` is the category. Each task is a separate catalogue, because a listing can be a query of one
task and in the gallery of another:

* `fine` and `coarse`: listings of the task's lists are `test`, with the role of their list, or both
  roles if they are in both. Listings in no list of a test set are training listings, divided among
  distill, train and reward by a hash of the product. Listings of another task's test set are left
  out, so that no test listing of another task is trained on.
* `classification` (and clustering): the listings of the fine-tuning list are `train`, those of the
  test list `test`, and there are no others.

The product is the label in the second file if a listing of `fine` has one, otherwise its own id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from afmrl_jax.data.catalogue.published.json_table import read_table
from afmrl_jax.data.catalogue.published.reading import (
    Layout,
    lacks,
    report_unknown,
    text,
    training_split,
)
from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import parse_json, read_bytes

TABLE = "id_label.json"
TRUTH = "product1m_product5m_id_label.json"
LISTS = {
    "fine": {"query": "query_fg_image_ids", "gallery": "gallery_fg_image_ids"},
    "coarse": {"query": "query_cg_image_ids", "gallery": "gallery_cg_image_ids"},
    "classification": {"train": "train_cls_image_ids", "test": "test_cls_image_ids"},
}
"""The id lists of each task, without .json or .txt."""
AGAIN = "download it again"
DOWNLOAD = (
    "download data, annotation and id lists from the page of M5Product, and put into one folder "
    f"{TABLE}, {TRUTH}, images/<id>.jpg and the lists "
    + ", ".join(f"{name}.json" for lists in LISTS.values() for name in lists.values())
)


def inputs(folder: Path) -> list[Path]:
    """The table of the listings."""
    path = folder / TABLE
    return [path] if path.is_file() else []


@dataclass
class _Places:
    """What the lists say about the listings."""

    members: dict[str, set[str]]
    """The ids of the task's lists, by role or split."""
    elsewhere: set[str] = field(default_factory=set)
    """Ids of other tasks' test sets."""
    product: dict[str, str] = field(default_factory=dict)
    """The product of the listings of fine retrieval."""


def rows(
    folder: Path,
    report: Report,
    *,
    files: Sequence[Path] | None = None,
    task: str = "fine",
) -> Iterator[Row]:
    """The rows of a task.

    In memory: the ids of the lists; the table is read record by record.

    Args:
        folder: with the table, the lists and `images/`.
        report: called with each broken record, with the ids of the lists that the table lacks,
            and with a warning that counts what is left out.
        files: some of `inputs(folder)`; all by default.
        task: `fine`, `coarse` or `classification`.

    Raises:
        CatalogueError: the task is unknown, or one of its files is missing.
    """
    if task not in LISTS:
        raise CatalogueError(
            f"task {task!r} of M5Product is unknown; use one of {', '.join(LISTS)}"
        )
    places = _read_places(folder, report, task)
    unseen = set().union(*places.members.values())
    left_out = 0
    for file in inputs(folder) if files is None else files:
        for number, name, record in read_table(file, report):
            unseen.discard(name)
            place = _place(name, places, task)
            if place is None:
                left_out += 1
                continue
            title = record.get("title", record.get("caption"))
            what = lacks({"title": title, "label": record.get("label")})
            if not what and task == "fine" and place["split"] == "test" and not place["product_id"]:
                what = f"the listing has no label in {TRUTH}"
            if what:
                problem = f"record {number} (id {name!r})"
                report(Problem(problem, str(file), what, "fix or remove the record"))
                continue
            yield (
                f"{file.name}, record {number}",
                {
                    "listing_id": name,
                    "title": text(title),
                    "image": f"images/{name}.jpg",
                    "category": text(record["label"]),
                    "attributes": _properties(record.get("pv", record.get("tabular"))),
                    **place,
                    "product_id": place["product_id"] or name,
                },
            )
    _report_rest(folder, report, task, places, unseen)
    if left_out:
        which = "in neither list" if task == "classification" else "that another task tests"
        what, remedy = f"{left_out} listing(s) {which} are left out", "read them in another task"
        report(Problem("table", str(folder / TABLE), what, remedy, "warning"))


def _read_places(folder: Path, report: Report, task: str) -> _Places:
    places = _Places({kind: _read_ids(folder, name, True) for kind, name in LISTS[task].items()})
    if task == "classification":
        return places
    for other, lists in LISTS.items():
        for kind, name in lists.items():
            if other != task and kind != "train":
                places.elsewhere |= _read_ids(folder, name, False)
    if task == "fine":
        path = folder / TRUTH
        if not path.is_file():
            raise CatalogueError(f"{path} does not exist; {DOWNLOAD}")
        tested = set().union(*places.members.values())
        for number, name, record in read_table(path, report):
            if name in tested:
                product = text(record.get("label"))
                if product:
                    places.product[name] = product
                    continue
                record_name = f"record {number} (id {name!r})"
                what, remedy = lacks({"label": None}), "add the label, or remove the record"
                report(Problem(record_name, str(path), what, remedy))
    return places


def _read_ids(folder: Path, name: str, needed: bool) -> set[str]:
    """The ids of a list: JSON, or text with one id per line."""
    path = _list_path(folder, name)
    if not path.is_file():
        if needed:
            raise CatalogueError(f"{path} does not exist; {DOWNLOAD}")
        return set()
    found = read_bytes(path, error=CatalogueError, remedy=AGAIN)
    if path.suffix == ".txt":
        try:
            lines = found.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise CatalogueError(f"{path} is not UTF-8 (byte {error.start}); {AGAIN}") from error
        return {line.strip() for line in lines if line.strip()}
    ids = parse_json(found, path, error=CatalogueError, remedy=AGAIN)
    if not isinstance(ids, list) or not all(isinstance(x, str | int) for x in ids):
        raise CatalogueError(f"{path} is not a list of ids; use the authors' list unchanged")
    return {text(x) for x in ids}


def _list_path(folder: Path, name: str) -> Path:
    lines = folder / f"{name}.txt"
    return lines if lines.is_file() else folder / f"{name}.json"


def _place(name: str, places: _Places, task: str) -> dict[str, str | None] | None:
    """Split, role and product of a listing in a task; None if it is not part of it."""
    kinds = [kind for kind, ids in places.members.items() if name in ids]
    if task == "classification":
        # The test list wins: a listing in both lists must not be trained on.
        return {"split": kinds[-1], "product_id": ""} if kinds else None
    product = places.product.get(name, "")
    if kinds:
        role = kinds[0] if len(kinds) == 1 else None
        return {"split": "test", "role": role, "product_id": product}
    if name in places.elsewhere:
        return None
    return {"split": training_split(f"product {product or name}"), "product_id": product}


def _properties(value: object) -> Mapping[str, str] | None:
    """The property table: "key#:#value#;#key#:#value", or a dictionary."""
    if isinstance(value, dict):
        found = {text(key): text(x) for key, x in value.items()}
    else:
        pairs = (part.partition("#:#") for part in text(value).split("#;#"))
        found = {key.strip(): x.strip() for key, _, x in pairs}
    return {key: x for key, x in found.items() if key and x} or None


def _report_rest(
    folder: Path, report: Report, task: str, places: _Places, unseen: set[str]
) -> None:
    for kind, name in LISTS[task].items():
        ids = sorted(places.members[kind] & unseen)
        report_unknown(ids, _list_path(folder, name), TABLE, report)


LAYOUT = Layout(
    name="m5product",
    description="M5Product: 6.3 million listings of Taobao with picture, title and property table",
    citation=(
        "X. Dong et al., M5Product: Self-harmonized Contrastive Learning for E-commercial "
        "Multi-modal Pretraining, CVPR 2022; xiaodongsuper.github.io/M5Product_dataset"
    ),
    download=DOWNLOAD,
    inputs=inputs,
    rows=rows,
)
