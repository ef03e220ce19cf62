"""MBE (MM-Bench-E-Commerce), the benchmark of the MOON paper: products and purchases on Taobao.

The authors publish it as the Hugging Face dataset Daoze/MM-Bench-E-Commerce in JSON. Its card does
not describe files or columns, and the data itself could not be inspected. What is read here:

* Files: one JSON object per line, `*.jsonl` or `*.json`. Their names are not published on the card;
  the split that public code loads is `test`. A file with "train" in its name counts as training.
* Columns, from public code that loads the dataset: `id`, `doc_title`, `doc_image` (an address),
  `doc_industry_name`, `doc_cate1_name` to `doc_cate4_name` (from coarse to fine), `doc_attributes`
  ("key:value,,key:value", several values of a key joined by "!!!").
* The paper's retrieval pairs a query with the product that was bought. The columns of the query are
  not published: give them as `query_title` and `query_image`. Without them, every record is one
  listing, and a warning names the columns that begin with "query".

A picture given by its address must be downloaded first: to `images/<id>.jpg`, a query's to
`images/<id>-query.jpg`. These names are ours; the authors have none.

Training listings are divided among distill, train and reward by a hash of the id; those of other
files are `test`. If queries are read, a test product is only in the gallery, and its query only a
query.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from afmrl_jax.data.catalogue.lines import read_json_lines
from afmrl_jax.data.catalogue.published.reading import Layout, lacks, text, training_split
from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import open_regular

CATEGORIES = ("doc_industry_name", *(f"doc_cate{n}_name" for n in range(1, 5)))
"""From coarse to fine."""
DOWNLOAD = (
    "download the files of the Hugging Face dataset Daoze/MM-Bench-E-Commerce to one folder, and "
    "the picture of every doc_image to images/<id>.jpg in it"
)


def inputs(folder: Path) -> list[Path]:
    """The JSON files whose first record has the columns of MBE."""
    paths = sorted([*folder.glob("*.jsonl"), *folder.glob("*.json")])
    return [path for path in paths if _is_mbe(path)]


def _is_mbe(path: Path) -> bool:
    # A guess looks into strange files: one that cannot be read has no columns of MBE.
    try:
        with open_regular(path, error=CatalogueError) as file:
            return b'"doc_title"' in file.read(1 << 16)
    except (OSError, CatalogueError):
        return False


def rows(
    folder: Path,
    report: Report,
    *,
    files: Sequence[Path] | None = None,
    category: str | None = None,
    query_title: str | None = None,
    query_image: str | None = None,
) -> Iterator[Row]:
    """A row for the product of every record, and one for its query if queries are read.

    Args:
        folder: with the JSON files and `images/`.
        report: called with each broken record, and with a warning about unused columns.
        files: some of `inputs(folder)`; all by default.
        category: the column of the category, one of `CATEGORIES`; by default the finest one that is
            not empty.
        query_title: column of the query's text; the product's title if it is empty or None.
        query_image: column of the query's picture; without it no queries are read.

    Raises:
        CatalogueError: `category` is not one of `CATEGORIES`.
    """
    if category is not None and category not in CATEGORIES:
        raise CatalogueError(
            f"column {category!r} is not a category of MBE; use one of {', '.join(CATEGORIES)}"
        )
    for file in inputs(folder) if files is None else files:
        training = "train" in file.name
        warned = query_image is not None
        for number, record in read_json_lines(file, report):
            unused = [name for name in record if name.startswith("query")]
            if unused and not warned:
                what = f"the columns {', '.join(unused)} are not read"
                remedy = "give those of text and picture as query_title and query_image"
                report(Problem(f"line {number}", str(file), what, remedy, "warning"))
                warned = True
            needed = ["id", "doc_title", "doc_image", *([query_image] if query_image else [])]
            what = lacks({name: record.get(name) for name in needed})
            if what:
                report(Problem(f"line {number}", str(file), what, "fix or remove the line"))
                continue
            where = f"{file.name}, line {number}"
            product = _product(record, training, category)
            if query_image is None:
                yield where, product
                continue
            yield where, product if training else {**product, "role": "gallery"}
            query = {
                **product,
                "listing_id": f"{product['listing_id']}-query",
                "title": text(record.get(query_title or "")) or product["title"],
                "image": _picture(record[query_image], f"{product['listing_id']}-query"),
                "attributes": None,
            }
            yield where, query if training else {**query, "role": "query"}


def _product(
    record: Mapping[str, object], training: bool, category: str | None
) -> dict[str, object]:
    name = text(record["id"])
    columns = [category] if category else list(CATEGORIES)
    found = [text(record.get(column)) for column in columns]
    return {
        "listing_id": name,
        "product_id": name,
        "title": text(record["doc_title"]),
        "image": _picture(record["doc_image"], name),
        "category": next((x for x in reversed(found) if x), None),
        "attributes": _attributes(record.get("doc_attributes")),
        "split": training_split(f"product {name}") if training else "test",
    }


def _picture(value: object, name: str) -> str:
    """File of a picture: one given by address was downloaded under the listing's id."""
    found = text(value)
    return f"images/{name}.jpg" if found.startswith(("http:", "https:", "//")) else found


def _attributes(value: object) -> dict[str, str] | None:
    pairs = (part.partition(":") for part in text(value).split(",,"))
    found = {key.strip(): ", ".join(x.split("!!!")).strip() for key, _, x in pairs}
    return {key: x for key, x in found.items() if key and x} or None


LAYOUT = Layout(
    name="mbe",
    description="MBE of the MOON paper: products and purchases on Taobao, pictures by address",
    citation=(
        "D. Zhang et al., MOON: Generative MLLM-based Multimodal Representation Learning for "
        "E-commerce Product Understanding, WSDM 2026 (arXiv 2508.11999); "
        "huggingface.co/datasets/Daoze/MM-Bench-E-Commerce; Apache 2.0"
    ),
    download=DOWNLOAD,
    inputs=inputs,
    rows=rows,
)
