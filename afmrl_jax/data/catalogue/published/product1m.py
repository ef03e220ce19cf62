"""Product1M: cosmetics from Taobao; a picture of several products is the query for each of them.

Layout, from the authors' repository (zhanxlin/Product1M: README, CAPTURE/evaluate_suit.py and the
files of the test and dev sets in its history):

    product1m_train_ossurl_v2.txt      id#####title#####url#####url
    product1m_gallery_ossurl_v2.txt    id#####title#####url#####url#####label
    product1m_test_ossurl_v2.txt       id#####title#####url#####url#####label#;#label#;#...
    product1m_dev_ossurl_v2.txt        as the test set

UTF-8 with CRLF line ends. Both addresses show the same picture; the authors distribute only
addresses, and name the pictures `images/<id>.jpg` (second address), where this module reads them.
The authors' README only links the training file; that it has four fields is known from a public
downloader (XuyangShen/Product1M_download), and further fields are ignored.

* Training listings have no label: each is a separate product, divided among distill, train and
  reward by its hash.
* Gallery listings show one product: `test`, gallery only. The label is the product.
* Test listings show several: `test`, queries only. There is one row for each distinct label: its id
  is `ID`, or `ID-1`, `ID-2`, ... if there are several. The authors count a hit on any label of the
  picture; here each row counts only its own, so results are not comparable with theirs.
* The dev set is read only on request, as queries like those of the test set.

HTML entities in titles are decoded.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from afmrl_jax.data.catalogue.lines import read_lines
from afmrl_jax.data.catalogue.published.reading import Layout, lacks, training_split
from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.errors import CatalogueError

PARTS = ("train", "gallery", "test", "dev")
DOWNLOAD = (
    "download product1m_train_ossurl_v2.txt, product1m_gallery_ossurl_v2.txt and "
    "product1m_test_ossurl_v2.txt from the Google Drive of github.com/zhanxlin/Product1M, and "
    "the picture at either address of every line to images/<id>.jpg next to them"
)


def inputs(folder: Path) -> list[Path]:
    """The files of the parts that are there."""
    paths = [folder / f"product1m_{part}_ossurl_v2.txt" for part in PARTS]
    return [path for path in paths if path.is_file()]


def rows(
    folder: Path,
    report: Report,
    *,
    files: Sequence[Path] | None = None,
    queries: Sequence[str] = ("test",),
) -> Iterator[Row]:
    """The rows of all parts.

    Args:
        folder: with the text files and `images/`.
        report: called with each broken record.
        files: some of `inputs(folder)`; all by default.
        queries: parts whose listings are queries, of `test` and `dev`.

    Raises:
        CatalogueError: a part of `queries` is neither.
    """
    if not set(queries) <= {"test", "dev"}:
        raise CatalogueError(f"queries {list(queries)} are unknown; use test, dev or both")
    for file in inputs(folder) if files is None else files:
        part = file.name.split("_")[1]
        if part in ("test", "dev") and part not in queries:
            continue
        for number, line in read_lines(file, report):
            fields = line.split("#####")
            what = _wrong(fields, part)
            if what:
                report(Problem(f"line {number}", str(file), what, "fix or remove the line"))
                continue
            for row in _listings(fields, part):
                yield f"{file.name}, line {number}", row


def _wrong(fields: list[str], part: str) -> str:
    needed = 4 if part == "train" else 5
    if len(fields) < needed:
        return f"{len(fields)} fields between #####, where {needed} are needed"
    try:
        found = {"id": fields[0], "title": html.unescape(fields[1])}
    except ValueError:
        return "the title has an HTML entity with a number of too many digits"
    if part != "train":
        found["label"] = "".join(_labels(fields))
    return lacks(found)


def _labels(fields: list[str]) -> list[str]:
    """Distinct labels in their order: a set with two items of one product names it twice."""
    return [x for x in dict.fromkeys(label.strip() for label in fields[4].split("#;#")) if x]


def _listings(fields: list[str], part: str) -> Iterator[dict[str, str]]:
    name = fields[0].strip()
    common = {"title": html.unescape(fields[1]).strip(), "image": f"images/{name}.jpg"}
    if part == "train":
        split = training_split(f"product {name}")
        yield {"listing_id": name, "product_id": name, **common, "split": split}
        return
    labels = _labels(fields)
    if part == "gallery":
        role, labels = "gallery", labels[:1]
    else:
        role = "query"
    for n, label in enumerate(labels, 1):
        listing = name if len(labels) == 1 else f"{name}-{n}"
        found = {"listing_id": listing, "product_id": label, **common}
        yield {**found, "split": "test", "role": role}


LAYOUT = Layout(
    name="product1m",
    description="Product1M: 1.18 million cosmetics listings of Taobao; queries of several products",
    citation=(
        "X. Zhan et al., Product1M: Towards Weakly Supervised Instance-Level Product Retrieval via "
        "Cross-modal Pretraining, ICCV 2021; github.com/zhanxlin/Product1M"
    ),
    download=DOWNLOAD,
    inputs=inputs,
    rows=rows,
)
