"""A run directory as a source of models."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import get_args

from jax.sharding import Mesh

from afmrl_jax.config import RunConfig, from_dict
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import RunError
from afmrl_jax.inference.systems import System, generators_of, systems_of
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.parallel.mesh import host_share, make_mesh
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.object_store import working_copy
from afmrl_jax.training.model_store import WEIGHTS, ModelStore, load_tokenizer
from afmrl_jax.training.run_directory import DONE, check_finished
from afmrl_jax.types import Role


class FinishedRun:
    """A run directory as a source of models."""

    def __init__(self, folder: Path):
        self.folder = folder = working_copy(folder)
        path = folder / "config.json"
        if not path.is_file():
            raise RunError(
                f"{folder} is not a run directory (config.json is missing); give the --out of "
                "`afmrl train`, or `demo-weights` where no trained run is needed"
            )
        self.config: RunConfig = from_dict(RunConfig, read_json(path), path, stored=True)

    @cached_property
    def mesh(self) -> Mesh:
        """The devices of this machine, whatever devices the run was trained on."""
        return make_mesh(-1, 1)

    @cached_property
    def tokenizers(self) -> dict[Role, BpeTokenizer]:
        """Of the two models; mostly one and the same.

        Raises:
            RunError: the run has none yet, or they are not those that it wrote.
        """
        folder = self.folder / "tokenizer"
        if not (folder / DONE).is_file():
            raise RunError(f"{self.folder} has no tokenizer yet; let `afmrl train` finish first")
        check_finished(folder)
        return {role: load_tokenizer(folder, role) for role in get_args(Role)}

    @property
    def evaluations(self) -> Path:
        """The folder in which lists of other catalogues are kept."""
        return self.folder / "evaluations"

    @property
    def last_generator(self) -> str:
        """The stage of the generator that was trained last; cycles may have reinforced it again."""
        return generators_of(self.config)[-1]

    def system(self, name: str | None = None) -> System:
        """The results row of this name; without a name, the last one."""
        rows = {x.name: x for x in systems_of(self.config)}
        if name is not None and name not in rows:
            raise RunError(f"{self.folder} has no system {name!r}; choose from {', '.join(rows)}")
        return rows[name or list(rows)[-1]]

    def model(self, stage: str) -> tuple[Architecture, Params]:
        """The model that a finished stage trained.

        Raises:
            RunError: the stage is not finished, or its files are not those that it wrote.
        """
        if not (self.folder / stage / DONE).is_file():
            raise RunError(
                f"stage {stage} of {self.folder} is not finished; start its `afmrl train` command "
                "again"
            )
        check_finished(self.folder / stage, [WEIGHTS])
        return ModelStore(self.folder, self.config, self.mesh).load(stage)

    def grammar(self, vocab_size: int) -> Grammar | None:
        """What the run's generators keep to, with that many rows in their token table; None where
        they write freely.
        """
        store = ModelStore(self.folder, self.config, self.mesh)
        return store.grammar(self.tokenizers["generator"], vocab_size)

    def encoder(self, system: System) -> Encoder:
        """The embedder of a system."""
        size = self.config.evaluation.batch_size
        model = self.model(system.embedder)
        return Encoder.on(self.mesh, *model, size, packed=self.config.packed)

    def rows(self, catalogue: Catalogue, role: Role = "embedder") -> RowBuilder:
        """A model's rows of a catalogue's listings."""
        image, text = self.config.image_of(role), self.config.text_of(role)
        share = host_share(self.mesh)
        return RowBuilder.of(catalogue.listings, self.tokenizers[role], image, text, share)
