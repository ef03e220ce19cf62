"""What holds the package together: one-way imports, equal requirement lists, size limits."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "afmrl_jax"
ORDER = (
    # Copied into exported folders, so that it may import nothing of the package.
    ("errors", "portable"),
    ("model_config", "axes", "layout"),
    ("stage_config",),
    ("rar_config",),
    ("config", "config_json"),
    ("files", "progress", "machine", "compiling"),
    ("processes",),
    ("preemption", "working_copy"),
    ("metrics_log", "storage", "local_job"),
    ("data",),
    ("models",),
    ("objectives",),
    ("parallel",),
    ("retrieval",),
    ("training",),
    ("evaluation",),
    ("reporting",),
    ("systems",),
    ("serving", "asking", "auditing", "export", "pipeline", "planning", "runtime", "testing"),
    ("embedding", "judging"),
    ("searching",),
    ("notebook",),
    ("cli_catalogue",),
    ("cli_evaluation",),
    ("cli",),
)
"""Imports go from a later line to an earlier one, never back."""
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))
MINE = [*FILES, *sorted((ROOT / "experiments").rglob("*.py"))]


def label(path):
    return str(path.relative_to(ROOT))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            if node.module == "afmrl_jax":
                yield from (f"afmrl_jax.{x.name}" for x in node.names)
        elif isinstance(node, ast.Import):
            yield from (x.name for x in node.names)


@pytest.mark.parametrize("path", FILES, ids=label)
def test_imports_go_one_way(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts == ("__init__",):
        return
    own = parts[0]
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        names = module.split(".")
        if names[0] != "afmrl_jax" or len(names) == 1 or names[1] == own:
            continue
        assert RANK[names[1]] < RANK[own], f"{own} must not import {module}"


def test_no_jax_where_grains_workers_import():
    for path in sorted((PACKAGE / "data").rglob("*.py")):
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert module.split(".")[0] not in ("jax", "flax", "optax"), label(path)


@pytest.mark.parametrize("path", MINE, ids=label)
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # The docstring explains, it does not complicate.
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = node.end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


def lines(requirements):
    return {Requirement(x).name.lower(): Requirement(x) for x in requirements}


def test_requirements_txt_holds_the_bounds_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = lines(x for x in text if x.strip() and not x.startswith("#"))
    wanted = lines(project["dependencies"])
    wanted["jax"] = Requirement(project["optional-dependencies"]["cuda12"][0])
    assert pinned == wanted


def test_accelerators_share_the_bounds_of_jax():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    jax = lines(project["dependencies"])["jax"]
    for extra in ("cuda12", "cuda13", "tpu"):
        (found,) = map(Requirement, project["optional-dependencies"][extra])
        assert found.specifier == jax.specifier
        assert found.extras == {extra}


OPTIONAL = ("scann", "torch", "moderngl", "sentence_transformers")


def test_a_start_waits_for_nothing_that_it_may_not_need():
    late = "matplotlib sklearn torch tensorboardX tensorflow_datasets transformers scipy.stats"
    code = "import afmrl_jax.cli, afmrl_jax.pipeline, sys; "
    code += f"print([x for x in '{late}'.split() if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_heavy_optional_packages_are_imported_lazily():
    for path in FILES:
        if path.parent.name == "portable":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for module in imported(ast.Module([node], [])):
                    assert module.split(".")[0] not in OPTIONAL, label(path)
