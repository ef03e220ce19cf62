"""The stages of a run that train the embedder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from afmrl_jax.config import AgclConfig, to_dict
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.attributes.shuffled import shuffled_lists
from afmrl_jax.errors import RunError
from afmrl_jax.inference.systems import TEXTS
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.runs.parts import RunParts
from afmrl_jax.runtime.distributed import check_on_first
from afmrl_jax.training.agcl import train_agcl
from afmrl_jax.training.model_store import WEIGHTS
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.run_directory import DONE
from afmrl_jax.types import JsonObject

BACKBONE, INFONCE = "backbone", "infonce"
"""Stages; the embedder of the second one is the teacher of others."""


class EmbedderStages(RunParts):
    """How a run trains its embedder, by whichever loss."""

    def _base(self) -> JsonObject:
        """Inputs of every training stage."""
        return {
            "catalogue": self.catalogue.fingerprint,
            "tokenizer": self.run.output_hash("tokenizer", "tokenizer.json"),
            "seed": self.config.seed,
        }

    def train_r(
        self,
        name: str,
        settings: AgclConfig,
        annotated: str | None,
        *,
        in_input: bool,
        start: str | None = BACKBONE,
        shuffled: bool = False,
    ) -> None:
        """Train the embedder as a stage, from the model of the stage `start` (with a backbone).

        Weights, masks and, with `in_input`, the input take the lists of the stage `annotated`; with
        `shuffled`, each listing has those of another product.
        """
        start = start if self.config.backbone.steps else None
        inputs = self._base() | {
            "settings": to_dict(settings),
            "model": to_dict(self.config.embedder),
            "attributes_in_input": in_input,
        }
        if start:
            inputs["start"] = self.run.output_hash(start, WEIGHTS)
        if annotated:
            inputs["attributes"] = self.run.output_hash(annotated, TEXTS)
            inputs |= self.lists.more(annotated) if in_input else {}
        if shuffled:
            inputs["shuffled"] = True
        inputs |= self._teacher_inputs(name, settings)

        def work(folder: Path) -> None:
            if start:
                architecture, initial = self.models.load(start)
            else:
                architecture, initial = self.models.start(name, self.tokenizers["embedder"])
            lists = self.lists.read(annotated) if annotated else None
            if shuffled and lists is not None:
                listings = self.catalogue.subset("train").listings
                lists = shuffled_lists(lists, listings, self.config.seed)
            self._fit(folder, name, settings, architecture, initial, lists, in_input)

        self.run.stage(name, inputs, [WEIGHTS], work)

    def _fit(
        self,
        folder: Path,
        name: str,
        settings: AgclConfig,
        architecture: Architecture,
        initial: Params,
        lists: Lists | None,
        in_input: bool,
        seed: int | None = None,
    ) -> None:
        """`seed` of batches and dropout, where it is not the run's."""
        params = train_agcl(
            self.config,
            settings,
            name,
            folder,
            Partition.of(architecture, initial, self.config.embedder, self.mesh),
            self._split_builder("train"),
            attributes=lists,
            attributes_in_input=in_input,
            teacher=self._teacher(settings),
            seed=self.config.seed if seed is None else seed,
        )
        self.models.save(name, architecture, params, self.tokenizers["embedder"])

    def _teacher_inputs(self, name: str, settings: AgclConfig) -> JsonObject:
        """Inputs of a stage that is masked by a teacher; none for others.

        Raises:
            RunError: the run has not trained one.
        """
        if settings.teacher_share is None:
            return {}
        done = self.run.folder / INFONCE / DONE
        if name == INFONCE or not check_on_first(done.is_file):
            raise RunError(
                f"{name}: agcl.teacher_share {settings.teacher_share} masks by the embedder of the "
                f"stage {INFONCE}, which is not finished in {self.run.folder}: train that stage "
                "first, or set --agcl.teacher-share None"
            )
        return {"teacher": self.run.output_hash(INFONCE, WEIGHTS)}

    def _teacher(self, settings: AgclConfig) -> np.ndarray | None:
        """Vectors of the whole training listings by the teacher, float32 [n d], without lists."""
        if settings.teacher_share is None:
            return None
        builder = self._split_builder("train")
        places = np.arange(len(builder.listings))
        return self._encoder(INFONCE).embed(builder, places, label="teacher")
