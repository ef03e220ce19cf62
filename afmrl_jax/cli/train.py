"""`afmrl train` runs the whole method; `afmrl config` prints its settings as a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from afmrl_jax.config import RunConfig, pretrained_for, read_config, to_yaml
from afmrl_jax.config.file import catalogue_in
from afmrl_jax.config.marketplace import MARKETPLACE
from afmrl_jax.config.model import DEMO_WEIGHTS, RANDOM_WEIGHTS
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.huggingface.folder import base_folder, family_in
from afmrl_jax.models.licenses import origin
from afmrl_jax.reporting.tables import text_table
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.distributed import ClusterConfig
from afmrl_jax.runtime.progress import log_info, print_result
from afmrl_jax.runtime.setup import open_run
from afmrl_jax.runtime.trackers import parse_trackers, require_trackers
from afmrl_jax.types import Role

Preset = Literal["demo", "fast", "pretrained"]


@dataclass(frozen=True)
class Settings:
    """Where the settings of a run come from; options override the file, the file the preset."""

    preset: Preset = "demo"
    """Settings to start from. demo: small models, minutes on two cores; on the marketplace from the
    shipped weights, on another catalogue from random ones. fast: the same in few steps, which shows
    that everything works, not how well. pretrained: your Qwen weights, on accelerators."""
    fast: bool = False
    """Short for --preset fast."""
    file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """YAML or JSON file with settings that differ from the preset's, as printed by `afmrl config`,
    or the config.json of a run."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig.demo)


@dataclass(frozen=True)
class Train(Settings):
    r"""Run the whole method: distill the generator, train the embedder, RAR, CIT, evaluate, report.

    Examples:
        afmrl train                                    # the demo: minutes on two cores
        afmrl train --fast --out runs/smoke            # every stage, few steps
        afmrl train --catalogue my-shop --out runs/my-shop --seed 1 --agcl.gamma 0.3
        afmrl train --config my-shop.yaml --out runs/my-shop
        afmrl train --preset pretrained --catalogue my-shop --out runs/my-shop \
            --embedder.weights /models/Qwen3-VL-Embedding-2B \
            --generator.weights /models/Qwen3-VL-4B-Instruct

    The same command resumes an interrupted run. Every setting is an option. With `--preset
    pretrained` the embedder trains low-rank adapters and the generator its decoder, in bfloat16
    with layers recomputed in the backward pass; `afmrl plan` tells beforehand what fits on which
    devices.
    """

    out: Path = Path("runs/demo")
    """Run directory, or its home at gs:// or s3://. A finished stage in it is not repeated, and an
    interrupted one resumes. Default: the folder of the preset's name in runs/."""
    stop_after: str | None = None
    """Stop after this stage, such as `distill` or `rar`; the same command without this option
    resumes from there."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def execute(self) -> None:
        """Run the command."""
        self._check()
        require_trackers(parse_trackers(self.config.log))
        licenses = origins(self.config)
        pipeline = Pipeline(open_run(self.out, self.cluster), self.config)
        for line in licenses:
            log_info(line)
        if self.stop_after is not None:
            self._stop_early(pipeline, self.stop_after)
            return
        report = pipeline.execute()
        print_result(text_table(pipeline.evaluation()))
        print_result(f"report: {report}")

    def _stop_early(self, pipeline: Pipeline, last: str) -> None:
        try:
            if last not in pipeline.stages():
                stages = ", ".join(pipeline.stages())
                raise ConfigError(f"--stop-after {last}: no such stage; choose from {stages}")
            pipeline.run_to(last)
        finally:
            pipeline.run.close()
        print_result(f"{self.out}: done up to and including {last}")

    def _check(self) -> None:
        if self.preset == "pretrained":
            for name, settings in (
                ("embedder", self.config.embedder),
                ("generator", self.config.generator),
            ):
                if settings.weights is None:
                    raise ConfigError(f"give --{name}.weights, the folder of a pretrained model")


@dataclass(frozen=True)
class Config(Settings):
    """Print the settings of a run as YAML, to be edited and passed to `afmrl train --config`.

    Example:
        afmrl config --preset fast > my-shop.yaml

    A file may hold only the settings that you change.
    """

    def execute(self) -> None:
        """Run the command."""
        print(to_yaml(self.config), end="")


def origins(config: RunConfig) -> list[str]:
    """A line for each folder of weights: what the models came from, and the license of it."""
    folders = _folders((config.embedder.weights, config.generator.weights))
    return [f"license of {origin(base_folder(folder))}" for folder in dict.fromkeys(folders)]


def _folders(named: Iterable[str | None]) -> list[Path]:
    """Those of the settings `weights` that name a folder."""
    return [Path(x) for x in named if x not in (None, DEMO_WEIGHTS, RANDOM_WEIGHTS)]


def train_defaults(arguments: Sequence[str]) -> Train:
    """The settings that apply unless options of the command line override them.

    Args:
        arguments: the options; only the preset and the file are read.
    """
    preset, file = _start(arguments)
    config = _settings(arguments, preset, file)
    return Train(preset, preset == "fast", file, config, out=Path("runs") / preset)


def config_defaults(arguments: Sequence[str]) -> Config:
    """The same for `afmrl config`."""
    preset, file = _start(arguments)
    return Config(preset, preset == "fast", file, _settings(arguments, preset, file))


def _settings(arguments: Sequence[str], preset: Preset, file: Path | None) -> RunConfig:
    if preset != "pretrained":
        base: RunConfig = getattr(RunConfig, preset)(_catalogue(arguments, file))
    else:
        # Patches and chat format are the models'.
        named = (_folders([_value(arguments, f"--{x}.weights")]) for x in get_args(Role))
        base = pretrained_for(*(family_in(x[0]) if x else None for x in named))
    return base if file is None else read_config(file, base)


def _catalogue(arguments: Sequence[str], file: Path | None) -> str:
    """The catalogue named by the options or the file, on which a preset's settings depend."""
    named = _value(arguments, "--catalogue")
    if named is None and file is not None:
        named = catalogue_in(file)
    return named or MARKETPLACE


def _start(arguments: Sequence[str]) -> tuple[Preset, Path | None]:
    """The preset and the file named on a command line.

    They determine the defaults of all other options, so they must be known before those are parsed.
    """
    preset, fast = _value(arguments, "--preset"), "--fast" in arguments
    if preset is not None and preset not in get_args(Preset):
        raise ConfigError(f"no preset {preset!r}; choose from {', '.join(get_args(Preset))}")
    if fast and preset not in (None, "fast"):
        raise ConfigError(f"--fast is short for --preset fast, and --preset is {preset}")
    file = _value(arguments, "--config")
    chosen = "fast" if fast else preset or "demo"
    return chosen, None if file is None else Path(file)  # type: ignore[return-value]


def _value(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option, as two arguments or as one with `=`; the last one counts."""
    found = None
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            found = argument.partition("=")[2]
        elif argument == option and place + 1 < len(arguments):
            found = arguments[place + 1]
    return found
