"""What the stages of a run share: devices, models, rows and lists, each made when it is needed."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import get_args

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
from afmrl_jax.training.model_store import ModelStore, load_tokenizer
from afmrl_jax.training.run_directory import Run
from afmrl_jax.types import Role


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
    def tokenizers(self) -> dict[Role, BpeTokenizer]:
        """Of the two models; mostly one and the same."""
        folder = self.run.folder / "tokenizer"
        return {role: load_tokenizer(folder, role) for role in get_args(Role)}

    @cached_property
    def prompts(self) -> RowBuilder:
        """The generator's rows over the whole catalogue."""
        return self._rows(self.catalogue, "generator")

    def _rows(self, catalogue: Catalogue, role: Role = "embedder") -> RowBuilder:
        image, text = self.config.image_of(role), self.config.text_of(role)
        share = host_share(self.mesh)
        return RowBuilder.of(catalogue.listings, self.tokenizers[role], image, text, share)

    def _split_builder(self, *splits: str) -> RowBuilder:
        return self._rows(self.catalogue.subset(*splits))

    def _for_generator(self, rows: RowBuilder) -> RowBuilder:
        """The generator's rows of the same listings, with the same pictures where both models cut
        them alike.
        """
        tokenizer = self.tokenizers["generator"]
        image, text = self.config.image_of("generator"), self.config.text_of("generator")
        if image == rows.image:
            return dataclasses.replace(rows, tokenizer=tokenizer, text=text)
        return RowBuilder.of(rows.listings, tokenizer, image, text, rows.host)

    def _encoder(self, stage: str) -> Encoder:
        size, model = self.config.evaluation.batch_size, self.models.load(stage)
        return Encoder.on(self.mesh, *model, size, packed=self.config.packed)

    def _where(self, *splits: str) -> np.ndarray:
        return self.catalogue.indices(*splits)

    @cached_property
    def lists(self) -> WrittenLists:
        """The attribute lists of the stages."""
        return WrittenLists(self.run, self.config.lists, self.mesh, packed=self.config.packed)
