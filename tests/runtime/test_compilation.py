"""S11: compiled programs are machine code, and come only from a folder of the user's own."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from afmrl_jax.runtime import compilation
from afmrl_jax.runtime.compilation import (
    CACHE_VARIABLE,
    QUICK,
    compile_quickly,
    compiling,
    compiling_anew,
    keep_programs,
)


@pytest.fixture
def chosen(monkeypatch):
    """What JAX was told."""
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    return lambda: found["jax_compilation_cache_dir"]


@pytest.fixture
def shared(tmp_path):
    """A folder that every user may write, as /tmp and group folders are."""
    tmp_path.chmod(0o777)
    return tmp_path


def test_a_missing_cache_is_made_for_the_user_alone(chosen, shared):
    before = os.umask(0)
    try:
        keep_programs(shared / "new" / ".jax_cache")
    finally:
        os.umask(before)
    assert chosen() == str(shared / "new" / ".jax_cache")
    assert (shared / "new" / ".jax_cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_cache_that_others_only_read_is_used(chosen, shared, mode):
    (shared / ".jax_cache").mkdir()
    (shared / ".jax_cache").chmod(mode)
    keep_programs(shared / ".jax_cache")
    assert chosen() == str(shared / ".jax_cache")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o702])
def test_a_cache_that_others_may_write_is_not_used(chosen, shared, capsys, mode):
    (shared / ".jax_cache").mkdir()
    (shared / ".jax_cache").chmod(mode)
    keep_programs(shared / ".jax_cache")
    assert chosen() is None
    said = capsys.readouterr().err
    assert f"{shared / '.jax_cache'}" in said
    assert "other users may write it" in said
    assert CACHE_VARIABLE in said


def test_a_cache_of_another_user_is_not_used(chosen, shared, capsys, monkeypatch):
    (shared / ".jax_cache").mkdir(mode=0o700)
    monkeypatch.setattr(compilation.os, "geteuid", lambda: os.getuid() + 1)
    keep_programs(shared / ".jax_cache")
    assert chosen() is None
    assert "belongs to another user" in capsys.readouterr().err


def test_a_link_is_not_used(chosen, shared, capsys):
    (shared / "elsewhere").mkdir(mode=0o700)
    (shared / ".jax_cache").symlink_to("elsewhere")
    keep_programs(shared / ".jax_cache")
    assert chosen() is None
    assert "is a link" in capsys.readouterr().err


def test_a_cache_that_cannot_be_made_is_not_used(chosen, shared, capsys):
    (shared / "file").touch()
    keep_programs(shared / "file" / ".jax_cache")
    (shared / "dangling").symlink_to("nowhere")
    keep_programs(shared / "dangling")
    assert chosen() is None
    assert capsys.readouterr().err.count("cannot be made") == 2


def test_the_variable_chooses_a_folder_under_the_same_rules(chosen, shared, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(shared / "mine"))
    keep_programs(shared / ".jax_cache")
    assert chosen() == str(shared / "mine")
    (shared / "mine").chmod(0o777)
    keep_programs(shared / ".jax_cache")
    assert chosen() is None
    monkeypatch.setenv(CACHE_VARIABLE, "gs://bucket/programs")
    keep_programs(shared / ".jax_cache")
    assert chosen() == "gs://bucket/programs"


def test_an_empty_variable_means_no_cache(chosen, shared, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, "")
    keep_programs(shared / ".jax_cache")
    assert not (shared / ".jax_cache").exists()


@pytest.fixture
def kept(tmp_path):
    """A cache that takes every program."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
        jax.config.update(name, value)
    compilation.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation.reset_cache()


def test_compiling_anew_takes_nothing_from_a_cache_that_is_in_use(kept):
    def hits():
        began = compiling()
        # JAX keeps what it compiled of one function in memory, too.
        jax.jit(lambda x: jnp.sin(x) @ x).lower(jnp.ones((3, 3))).compile()
        return compiling().since(began).hits

    assert (hits(), hits()) == (0, 1)
    for _ in range(2):  # The keys of programs differ inside, so only the second could be found.
        with compiling_anew():
            assert hits() == 0
    assert hits() == 1
    assert list(kept.iterdir())


COMPILED = """
import jax
from afmrl_jax.runtime.compilation import compile_quickly
compile_quickly()
jax.jit(lambda x: x + 1)(jax.numpy.zeros(3)).block_until_ready()
"""


def told_xla(folder, flags=""):
    """The options that differ from XLA's own, as it writes them of a program."""
    given = {"XLA_FLAGS": f"--xla_dump_to={folder} {flags}", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", COMPILED], check=True, env={**os.environ, **given})
    written = next(folder.glob("*debug_options")).read_text()
    return dict(line.split(": ", 1) for line in written.splitlines() if ": " in line)


def test_xla_is_told_to_compile_quickly(tmp_path):
    found = told_xla(tmp_path)
    assert {name: found.get(name) for name in QUICK} == QUICK


def test_a_flag_of_the_users_stays(tmp_path):
    found = told_xla(tmp_path, "--xla_backend_optimization_level=2")
    assert found["xla_backend_optimization_level"] == "2"
    assert found["xla_cpu_use_fusion_emitters"] == "false"


def test_an_accelerators_programs_are_left_alone(monkeypatch):
    plugins = set()
    monkeypatch.setattr(compilation, "find_spec", lambda name: name in plugins or None)
    assert compilation._only_cpus("cpu")
    assert compilation._only_cpus(None)
    assert not compilation._only_cpus("cuda")
    assert not compilation._only_cpus("tpu,cpu")
    plugins.add("libtpu")
    assert not compilation._only_cpus(None)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(compilation, "_only_cpus", lambda wanted: False)
    compile_quickly()
    assert os.environ["XLA_FLAGS"] == ""


def test_another_xla_is_not_told_what_it_may_not_know(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(compilation.jaxlib, "__version__", "0.11.0")
    compile_quickly()
    assert os.environ["XLA_FLAGS"] == ""
