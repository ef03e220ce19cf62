"""The mesh and the sharding table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.config import LoraConfig
from afmrl_jax.config.lora import LORA_TARGETS
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.parallel.layout import constrain, fit_spec
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import TABLE, place, place_batch, shard_specs, shardings
from afmrl_jax.testing import TOWER_TARGETS, tiny_config
from afmrl_jax.training.state import initial_state


def test_mesh_takes_all_devices_and_automatic_axes():
    mesh = make_mesh(model=2)
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("sizes", [(3, 3), (0, 1), (-1, 3), (16, 1)])
def test_impossible_meshes_are_refused(sizes):
    with pytest.raises(ConfigError):
        make_mesh(*sizes)


def test_axes_that_do_not_divide_are_dropped():
    sizes = {"data": 4, "model": 2}
    assert fit_spec(P("data", "model"), (8, 3), sizes) == P("data", None)
    assert fit_spec(P(("data", "model")), (12,), sizes) == P("data")
    with pytest.raises(ValueError, match="does not fit"):
        fit_spec(P("data", "model"), (8,), sizes)


def test_constrain_is_the_identity_without_a_mesh():
    x = jnp.ones((8, 2))
    assert constrain(x, P("data")) is x
    with jax.set_mesh(make_mesh()):
        spread = jax.jit(lambda y: constrain(y, P("data")))(x)
    assert spread.sharding.spec == P("data")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_table_covers_every_parameter_and_the_training_state(family, tied):
    lora = LoraConfig(targets=LORA_TARGETS, tower_targets=TOWER_TARGETS[family], dora=True)
    params = Architecture.of(tiny_config(family, tie_embeddings=tied, lora=lora)).init(0)
    state = jax.eval_shape(lambda p: initial_state(p, optax.adamw(1e-3)), params)
    specs = shard_specs(state)
    assert jax.tree.structure(specs) == jax.tree.structure(state)


def test_every_line_of_the_table_is_used():
    import re

    names = set()
    for family, targets in TOWER_TARGETS.items():
        lora = LoraConfig(tower_targets=targets, dora=True)
        names |= set(Architecture.of(tiny_config(family, tie_embeddings=False, lora=lora)).shapes)
    # The last is of what pretrains the demo's models.
    names |= {"step", "opt_state/0/count", "probe/query"}
    for pattern, _ in TABLE:
        assert any(re.search(pattern, name) for name in names), pattern


@pytest.mark.parametrize("family", TOWER_TARGETS)
def test_an_adapter_lies_like_its_kernel(family):
    lora = LoraConfig(targets=LORA_TARGETS, tower_targets=TOWER_TARGETS[family], dora=True)
    shapes = Architecture.of(tiny_config(family, lora=lora)).shapes
    specs = shard_specs(shapes)

    def axes(name):
        """Of rows and columns."""
        count = len(shapes[name].shape)
        spec = (*specs[name], *[None] * count)[:count][-2:]
        return [{x} if isinstance(x, str) else {*(x or ())} for x in spec]

    for stem in (x.removesuffix("lora_a") for x in shapes if x.endswith("lora_a")):
        kernel, a, b = (axes(stem + x) for x in ("kernel", "lora_a", "lora_b"))
        assert kernel[0] - {"data"} <= a[0], stem
        assert kernel[1] - {"data"} <= b[1], stem
        assert a[1] == b[0] == set(), stem


def test_an_unknown_parameter_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="new_layer/kernel"):
        shard_specs({"new_layer": {"kernel": jnp.ones((2, 2))}})


def test_placed_parameters_are_split_and_unchanged():
    params = Architecture.of(tiny_config()).init(0)
    mesh = make_mesh(4, 2)
    placed = place(params, mesh)
    name = "model/layers/mlp/gate_proj/kernel"
    assert placed[name].sharding.spec == P(None, "data", "model")
    assert placed[name].addressable_shards[0].data.size == params[name].size // 8
    for key, value in params.items():
        np.testing.assert_array_equal(placed[key], value)
    assert shardings(params, mesh)["model/norm/scale"] == NamedSharding(mesh, P())


def test_batches_are_split_by_rows_where_they_divide():
    mesh = make_mesh()
    batch = place_batch({"a": np.ones((16, 3)), "b": np.ones((3, 2)), "c": np.float32(1)}, mesh)
    assert batch["a"].sharding.spec == P("data", None) or batch["a"].sharding.spec == P("data")
    assert batch["b"].sharding.is_fully_replicated
    assert batch["c"].sharding.is_fully_replicated
