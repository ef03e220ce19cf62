"""The whole method as a chain of stages in a run directory.

distill -> annotate-distilled -> backbone -> infonce -> agcl -> agcl-distilled -> rar
        -> annotate-reinforced -> cit-1 ... -> evaluate -> report
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import AgclConfig, RunConfig
from afmrl_jax.config_json import to_dict
from afmrl_jax.data.catalogue import (
    load_catalogue,
    require_attributes,
    require_splits,
    say_skipped,
)
from afmrl_jax.data.oracle import oracle_texts
from afmrl_jax.data.pipeline import RowBuilder
from afmrl_jax.data.records import Catalogue
from afmrl_jax.data.text import BpeTokenizer
from afmrl_jax.evaluation.run import (
    EvaluationData,
    Subject,
    evaluate_subjects,
    gallery,
    peak_memory,
)
from afmrl_jax.files import read_json, write_json
from afmrl_jax.models.functional import Architecture, Params
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.progress import say
from afmrl_jax.reporting.report import build_report
from afmrl_jax.retrieval.encode import Encoder
from afmrl_jax.systems import TEXTS, systems_of
from afmrl_jax.training.agcl import train_agcl
from afmrl_jax.training.annotate import annotate, read_attributes
from afmrl_jax.training.cit import choose_share, cit_settings, merge_annotations
from afmrl_jax.training.distill import train_distill
from afmrl_jax.training.lineage import Run
from afmrl_jax.training.rar import train_rar
from afmrl_jax.training.rar_environment import RarEnvironment
from afmrl_jax.training.store import WEIGHTS, ModelStore
from afmrl_jax.training.trainee import Trainee

BACKBONE = "backbone"


class Pipeline:
    """Runs the stages of one run directory in order."""

    def __init__(self, folder: Path, config: RunConfig):
        self.config = config
        self.catalogue = load_catalogue(config.catalogue, skip_bad=config.skip_bad)
        require_splits(self.catalogue)
        require_attributes(self.catalogue)
        say_skipped(self.catalogue)
        self.run = Run(folder, config)

    def execute(self) -> Path:
        """All stages; returns the report's path."""
        config, run = self.config, self.run
        try:
            self._tokenizer_stage()
            self._distill()
            self._annotate("annotate-distilled", "distill", self._where("train", "reward", "test"))
            if config.backbone.steps:
                settings = config.backbone.settings(config.agcl)
                self._train_r(BACKBONE, settings, "annotate-distilled", in_input=True, start=None)
            self._train_r("infonce", config.agcl.infonce(), None, in_input=False)
            self._train_r("agcl", config.agcl, "annotate-distilled", in_input=False)
            self._train_r("agcl-distilled", config.agcl, "annotate-distilled", in_input=True)
            self._rar()
            again = self._where("train")
            again = again[choose_share(len(again), config.cit.share, config.seed)]
            chosen = np.concatenate([again, self._where("test")])
            self._annotate("annotate-reinforced", "rar", chosen)
            last = "agcl-distilled"
            for cycle in range(1, config.cit.cycles + 1):
                last = self._cit(cycle, last)
            report = self._evaluate()
        finally:
            run.close()
        if not run.did_something:
            say(f"{run.folder}: already finished, nothing to do (report: {report})")
        return report

    def evaluation(self) -> dict[str, Any]:
        """The finished run's `evaluation.json`."""
        return read_json(self.run.folder / "evaluation.json")

    @cached_property
    def mesh(self) -> Mesh:
        """The devices of this run."""
        return make_mesh(self.config.mesh.data, self.config.mesh.model)

    @cached_property
    def models(self) -> ModelStore:
        """The models of the stages."""
        return ModelStore(self.run.folder, self.config, self.mesh)

    @cached_property
    def tokenizer(self) -> BpeTokenizer:
        """The run's tokenizer."""
        return BpeTokenizer.load(self.run.folder / "tokenizer")

    @cached_property
    def builder(self) -> RowBuilder:
        """Rows over the whole catalogue."""
        return self._rows(self.catalogue)

    def _rows(self, catalogue: Catalogue) -> RowBuilder:
        config = self.config
        return RowBuilder.of(catalogue.listings, self.tokenizer, config.image, config.text)

    def _split_builder(self, *splits: str) -> RowBuilder:
        return self._rows(self.catalogue.subset(*splits))

    def _encoder(self, stage: str) -> Encoder:
        return Encoder.on(self.mesh, *self.models.load(stage), self.config.evaluation.batch_size)

    def _where(self, *splits: str) -> np.ndarray:
        return self.catalogue.indices(*splits)

    def _base(self) -> dict[str, Any]:
        """Inputs of every training stage."""
        return {
            "catalogue": self.catalogue.fingerprint,
            "tokenizer": self.run.output_hash("tokenizer", "tokenizer.json"),
            "seed": self.config.seed,
        }

    def _oracle(self) -> tuple[Catalogue, list[str]]:
        taught = self.catalogue.subset("distill")
        kept = tuple(x for x in taught.listings if x.attributes or x.oracle)
        return Catalogue(taught.name, kept), oracle_texts(
            kept, self.config.oracle, self.config.seed
        )

    def _tokenizer_stage(self) -> None:
        inputs = {
            "catalogue": self.catalogue.fingerprint,
            "vocab_size": self.config.vocab_size,
            "weights": self.config.embedder.weights or self.config.generator.weights,
            "oracle": to_dict(self.config.oracle),
            "seed": self.config.seed,
        }

        source = self.config.embedder.weights or self.config.generator.weights

        def work(folder: Path) -> None:
            if source is not None:
                BpeTokenizer.load(source).save(folder)
                return
            # Only what the models may learn from: the test and reward splits stay unseen.
            titles = [x.title for x in self.catalogue.subset("distill", "train").listings]
            texts = titles + self._oracle()[1]
            BpeTokenizer.train(texts, self.config.vocab_size).save(folder)

        self.run.stage("tokenizer", inputs, ["tokenizer.json"], work)

    def _texts(self, stage: str) -> dict[str, str]:
        return read_attributes(self.run.folder / stage / TEXTS)

    def _train_r(
        self,
        name: str,
        settings: AgclConfig,
        annotated: str | None,
        *,
        in_input: bool,
        start: str | None = BACKBONE,
    ) -> None:
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
            Trainee.of(architecture, initial, self.config.embedder, self.mesh),
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
            "oracle": to_dict(self.config.oracle),
        }

        def work(folder: Path) -> None:
            taught, texts = self._oracle()
            architecture, params = self.models.start("distill", self.tokenizer)
            trainee = Trainee.of(architecture, params, self.config.generator, self.mesh)
            params = train_distill(self.config, folder, trainee, self._rows(taught), texts)
            self.models.save("distill", architecture, params, self.tokenizer)

        self.run.stage("distill", inputs, [WEIGHTS], work)

    def _annotate(self, name: str, generator: str, indices: np.ndarray) -> None:
        inputs = self._base() | {
            "generator": self.run.output_hash(generator, WEIGHTS),
            "listings": len(indices),
        }

        def work(folder: Path) -> None:
            architecture, params = self.models.load(generator)
            out = folder / TEXTS
            annotate(architecture, params, self.builder, indices, out, mesh=self.mesh, label=name)

        self.run.stage(name, inputs, [TEXTS], work)

    def _rar(self) -> None:
        inputs = self._base() | {
            "settings": to_dict(self.config.rar),
            "generator": self.run.output_hash("distill", WEIGHTS),
            "embedder": self.run.output_hash("agcl-distilled", WEIGHTS),
            "attributes": self.run.output_hash("annotate-distilled", TEXTS),
        }

        def work(folder: Path) -> None:
            architecture, params = self.models.load("distill")
            environment = RarEnvironment(
                self._split_builder(*self.config.rar.gallery_splits),
                self._encoder("agcl-distilled"),
                self._texts("annotate-distilled"),
                self.config.rar,
                self.config.seed,
            )
            trainee = Trainee.of(architecture, params, self.config.generator, self.mesh)
            params = train_rar(self.config, folder, trainee, environment)
            self.models.save("rar", architecture, params, self.tokenizer)

        self.run.stage("rar", inputs, [WEIGHTS], work)

    def _cit(self, cycle: int, last: str) -> str:
        name, settings = f"cit-{cycle}", cit_settings(self.config)
        inputs = self._base() | {
            "settings": to_dict(settings),
            "embedder": self.run.output_hash(last, WEIGHTS),
            "before": self.run.output_hash("annotate-distilled", TEXTS),
            "again": self.run.output_hash("annotate-reinforced", TEXTS),
        }

        def work(folder: Path) -> None:
            architecture, params = self.models.load(last)
            ids = [x.listing_id for x in self.catalogue.subset("train").listings]
            texts = merge_annotations(
                self._texts("annotate-distilled"), self._texts("annotate-reinforced"), ids
            )
            self._fit(folder, name, settings, architecture, params, texts, True)

        self.run.stage(name, inputs, [WEIGHTS], work)
        return name

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
            build_report(self.run.folder)
        return report

    def _evaluate_systems(self, _: Path) -> None:
        config, folder = self.config, self.run.folder
        data = EvaluationData(self._split_builder("test"), self._split_builder("train"))
        before, after = self._texts("annotate-distilled"), self._texts("annotate-reinforced")
        # The reinforced G wrote for a share of the train listings only.
        test_texts = {None: None, "distill": before, "rar": after}
        train_texts = {None: None, "distill": before, "rar": before | after}
        subjects = (
            Subject(
                s.name,
                self._encoder(s.embedder),
                test_texts[s.generator],
                train_texts[s.generator],
            )
            for s in systems_of(config)
        )
        evaluation, vectors = evaluate_subjects(subjects, data, config, self.catalogue.name)
        evaluation |= {"seconds": self.run.seconds(), "peak_memory_gb": peak_memory()}
        write_json(folder / "gallery.json", gallery(data, vectors, config, before, after))
        write_json(folder / "evaluation.json", evaluation)
