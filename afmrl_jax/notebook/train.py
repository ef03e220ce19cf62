"""The process that `live.train` starts: all stages of a run directory."""

from __future__ import annotations

import sys
from pathlib import Path

from afmrl_jax.config import RunConfig, from_dict
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.hardware import machine
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.setup import open_run, reported


def main(arguments: list[str]) -> None:
    """Run the missing stages of a run; the arguments are its directory and a config file."""
    folder, config = map(Path, arguments)
    folder = open_run(folder)
    log_info(f"on {machine()['device']}")
    Pipeline(folder, from_dict(RunConfig, read_json(config), config)).execute()


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
