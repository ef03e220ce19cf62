"""Continuations behind a shared prompt, one after the other against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.models.qwen_vl import shared_prompt
from afmrl_jax.models.qwen_vl.attention import dense
from afmrl_jax.models.qwen_vl.shared_prompt import attend_behind


def arrays():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    prompt_mask = np.array([[1] * 5, [0, 0, 1, 1, 1]], bool)
    own = np.arange(4) < np.array([[4, 2, 0], [1, 3, 4]])[..., None]
    mask = np.tril(np.ones((4, 4), bool)) & own[:, :, None]
    heads = (draw(2, 3, 4, 4, 8), draw(2, 2, 5, 8), draw(2, 2, 5, 8))
    return (*heads, draw(2, 2, 3, 4, 8), draw(2, 2, 3, 4, 8)), prompt_mask, mask


def value_and_gradients(of, parts):
    weights = jnp.cos(jnp.arange(2 * 3 * 4 * 32, dtype=jnp.float32)).reshape(2, 3, 4, 32)
    run = lambda parts: (jnp.sum(of(*parts) * weights), of(*parts))  # noqa: E731
    (_, out), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(parts)
    return out, *gradients


def test_one_after_the_other_equals_all_at_once_and_whole_rows(monkeypatch):
    parts, prompt_mask, mask = arrays()

    def behind(*parts):
        return attend_behind(*parts, prompt_mask, mask)

    def rows(q, prompt_key, prompt_value, key, value):
        """Prompt and continuation joined to a row for each continuation."""
        out = []
        for n in range(3):
            before = jnp.broadcast_to(prompt_mask[:, None], (2, 4, 5))
            seen = jnp.concatenate([before, jnp.asarray(mask[:, n])], axis=2)
            keys = jnp.concatenate([prompt_key, key[:, :, n]], axis=2)
            values = jnp.concatenate([prompt_value, value[:, :, n]], axis=2)
            out.append(dense(q[:, n], keys, values, seen))
        return jnp.stack(out, axis=1)

    expected, together = value_and_gradients(rows, parts), value_and_gradients(behind, parts)
    monkeypatch.setattr(shared_prompt, "SCORES_AT_ONCE", 1)
    apart = value_and_gradients(behind, parts)
    for one, two, other in zip(apart, together, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(two, other, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2 * 4 * 4 * 4 * 9])
def test_some_rows_after_the_others_equal_all_at_once(monkeypatch, at_once):
    """Rows that several continuations share; two of three at a time leave one over."""
    (q, prompt_key, prompt_value, key, value), prompt_mask, mask = arrays()
    of = np.array([0, 0, 1])
    own = (x.swapaxes(1, 2).reshape(6, 2, 1, 4, 8)[:3] for x in (key, value))
    parts = (q.reshape(6, 1, *q.shape[2:])[:3], prompt_key[of], prompt_value[of], *own)
    seen = prompt_mask[of], mask.reshape(6, 1, 4, 4)[:3]

    def results():
        weights = jnp.cos(jnp.arange(3 * 4 * 32, dtype=jnp.float32)).reshape(3, 1, 4, 32)
        run = lambda parts: (jnp.sum(attend_behind(*parts, *seen) * weights), 0)  # noqa: E731
        out = attend_behind(*parts, *seen)
        return out, *jax.jit(jax.grad(run, has_aux=True))(parts)[0]

    together = results()
    monkeypatch.setattr(shared_prompt, "SCORES_AT_ONCE", at_once)
    for one, other in zip(results(), together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
