"""TFDS builders of the published datasets: raw folder in, ArrayRecord out, without TensorFlow.

    from afmrl_jax.data.catalogue.published.builders import Abo, prepare

    builder = prepare(Abo, raw_folder, data_dir)
    rows = stored_rows(builder.as_data_source(split="listings"))

The features are the columns of our listings: texts, the attributes as JSON, and the picture as the
bytes of its file, which no reader decodes by default. Options of a layout's `rows` are a builder
config; each named config has its own folder. With `beam=True` the files of the raw folder are read
by the workers of an Apache Beam pipeline.

Importing this module registers the builders under their names (`abo`, `m5_product`, ...).
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.shuffle import DuplicatedKeysError

from afmrl_jax.data.catalogue.published import (
    abo,
    m5product,
    mbe,
    online_products,
    product1m,
    shards,
)
from afmrl_jax.data.catalogue.published.examples import examples
from afmrl_jax.data.catalogue.published.reading import Layout
from afmrl_jax.data.catalogue.records import Problem
from afmrl_jax.data.catalogue.tfds_examples import PART, features
from afmrl_jax.errors import CatalogueError

if TYPE_CHECKING:
    from apache_beam import PTransform
    from apache_beam.options.pipeline_options import PipelineOptions

Examples = Iterator[tuple[str, dict[str, str | bytes]]]
"""Listing ids and examples."""


@dataclasses.dataclass
class ListingsConfig(tfds.core.BuilderConfig):
    """How a raw folder is read; `name` is the name of the folder with the result."""

    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Options of the layout's `rows`."""
    files: Sequence[str] | None = None
    """Some of the layout's input files, as paths; all by default."""
    skip_bad: bool = False
    """Leave broken records out (they are listed in `problems`) instead of stopping."""
    beam: bool = False
    """Read the input files in an Apache Beam pipeline."""


class ListingsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders: a layout's rows as examples."""

    VERSION = tfds.core.Version("1.0.0")
    LAYOUT: ClassVar[Layout]
    # TFDS would look it up with importlib_resources, which it does not require since Python 3.9.
    code_path = epath.Path(__file__)

    problems: Sequence[Problem] = ()
    """What `skip_bad` left out of the last preparation, and warnings; Beam's workers log them."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.LAYOUT.description,
            citation=self.LAYOUT.citation,
            features=features(),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Examples | PTransform]:
        folder = dl_manager.manual_dir
        if not self._config.files and not self.LAYOUT.found(folder):
            raise CatalogueError(
                f"{folder} is not a raw folder of {self.LAYOUT.name}; {self.LAYOUT.download}"
            )
        return {PART: self._generate_examples(folder)}

    @property
    def _config(self) -> ListingsConfig:
        config = self.builder_config
        return config if isinstance(config, ListingsConfig) else ListingsConfig(name="")

    def _generate_examples(self, folder: Path) -> Examples | PTransform:
        files = [epath.Path(x) for x in self._config.files or self.LAYOUT.inputs(folder)]
        if self._config.beam:
            from afmrl_jax.data.catalogue.published.beam import read_files

            return read_files(
                self.LAYOUT, folder, files, self._config.options, skip_bad=self._config.skip_bad
            )
        return self._examples(folder, files)

    def _examples(self, folder: Path, files: list[Path]) -> Examples:
        problems: list[Problem] = []
        self.problems = problems

        def report(problem: Problem) -> None:
            if problem.severity != "warning" and not self._config.skip_bad:
                raise CatalogueError(f"{problem} (skip_bad=True leaves such records out)")
            problems.append(problem)

        yield from examples(self.LAYOUT, folder, report, files=files, **self._config.options)


class M5Product(ListingsBuilder):
    """M5Product; a config for each task."""

    LAYOUT = m5product.LAYOUT
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT.download
    BUILDER_CONFIGS: ClassVar = [
        ListingsConfig(name=task, options={"task": task}) for task in m5product.LISTS
    ]


class Abo(ListingsBuilder):
    """Amazon Berkeley Objects, in English by default."""

    LAYOUT = abo.LAYOUT
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT.download
    BUILDER_CONFIGS: ClassVar = [ListingsConfig(name="en", options={"language": "en"})]


class Product1m(ListingsBuilder):
    """Product1M, with the queries of the test set by default."""

    LAYOUT = product1m.LAYOUT
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT.download
    BUILDER_CONFIGS: ClassVar = [ListingsConfig(name="test", options={"queries": ("test",)})]


class OnlineProducts(ListingsBuilder):
    """Stanford Online Products from the authors' archive."""

    LAYOUT = online_products.LAYOUT
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT.download
    BUILDER_CONFIGS: ClassVar = [ListingsConfig(name="archive")]


