"""Processes that read batches: no signal of a scheduler ends them, and none outlives its reader."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

from afmrl_jax.data.sources.loader import iterate


class Squares:
    """Batches of which a reading process can be made."""

    def __len__(self):
        return 40

    def __getitem__(self, step):
        return {"step": step, "square": step * step, "process": os.getpid()}


def test_a_signal_to_all_processes_of_a_job_leaves_the_batches_coming():
    iterator = iterate(Squares(), workers=2)
    found = [next(iterator) for _ in range(3)]
    readers = [x.pid for x in multiprocessing.active_children()]
    assert {x["process"] for x in found} <= {*readers}
    for asked in (signal.SIGTERM, signal.SIGINT):
        for pid in readers:
            os.kill(pid, asked)
    found += list(iterator)
    assert [x["square"] for x in found] == [n * n for n in range(40)]
    iterator.close()
    assert not {x.pid for x in multiprocessing.active_children()} & {*readers}


def test_nor_does_one_that_comes_while_they_start():
    asked = set()

    def ask():
        while len(asked) < 2:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGTERM)
                asked.add(process.pid)

    iterator = iterate(Squares(), workers=2)
    thread = threading.Thread(target=ask)
    thread.start()
    assert [x["step"] for x in iterator] == [*range(40)]
    thread.join()
    iterator.close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


READER = """
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path({here!r})))
from afmrl_jax.data.sources.loader import iterate
from test_loader import Squares

if __name__ == "__main__":
    iterator = iterate(Squares(), workers=1)
    print(next(iterator)["process"], flush=True)
    os._exit(1)
"""


def test_a_reading_process_ends_with_its_reader(tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(READER.format(here=os.path.dirname(__file__)))
    # Returns when nobody holds the pipe any more, and the reading process holds it too.
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert int(done.stdout) > 0
