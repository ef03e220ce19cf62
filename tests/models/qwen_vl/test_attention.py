"""Attention in every form against plain attention under a full mask: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.models.qwen_vl import attention, fused_attention
from afmrl_jax.models.qwen_vl.attention import AttentionLayout, attend, dense, uses_fused
from afmrl_jax.models.qwen_vl.fused_attention import (
    fits_fused,
    fused_length,
    fused_problem,
    fused_works,
)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """XLA's attention in place of cuDNN's, with cuDNN's rules and a record of what it was told."""
    calls, real = [], jax.nn.dot_product_attention

    def kernel(q, k, v, *, implementation, **settings):
        assert implementation == "cudnn"
        odd = q.shape[1] % 2 or k.shape[1] % 2
        if settings.get("mask") is not None and odd:
            raise NotImplementedError(f"Unsupported sequence length Q {q.shape[1]}")
        calls.append(
            (q.shape, sorted(n for n, x in settings.items() if x is not None and x is not False))
        )
        return real(q, k, v, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(attention, "fused_works", lambda dtype, head_dim: True)
    return calls


def heads(length, rows=3, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((rows, length, 4, 8), (rows, 2, length, 8), (rows, 2, length, 8))
    return [jnp.asarray(rng.normal(size=x).astype(np.float32)) for x in shapes]


def value_and_gradients(of, real, parts):
    """Of tokens that exist; those of padding are finite, and otherwise open."""

    def loss(parts):
        out = of(*parts)
        return jnp.sum(jnp.where(real[..., None], out, 0) ** 3), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(parts)
    assert np.isfinite(np.asarray(out)).all()
    return [np.where(real[..., None], out, 0), *gradients]


SEGMENTS = {
    "alone": [[1] * 9 + [0] * 4, [1] * 13, [0] * 13],
    "shared": [[1] * 5 + [2] * 6 + [0] * 2, [1] * 13, [1, 2] * 6 + [0]],
}


@pytest.mark.parametrize("length", [13, 12])
@pytest.mark.parametrize("kind", ["causal", "lengths", "alone", "shared", "shared causal"])
def test_fused_equals_dense_in_value_and_gradient(kind, length, on_a_gpu, monkeypatch):
    monkeypatch.setattr(fused_attention, "PAIRS_AT_ONCE", 200)
    causal = "causal" in kind
    counts = np.array([length, 5, 1], np.int32)
    real = np.arange(length) < counts[:, None]
    layout = AttentionLayout(causal, counts)
    if kind.split()[0] in SEGMENTS:
        segments = np.array(SEGMENTS[kind.split()[0]], np.int32)[:, :length]
        layout, real = AttentionLayout(causal, segments=segments), segments > 0
    parts = heads(length)
    found, expected = (
        value_and_gradients(lambda *x, how=how: attend(*x, layout, how), real, parts)
        for how in ("auto", "dense")
    )
    assert on_a_gpu, "the fused form did not run"
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_mask_is_built_for_few_rows_of_shared_bins_only(on_a_gpu, monkeypatch):
    monkeypatch.setattr(fused_attention, "PAIRS_AT_ONCE", 2 * 14**2)
    parts = heads(14, rows=4)
    attend(*parts, AttentionLayout(causal=True, lengths=np.full(4, 9, np.int32)), "auto")
    assert on_a_gpu.pop() == ((4, 14, 4, 8), ["is_causal"])
    attend(*parts, AttentionLayout(lengths=np.full(4, 9, np.int32)), "auto")
    assert on_a_gpu.pop() == ((4, 14, 4, 8), ["key_value_seq_lengths"])
    attend(*parts, AttentionLayout(segments=np.ones((4, 14), np.int32)), "auto")
    forms = {(shape[0], *settings) for shape, settings in on_a_gpu}
    assert forms == {(4, "key_value_seq_lengths"), (2, "mask")}


def test_what_cudnn_takes():
    assert [fused_length(x) for x in (307, 291, 320)] == [308, 292, 320]
    bfloat16 = jnp.dtype("bfloat16")
    assert all(fits_fused(bfloat16, x) for x in (80, 128, 256))
    assert not any(fits_fused(bfloat16, x) for x in (20, 264))
    assert not fits_fused(jnp.dtype("float32"), 80)


def test_the_choice_is_dense_without_a_gpu():
    bfloat16 = jnp.dtype("bfloat16")
    assert not uses_fused("auto", bfloat16, 128)
    assert not uses_fused("dense", bfloat16, 128)
    assert uses_fused("fused", bfloat16, 128)


def test_a_kernel_is_trusted_after_it_gave_the_right_numbers():
    def plain(*heads, **settings):
        wide = (x.astype(jnp.float32) for x in heads)
        out = jax.nn.dot_product_attention(*wide, implementation="xla", **settings)
        return out.astype(jnp.bfloat16)

    def forgets(*args, **settings):
        settings.pop("key_value_seq_lengths", None)
        return plain(*args, **settings)

    def broken(*args, **settings):
        return plain(*args, **settings) * jnp.nan

    bfloat16 = jnp.dtype("bfloat16")
    assert fused_problem(bfloat16, 16, plain) is None
    for kernel in (forgets, broken):
        assert "differ" in fused_problem(bfloat16, 16, kernel)
    # Also in the middle of tracing another program.
    found = []
    jax.jit(lambda: found.append(fused_problem(bfloat16, 16, plain)))()
    assert found == [None]


def test_a_gpu_without_cudnn_is_a_warning_and_dense(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    fused_attention._tried.cache_clear()
    with pytest.warns(UserWarning, match="fused attention is not available here"):
        assert not fused_works(jnp.dtype("bfloat16"), 24)
    fused_attention._tried.cache_clear()


@pytest.mark.parametrize("causal", [True, False])
def test_a_layout_is_the_mask_it_stands_for(causal):
    segments = np.array([[1, 1, 2, 0]])
    mask = np.asarray(AttentionLayout(causal, segments=segments).mask(4))[0]
    for i, j in np.ndindex(4, 4):
        seen = segments[0, i] == segments[0, j] > 0 and not (causal and j > i)
        assert mask[i, j] == seen
    parts = heads(4, rows=1)
    out = dense(*parts, AttentionLayout(causal).mask(4))
    assert out.shape == (1, 4, 32)
