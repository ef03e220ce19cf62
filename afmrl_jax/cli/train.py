"""`afmrl train` runs the whole method; `afmrl config` prints its settings as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from afmrl_jax.config import RunConfig, read_config, to_yaml
from afmrl_jax.errors import ConfigError
from afmrl_jax.reporting.tables import text_table
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.distributed import ClusterConfig
from afmrl_jax.runtime.progress import print_result
from afmrl_jax.runtime.setup import open_run

Preset = Literal["demo", "fast", "pretrained"]


@dataclass(frozen=True)
class Settings:
    """Where the settings of a run come from; the later of these wins: preset, file, options."""

    preset: Preset = "demo"
    """Settings to start from. demo: small models with random weights, minutes on two cores; fast:
    the same in few steps, which shows that all works, not how well; pretrained: Qwen weights of
    yours, on accelerators."""
    fast: bool = False
    """Short for --preset fast."""
    file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """YAML or JSON file with settings that differ from the preset's, such as `afmrl config` prints,
    or the config.json of a run."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig.demo)


@dataclass(frozen=True)
class Train(Settings):
    r"""Run the whole method: distil G, train R, reinforce G, cycle, evaluate, write a report.

    Examples:
        afmrl train                                    # the demo: minutes on two cores
        afmrl train --fast --out runs/smoke            # every stage, few steps
        afmrl train --catalogue my-shop --out runs/my-shop --seed 1 --agcl.gamma 0.3
        afmrl train --config my-shop.yaml --out runs/my-shop
        afmrl train --preset pretrained --catalogue my-shop --out runs/my-shop \
            --embedder.weights /models/Qwen2-VL-2B-Instruct \
            --generator.weights /models/Qwen2.5-VL-3B-Instruct

    The same command continues a run that was interrupted. Every setting is an option. With
    `--preset pretrained` the embedder learns low-rank adapters and the generator all its weights,
    in bfloat16 with layers recomputed in the backward pass; `afmrl plan` says beforehand what fits
    which devices.
    """

    out: Path = Path("runs/demo")
    """Run directory, or its home at gs:// or s3://. A finished stage in it is not repeated, and one
    that was interrupted goes on. Without it, the folder of the preset's name in runs/."""
    stop_after: str | None = None
    """End after this stage, such as `distill` or `rar`; the same command without this option goes
    on from there."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def execute(self) -> None:
        """Run the command."""
        self._check()
        pipeline = Pipeline(open_run(self.out, self.cluster), self.config)
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
    """Print the settings of a run as YAML, to be changed and given to `afmrl train --config`.

    Example:
        afmrl config --preset fast > my-shop.yaml

    A file may hold only the settings that you change.
    """

    def execute(self) -> None:
        """Run the command."""
        print(to_yaml(self.config), end="")


def train_defaults(arguments: Sequence[str]) -> Train:
    """The settings that hold where the options of a command line name none.

    Args:
        arguments: the options; those that are no preset and no file are left alone.
    """
    preset, file = _start(arguments)
    config = _settings(preset, file)
    return Train(preset, preset == "fast", file, config, out=Path("runs") / preset)


def config_defaults(arguments: Sequence[str]) -> Config:
    """The same for `afmrl config`."""
    preset, file = _start(arguments)
    return Config(preset, preset == "fast", file, _settings(preset, file))


def _settings(preset: Preset, file: Path | None) -> RunConfig:
    base: RunConfig = getattr(RunConfig, preset)()
    return base if file is None else read_config(file, base)


def _start(arguments: Sequence[str]) -> tuple[Preset, Path | None]:
    """The preset and the file that a command line names.

    They make the defaults of all the other options, so they must be known before those are parsed.
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
    """What an option is given, as two arguments or as one with `=`; the last one counts."""
    found = None
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            found = argument.partition("=")[2]
        elif argument == option and place + 1 < len(arguments):
            found = arguments[place + 1]
    return found
