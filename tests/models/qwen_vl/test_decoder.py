"""The decoder with fused attention against the plain one, for rows padded on either side."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import Execution
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.qwen_vl import attention, decoder
from afmrl_jax.testing import tiny_config


@pytest.mark.parametrize("scan", [True, False])
def test_rows_padded_on_either_side_and_of_odd_length(scan, monkeypatch):
    """Hidden states, what is stored of the prompt, and gradients by weights and inputs."""
    architecture = Architecture.of(tiny_config(), Execution(scan=scan, remat="full"))
    params = architecture.init(0)
    own = {n: x for n, x in params.items() if n.startswith("model/layers")}
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3, [0] * 5 + [1] * 2], bool)
    width = architecture.config.text.hidden_dim
    x = np.random.default_rng(0).normal(size=(3, 7, width)).astype(np.float32)
    positions = np.broadcast_to(np.cumsum(mask, axis=1)[:, None], (3, 3, 7)).astype(np.int32)

    def run():
        @jax.jit
        def loss(own, x):
            model = architecture.bind(params | own).model
            hidden, stored = model.prefill(x, positions, mask)
            kept = [jnp.where(mask[..., None], hidden, 0)]
            kept += [jnp.where(mask[:, None, :, None], y, 0) for y in stored]
            return sum(jnp.sum(jnp.sin(y)) for y in kept), kept

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(own, jnp.asarray(x))

    (_, expected), slopes = run()
    plain, forms = jax.nn.dot_product_attention, []

    def kernel(*heads, implementation, **settings):
        forms.append((settings["is_causal"], settings.get("mask")))
        return plain(*heads, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    for module in (attention, decoder):
        monkeypatch.setattr(module, "uses_fused", lambda *_: True)
    (_, found), ours = run()
    assert forms, "the fused form did not run"
    assert set(forms) == {(True, None)}
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("execution", "layers"),
    [
        (Execution(scan=True), 1),
        (Execution(scan=True), 3),
        (Execution(scan=False), 1),
        (Execution(scan=False, remat="full"), 3),
    ],
)
def test_states_of_some_places_are_those_among_all(execution, layers):
    """And what is stored of all places, and the gradients by weights and inputs."""
    config = tiny_config()
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=layers))
    architecture = Architecture.of(config, execution)
    params = architecture.init(0)
    own = {n: x for n, x in params.items() if n.startswith("model/layers")}
    segment = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1]], np.int32)
    at = np.array([[2, 0], [5, 3], [13, 9]], np.int32)
    x = np.random.default_rng(0).normal(size=(2, 7, config.text.hidden_dim)).astype(np.float32)
    positions = np.broadcast_to(np.arange(7, dtype=np.int32), (2, 3, 7))

    def run(whole):
        @jax.jit
        def loss(own, x):
            model = architecture.bind(params | own).model
            arguments = (x, positions, segment > 0, segment)
            if whole:
                hidden, stored = model.prefill(*arguments)
                hidden = hidden.reshape(-1, hidden.shape[-1])[at]
            else:
                hidden, stored = model.prefill(*arguments, at)
            kept = [hidden, *stored]
            return sum(jnp.sum(jnp.sin(y)) for y in kept), kept

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(own, jnp.asarray(x))

    (_, found), ours = run(False)
    (_, expected), slopes = run(True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
