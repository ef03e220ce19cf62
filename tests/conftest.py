"""A harsh session: eight devices, strict promotion, and warnings are errors (pyproject.toml)."""

import dataclasses
import os
import shutil
import signal
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the suite's time, and what it compiles runs for milliseconds: without
# LLVM's passes and the CPU's fusion emitters it takes far less. `XLA_FLAGS= make test` runs the
# programs that users get. Processes that tests start inherit this. An XLA that does not know one
# of the flags would not start, so another version than the one they were tried with gets none.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false "
        # One LLVM module a program: splitting pays off only where the kernels are large.
        "--xla_cpu_parallel_codegen_split_count=1",
    )
# Commands must not fill the user's compile cache.
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""

# What a shell starts in the background ignores Ctrl-C, and so would all programs that the tests
# start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jaxtyping

import tests.typechecker  # noqa: F401  The hook looks its function up by name.

# Types and shapes in annotations are checked at every call, under jit while tracing. Only what is
# imported from here on is changed, so this comes before the package. AFMRL_CHECK_TYPES=0 is the
# suite without.
CHECKED = ("afmrl_jax.objectives", "afmrl_jax.models", "afmrl_jax.training")
if os.environ.get("AFMRL_CHECK_TYPES", "1") == "1":
    jaxtyping.install_import_hook(CHECKED, "tests.typechecker.checked")

import fsspec
import jax
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from afmrl_jax.config import (
    AgclConfig,
    BackboneConfig,
    CitConfig,
    DistillConfig,
    EvaluationConfig,
    MeshConfig,
    OptimizerConfig,
    RarConfig,
    RunConfig,
    TextBudget,
    to_dict,
)
from afmrl_jax.models.families import FAMILIES
from afmrl_jax.runtime.files import locked, write_json
from afmrl_jax.testing import finish_stage, tiny_config, tiny_demo, write_badge_catalogue

COMPILED = Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compile_cache():
    """A stage builds its step anew, so only a cache on disk spares the next test the compiling.

    Workers share it, and later sessions find it; `make clean` removes it.
    """
    jax.config.update("jax_compilation_cache_dir", str(COMPILED))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


class Bucket(MemoryFileSystem):
    """Memory in the place of object storage."""

    protocol = "s3"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]


@pytest.fixture
def bucket():
    """What etils finds under s3://."""
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield Bucket()
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    fsspec.register_implementation("s3", "s3fs.S3FileSystem", clobber=True)


@pytest.fixture
def unchecked():
    """Annotations are not checked: the package's own error is what a test is about."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def badges(tmp_path_factory):
    """Folder of a drawn catalogue: 30 products of enamel badges."""
    return write_badge_catalogue(tmp_path_factory.mktemp("badges"))


@pytest.fixture(scope="session")
def badge_listings(badges):
    from afmrl_jax.data.catalogue.load import load_catalogue

    return load_catalogue(badges).listings


@pytest.fixture(scope="session")
def tokenizer(badge_listings):
    from afmrl_jax.data.batching.tokenizer import BpeTokenizer

    return BpeTokenizer.train([x.title for x in badge_listings], 320)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all workers see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def made_once(path):
    """Let the first of the workers make `path`: yields whether this one does; the others wait."""
    with locked(path.with_suffix(".lock"), waiting=lambda: None):
        ready = path.with_suffix(".ready")
        yield not ready.exists()
        ready.touch()


@pytest.fixture(scope="session")
def tiny_run(shared):
    """Settings of a run of a few steps on the badges, for `tiny_models`."""
    folder = shared / "badges"
    with made_once(folder) as mine:
        if mine:
            write_badge_catalogue(folder, splits=True)
    return RunConfig(
        catalogue=str(folder),
        vocab_size=300,
        save_every=2,
        mesh=MeshConfig(data=1),
        distill=DistillConfig(steps=4, batch_size=4),
        backbone=BackboneConfig(steps=2, batch_size=4),
        # Averaged weights, so that every test of resuming is one of them too.
        agcl=AgclConfig(steps=4, batch_size=4, optimizer=OptimizerConfig(2e-3, ema_decay=0.9)),
        rar=RarConfig(
            steps=3, queries=2, group_size=2, evaluate_every=2, evaluation_samples=1, k=3
        ),
        cit=CitConfig(steps=2),
        evaluation=EvaluationConfig(batch_size=16, bootstrap=20, gallery_queries=2),
    )


@contextmanager
def with_tiny_models():
    with pytest.MonkeyPatch.context() as patch:
        for name, family in FAMILIES.items():
            patch.setitem(FAMILIES, name, dataclasses.replace(family, demo=tiny_demo(name)))
        yield


@pytest.fixture(scope="module")
def tiny_models():
    """Replaces the demo's models by tiny ones for the tests of a module."""
    with with_tiny_models():
        yield


@pytest.fixture(scope="module")
def written_run(tmp_path_factory, badges, tokenizer):
    """Folder of a run whose systems `infonce` and `agcl+distilled` can be used."""
    from afmrl_jax.models.architecture import Architecture
    from afmrl_jax.parallel.mesh import make_mesh
    from afmrl_jax.training.model_store import WEIGHTS, ModelStore

    folder = tmp_path_factory.mktemp("run") / "written"
    config = RunConfig(
        catalogue=str(badges),
        text=TextBudget(max_title_tokens=9, max_attribute_tokens=6),
        evaluation=EvaluationConfig(batch_size=8),
    )
    write_json(folder / "config.json", to_dict(config))
    tokenizer.save(folder / "tokenizer")
    finish_stage(folder / "tokenizer", "tokenizer.json")
    store = ModelStore(folder, config, make_mesh(1, 1))
    for seed, (stage, family) in enumerate(
        [("infonce", "qwen2_vl"), ("agcl-distilled", "qwen2_vl"), ("distill", "qwen2_5_vl")]
    ):
        model = tiny_config(
            family, vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id
        )
        architecture = Architecture.of(model)
        store.save(stage, architecture, architecture.init(seed), tokenizer)
        finish_stage(folder / stage, WEIGHTS)
    return folder


@pytest.fixture(scope="session")
def whole_run(tiny_run, shared):
    """A finished run of `tiny_run`, trained once for all workers. Copy it to change it."""
    from afmrl_jax.runs.pipeline import Pipeline

    folder = shared / "whole"
    with made_once(folder) as mine:
        if mine:
            with with_tiny_models():
                Pipeline(folder, tiny_run).execute()
    return folder


@pytest.fixture(scope="module")
def own_run(whole_run, tmp_path_factory):
    """A copy of `whole_run` for the tests of a module."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    shutil.copytree(whole_run, folder, ignore=shutil.ignore_patterns(".lock"))
    return folder


@pytest.fixture
def replaced(tiny_run):
    return lambda **changes: dataclasses.replace(tiny_run, **changes)
