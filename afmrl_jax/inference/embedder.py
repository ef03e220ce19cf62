"""The embedder for your own texts and pictures: unit vectors of anything, not only a catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import RunError
from afmrl_jax.inference.chunks import CHUNK_BATCHES, decoded_chunks
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.folder import FolderModel, is_model_folder
from afmrl_jax.inference.generator import Generator
from afmrl_jax.inference.inputs import Input, Item, named, read_inputs, rows_of
from afmrl_jax.inference.shipped import models_of
from afmrl_jax.inference.systems import System
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.progress import Progress

SIZES = (1, 8, 64)
"""Batch sizes that programs are compiled for, besides the full one: a single query should not cost
a whole batch."""


@dataclass(frozen=True)
class Embedder:
    """The embedder, with everything that turns items into its rows.

    Example:
        ```python
        embedder = Embedder.load("runs/demo")
        vectors = embedder.encode(["oak chair", {"image": "photo.jpg", "text": "chair"}])
        ```
    """

    encoder: Encoder
    tokenizer: BpeTokenizer
    image: ImageConfig
    text: TextBudget
    load_generator: Callable[[], Generator] | None = None
    """Loads the generator whose attributes the embedder was trained on; None for no generator."""

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        system: str | None = None,
        image: ImageConfig | None = None,
        text: TextBudget | None = None,
        batch_size: int | None = None,
    ) -> Embedder:
        """The embedder of a run, or a Qwen-VL from a Hugging Face or PEFT folder.

        Args:
            folder: a run directory, a folder with a model, such as `afmrl export` writes, or
                `demo-weights` for the models that come with the package.
            system: for a run, a row of its results table; None for the last.
            image: for a model's folder, how pictures become patches; None for what was exported, or
                otherwise for the model's own patches and at most 256 visual tokens.
            text: for a model's folder, lengths and layout; None for what was exported, or otherwise
                for Qwen's chat layout.
            batch_size: most items at a time; None for the run's, or 32 for a model's folder.

        Raises:
            RunError: there is no such model, or the run has not trained it yet.
        """
        if not is_model_folder(folder):
            run = models_of(Path(folder))
            found = cls.of(run, run.system(system))
            if batch_size is None:
                return found
            return replace(found, encoder=replace(found.encoder, batch_size=batch_size))
        if system is not None:
            raise RunError(f"{folder} is a model and has no system {system!r}; leave system out")
        model = FolderModel.read(folder, image, text)
        encoder = Encoder(model.architecture, model.params, batch_size or 32, model.mesh)
        return cls(encoder, model.tokenizer, model.image, model.text)

    @classmethod
    def of(cls, run: FinishedRun, system: System) -> Embedder:
        """The embedder of a run's system, with its generator if it has one."""
        stage = system.generator
        return cls(
            run.encoder(system),
            run.tokenizers["embedder"],
            run.config.image_of("embedder"),
            run.config.text_of("embedder"),
            None if stage is None else lambda: Generator.of(run, stage),
        )

    @property
    def identity(self) -> str:
        """A hash of the weights: vectors of embedders of different identity are not comparable."""
        return self.encoder.identity

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.encoder.architecture.config.text.hidden_dim

    @cached_property
    def generator(self) -> Generator:
        """The generator whose attributes the embedder was trained to read, loaded on first use.

        Raises:
            RunError: the embedder reads none, or comes from a model's folder, which has no
                generator.
        """
        if self.load_generator is None:
            raise RunError(
                "this embedder has no generator to write attributes: use a system of a run that "
                "has one (such as afmrl), give `attributes` with the items, or leave "
                "write_attributes out"
            )
        return self.load_generator()

    def encode(
        self, items: Sequence[Item], *, write_attributes: bool = False, label: str | None = "encode"
    ) -> np.ndarray:
        """Unit vectors of texts, pictures, or both.

        Args:
            items: each a text, a picture (a `pathlib.Path`, encoded bytes, a Pillow picture or a
                uint8 array [height width 3]), or a dictionary of `text`, `image` (here a string is
                a path) and `attributes` (a text `key: value; key: value`, or a mapping).
            write_attributes: let the generator write attributes for the items that have none, if
                they have both text and picture, or if the run has `lists.lone`.
            label: name of a progress bar, shown for long lists; None for no bar.

        Returns:
            float32 [n d], of length 1, in the order of the items.

        Raises:
            InputError: an item cannot be used; it is named by its number, as `items[3]`.
            RunError: there is no generator to write attributes.
        """
        inputs = read_inputs(items)
        if write_attributes:
            inputs = self._annotated(inputs, label)
        return self._vectors(inputs, label)

    def encode_with_attributes(
        self, items: Sequence[Item], *, label: str | None = None
    ) -> tuple[np.ndarray, list[str]]:
        """As `encode`, with the attributes that the embedder read for each item, "" if none.

        They come from the generator if this embedder has one, otherwise from the items.
        """
        inputs = read_inputs(items)
        if self.load_generator is not None:
            inputs = self._annotated(inputs, label)
        return self._vectors(inputs, label), [x.attributes or "" for x in inputs]

    def _annotated(self, inputs: list[Input], label: str | None) -> list[Input]:
        """The inputs, with the generator's attributes where it can write some."""
        generator = self.generator
        asked = [
            (n, x)
            for n, x in enumerate(inputs)
            if x.attributes is None
            and (generator.lone or (x.text is not None and x.picture is not None))
        ]
        texts = generator.write_for(asked, label=label)
        out = list(inputs)
        for (n, x), text in zip(asked, texts, strict=True):
            out[n] = replace(x, attributes=text or None)
        return out

    def _vectors(self, inputs: Sequence[Input], label: str | None) -> np.ndarray:
        count, most = len(inputs), self.encoder.batch_size
        size = next((n for n in SIZES if count <= n <= most), most)
        encoder = replace(self.encoder, batch_size=size)
        out = np.zeros((count, self.dim), np.float32)

        def builder_of(begin: int, end: int) -> RowBuilder:
            return rows_of(inputs[begin:end], self.tokenizer, self.image, self.text)

        def row(builder: RowBuilder, place: int, number: int) -> Row:
            x = inputs[number]
            with named(number):
                return builder.embedder(
                    place, x.attributes, title=x.text is not None, picture=x.picture is not None
                )

        chunk = CHUNK_BATCHES * size
        done = 0
        with Progress(label if count > chunk else None, count) as progress:
            for builder, rows in decoded_chunks(count, chunk, builder_of, row):
                out[done : done + len(rows)] = encoder.embed_rows(builder, rows)
                done += len(rows)
                progress.update(done)
        return out
