"""The attribute lists of a run: the files that a generator writes in a stage, and their hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import ListsConfig
from afmrl_jax.data.attributes.lists import SAMPLED, WRITTEN, Lists, modalities
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.runtime.distributed import check_on_first
from afmrl_jax.training.annotate import annotate
from afmrl_jax.training.run_directory import Run
from afmrl_jax.training.sampled_lists import sample_lists
from afmrl_jax.types import JsonObject


@dataclass(frozen=True)
class WrittenLists:
    """The lists of a run, by the stage that holds them."""

    run: Run
    config: ListsConfig
    mesh: Mesh
    """Devices that share a batch of prompts."""
    packed: bool = False
    """Whether prompts may share bins; see `RunConfig.packed`."""

    @property
    def files(self) -> list[str]:
        """What such a stage leaves in its folder."""
        shown = modalities(self.config)
        sampled = [SAMPLED[x] for x in shown] if self.config.samples else []
        return [WRITTEN[x] for x in shown] + sampled

    def read(self, stage: str) -> Lists:
        """All lists of a finished stage."""
        return Lists.read(self.run.folder / stage, self.config)

    def more(self, *stages: str) -> JsonObject:
        """Hashes of the files that only some runs have, as an input of what reads them."""
        further = [x for x in self.files if x != WRITTEN["both"]]
        found = {
            stage: {x: self.run.output_hash(stage, x) for x in further}
            for stage in stages
            if further
        }
        return {"more_lists": found} if found else {}

    def write(
        self,
        folder: Path,
        model: tuple[Architecture, Params],
        builder: RowBuilder,
        indices: np.ndarray,
        splits: Sequence[str | None],
        seed: int,
        grammar: Grammar | None = None,
    ) -> None:
        """Write a stage's lists; a killed stage goes on with the file that it was at.

        Args:
            folder: of the stage.
            model: the generator.
            builder: rows of the catalogue.
            indices: numbers of the listings. Those of `train` get sampled lists, and those of
                `reward`, which are never shown in part, none of a lone picture or title.
            splits: of all listings of the catalogue.
            seed: of the samples.
            grammar: of all lists; None for whatever the generator writes.
        """
        where, packed = self.mesh, self.packed
        write = partial(annotate, *model, mesh=where, packed=packed, grammar=grammar)
        draw = partial(sample_lists, *model, mesh=where, packed=packed, grammar=grammar)
        own = np.array(splits)[indices]
        lone, sampled = indices[own != "reward"], indices[own == "train"]
        for shown in modalities(self.config):
            rows, chosen = builder.showing(shown), indices if shown == "both" else lone
            label = folder.name if shown == "both" else f"{folder.name} ({shown})"
            out = folder / WRITTEN[shown]
            if not check_on_first(out.is_file):
                write(rows, chosen, out, label=label)
            out = folder / SAMPLED[shown]
            if self.config.samples and not check_on_first(out.is_file):
                draw(rows, sampled, out, self.config, seed=seed, label=f"{label}, samples")
