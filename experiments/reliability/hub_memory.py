"""Peak host memory of loading a Hugging Face folder, above the parameters themselves.

    python -m experiments.reliability.hub_memory --size 2b --out experiments/results/hub_memory.json

Streams a checkpoint of random bfloat16 numbers to disk, loads it in a new process on the CPU, and
compares the peak of that process with the bound: the largest tensor plus 1 GB. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from afmrl_jax.config import QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.config import to_hub_config
from afmrl_jax.models.huggingface.names import hub_tensors
from afmrl_jax.models.huggingface.read import INDEX
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, write_tensors
from afmrl_jax.models.huggingface.write import SHARD_BYTES, divide
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.types import JsonObject

GIGABYTE = 10**9
LOADER = """
import json, pathlib, sys
import jax
jax.numpy.zeros(1).block_until_ready()
from afmrl_jax.models.huggingface.folder import load_model
def kib(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(name))
before = kib("VmRSS")
params = load_model(pathlib.Path(sys.argv[1]))[1]
print(json.dumps({
    "baseline_bytes": 1024 * before,
    "peak_bytes": 1024 * kib("VmHWM"),
    "parameter_bytes": sum(x.nbytes for x in params.values()),
}))
"""


def config_of(size: str) -> QwenVLConfig:
    """The published Qwen2-VL-2B (`2b`), or a smaller model of the same structure (`small`)."""
    if size == "2b":
        return preset("qwen2vl_2b")
    vision = VisionConfig(4, 256, 4, 1024, 512, 14, temporal_patch_size=2, window_size=56)
    text = TextConfig(65536, 512, 2048, 8, 8, 2, mrope_section=(8, 12, 12))
    return QwenVLConfig("qwen2_vl", vision, text)


def write_checkpoint(folder: Path, config: QwenVLConfig, shard_bytes: int = SHARD_BYTES) -> int:
    """Write random weights, one tensor in memory at a time.

    Returns:
        Bytes of the largest tensor.
    """
    block = np.random.default_rng(0).normal(size=1 << 20).astype(ml_dtypes.bfloat16)

    def make(shape: tuple[int, ...]) -> np.ndarray:
        return np.resize(block, shape)  # Repeats the block: drawing new numbers takes minutes.

    dtype = np.dtype(ml_dtypes.bfloat16)
    tensors = [
        TensorToWrite(t.name, t.shape, dtype, partial(make, t.shape))
        for t in hub_tensors(Architecture.of(config))
    ]
    files = divide(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, content in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_tensors(folder / name, content)
        weight_map |= {t.name: name for t in content}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})
    write_json(folder / "config.json", to_hub_config(config, dtype="bfloat16", ids={}))
    return max(t.nbytes for t in tensors)


def measure(size: str, shard_bytes: int = SHARD_BYTES, slack: int = GIGABYTE) -> JsonObject:
    """Load a checkpoint of `size` in a new process.

    Returns:
        Bytes, and whether the peak above parameters and imports is within the bound.
    """
    with tempfile.TemporaryDirectory() as name:
        largest = write_checkpoint(Path(name), config_of(size), shard_bytes)
        done = subprocess.run(
            [sys.executable, "-c", LOADER, name],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
    found = json.loads(done.stdout)
    above = found["peak_bytes"] - found["baseline_bytes"] - found["parameter_bytes"]
    bound = largest + slack
    return {"size": size, **found, "above_bytes": above} | {
        "largest_tensor_bytes": largest,
        "bound_bytes": bound,
        "within": above <= bound,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("small", "2b"), default="2b")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = measure(arguments.size)
    write_json(arguments.out, provenance() | result)
    print(json.dumps(result, indent=1))
    sys.exit(not result["within"])


if __name__ == "__main__":
    main()
