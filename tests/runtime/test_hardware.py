import jax
import jax.numpy as jnp
import pytest

from afmrl_jax.models.qwen_vl.fused_probe import fused_forms
from afmrl_jax.objectives.bm25 import table_scores
from afmrl_jax.runtime.hardware import building_for, built_for


def test_programs_are_built_for_the_devices_that_jax_has_unless_told_otherwise():
    assert built_for() == jax.default_backend()
    with building_for("gpu"):
        assert built_for() == "gpu"
        with building_for("tpu"):
            assert built_for() == "tpu"
        assert built_for() == "gpu"
    assert built_for() == jax.default_backend()


def test_an_error_inside_ends_the_choice():
    with pytest.raises(ZeroDivisionError), building_for("tpu"):
        raise ZeroDivisionError
    assert built_for() == jax.default_backend()


def test_what_was_traced_for_another_kind_of_device_is_not_used():
    places = jax.ShapeDtypeStruct((4, 3), jnp.int32)
    table = jax.ShapeDtypeStruct((8, 5), jnp.float32)
    score = jax.jit(table_scores)

    def multiplies() -> bool:
        return "dot_general" in score.lower(places, table).as_text()

    assert not multiplies()
    with building_for("tpu"):
        assert multiplies()
    assert not multiplies()


def test_no_fused_attention_for_a_gpu_that_is_elsewhere(recwarn):
    with building_for("gpu"):
        assert not fused_forms(jnp.dtype(jnp.bfloat16), 128).rows
    assert not recwarn.list
