"""Listings to vectors: batched, jitted, in fixed shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.data.batching.collate import Row, VLBatch
from afmrl_jax.data.batching.row_packing import PackedRows
from afmrl_jax.data.batching.shapes import ShapeCounter
from afmrl_jax.data.sources.embedder_batches import packed_batches, sorted_batches
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture, Params, identity
from afmrl_jax.models.embedder import embed_batch
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.runtime.distributed import to_host
from afmrl_jax.runtime.progress import Progress, log_info


@partial(jax.jit, static_argnames="architecture")
def _embed(architecture: Architecture, params: Params, batch: VLBatch | PackedRows) -> jax.Array:
    return embed_batch(architecture.bind(params), batch)


@dataclass(frozen=True)
class Encoder:
    """The embedder with its weights."""

    architecture: Architecture
    params: Params
    batch_size: int = 128
    mesh: Mesh | None = None
    """Devices for the batches; None leaves placement to JAX."""
    packed: bool = False
    """Whether rows of more than a batch share bins; otherwise those of like length share one, and
    each is padded to a bucket. The vectors are the same but for rounding."""

    @classmethod
    def on(
        cls,
        mesh: Mesh,
        architecture: Architecture,
        params: Params,
        batch_size: int = 128,
        *,
        packed: bool = False,
    ) -> Encoder:
        """An encoder with its weights on `mesh` and its batches split over it."""
        return cls(architecture, place(params, mesh), batch_size, mesh, packed)

    @cached_property
    def identity(self) -> str:
        """A hash of the model: vectors of different identities must not be compared."""
        return identity(self.architecture, self.params)

    def embed(
        self,
        builder: RowBuilder,
        indices: Sequence[int] | np.ndarray,
        attributes: Mapping[str, str] | None = None,
        *,
        title: bool = True,
        picture: bool = True,
        label: str | None = None,
    ) -> np.ndarray:
        """Unit vectors of some listings.

        Args:
            builder: rows of a list of listings.
            indices: which of them, [n].
            attributes: attribute text by listing id; None embeds without attributes.
            title: whether the row holds the title.
            picture: whether the row holds the picture.
            label: name for a progress bar and a log line on compiled shapes; None shows neither.

        Returns:
            float32 [n, d], in the order of `indices`.
        """
        texts = attributes or {}
        rows = [
            builder.embedder(
                int(i), texts.get(builder.listings[int(i)].listing_id), title=title, picture=picture
            )
            for i in indices
        ]
        if not self.packed or len(rows) <= self.batch_size:
            return self.embed_rows(builder, rows, label=label)
        shares = 1 if self.mesh is None else self.mesh.shape[AXES[0]]
        batches = packed_batches(builder, rows, self.batch_size, shares)
        return self._embedded(batches, len(rows), label)

    def embed_rows(
        self, builder: RowBuilder, rows: Sequence[Row], *, label: str | None = None
    ) -> np.ndarray:
        """Unit vectors of rows, float32 [n, d], in their order.

        Rows never share bins here, whose shapes depend on all rows: for calls with ever new ones.
        """
        return self._embedded(sorted_batches(builder, rows, self.batch_size), len(rows), label)

    def _embedded(
        self,
        batches: Iterable[tuple[VLBatch | PackedRows, np.ndarray]],
        count: int,
        label: str | None,
    ) -> np.ndarray:
        out = np.zeros((count, self.architecture.config.text.hidden_dim), np.float32)
        shapes, done = ShapeCounter(), 0
        with Progress(label, count) as progress:
            for batch, chosen in batches:
                shapes.add(batch)
                out[chosen] = to_host(self.vectors(batch))[: len(chosen)]
                done += len(chosen)
                progress.update(done)
        if label is not None and shapes:
            log_info(f"{label}: {shapes}")
        return out

    def vectors(self, batch: VLBatch | PackedRows) -> jax.Array:
        """Unit vectors of a batch's rows, [b d]."""
        if self.mesh is None:
            return _embed(self.architecture, self.params, batch)
        with jax.set_mesh(self.mesh):
            return _embed(self.architecture, self.params, place_batch(batch, self.mesh))
