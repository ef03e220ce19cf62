"""The notebook of the experiments: stored without outputs, and run from top to bottom."""

import dataclasses
import io
import json
import os
import subprocess
import types
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from afmrl_jax.config import RunConfig
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import systems_of
from afmrl_jax.notebook import live
from afmrl_jax.reporting import fragments

NOTEBOOK = Path(__file__).parents[2] / "examples" / "colab_demo.ipynb"
REPOSITORY = "https://github.com/someone/some-repository"
UNTOUCHED = """
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
"""A TPU that the notebook's own process holds is one that no training can have."""
SEARCH = """
import urllib.request
with urllib.request.urlopen(service.address) as answer:
    print("Product search" in answer.read().decode())
asked = urllib.request.Request(
    f"{service.address}search",
    json.dumps({"text": "dress", "k": 3}).encode(),
    {"Content-Type": "application/json"},
)
with urllib.request.urlopen(asked) as answer:
    print(len(json.load(answer)["results"]))
service.stop()
"""
"""What a reader does with the page at the end."""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def cell(notebook):
    """Runs one cell, with what the cells before it leave."""
    before = {"os": os, "subprocess": subprocess}
    sources = {x.id: x.source for x in notebook.cells}

    def run(name, **names):
        names = before | names
        exec(compile(sources[name], name, "exec"), names)
        return names

    return run


def test_no_outputs_are_stored(notebook):
    nbformat.validate(notebook)
    for found in notebook.cells:
        if found.cell_type == "code":
            assert found.outputs == []
            assert found.execution_count is None
    assert "widgets" not in notebook.metadata


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine without an accelerator, to which one may be added."""
    monkeypatch.delenv("COLAB_TPU_1VM", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    monkeypatch.setenv("PATH", str(tmp_path))

    def add(kind):
        if kind == "colab tpu":
            monkeypatch.setenv("COLAB_TPU_1VM", "1")
        elif kind == "tpu vm":
            monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/accel0"])
        elif kind:
            answer = "echo GPU 0: a card" if kind == "gpu" else "echo no devices; exit 9"
            program = tmp_path / "nvidia-smi"
            program.write_text(f"#!/bin/sh\n{answer}\n")
            program.chmod(0o755)

    return add


@pytest.mark.parametrize(
    ("kind", "device", "extra", "platforms"),
    [
        ("colab tpu", "TPU", "tpu", "tpu,cpu"),
        ("tpu vm", "TPU", "tpu", "tpu,cpu"),
        ("gpu", "GPU", "cuda12", "cuda,cpu"),
        ("gpu without a driver", "CPU", "", "cpu"),
        ("", "CPU", "", "cpu"),
    ],
)
def test_the_accelerator_is_found(cell, machine, capsys, kind, device, extra, platforms):
    machine(kind)
    names = cell("detect")
    assert (names["DEVICE"], names["EXTRA"]) == (device, extra)
    assert names["os"].environ["JAX_PLATFORMS"] == platforms
    assert device in capsys.readouterr().out


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A session without the package; returns the commands that pip is given."""
    given = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: given.append(command[5:]))
    return given


@pytest.mark.parametrize(("extra", "written"), [("tpu", "[tpu,serve]"), ("", "[serve]")])
def test_it_installs_from_the_repository_with_the_extra(cell, bare, extra, written):
    cell("install", EXTRA=extra, REPOSITORY=REPOSITORY)
    assert bare == [[f"afmrl-jax{written} @ git+{REPOSITORY}"]]


def test_it_installs_a_checkout_in_place(cell, bare, tmp_path, monkeypatch):
    (tmp_path / "afmrl_jax").mkdir()
    (tmp_path / "afmrl_jax" / "__main__.py").touch()
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    cell("install", EXTRA="cuda12", REPOSITORY="")
    assert bare == [["-e", f"{tmp_path}[cuda12,serve]"]]


def sessions(path):
    return lambda address, timeout: io.BytesIO(json.dumps([{"path": path}]).encode())


