"""Examples of TFDS, asked for by many threads."""

import subprocess
import sys

TOGETHER = """
import threading
from concurrent.futures import ThreadPoolExecutor
from afmrl_jax.data.catalogue.tfds_examples import features

gate = threading.Barrier(8)

def ask(_):
    gate.wait()
    return id(features())

with ThreadPoolExecutor(8) as pool:
    print(len(set(pool.map(ask, range(8)))))
"""


def test_one_thread_alone_imports_tfds():
    # In a process of its own, because here TFDS may be imported already.
    told = subprocess.run(
        [sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=300, check=True
    )
    assert told.stdout == "1\n"
