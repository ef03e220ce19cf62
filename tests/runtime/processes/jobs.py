"""Starting jobs of one or several processes, and looking at what they left."""

import json
import sys
from pathlib import Path

from experiments.reliability.local_job import LocalJob

SCRIPT = Path(__file__).with_name("job.py")


def start(told, logs, processes=1, devices=8):
    """`job.py` on some processes with some devices each; what they print goes to `logs`."""
    command = [sys.executable, str(SCRIPT), json.dumps(told)]
    compiled = str(logs.parent / "compiled")
    return LocalJob(command, logs, processes, devices, JAX_COMPILATION_CACHE_DIR=compiled)


def metrics(folder, stage):
    """Lines of a stage's metrics, whole ones."""
    path = folder / stage / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(x) for x in path.read_text().split("\n")[:-1]]


def losses(folder, stage):
    """Loss by step."""
    return {x["step"]: x["loss"] for x in metrics(folder, stage) if "loss" in x}


def weights(folder, stage):
    """Hash of what a stage trained."""
    return json.loads((folder / stage / "DONE.json").read_text())["outputs"]