class OnlineProductsTfds(ListingsBuilder):
    """Stanford Online Products from a dataset that TFDS's own builder has written."""

    LAYOUT = online_products.STORED_LAYOUT
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT.download
    BUILDER_CONFIGS: ClassVar = [ListingsConfig(name="archive")]


class Mbe(ListingsBuilder):
    """MBE of the MOON paper, products only by default."""

    LAYOUT = mbe.LAYOUT
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT.download
    BUILDER_CONFIGS: ClassVar = [ListingsConfig(name="products")]


class ListingShards(ListingsBuilder):
    """The user's own catalogue in many files, read with Beam by default."""

    LAYOUT = shards.LAYOUT
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT.download
    BUILDER_CONFIGS: ClassVar = [ListingsConfig(name="beam", beam=True)]


BUILDERS: dict[str, type[ListingsBuilder]] = {
    builder.LAYOUT.name: builder
    for builder in (
        M5Product, Abo, Product1m, OnlineProducts, OnlineProductsTfds, Mbe, ListingShards,
    )
}  # fmt: skip
"""The builders by the name of their layout."""


def prepare(
    builder_class: type[ListingsBuilder],
    folder: Path | str,
    data_dir: Path | str,
    *,
    config: str | ListingsConfig | None = None,
    beam_options: PipelineOptions | None = None,
) -> ListingsBuilder:
    """Write a raw folder as an ArrayRecord dataset; does nothing if it has been written.

    Args:
        builder_class: of the dataset.
        folder: the raw folder, see the class's `MANUAL_DOWNLOAD_INSTRUCTIONS`.
        data_dir: the result is `<data_dir>/<name>/<config>/<version>`.
        config: name of one of the class's configs, or your own config; the class's first by
            default.
        beam_options: `PipelineOptions` (runner, workers) for a config with `beam=True`.

    Returns:
        The builder; `as_data_source(split=PART)` reads the dataset.

    Raises:
        CatalogueError: the folder has another layout, a record is broken, or an id is repeated.
    """
    builder = builder_class(data_dir=data_dir, config=config)
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=folder, beam_options=beam_options, try_download_gcs=False
            ),
            file_format="array_record",
        )
    except CatalogueError:
        raise
    except Exception as error:
        repeated = _repeated(error, builder)
        if repeated is None:
            raise
        raise CatalogueError(
            f"{folder}: {repeated} occurs twice; give every listing a unique id"
        ) from error
    return builder


def _repeated(failure: BaseException, builder: ListingsBuilder) -> str | None:
    """What TFDS found twice, if that is why it failed.

    TFDS needs TensorFlow to report it; without TensorFlow, the import error hides the reason.
    """
    # Beam gives a worker's error as a text with its traceback, or raises it again.
    beam = "_raise_error_for_duplicated_keys" in "".join(traceback.format_exception(failure))
    error: BaseException | None = failure
    while error is not None:
        if isinstance(error, DuplicatedKeysError):
            example = builder.info.features.deserialize_example_np(error.item1)
            return f"listing {example['listing_id'].decode()!r}"
        error = error.__cause__ or error.__context__
    return "some listing id (without Beam it is named)" if beam else None
