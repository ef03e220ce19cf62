"""Targets, and the command on a tiny program where a compiler for GPUs is installed."""

import json
from importlib import resources
from importlib.metadata import PackageNotFoundError

import jax
import pytest

from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.performance.benchmarks import compiled
from afmrl_jax.performance.benchmarks.compiled import Settings, faults, run
from afmrl_jax.performance.compiled.checks import Finding
from afmrl_jax.performance.compiled.inspection import Inspected
from afmrl_jax.performance.compiled.programs import Sizes, cases
from afmrl_jax.performance.compiled.targets import TARGETS, check_installed, target

TINY = Sizes(
    embedder="demo_embedder",
    generator="demo_generator",
    further_embedders=(),
    further_generators=(),
    rows=4,
    visual=4,
    text=8,
    new_tokens=4,
    groups=2,
    group_size=2,
    vocab=64,
    pairs=(64, 128),
    bm25=16,
    shared=32,
    reward=(8, 64),
    exact=(8, 4096),
    found=4,
)


def has_compiler():
    try:
        check_installed(target("h100"))
    except ConfigError:
        return False
    return True


def test_descriptions_of_cards_are_in_the_package():
    folder = resources.files("afmrl_jax.performance.compiled").joinpath("targets")
    for name, aim in TARGETS.items():
        if aim.backend == "gpu":
            text = folder.joinpath(f"{name}.txtpb").read_text(encoding="utf-8")
            assert f"NVIDIA {name.upper()}" in text.splitlines()[-1]


def test_a_missing_compiler_is_named_with_what_installs_it():
    def version(name):
        if name == "nvidia-nvvm":
            raise PackageNotFoundError(name)
        return jax.__version__

    with pytest.raises(ConfigError, match=r"h200 needs nvidia-nvvm: `pip install .*\[compiled\]"):
        check_installed(target("h200"), version)


def test_a_plugin_of_another_jax_is_refused():
    with pytest.raises(ConfigError, match=r"jax-cuda13-plugin 0\.1"):
        check_installed(target("h100"), lambda name: "0.1")


def test_unknown_names():
    with pytest.raises(ConfigError, match="no target 'h300'; choose from h100, h200, v5e"):
        target("h300")


def test_an_unknown_program_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "check_installed", lambda aim: None)
    with pytest.raises(ConfigError, match="no program other; choose from decode"):
        run(Settings(programs=("other",), sizes=TINY), tmp_path / "out.json")


def test_a_fault_names_program_instruction_and_remedy():
    found = Inspected("decode", 1.0, 2, 3, 4, 5.0, {}, bytes_ratio=3.0, flops_ratio=1.05)
    found.findings = [Finding("moved", "copy.1", "a copy", "do not")]
    moved, ratio = faults(found)
    assert moved == "decode: copy.1: a copy; do not"
    assert ratio.startswith("decode: 3.00 times the bytes of weights and cache")


def test_the_published_sizes_are_traced_from_shapes_alone():
    found = {x.name: x for x in cases(Sizes())}
    assert list(found)[:2] == ["decode", "decode_qwen3vl_2b"]
    assert {"decode_qwen3vl_4b", "embedder_step", "embedder_step_qwen3vl_2b"} <= set(found)
    assert {"agcl_16k", "agcl_64k", "bm25_1024", "reward", "exact"} <= set(found)
    # 3.09 billion weights in bfloat16, and 64 rows of 400 keys and values.
    assert found["decode"].ideal_bytes == pytest.approx(7.12e9, rel=1e-2)


def test_programs_are_added_to_those_of_the_same_target(tmp_path, monkeypatch):
    def looked(case, aim, keep, eight):
        if case.name == "reward":
            raise RunError("reward: XLA does not compile it")
        ratio = 1.05 if case.name == "decode" else None
        return Inspected(case.name, 1.0, 2, 3, 4, 5.0, {}, bytes_ratio=ratio)

    monkeypatch.setattr(compiled, "check_installed", lambda aim: None)
    monkeypatch.setattr(compiled, "inspect", looked)
    out = tmp_path / "out.json"
    run(Settings(programs=("agcl_64", "exact"), sizes=TINY), out)
    found = run(Settings(programs=("decode",), sizes=TINY, add=True), out)
    assert found == {"decode_bytes_per_token_ratio": 1.05, "agcl_vocab_products": 0.0}
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [x["part"] for x in written["details"][1:]] == ["decode", "agcl_64", "exact"]
    # What cannot be compiled is said, and what was there stays.
    with pytest.raises(RunError, match="XLA does not compile it"):
        run(Settings(programs=("reward",), sizes=TINY, add=True), out)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [x["part"] for x in written["details"][1:]] == ["decode", "agcl_64", "reward", "exact"]
    with pytest.raises(ConfigError, match="is of h100 and JAX"):
        run(Settings(target="h200", programs=("exact",), sizes=TINY, add=True), out)
    run(Settings(programs=("exact",), sizes=TINY), out)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [x["part"] for x in written["details"][1:]] == ["exact"]


@pytest.mark.skipif(not has_compiler(), reason="needs the extra `compiled`")
def test_a_tiny_program_for_an_h100(tmp_path):
    out = tmp_path / "out.json"
    settings = Settings(programs=("bm25_16", "reward"), sizes=TINY, keep=tmp_path / "texts")
    run(settings, out)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [x["part"] for x in found["details"][1:]] == ["bm25_16", "reward"]
    assert all(x["bytes"] > 0 for x in found["details"][1:])
    assert (tmp_path / "texts" / "bm25_16.h100.hlo").is_file()
