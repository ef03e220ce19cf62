"""`afmrl bench`: the benchmarks by name, files in `runs`, and no import by others."""

import subprocess
import sys
from pathlib import Path

import pytest

from afmrl_jax.cli import bench
from afmrl_jax.cli import main as cli
from afmrl_jax.performance.benchmarks import bm25, models, scaling, throughput

PACKAGE = Path(bench.__file__).parents[1]


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_every_benchmark_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", name, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: afmrl bench {name}" in shown
    assert "--out" in shown


def test_files_go_to_the_folder_of_runs():
    for name, kind in bench.BENCHMARKS.items():
        places = (f"runs/bench_{name}.json", f"runs/{name}.json", f"runs/{name}")
        assert str(kind().out) in places
    for path in (scaling.Scaling().page, throughput.Sweep().rows):
        assert path.parent == Path("runs")
    for path in PACKAGE.rglob("*.py"):
        assert "experiments/results" not in path.read_text(encoding="utf-8"), path


def test_a_benchmark_writes_where_it_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bm25, "run", lambda settings, out: {"batch": settings.batch})
    cli.main(["bench", "bm25", "--batch", "32"])
    assert '"batch": 32' in capsys.readouterr().out


def test_other_commands_do_not_import_the_benchmarks():
    code = "import sys, afmrl_jax.cli.main; "
    code += "print([x for x in sys.modules if 'benchmarks' in x])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "missing"), [("models", "torch"), ("bm25", "rank_bm25")])
def test_what_is_missing_is_told_with_what_to_install(name, missing, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(models, "_installed", lambda name: False)
    parts = ["--parts", "forward"] if name == "models" else ["--batch", "16"]
    with pytest.raises(SystemExit):
        cli.main(["bench", name, *parts])
    assert "afmrl-jax[bench]" in capsys.readouterr().err
