"""What the stages of a run share: devices, models, rows and lists, each made when it is needed."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import RunConfig
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.parallel.mesh import host_share, make_mesh
from afmrl_jax.performance.remat import with_remat
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runs.written_lists import WrittenLists
from afmrl_jax.training.model_store import ModelStore
from afmrl_jax.training.run_directory import Run


class RunParts:
    """A run directory, its catalogue, and what is made of the two."""

    run: Run
    config: RunConfig
    catalogue: Catalogue

    @cached_property
    def mesh(self) -> Mesh:
        """The devices of this run."""
        return make_mesh(self.config.mesh.data, self.config.mesh.model)

    @cached_property
    def models(self) -> ModelStore:
        """The models of the stages."""
        return ModelStore(self.run.folder, with_remat(self.config, self.run.folder), self.mesh)

    @cached_property
    def tokenizer(self) -> BpeTokenizer:
        """The run's tokenizer."""
        return BpeTokenizer.load(self.run.folder / "tokenizer")

    @cached_property
    def builder(self) -> RowBuilder:
        """Rows over the whole catalogue."""
        return self._rows(self.catalogue)

    def _rows(self, catalogue: Catalogue) -> RowBuilder:
        config, share = self.config, host_share(self.mesh)
        return RowBuilder.of(catalogue.listings, self.tokenizer, config.image, config.text, share)

    def _split_builder(self, *splits: str) -> RowBuilder:
        return self._rows(self.catalogue.subset(*splits))

    def _encoder(self, stage: str) -> Encoder:
        size, model = self.config.evaluation.batch_size, self.models.load(stage)
        return Encoder.on(self.mesh, *model, size, packed=self.config.packed)

    def _where(self, *splits: str) -> np.ndarray:
        return self.catalogue.indices(*splits)

    @cached_property
    def lists(self) -> WrittenLists:
        """The attribute lists of the stages."""
        return WrittenLists(self.run, self.config.lists, self.mesh, packed=self.config.packed)
