# `make demo`, `make test` and `make lint` need nothing but Python 3.11 or newer: each makes .venv
# and installs into it first, which is skipped while pyproject.toml has not changed.
#
#   make demo ARGS="--fast --out runs/smoke"
#   make test ARGS="tests/objectives -k agcl"
#
# `make dist` builds the package into dist/ and checks it. The README's pictures are in its long
# description where they have an address: make dist README_IMAGES=https://HOST/OWNER/NAME/main
#
# Each test runs with one of three targets: `make test`, the quick ones; `make test-parity`, those
# that compare with torch and what builds on it, in an environment of its own; `make test-slow`,
# those that kill processes or run the notebook, SLURM and Beam (docs/testing.md).

PYTHON ?= $(firstword $(foreach name,python3.12 python3.11 python3 python,\
	$(if $(shell $(name) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo yes),$(name))))
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Processes that share the tests; each file stays in one. `make test WORKERS=0` is for a debugger.
WORKERS ?= 2
PYTEST = -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# This exact version is a small build for CPUs on some indexes, where a bare `torch` is gigabytes
# of CUDA; elsewhere name an index of CPU wheels.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PARITY_VENV ?= .venv-parity
# Of the thousands of modules that the tests' packages have, the tests import a few: those are
# compiled to bytecode when they are first imported, and pip need not compile all.
PIP_TEST = -m pip install --quiet --disable-pip-version-check --no-compile
# Where bytecode may not be kept, each process that a test starts compiles those modules again,
# which takes it three times as long to start.
export PYTHONDONTWRITEBYTECODE =
# Beam wants older versions of other packages.
BEAM_VENV ?= .venv-beam
BEAM_TESTS = tests/data/catalogue/test_published_builders.py

.PHONY: demo test test-parity test-slow lint format install dist clean

# A step's memory is asked of the system anew each time, and in pages of 2 MB that takes less.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(VENV)/.installed
	$(BIN)/python -m afmrl_jax train $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python $(PYTEST) -m "not slow and not parity"

test-parity: $(PARITY_VENV)/.installed
	$(PARITY_VENV)/bin/python $(PYTEST) -m parity

test-slow: $(VENV)/.installed-dev $(BEAM_VENV)/.installed
	$(BIN)/python $(PYTEST) -m "slow and not parity"
	$(if $(ARGS),,$(BEAM_VENV)/bin/python -m pytest -m slow $(BEAM_TESTS))

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck experiments/cluster/*.sh

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

install: $(VENV)/.installed-dev

dist: export README_IMAGES := $(README_IMAGES)
dist: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[release]"
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP_TEST) -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@ $(VENV)/.installed

$(PARITY_VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/python $(PIP_TEST) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PARITY_VENV)/bin/python $(PIP_TEST) -e ".[test,reference]"
	@touch $@

$(BEAM_VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(BEAM_VENV)
	$(BEAM_VENV)/bin/python $(PIP_TEST) -e ".[test,beam]"
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY_VENV) $(BEAM_VENV) build dist site .pytest_cache .ruff_cache .mypy_cache
