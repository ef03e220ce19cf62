"""The stages of a run in which generator and embedder improve each other: RAR and CIT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from afmrl_jax.config import RarConfig, to_dict
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.inference.systems import (
    DISTILL,
    DISTILLED,
    RAR,
    TEXTS,
    annotations_of,
    generator_of,
)
from afmrl_jax.runs.embedder_stages import EmbedderStages
from afmrl_jax.training.cit import cit_seed, cit_settings, cycle_attributes, listings_to_annotate
from afmrl_jax.training.model_store import WEIGHTS
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.rar.environment import RarEnvironment
from afmrl_jax.training.rar.stage import train_rar

FIRST = "agcl-distilled"
"""The stage whose embedder judges the first RAR, and from which the first cycle continues."""


class CycleStages(EmbedderStages):
    """How a run reinforces its generator and trains its embedder on what that writes.

    `annotated` are the splits for which the distilled generator writes lists.
    """

    annotated: tuple[str, ...]

    def cycle_stages(self) -> dict[str, Callable[[], object]]:
        """The stages from RAR on by name, in order."""
        config, last = self.config, FIRST
        chain: dict[str, Callable[[], object]] = {
            RAR: self.reinforce,
            annotations_of(RAR): partial(self._annotate_again, RAR),
        }
        before, control = RAR, FIRST
        for cycle in range(1, config.cit.cycles + 1):
            generator = generator_of(config, cycle)
            if generator not in chain:
                chain[generator] = partial(self.reinforce, generator, start=before, embedder=last)
                chain[annotations_of(generator)] = partial(self._annotate_again, generator)
                before = generator
            chain[f"cit-{cycle}"] = partial(self._cit, cycle, last)
            last = f"cit-{cycle}"
            if config.controls:
                chain[f"cit-control-{cycle}"] = partial(self._cit, cycle, control, old_lists=True)
                control = f"cit-control-{cycle}"
        return chain

    def annotate(self, name: str, generator: str, indices: np.ndarray) -> None:
        """Let a generator write lists as a stage.

        Args:
            name: of the stage.
            generator: stage that trained it.
            indices: numbers of the listings in the catalogue.
        """
        inputs = self._base() | {
            "generator": self.run.output_hash(generator, WEIGHTS),
            "listings": len(indices),
            "lists": to_dict(self.config.lists),
        }

        def work(folder: Path) -> None:
            model, splits = self.models.load(generator), self.catalogue.column("split")
            tokenizer, seed = self.tokenizers["generator"], self.config.seed
            grammar = self.models.grammar(tokenizer, model[0].config.text.vocab_size)
            self.lists.write(folder, model, self.prompts, indices, splits, seed, grammar)

        self.run.stage(name, inputs, self.lists.files, work)

    def _annotate_first(self) -> None:
        self.annotate(DISTILLED, DISTILL, self._where(*self.annotated))

    def _annotate_again(self, generator: str) -> None:
        train = self._where("train")
        again = train[listings_to_annotate(self.config, len(train))]
        # What is reinforced again needs lists for its gallery.
        further = ("reward", "test") if self.config.cit.rar_between else ("test",)
        indices = np.concatenate([again, self._where(*further)])
        self.annotate(annotations_of(generator), generator, indices)

    def _newest(self, generator: str) -> Lists:
        """What a generator wrote, and where it has not written the distilled generator."""
        before = self.lists.read(DISTILLED)
        if generator == DISTILL:
            return before
        newer = self.lists.read(annotations_of(generator))
        return before.with_newer(newer, newer.both)

    def reinforce(
        self,
        name: str = RAR,
        settings: RarConfig | None = None,
        *,
        start: str = DISTILL,
        embedder: str = FIRST,
    ) -> None:
        """Reinforce a generator as a stage.

        Args:
            name: of the stage.
            settings: in place of the run's own.
            start: stage of the generator to start from, whose lists are the first gallery.
            embedder: stage of the embedder that judges.
        """
        config = self.config
        if settings is not None:
            config = dataclasses.replace(config, rar=settings)
        inputs = self._base() | {
            "settings": to_dict(config.rar),
            "generator": self.run.output_hash(start, WEIGHTS),
            "embedder": self.run.output_hash(embedder, WEIGHTS),
            "attributes": self.run.output_hash(annotations_of(start), TEXTS),
        }

        def work(folder: Path) -> None:
            architecture, params = self.models.load(start)
            vocab_size, tokenizer = (
                architecture.config.text.vocab_size,
                self.tokenizers["generator"],
            )
            rows = self._split_builder(*config.rar.gallery_splits)
            environment = RarEnvironment(
                rows,
                self._encoder(embedder),
                self._newest(start).both,
                config.rar,
                config.seed,
                vocab_size=vocab_size,
                packed=config.packed,
                annotation_grammar=self.models.grammar(tokenizer, vocab_size),
                writer=self._for_generator(rows),
            )
            trainee = Partition.of(architecture, params, config.generator, self.mesh)
            params = train_rar(config, folder, trainee, environment)
            self.models.save(name, architecture, params, tokenizer)

        self.run.stage(name, inputs, [WEIGHTS], work)

    def _cit(self, cycle: int, last: str, *, old_lists: bool = False) -> None:
        """Continue from the embedder of the stage `last`, with newer lists or, as a control,
        without them.
        """
        name, settings = f"cit-{cycle}", cit_settings(self.config)
        newest = annotations_of(generator_of(self.config, cycle))
        inputs = self._base() | {
            "settings": to_dict(settings),
            "cit": to_dict(self.config.cit),
            "embedder": self.run.output_hash(last, WEIGHTS),
            "before": self.run.output_hash(DISTILLED, TEXTS),
            "again": self.run.output_hash(newest, TEXTS),
            **self.lists.more(DISTILLED, newest),
            **self._teacher_inputs(name, settings),
        }
        if old_lists:
            name = f"cit-control-{cycle}"
            inputs |= {"again": None, **self.lists.more(DISTILLED)}

        def work(folder: Path) -> None:
            architecture, params = self.models.load(last)
            lists = self.lists.read(DISTILLED)
            if not old_lists:
                ids = [x.listing_id for x in self.catalogue.subset("train").listings]
                after = self.lists.read(newest)
                lists = cycle_attributes(self.config, cycle, ids, lists, after)
            seed = cit_seed(self.config, cycle)
            self._fit(folder, name, settings, architecture, params, lists, True, seed)

        self.run.stage(name, inputs, [WEIGHTS], work)
