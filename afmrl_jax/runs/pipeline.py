"""The whole method as a chain of stages in a run directory.

distill -> annotate-distilled -> backbone -> infonce -> agcl -> agcl-distilled -> rar
        -> annotate-reinforced -> cit-1 ... -> evaluate -> report
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import AgclConfig, RarConfig, RunConfig, to_dict
from afmrl_jax.data.attributes.oracle import oracle_inputs, taught_texts
from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.load import load_catalogue, require_teaching, say_skipped
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.evaluation.evaluate import EvaluationData, write_results
from afmrl_jax.inference.systems import TEXTS, evaluate_systems, systems_of
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.objectives.rewards import find_reward
from afmrl_jax.parallel.mesh import host_share, make_mesh
from afmrl_jax.performance.remat import with_remat
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.training.agcl import train_agcl
from afmrl_jax.training.annotate import annotate
from afmrl_jax.training.cit import cit_settings, cycle_attributes, listings_to_annotate
from afmrl_jax.training.distill import train_distill
from afmrl_jax.training.model_store import WEIGHTS, ModelStore
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.rar.environment import RarEnvironment
from afmrl_jax.training.rar.stage import train_rar
from afmrl_jax.training.run_directory import Run
from afmrl_jax.types import JsonObject

BACKBONE = "backbone"
ANNOTATED = ("train", "reward", "test")


class Pipeline:
    """Runs the stages of one run directory in order.

    `annotated` are the splits for which the distilled generator writes lists; a caller that stops
    before RAR needs only `train`.
    """

    def __init__(self, folder: Path, config: RunConfig, annotated: tuple[str, ...] = ANNOTATED):
        self.config = config
        self.catalogue = load_catalogue(config.catalogue, skip_bad=config.skip_bad)
        require_teaching(self.catalogue, config.oracle.file)
        find_reward(config.rar.reward, config.rar)  # Fails now, not after the earlier stages.
        say_skipped(self.catalogue)
        self.annotated = annotated
        self.run = Run(folder, config)
        # A run that began earlier keeps the arrangement of its batches.
        self.config = self.run.config

    def stages(self) -> dict[str, Callable[[], object]]:
        """The stages by name, in order. Calling one does its work unless it is finished."""
        config = self.config
        chain: dict[str, Callable[[], object]] = {
            "tokenizer": self._tokenizer_stage,
            "distill": self._distill,
            "annotate-distilled": self._annotate_first,
        }
        if config.backbone.steps:
            first = (BACKBONE, config.backbone.settings(config.agcl), "annotate-distilled")
            chain[BACKBONE] = partial(self.train_r, *first, in_input=True, start=None)
        for name, settings, annotated, in_input in (
            ("infonce", config.agcl.infonce(), None, False),
            ("agcl", config.agcl, "annotate-distilled", False),
            ("agcl-distilled", config.agcl, "annotate-distilled", True),
        ):
            chain[name] = partial(self.train_r, name, settings, annotated, in_input=in_input)
        chain |= {"rar": self.reinforce, "annotate-reinforced": self._annotate_again}
        last = "agcl-distilled"
        for cycle in range(1, config.cit.cycles + 1):
            chain[f"cit-{cycle}"] = partial(self._cit, cycle, last)
            last = f"cit-{cycle}"
        return chain

    def run_to(self, last: str) -> None:
        """The stages up to and including `last`."""
        stages = self.stages()
        for name in list(stages)[: list(stages).index(last) + 1]:
            stages[name]()

    def execute(self) -> Path:
        """All stages; returns the report's path."""
        try:
            for stage in self.stages().values():
                stage()
            report = self._evaluate()
        finally:
            self.run.close()
        if not self.run.did_something:
            log_info(f"{self.run.folder}: already finished, nothing to do (report: {report})")
        return report

    def evaluation(self) -> JsonObject:
        """The finished run's `evaluation.json`."""
        return read_json(self.run.folder / "evaluation.json", nan=True)

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

    def _base(self) -> JsonObject:
        """Inputs of every training stage."""
        return {
            "catalogue": self.catalogue.fingerprint,
            "tokenizer": self.run.output_hash("tokenizer", "tokenizer.json"),
            "seed": self.config.seed,
        }

    @cached_property
    def _taught(self) -> tuple[Catalogue, list[str]]:
        return taught_texts(self.catalogue, self.config.oracle, self.config.seed)

    def _tokenizer_stage(self) -> None:
        source = self.config.embedder.weights or self.config.generator.weights
        inputs = {
            "catalogue": self.catalogue.fingerprint,
            "vocab_size": self.config.vocab_size,
            "weights": source,
            "oracle": oracle_inputs(self.config.oracle),
            "seed": self.config.seed,
        }

        def work(folder: Path) -> None:
            if source is not None:
                BpeTokenizer.load(source).save(folder)
                return
            # Only what the models may learn from: the test and reward splits stay unseen.
            titles = [x.title for x in self.catalogue.subset("distill", "train").listings]
            texts = titles + self._taught[1]
            BpeTokenizer.train(texts, self.config.vocab_size).save(folder)

        self.run.stage("tokenizer", inputs, ["tokenizer.json"], work)

    def _texts(self, stage: str) -> dict[str, str]:
        return read_attributes(self.run.folder / stage / TEXTS)

    def train_r(
        self,
        name: str,
        settings: AgclConfig,
        annotated: str | None,
        *,
        in_input: bool,
        start: str | None = BACKBONE,
    ) -> None:
        """Train the embedder as a stage, from the model of the stage `start` (with a backbone).

        Weights, masks and, with `in_input`, the input take the lists of the stage `annotated`.
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

        def work(folder: Path) -> None:
            if start:
                architecture, initial = self.models.load(start)
            else:
                architecture, initial = self.models.start(name, self.tokenizer)
            texts = self._texts(annotated) if annotated else None
            self._fit(folder, name, settings, architecture, initial, texts, in_input)

        self.run.stage(name, inputs, [WEIGHTS], work)

    def _fit(
        self,
        folder: Path,
        name: str,
        settings: AgclConfig,
        architecture: Architecture,
        initial: Params,
        texts: Mapping[str, str] | None,
        in_input: bool,
    ) -> None:
        params = train_agcl(
            self.config,
            settings,
            name,
            folder,
            Partition.of(architecture, initial, self.config.embedder, self.mesh),
            self._split_builder("train"),
            attributes=texts,
            attributes_in_input=in_input,
            seed=self.config.seed,
        )
        self.models.save(name, architecture, params, self.tokenizer)

    def _distill(self) -> None:
        inputs = self._base() | {
            "settings": to_dict(self.config.distill),
            "model": to_dict(self.config.generator),
            "oracle": oracle_inputs(self.config.oracle),
        }

        def work(folder: Path) -> None:
            taught, texts = self._taught
            architecture, params = self.models.start("distill", self.tokenizer)
            trainee = Partition.of(architecture, params, self.config.generator, self.mesh)
            params = train_distill(self.config, folder, trainee, self._rows(taught), texts)
            self.models.save("distill", architecture, params, self.tokenizer)

        self.run.stage("distill", inputs, [WEIGHTS], work)

    def _annotate(self, name: str, generator: str, indices: np.ndarray) -> None:
        inputs = self._base() | {
            "generator": self.run.output_hash(generator, WEIGHTS),
            "listings": len(indices),
        }

        def work(folder: Path) -> None:
            model, out = self.models.load(generator), folder / TEXTS
            packed = self.config.packed
            annotate(*model, self.builder, indices, out, mesh=self.mesh, packed=packed, label=name)

        self.run.stage(name, inputs, [TEXTS], work)

    def _annotate_first(self) -> None:
        self._annotate("annotate-distilled", "distill", self._where(*self.annotated))

    def _annotate_again(self) -> None:
        train = self._where("train")
        again = train[listings_to_annotate(self.config, len(train))]
        self._annotate("annotate-reinforced", "rar", np.concatenate([again, self._where("test")]))

    def reinforce(self, name: str = "rar", settings: RarConfig | None = None) -> None:
        """Reinforce the distilled generator as a stage; `settings` replace the run's own."""
        config = self.config
        if settings is not None:
            config = dataclasses.replace(config, rar=settings)
        inputs = self._base() | {
            "settings": to_dict(config.rar),
            "generator": self.run.output_hash("distill", WEIGHTS),
            "embedder": self.run.output_hash("agcl-distilled", WEIGHTS),
            "attributes": self.run.output_hash("annotate-distilled", TEXTS),
        }

        def work(folder: Path) -> None:
            architecture, params = self.models.load("distill")
            environment = RarEnvironment(
                self._split_builder(*config.rar.gallery_splits),
                self._encoder("agcl-distilled"),
                self._texts("annotate-distilled"),
                config.rar,
                config.seed,
                vocab_size=architecture.config.text.vocab_size,
                packed=config.packed,
            )
            trainee = Partition.of(architecture, params, config.generator, self.mesh)
            params = train_rar(config, folder, trainee, environment)
            self.models.save(name, architecture, params, self.tokenizer)

        self.run.stage(name, inputs, [WEIGHTS], work)

    def _cit(self, cycle: int, last: str) -> None:
        name, settings = f"cit-{cycle}", cit_settings(self.config)
        inputs = self._base() | {
            "settings": to_dict(settings),
            "cit": to_dict(self.config.cit),
            "embedder": self.run.output_hash(last, WEIGHTS),
            "before": self.run.output_hash("annotate-distilled", TEXTS),
            "again": self.run.output_hash("annotate-reinforced", TEXTS),
        }

        def work(folder: Path) -> None:
            architecture, params = self.models.load(last)
            ids = [x.listing_id for x in self.catalogue.subset("train").listings]
            before, after = map(self._texts, ("annotate-distilled", "annotate-reinforced"))
            texts = cycle_attributes(self.config, cycle, ids, before, after)
            self._fit(folder, name, settings, architecture, params, texts, True)

        self.run.stage(name, inputs, [WEIGHTS], work)

    def _evaluate(self) -> Path:
        systems = systems_of(self.config)
        inputs = {
            "catalogue": self.catalogue.fingerprint,
            "settings": to_dict(self.config.evaluation),
            "weights": {s.name: self.run.output_hash(s.embedder, WEIGHTS) for s in systems},
            "texts": {
                s.name: self.run.output_hash(s.annotations, TEXTS) for s in systems if s.annotations
            },
        }
        self.run.stage(
            "evaluate", inputs, ["../evaluation.json", "../gallery.json"], self._evaluate_systems
        )
        report = self.run.folder / "report.html"
        if self.run.did_something or not report.is_file():
            from afmrl_jax.reporting.report import build_report  # With matplotlib: seconds.

            build_report(self.run.folder)
        return report

    def _evaluate_systems(self, folder: Path) -> None:
        config, texts = self.config, self._texts
        test, train = self._split_builder("test"), self._split_builder("train")
        data = EvaluationData(test, train, source=config.catalogue, size=len(self.catalogue))
        lists = texts("annotate-distilled"), texts("annotate-reinforced")
        found, cards = evaluate_systems(config, data, self._encoder, *lists, self.catalogue.name)
        write_results(self.run.folder, folder, found, cards, self.run.seconds())
