"""Bytes on each device, counted from shapes."""

import functools
import math
from types import SimpleNamespace

import jax
import pytest

from afmrl_jax.config import Execution, OptimizerConfig
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.qwen_vl.presets import PRESETS
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place, shardings
from afmrl_jax.performance import memory
from afmrl_jax.performance.memory import (
    Line,
    Load,
    Plan,
    abstract_mesh,
    activation_bytes,
    device_bytes,
    jax_bytes,
    parse_mesh,
    rows_per_device,
    shard_bytes,
)
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.state import initial_state, make_optimizer


@functools.cache
def shapes_of(name):
    return Architecture.of(PRESETS[name]).shapes


@pytest.mark.parametrize("sizes", [(1, 8), (2, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("name", ["qwen2vl_2b", "qwen2_5vl_3b"])
def test_a_full_sized_training_state_is_divided_among_the_devices(name, sizes):
    shapes = shapes_of(name)
    optimizer = make_optimizer(OptimizerConfig(), 1)
    state = jax.eval_shape(lambda p: initial_state(p, optimizer), shapes)
    wanted = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    places = jax.tree.leaves(shardings(state, make_mesh(*sizes)))
    found = sum(
        math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
        for x, place in zip(jax.tree.leaves(state), places, strict=True)
    )
    assert wanted / 8 <= found <= 1.01 * wanted / 8
    assert shard_bytes(state, abstract_mesh(*sizes)) == found


def test_counted_bytes_are_those_that_arrays_take():
    params = Architecture.of(tiny_config()).init(0)
    mesh = make_mesh(4, 2)
    placed = place(params, mesh)
    taken = sum(x.addressable_shards[0].data.nbytes for x in placed.values())
    assert shard_bytes(params, mesh) == taken


@pytest.mark.parametrize("text", ["data=0", "rows=2", "data", "", "data=2,model=x"])
def test_a_mesh_that_is_none_is_an_error_that_names_the_axes(text):
    with pytest.raises(ConfigError, match="data and model"):
        parse_mesh(text)


def test_an_unknown_device_is_an_error_that_lists_the_known():
    with pytest.raises(ConfigError, match="h200"):
        device_bytes("h300")


def test_jax_takes_a_share_of_a_gpu():
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert jax_bytes("h100", {}) == 60 * 10**9
    assert jax_bytes("h100", {name: "0.9"}) == 72 * 10**9
    assert jax_bytes("h100", {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}) == 80 * 10**9
    assert jax_bytes("v5e", {name: "0.5"}) == 16 * 10**9
    for wrong in ("much", "0", "75"):
        with pytest.raises(ConfigError, match=f"{name}={wrong}"):
            jax_bytes("h100", {name: wrong})


@pytest.mark.parametrize(
    ("kind", "stats", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", {"bytes_limit": 7}, 7),
        ("NVIDIA H100 80GB HBM3", None, 60 * 10**9),
        ("TPU v5 lite", {}, 16 * 10**9),
        ("cpu", None, 500),
    ],
)
def test_a_device_is_asked_first(kind, stats, expected, monkeypatch):
    device = SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)
    monkeypatch.setattr(memory.jax, "devices", lambda: [device])
    monkeypatch.setattr(memory, "machine", lambda: {"memory_bytes": 1000})
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert memory.bytes_here(2) == expected


def test_a_plan_says_what_share_it_counts_on():
    plan = Plan((), Line("activations", 1, "estimate"), 100, share=0.75)
    assert "JAX takes 75 %" in plan.text()
    assert "JAX takes" not in Plan((), plan.formula, 100).text()


def test_recomputing_saves_and_dense_scores_cost():
    config, load = PRESETS["qwen2vl_2b"], Load(8, 64, 256, 1, through_vision=True)

    def count(**settings):
        return activation_bytes(config, Execution("bfloat16", **settings), load)

    assert count(remat="full") < count(remat="dots") < count(remat="none")
    assert count(attention="fused") < count(attention="dense")


@pytest.mark.parametrize(
    ("compiled", "formula", "verdict"),
    [(40, 30, "fits"), (95, 30, "may fit"), (95, 95, "does not fit")],
)
def test_the_verdict_leaves_a_share_free(compiled, formula, verdict):
    lines = (Line("weights", 0, "exact"), Line("activations", compiled, "compiled"))
    assert Plan(lines, Line("activations", formula, "estimate"), 100).verdict == verdict


def test_rows_that_do_not_divide_are_counted_whole():
    assert rows_per_device(16, 8) == 2
    assert rows_per_device(12, 8) == 12