def test_it_installs_from_where_colab_opened_it(cell, bare, monkeypatch):
    monkeypatch.setenv("COLAB_JUPYTER_IP", "172.28.0.12")
    monkeypatch.setenv("KMP_TARGET_PORT", "9000")
    path = f"fileId={REPOSITORY.replace(':', '%3A')}/blob/main/examples/colab_demo.ipynb"
    monkeypatch.setattr("urllib.request.urlopen", sessions(path))
    cell("install", EXTRA="", REPOSITORY="")
    assert bare == [[f"afmrl-jax[serve] @ git+{REPOSITORY}"]]
    monkeypatch.setattr("urllib.request.urlopen", sessions("fileId=1a2b3c"))
    with pytest.raises(SystemExit, match="REPOSITORY"):
        cell("install", EXTRA="", REPOSITORY="")


def test_without_an_address_it_asks_for_one(cell, bare, monkeypatch):
    monkeypatch.delenv("COLAB_JUPYTER_IP", raising=False)
    with pytest.raises(SystemExit, match="REPOSITORY"):
        cell("install", EXTRA="", REPOSITORY="")
    assert bare == []


def test_it_asks_for_a_restart_where_an_imported_package_changed(cell, bare, monkeypatch):
    version = metadata.version

    def newer(name):
        return "999" if name == "numpy" and bare else version(name)

    monkeypatch.setattr(metadata, "version", newer)
    with pytest.raises(SystemExit, match=r"numpy are installed(.|\n)*Restart session"):
        cell("install", EXTRA="", REPOSITORY=REPOSITORY)


def test_nothing_is_installed_twice(cell, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    cell("install", EXTRA="tpu", REPOSITORY="")


def test_real_weights_train_both_models_with_adapters(cell, monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(live, "train", lambda config, run: begun.append(config))
    monkeypatch.setattr(fragments, "results", lambda run: "<p>results</p>")
    names = {
        "os": types.SimpleNamespace(environ={"AFMRL_WEIGHTS": str(tmp_path)}),
        "RunConfig": RunConfig,
        "dataclasses": dataclasses,
        "Path": Path,
        "live": live,
        "fragments": fragments,
        "display": lambda html: None,
        "HTML": str,
    }
    cell("pretrained", WEIGHTS="", CATALOGUE="my-shop", **names)
    (config,) = begun
    assert config.catalogue == "my-shop"
    assert config.embedder.weights == str(tmp_path / "Qwen2-VL-2B-Instruct")
    assert config.generator.weights == str(tmp_path / "Qwen2.5-VL-3B-Instruct")
    assert (config.embedder.trained, config.generator.trained) == ("lora", "lora")


def shown(cell):
    """The HTML of a cell's outputs."""
    return "".join(x.data["text/html"] for x in cell.outputs if "text/html" in x.get("data", {}))


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    # As for a user, compiled programs are kept, and here below the folder of the test.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook.cells += [nbformat.v4.new_code_cell(x) for x in (UNTOUCHED, SEARCH)]
    folder = {"metadata": {"path": str(tmp_path)}}
    # A cell that fails raises here.
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=folder).execute()
    cells = {x.id: x for x in notebook.cells}
    run = tmp_path / "runs" / "colab"
    assert (run / "report.html").is_file()

    curves = shown(cells["train"])
    assert curves.count("<svg") == 4
    assert "✓ evaluate" in curves

    rows = [x.name for x in systems_of(FinishedRun(run).config)]
    assert len(rows) == 5
    assert all(name in shown(cells["results"]) for name in rows)

    gallery = shown(cells["gallery"])
    assert gallery.count("<article") == 3
    assert gallery.count("data:image/jpeg;base64,") == 18, "a query and five results each"
    assert "generator after RAR" in gallery

    found = shown(cells["search"])
    assert found.count("data:image/jpeg;base64,") == 6
    assert "generator, from photo and words" in found
    assert "left out" in cells["pretrained"].outputs[0].text
    assert "http://127.0.0.1:" in shown(cells["serve"])
    assert notebook.cells[-1].outputs[0].text.split() == ["True", "3"]
