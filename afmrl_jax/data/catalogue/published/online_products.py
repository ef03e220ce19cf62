"""Stanford Online Products (SOP): several pictures each of 22,634 products of eBay, without text.

Layout, from the archive Stanford_Online_Products.zip, as TFDS's builder `stanford_online_products`
reads it:

    Ebay_train.txt, Ebay_test.txt    header "image_id class_id super_class_id path", then one row
                                     per picture, separated by spaces
    <super class>_final/<item>_<n>.JPG

A class is a product, a super class one of twelve categories. There are no titles: the title is the
name of the category, which does not give the product away. Every picture is a listing, named after
its file (`111085122871_0`).

The classes of the training file are divided among distill, train and reward by a hash of the class.
Those of the test file are `test`; every picture is both query and gallery, as in the protocol.

`stored_rows` reads the same from a dataset that TFDS's own builder has written. TFDS does not keep
the file names and stores examples in the order of a hash, so a listing is named by its position
there (`test-17`); super class and class keep their meaning. TFDS needs TensorFlow to write that
dataset, but not to read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from afmrl_jax.data.catalogue.lines import read_lines
from afmrl_jax.data.catalogue.published.reading import Layout, training_split
from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.data.catalogue.tfds_examples import open_prepared
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import MAX_DIGITS, read_json

CATEGORIES = (
    "bicycle", "cabinet", "chair", "coffee maker", "fan", "kettle", "lamp", "mug", "sofa",
    "stapler", "table", "toaster",
)  # fmt: skip
"""In the order of super_class_id, from 1."""
HEADER = ["image_id", "class_id", "super_class_id", "path"]
DOWNLOAD = (
    "download Stanford_Online_Products.zip from the page of Stanford Online Products and unpack "
    "it; the folder has Ebay_train.txt, Ebay_test.txt and bicycle_final/ to toaster_final/"
)
CITATION = (
    "H. O. Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016; "
    "cvgl.stanford.edu/projects/lifted_struct"
)


def inputs(folder: Path) -> list[Path]:
    """The files of both halves that are there."""
    paths = [folder / name for name in ("Ebay_train.txt", "Ebay_test.txt")]
    return [path for path in paths if path.is_file()]


def rows(folder: Path, report: Report, *, files: Sequence[Path] | None = None) -> Iterator[Row]:
    """A row for every picture.

    Args:
        folder: the unpacked archive.
        report: called with each broken record.
        files: some of `inputs(folder)`; all by default.
    """
    for file in inputs(folder) if files is None else files:
        lines = read_lines(file, report)
        number, header = next(lines, (1, ""))
        if header.split() != HEADER:
            what = f"the header is {header!r} and not {' '.join(HEADER)!r}"
            report(Problem(f"line {number}", str(file), what, "use the authors' file unchanged"))
            continue
        for number, line in lines:
            fields = line.split()
            what = _wrong(fields)
            if what:
                report(Problem(f"line {number}", str(file), what, "fix or remove the line"))
                continue
            _, product, category, path = fields
            row = _listing(int(product), int(category), "test" in file.name)
            name = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
            yield f"{file.name}, line {number}", {**row, "listing_id": name, "image": path}


def _wrong(fields: list[str]) -> str:
    if len(fields) != len(HEADER):
        return f"{len(fields)} fields, where {len(HEADER)} are needed ({' '.join(HEADER)})"
    if not all(x.isdecimal() and len(x) <= MAX_DIGITS for x in fields[1:3]):
        shown = [repr(x[:MAX_DIGITS]) for x in fields[1:3]]
        return f"class_id {shown[0]} and super_class_id {shown[1]} must be numbers"
    if not 1 <= int(fields[2]) <= len(CATEGORIES):
        return f"super_class_id {fields[2]} is not one of 1 to {len(CATEGORIES)}"
    return ""


def _listing(product: int, category: int, test: bool) -> dict[str, str]:
    """What a picture's class and super class, counted from 1, say about the listing."""
    name = CATEGORIES[category - 1]
    split = "test" if test else training_split(f"product {product}")
    return {"product_id": str(product), "title": name, "category": name, "split": split}


def stored_inputs(folder: Path) -> list[Path]:
    """The description of a dataset that TFDS has written, in place of all its files."""
    info = folder / "dataset_info.json"
    try:
        found = read_json(info, error=CatalogueError) if info.is_file() else None
    except CatalogueError:
        return []
    ours = isinstance(found, dict) and found.get("name") == "stanford_online_products"
    return [info] if ours else []


def stored_rows(
    folder: Path, report: Report, *, files: Sequence[Path] | None = None
) -> Iterator[Row]:
    """The rows of a dataset that TFDS's own builder has written, pictures as bytes.

    Args:
        folder: `<data_dir>/stanford_online_products/1.0.0`, written with
            `file_format="array_record"`.
        report: called with each broken record.
        files: if it is empty, nothing is read; the dataset is one input.

    Raises:
        CatalogueError: the dataset cannot be read record by record.
    """
    import tensorflow_datasets as tfds

    if files is not None and not files:
        return
    builder = open_prepared(folder)
    for split in ("train", "test"):
        if split not in builder.info.splits:
            continue
        try:
            decoders = {"image": tfds.decode.SkipDecoding()}
            source = builder.as_data_source(split=split, decoders=decoders)
        except NotImplementedError as error:
            raise CatalogueError(
                f"{folder} is not in the ArrayRecord format; write it again with "
                "download_and_prepare(file_format='array_record')"
            ) from error
        for n in range(len(source)):
            record = source[n]
            product, category = int(record["class_id"]) + 1, int(record["super_class_id"]) + 1
            if not 1 <= category <= len(CATEGORIES):
                what = f"super_class_id {category - 1} is not one of 0 to {len(CATEGORIES) - 1}"
                report(Problem(f"{split} example {n}", str(folder), what, "write it again"))
                continue
            row = _listing(product, category, split == "test")
            image = bytes(record["image"])
            yield f"{split}, example {n}", {**row, "listing_id": f"{split}-{n}", "image": image}


LAYOUT = Layout(
    name="online-products",
    description="Stanford Online Products: 120,053 pictures of 22,634 products, no text",
    citation=CITATION,
    download=DOWNLOAD,
    inputs=inputs,
    rows=rows,
)
STORED_LAYOUT = Layout(
    name="online-products-tfds",
    description="Stanford Online Products as TFDS's own builder stores it",
    citation=CITATION,
    download=(
        "run tfds.builder('stanford_online_products').download_and_prepare("
        "file_format='array_record') where TensorFlow is installed"
    ),
    inputs=stored_inputs,
    rows=stored_rows,
)
