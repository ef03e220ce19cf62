"""What holds the package together: one-way imports, equal requirement lists, size limits."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "afmrl_jax"
ORDER = (
    ("errors", "types"),
    ("runtime",),
    ("config",),
    ("data",),
    ("parallel", "testing"),
    ("models",),
    ("objectives", "retrieval"),
    ("training", "evaluation"),
    ("reporting", "inference", "matching"),
    ("performance",),
    ("runs",),
    ("serving",),
    ("notebook", "cli"),
    ("__main__",),
)
"""Folders and files of the package: imports go from a later line to an earlier one, never back and
never along a line."""
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


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def edges():
    """Pairs of modules (importing, imported) of the package; the public root is lazy."""
    for name, path in MODULES.items():
        if name == "afmrl_jax":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found = {f"{node.module}.{x.name}" for x in node.names}
                found = {x if x in MODULES else node.module for x in found}
            elif isinstance(node, ast.Import):
                found = {x.name for x in node.names}
            else:
                continue
            yield from ((name, x) for x in found if x.startswith("afmrl_jax."))


def test_imports_of_the_package_go_one_way():
    for importing, module in edges():
        own, other = importing.split(".")[1], module.split(".")[1]
        if own != other:
            assert RANK[other] < RANK[own], f"{importing} must not import {module}"


def test_neither_files_nor_folders_import_each_other_in_a_circle():
    """In every folder, its files and folders as they import one another."""
    within = {}
    for importing, module in edges():
        left, right = importing.split("."), module.split(".")
        common = 0
        while common < min(len(left), len(right)) and left[common] == right[common]:
            common += 1
        if common < min(len(left), len(right)):
            graph = within.setdefault(".".join(left[:common]), {})
            graph.setdefault(left[common], set()).add(right[common])
    assert len(within) > 10
    for folder, graph in within.items():
        try:
            list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            pytest.fail(f"{folder}: {' -> '.join(error.args[1])}")


def test_nothing_of_the_package_imports_experiments_or_tests():
    for path in FILES:
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert module.split(".")[0] not in ("experiments", "tests"), label(path)


def test_the_root_of_the_package_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 1 + 4


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


OPTIONAL = (
    "scann",
    "torch",
    "moderngl",
    "sentence_transformers",
    "faiss",
    "qdrant_client",
    "lancedb",
    "selenium",
)


def test_a_start_waits_for_nothing_that_it_may_not_need():
    late = "matplotlib sklearn torch tensorboardX tensorflow_datasets transformers scipy.stats "
    late += "gradio fastapi"
    code = "import afmrl_jax.cli.main, afmrl_jax.runs.pipeline, sys; "
    code += f"print([x for x in '{late}'.split() if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_heavy_optional_packages_are_imported_lazily():
    for path in FILES:
        if path.parent.name == "portable" or path.name == "torch_side.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for module in imported(ast.Module([node], [])):
                    assert module.split(".")[0] not in OPTIONAL, label(path)


def test_each_test_runs_with_exactly_one_target():
    makefile = (ROOT / "Makefile").read_text()
    chosen = re.findall(r'\$\(PYTEST\) -m (?:"(.+)"|(\w+))$', makefile, re.MULTILINE)
    chosen = [Expression.compile(quoted or word) for quoted, word in chosen]
    assert len(chosen) == 3
    for marks in ((), ("slow",), ("parity",), ("slow", "parity")):
        taken = [x.evaluate(lambda name, marks=marks, **_: name in marks) for x in chosen]
        assert sum(taken) == 1, marks


def marks_and_needs(tree):
    """Of each test of a file: its name, whether it is marked parity, and what it skips without."""
    whole = any("parity" in ast.unparse(x) for x in tree.body if isinstance(x, ast.Assign))
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            marks = {ast.unparse(x) for x in function.decorator_list}
            calls = [x for x in ast.walk(function) if isinstance(x, ast.Call)]
            skips = [x for x in calls if ast.unparse(x.func) == "pytest.importorskip"]
            needs = {getattr(x.args[0], "value", None) for x in skips}
            yield function.name, whole or "pytest.mark.parity" in marks, needs


def test_what_is_skipped_without_torch_is_marked_parity():
    """Without the mark it would run nowhere: only `make test-parity` has torch."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, marked, needs in marks_and_needs(tree):
            compared = needs & {"torch", "peft", "sentence_transformers"}
            assert marked or not compared, f"{label(path)}: {name}"
