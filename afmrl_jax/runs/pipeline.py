"""The whole method as a chain of stages in a run directory.

distill -> annotate-distilled -> backbone -> infonce -> agcl -> agcl-distilled -> rar
        -> annotate-reinforced -> cit-1 ... -> evaluate -> report

`cycle_stages.py` has those from RAR on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

from afmrl_jax.config import RunConfig, to_dict
from afmrl_jax.data.attributes.oracle import oracle_inputs, taught_texts
from afmrl_jax.data.batching.tokenizer import TOKENIZER, BpeTokenizer, alike
from afmrl_jax.data.catalogue.load import load_catalogue_of, require_teaching, say_skipped
from afmrl_jax.data.catalogue.readers import catalogue_folder
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.evaluation.evaluate import EvaluationData, write_results
from afmrl_jax.inference.systems import (
    DISTILLED,
    SHUFFLED,
    TEXTS,
    annotations_of,
    evaluate_systems,
    generators_of,
    systems_of,
)
from afmrl_jax.models.demo_weights import weights_folder
from afmrl_jax.objectives.rewards import find_reward
from afmrl_jax.runs.cycle_stages import CycleStages
from afmrl_jax.runs.embedder_stages import BACKBONE, INFONCE
from afmrl_jax.runtime.files import is_writer
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.training.distill import train_distill
from afmrl_jax.training.list_grammar import KEYS, write_keys
from afmrl_jax.training.model_store import WEIGHTS
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.run_directory import Run
from afmrl_jax.types import JsonObject

ANNOTATED = ("train", "reward", "test")


class Pipeline(CycleStages):
    """Runs the stages of one run directory in order.

    `annotated` are the splits for which the distilled generator writes lists; a caller that stops
    before RAR needs only `train`.
    """

    def __init__(self, folder: Path, config: RunConfig, annotated: tuple[str, ...] = ANNOTATED):
        self.config = config
        self.catalogue = load_catalogue_of(config)
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
            DISTILLED: self._annotate_first,
        }
        if config.backbone.steps:
            first = (BACKBONE, config.backbone.settings(config.agcl), "annotate-distilled")
            chain[BACKBONE] = partial(self.train_r, *first, in_input=True, start=None)
        for name, settings, annotated, in_input in (
            (INFONCE, config.agcl.infonce(), None, False),
            ("agcl", config.agcl, "annotate-distilled", False),
            ("agcl-distilled", config.agcl, "annotate-distilled", True),
        ):
            chain[name] = partial(self.train_r, name, settings, annotated, in_input=in_input)
        if config.controls:
            told = (SHUFFLED, config.agcl, "annotate-distilled")
            chain[SHUFFLED] = partial(self.train_r, *told, in_input=True, shuffled=True)
        return chain | self.cycle_stages()

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
    def _taught(self) -> tuple[Catalogue, list[str]]:
        return taught_texts(self.catalogue, self.config.oracle, self.config.seed)

    def _tokenizer_stage(self) -> None:
        own = self.config.embedder.weights, self.config.generator.weights
        folders = weights_folder(own[0], "embedder"), weights_folder(own[1], "generator")
        found = [(x, name) for x, name in zip(folders, own, strict=True) if x is not None]
        source, named = found[0] if found else (None, None)
        inputs = {
            "catalogue": self.catalogue.fingerprint,
            "vocab_size": self.config.vocab_size,
            # As it is named: where the demo's weights are installed does not matter.
            "weights": named,
            "oracle": oracle_inputs(self.config.oracle),
            "seed": self.config.seed,
        }
        written, second = [TOKENIZER], found[-1][0] if found else None
        if source is not None and second is not None and not alike(source, second):
            inputs["generator_weights"] = own[1]
            written.append(f"generator/{TOKENIZER}")

        def work(folder: Path) -> None:
            if source is not None:
                BpeTokenizer.load(source).save(folder)
                if second is not None and len(written) > 1:
                    BpeTokenizer.load(second).save(folder / "generator")
                return
            # Only what the models may learn from: the test and reward splits stay unseen.
            titles = [x.title for x in self.catalogue.subset("distill", "train").listings]
            texts = titles + self._taught[1]
            BpeTokenizer.train(texts, self.config.vocab_size).save(folder)

        self.run.stage("tokenizer", inputs, written, work)

    def _distill(self) -> None:
        inputs = self._base() | {
            "settings": to_dict(self.config.distill),
            "model": to_dict(self.config.generator),
            "oracle": oracle_inputs(self.config.oracle),
        }

        def work(folder: Path) -> None:
            taught, texts = self._taught
            tokenizer = self.tokenizers["generator"]
            architecture, params = self.models.start("distill", tokenizer)
            trainee = Partition.of(architecture, params, self.config.generator, self.mesh)
            rows = self._rows(taught, "generator")
            params = train_distill(self.config, folder, trainee, rows, texts)
            self.models.save("distill", architecture, params, tokenizer)
            if self.config.lists.grammar and is_writer():
                write_keys(folder, texts)

        written = [WEIGHTS, KEYS] if self.config.lists.grammar else [WEIGHTS]
        self.run.stage("distill", inputs, written, work)

    def _evaluate(self) -> Path:
        systems = systems_of(self.config)
        inputs = {
            "catalogue": self.catalogue.fingerprint,
            "settings": to_dict(self.config.evaluation),
            "weights": {s.name: self.run.output_hash(s.embedder, WEIGHTS) for s in systems},
            "texts": {
                s.name: self.run.output_hash(s.annotations, TEXTS) for s in systems if s.annotations
            },
            **self.lists.more(*(annotations_of(x) for x in generators_of(self.config))),
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
        data = EvaluationData(
            self._split_builder("test"),
            self._split_builder("train"),
            folder=catalogue_folder(self.config.catalogue, self.config.marketplace),
            size=len(self.catalogue.listings),
        )
        found, cards = evaluate_systems(
            self.config,
            data,
            self._encoder,
            {x: self.lists.read(annotations_of(x)) for x in generators_of(self.config)},
            self.catalogue.name,
        )
        write_results(self.run.folder, folder, found, cards, self.run.seconds())
