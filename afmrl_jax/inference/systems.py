"""The rows of the results table: which embedder and which generator make up each system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from afmrl_jax.config.run import RunConfig
from afmrl_jax.config.serialization import from_dict
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.data.sources.loader import RowBuilder
from afmrl_jax.errors import RunError
from afmrl_jax.evaluation.evaluate import (
    Evaluated,
    EvaluationData,
    Subject,
    Texts,
    evaluate_subjects,
    gallery,
)
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.parallel.mesh import host_share, make_mesh
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.files import read_json
from afmrl_jax.runtime.object_store import working_copy
from afmrl_jax.training.model_store import ModelStore

ANNOTATIONS = {"distill": "annotate-distilled", "rar": "annotate-reinforced"}
"""The stage that holds what each generator wrote."""
TEXTS = "attributes.jsonl"
"""The output of such a stage."""


@dataclass(frozen=True)
class System:
    """A row of the results table."""

    name: str
    embedder: str
    """Stage that trained R."""
    generator: str | None
    """Stage that trained the G whose attributes R reads; None where R reads none."""

    @property
    def annotations(self) -> str | None:
        """Stage that holds the generator's attributes."""
        return ANNOTATIONS[self.generator] if self.generator else None


def systems_of(config: RunConfig) -> list[System]:
    """The rows of a run, in the order in which the paper adds its parts."""
    rows = [
        System("infonce", "infonce", None),
        System("agcl", "agcl", None),
        System("agcl+distilled", "agcl-distilled", "distill"),
        System("afmrl", "agcl-distilled", "rar"),
    ]
    # The last is the method's own row, whatever the number of cycles before it.
    for cycle in range(1, config.cit.cycles + 1):
        name = "afmrl+cit" if cycle == config.cit.cycles else f"afmrl+cit-{cycle}"
        rows.append(System(name, f"cit-{cycle}", "rar"))
    return rows


def evaluate_systems(
    config: RunConfig,
    data: EvaluationData,
    encoder: Callable[[str], Encoder],
    before: Texts,
    after: Texts,
    catalogue: str,
) -> tuple[Evaluated, list[dict[str, Any]]]:
    """Evaluate every row of a run.

    Args:
        config: the run.
        data: its test and train listings.
        encoder: R by the stage that trained it.
        before: attribute text by listing id, by the distilled G.
        after: the same by the reinforced G, of the test listings and a share of the others.
        catalogue: its name.

    Returns:
        What was found, and the cards of the last row for `gallery.json`.
    """
    # The reinforced G may have written for a share of the train listings only.
    test_texts = {None: None, "distill": before, "rar": after}
    train_texts = {None: None, "distill": before, "rar": {**before, **after}}
    subjects = (
        Subject(s.name, encoder(s.embedder), test_texts[s.generator], train_texts[s.generator])
        for s in systems_of(config)
    )
    found = evaluate_subjects(subjects, data, config, catalogue)
    return found, gallery(data, found.vectors, config, before, after)


class FinishedRun:
    """A run directory as a source of models."""

    def __init__(self, folder: Path):
        self.folder = folder = working_copy(folder)
        path = folder / "config.json"
        if not path.is_file():
            raise RunError(
                f"{folder} is no run directory (config.json is missing); give the --out of a demo"
            )
        self.config: RunConfig = from_dict(RunConfig, read_json(path))

    @cached_property
    def mesh(self) -> Mesh:
        """The devices of this machine, whatever the run was trained on."""
        return make_mesh(-1, 1)

    @cached_property
    def tokenizer(self) -> BpeTokenizer:
        """The run's tokenizer."""
        folder = self.folder / "tokenizer"
        if not (folder / "DONE.json").is_file():
            raise RunError(f"{self.folder} has no tokenizer yet; let the demo finish first")
        return BpeTokenizer.load(folder)

    def system(self, name: str | None = None) -> System:
        """The row of a name; the last one without."""
        rows = {x.name: x for x in systems_of(self.config)}
        if name is not None and name not in rows:
            raise RunError(f"{self.folder} has no system {name!r}; choose from {', '.join(rows)}")
        return rows[name or list(rows)[-1]]

    def model(self, stage: str) -> tuple[Architecture, Params]:
        """What a finished stage trained."""
        if not (self.folder / stage / "DONE.json").is_file():
            raise RunError(
                f"stage {stage} of {self.folder} is not finished; start its demo command again"
            )
        return ModelStore(self.folder, self.config, self.mesh).load(stage)

    def encoder(self, system: System) -> Encoder:
        """R of a system."""
        size = self.config.evaluation.batch_size
        return Encoder.on(self.mesh, *self.model(system.embedder), size)

    def rows(self, catalogue: Catalogue) -> RowBuilder:
        """Model rows of a catalogue's listings."""
        config, share = self.config, host_share(self.mesh)
        return RowBuilder.of(catalogue.listings, self.tokenizer, config.image, config.text, share)
