"""Training beside the notebook: curves while it runs, its error, and its end with the cell's."""

import dataclasses
import os
import sys
import time

import pytest

from afmrl_jax.config import RunConfig, to_dict
from afmrl_jax.errors import RunError
from afmrl_jax.notebook import live
from afmrl_jax.runtime.files import write_json, write_text
from afmrl_jax.runtime.json_files import read_json

# Goes on only when its first curve has been seen.
CHILD = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
(run / "distill").mkdir()
with (run / "distill" / "metrics.jsonl").open("w") as file:
    for step in (1, 2):
        file.write(json.dumps({"step": step, "loss": 3.0 / step}) + "\\n")
    file.flush()
    print("two steps", flush=True)
    for _ in range(6000):
        if (run / "seen").exists():
            break
        time.sleep(0.01)
    else:
        sys.exit("nobody looks")
    file.write(json.dumps({"step": 3, "loss": 0.5}) + "\\n")
print("three steps", flush=True)
"""


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "config.json", to_dict(RunConfig.fast()))
    return tmp_path


@pytest.fixture
def shown(monkeypatch):
    """What a cell would show: the last HTML of each of its outputs."""
    outputs = []

    def show(handle, html):
        if handle is None:
            handle = len(outputs)
            outputs.append([])
        outputs[handle].append(html)
        return handle

    monkeypatch.setattr(live, "_show", show)
    return outputs


def test_curves_are_drawn_while_the_command_runs(run, shown, monkeypatch):
    show = live._show

    def look(handle, html):
        if "<svg" in html:
            (run / "seen").touch()
        return show(handle, html)

    monkeypatch.setattr(live, "_show", look)
    live.follow([sys.executable, "-c", CHILD, str(run)], run, every=0.05)
    status, curves = shown
    assert "3 at step 1, 1.5 at step 2" in "".join(curves)
    assert "3 at step 1, 0.5 at step 3" in curves[-1]
    assert "three steps" in status[-1]


def test_curves_are_drawn_again_only_when_they_grew(run, shown):
    write_text(run / "distill" / "metrics.jsonl", '{"step": 1, "loss": 2.0}\n')
    panel = live._Panel(run, write_text(run / live.LOG, ""), time.monotonic())
    for _ in range(3):
        panel.draw(running=True)
    assert [len(x) for x in shown] == [3, 1]
    write_text(run / "distill" / "metrics.jsonl", '{"step": 1, "loss": 2.0}\n' * 2)
    panel.draw(running=True)
    assert [len(x) for x in shown] == [4, 2]


def test_a_failed_command_is_an_error_with_its_last_words(run, shown):
    fails = "import sys; print('out of luck'); sys.exit(7)"
    with pytest.raises(RunError, match=r"status 7(.|\n)*out of luck"):
        live.follow([sys.executable, "-c", fails], run, every=0.05)
    assert "out of luck" in shown[0][-1]


def test_a_notebook_of_a_larger_job_trains_alone(run, shown, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    alone = "from afmrl_jax.runtime.distributed import launched_together as f; "
    alone += "assert not f(), 'not alone'"
    live.follow([sys.executable, "-c", alone], run, every=0.05)


def test_an_interrupted_cell_ends_the_command(run, shown, monkeypatch):
    sleeps = (
        "import os, pathlib, time; pathlib.Path('PID').write_text(f'{os.getpid()} '); "
        "time.sleep(600)"
    )
    file = run / "pid"
    show, raised = live._show, []

    def interrupt(handle, html):
        if file.is_file() and file.read_text().endswith(" ") and not raised:
            raised.append(True)
            raise KeyboardInterrupt
        return show(handle, html)

    monkeypatch.setattr(live, "_show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        live.follow([sys.executable, "-c", sleeps.replace("PID", str(file))], run, every=0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_a_command_that_ignores_sigterm_is_killed(run, shown, monkeypatch):
    deaf = (
        "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "pathlib.Path('PID').write_text(f'{os.getpid()} '); time.sleep(600)"
    )
    file = run / "pid"
    monkeypatch.setattr(live, "GRACE_SECONDS", 0.2)
    child = live.subprocess.Popen([sys.executable, "-c", deaf.replace("PID", str(file))])
    while not (file.is_file() and file.read_text().endswith(" ")):
        time.sleep(0.01)
    live._stop(child)
    assert child.returncode == -9


def test_training_is_told_the_config(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(live, "follow", lambda command, run: begun.append(command))
    config = RunConfig.fast()
    live.train(config, tmp_path / "run")
    ((*_, module, folder, wanted),) = begun
    assert (module, folder) == ("afmrl_jax.notebook.train", str(tmp_path / "run"))
    assert read_json(wanted) == to_dict(config)


def test_a_run_of_another_config_is_refused(run, shown):
    with pytest.raises(RunError, match=r"belongs to another config \(seed: 0 -> 1\)"):
        live.train(dataclasses.replace(RunConfig.fast(), seed=1), run)
