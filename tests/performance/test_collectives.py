"""Bytes between devices, against programs whose bytes are known by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.config import Execution, LoraConfig
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.qwen_vl.presets import PRESETS
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.performance.collectives import bytes_by_axis, collectives
from afmrl_jax.performance.plan import lowered
from afmrl_jax.performance.request import Request
from afmrl_jax.testing import tiny_config

SIZES = {"data": 4, "model": 2}
SHARD = 64  # Numbers of float32 that each device holds.


def exchanges(work, **options):
    """What `work`, run on every device over its own [SHARD], exchanges."""
    mesh = make_mesh(4, 2)
    whole = jax.jit(jax.shard_map(work, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))
    text = whole.lower(jax.ShapeDtypeStruct((SHARD,), jnp.float32)).compile().as_text()
    return collectives(text, dict(mesh.shape), **options)


def test_a_sum_over_one_axis():
    (found,) = exchanges(lambda x: jax.lax.psum(x, "data"))
    assert (found.kind, found.axes, found.group) == ("all-reduce", ("data",), 4)
    assert found.payload == 4 * SHARD
    assert found.sent == found.total == 2 * 4 * SHARD * 3 // 4


def test_a_sum_over_both_axes():
    (found,) = exchanges(lambda x: jax.lax.psum(x, ("data", "model")))
    assert (found.axes, found.group) == (("data", "model"), 8)
    assert bytes_by_axis([found]) == {"data+model": {"all-reduce": 2 * 4 * SHARD * 7 // 8}}


def test_a_gather_and_a_scattered_sum():
    def work(x):
        wide = jax.lax.all_gather(x, "model", tiled=True)
        return jax.lax.psum_scatter(wide, "data", tiled=True)

    gather, scatter = exchanges(work)
    assert (gather.kind, gather.axes) == ("all-gather", ("model",))
    assert gather.payload == 2 * 4 * SHARD
    assert gather.sent == 4 * SHARD
    assert (scatter.kind, scatter.axes) == ("reduce-scatter", ("data",))
    assert scatter.payload == 2 * 4 * SHARD
    assert scatter.sent == 2 * 4 * SHARD * 3 // 4


def test_an_exchange_of_parts_and_a_shift():
    def work(x):
        x = jax.lax.all_to_all(x.reshape(4, -1), "data", 0, 0)
        return jax.lax.ppermute(x, "model", [(0, 1)])

    deal, shift = exchanges(work)
    assert (deal.kind, deal.axes, deal.sent) == ("all-to-all", ("data",), 4 * SHARD * 3 // 4)
    # One of the two sends.
    assert (shift.kind, shift.axes, shift.sent) == ("collective-permute", ("model",), 2 * SHARD)


def test_loops_multiply():
    def inner(x, _):
        return jax.lax.psum(x, "model") * 0.1, None

    def outer(x, _):
        x = jax.lax.scan(inner, x, None, length=3)[0]
        return jax.lax.psum(x, "data") * 0.1, None

    found = exchanges(lambda x: jax.lax.scan(outer, x, None, length=5)[0])
    assert {x.axes: x.times for x in found} == {("data",): 5, ("model",): 15}
    assert all(x.known for x in found)
    by_axis = bytes_by_axis(found)
    assert by_axis["model"] == {"all-reduce": 15 * 4 * SHARD}
    assert by_axis["data"] == {"all-reduce": 5 * 2 * 4 * SHARD * 3 // 4}


def test_a_loop_of_unknown_length_takes_the_callers_guess():
    def work(x):
        step = lambda x: jax.lax.psum(x, "data") * 0.1  # noqa: E731
        return jax.lax.while_loop(lambda x: jnp.sum(x) > 1, step, x)

    (found,) = exchanges(work, unknown_trips=7)
    assert found.times == 7
    assert not found.known


def test_of_two_branches_the_dearer_counts():
    def work(x):
        both = lambda x: jax.lax.psum(x, ("data", "model"))  # noqa: E731
        return jax.lax.cond(x[0] > 0, both, lambda x: jax.lax.psum(x, "model"), x)

    (found,) = exchanges(work)
    assert found.axes == ("data", "model")


@pytest.mark.parametrize("sizes", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_fsdp_of_a_stack_of_layers_gathers_every_layer(sizes):
    """What the partitioner makes of a scan: each layer's weights, gathered at every turn."""
    mesh, layers, width, rows = make_mesh(*sizes), 6, 64, 16

    def run(weights, x):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, weights)[0]

    def struct(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    weights = struct((layers, width, width), P(None, "data"))
    lowered = jax.jit(run).lower(weights, struct((rows, width), P("data")))
    found = collectives(lowered.compile().as_text(), dict(mesh.shape))
    if sizes[0] == 1:
        assert found == []
        return
    (gather,) = found
    assert (gather.kind, gather.axes, gather.times) == ("all-gather", ("data",), layers)
    assert gather.total == layers * 4 * width**2 * (sizes[0] - 1) // sizes[0]


LINE = """HloModule x
ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = bf16[4,16]{{1,0}} parameter(0)
  {line}
}}
"""


@pytest.mark.parametrize(
    ("line", "axes", "sent"),
    [
        (
            "%g = f32[8]{0} all-gather(%p), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}",
            ("data",),
            24,
        ),
        (
            "%g = f32[8]{0} all-gather(%p), replica_groups=mesh['a'=4,'b'=2] {'a','b'}, x={0}",
            ("data", "model"),
            28,
        ),
        (
            "%g = f32[8]{0} all-gather(%p), "
            "replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'c'}, x={0}",
            ("data",),
            24,
        ),
        ("%g = f32[8]{0} all-gather(%p), replica_groups=[2,4]<=[4,2]T(1,0), x={0}", ("data",), 24),
        ("%g = f32[8]{0} all-gather(%p), replica_groups=[4,2]<=[8], x={0}", ("model",), 16),
        ("%g = f32[8]{0} all-gather(%p), replica_groups=[4,2]<=[2,2,2]T(2,1,0), x", ("data",), 16),
        ("%g = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%s", ("data", "model"), 56),
        (
            "%g = ((bf16[4]{0}, s32[2]{0}), (bf16[8]{0}, s32[4]{0})) all-gather-start(%p, %q), "
            "replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}",
            ("model",),
            16,
        ),
        (
            "%g = (bf16[8]{0}, bf16[8]{0}, u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,2},{2,4},{4,6},{6,0}}",
            ("data",),
            8,
        ),
    ],
)
def test_forms_that_other_backends_write(line, axes, sent):
    (found,) = collectives(LINE.format(line=line), SIZES)
    assert (found.axes, found.sent) == (axes, sent)


@pytest.mark.parametrize(
    ("user", "sliced"),
    [
        ("%d = f32[2]{0} dynamic-slice(%g, %i), dynamic_slice_sizes={2}", True),
        ("%d = f32[8]{0} add(%p, %g)", False),
        ("%d = f32[8]{0} add(%p, %g.1)", False),
    ],
)
def test_a_sum_that_is_only_sliced_may_be_scattered(user, sliced):
    line = f"%g = f32[8]{{0}} all-reduce(%p), replica_groups={{}}, to_apply=%s\n  {user}"
    (found,) = collectives(LINE.format(line=line), SIZES)
    assert found.sliced is sliced


def test_groups_of_one_and_ends_of_asynchronous_pairs_send_nothing():
    done = "%d = f32[8]{0} all-gather-done(%g)"
    alone = "%g = f32[8]{0} all-gather(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}"
    assert collectives(LINE.format(line=done), SIZES) == []
    assert collectives(LINE.format(line=alone), SIZES) == []


@pytest.mark.parametrize(
    "line",
    [
        "%g = f32[8]{0} all-gather(%p), replica_groups=somewhere",
        "%g = f32[8]{0} all-gather(%p), replica_groups=mesh['a'=8] {'a':(1)2}",
        "%g = f32[8]{0} ragged-all-to-all(%p)",
    ],
)
def test_what_cannot_be_read_is_no_silent_zero(line):
    with pytest.raises(RunError, match=r"performance/collectives\.py"):
        collectives(LINE.format(line=line), SIZES)
    with pytest.raises(RunError, match="ENTRY"):
        collectives("nothing", SIZES)


@pytest.mark.parametrize("trained", ["lora", "all"])
def test_everything_a_real_step_compiles_to_is_read(trained, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", tiny_config())
    request = Request("tiny", batch_size=8, mesh="data=4,model=2", trained=trained)
    request = dataclasses.replace(request, visual_tokens=4, text_tokens=8, dtype="float32")
    config = dataclasses.replace(tiny_config(), lora=LoraConfig(rank=4))
    architecture = Architecture.of(config, Execution(scan=True, remat="full"))
    mesh = make_mesh(*request.axes)
    with jax.set_mesh(mesh):
        text = lowered(request, architecture, mesh).compile().as_text()
    found = collectives(text, dict(mesh.shape))
    assert {axis for x in found for axis in x.axes} == {"data", "model"}
    assert all(x.known for x in found)
    layers = config.text.num_layers
    assert {layers, config.vision.depth} <= {x.times for x in found}
