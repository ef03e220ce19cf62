"""A run in little, for the launchers: every process adds its share, step by step, and saves.

    counting.py OUT STEPS [SECONDS_A_STEP]

The sum of each step goes over all processes. SIGTERM to any of them ends all at one step, with
status 75; the next start goes on behind it. OUT/steps.txt has the sums, written by process 0.
"""

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils


def connect() -> None:
    """Find the others as SLURM says, or the environment."""
    told = [os.environ.get(f"JAX_{x}") for x in ("COORDINATOR_ADDRESS", "NUM_PROCESSES")]
    if told[0]:
        jax.distributed.initialize(told[0], int(told[1]), int(os.environ["JAX_PROCESS_ID"]))
    else:
        jax.distributed.initialize()


def main(out: Path, steps: int, seconds: float) -> int:
    connect()
    index = jax.process_index()
    own, log = out / f"state-{index}.npy", out / "steps.txt"
    value, first = np.load(own) if own.exists() else (float(index + 1), 0)
    print(f"process {index} of {jax.process_count()} starts at step {int(first)}", flush=True)
    for step in range(int(first), steps):
        value = value * 1.01 + 1 / (step + 1 + index)
        total = multihost_utils.process_allgather(np.float32(value)).sum()
        if index == 0:
            with log.open("a") as file:
                file.write(f"{step} {float(total)!r}\n")
            if step == 3:
                print("under way", flush=True)
        if multihost_utils.reached_preemption_sync_point(step):
            np.save(own, (value, step + 1))
            print(f"process {index} saves step {step}", flush=True)
            return 75
        time.sleep(seconds)
    return 0


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float((*sys.argv[3:], 0)[0])))
