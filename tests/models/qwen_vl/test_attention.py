"""Attention in every form against plain attention under a full mask: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.models.qwen_vl import attention, fused_attention, fused_probe
from afmrl_jax.models.qwen_vl.attention import AttentionLayout, attend, dense, uses_fused
from afmrl_jax.models.qwen_vl.fused_attention import fits_fused, fused_length
from afmrl_jax.models.qwen_vl.fused_probe import FusedForms, fused_forms, fused_problems


@pytest.fixture
def on_a_gpu(monkeypatch):
    """XLA's attention in place of cuDNN's, with cuDNN's rules and a record of what it was told."""
    calls, real = [], jax.nn.dot_product_attention

    def kernel(q, k, v, *, implementation, **settings):
        assert implementation == "cudnn"
        if settings.get("mask") is not None and (q.shape[1] % 2 or q.shape[1] % 128 == 64):
            raise NotImplementedError(f"Unsupported sequence length Q {q.shape[1]}")
        calls.append(
            (q.shape, sorted(n for n, x in settings.items() if x is not None and x is not False))
        )
        return real(q, k, v, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(attention, "fused_forms", lambda dtype, head_dim: FusedForms())
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

    def hopper(*args, mask=None, **settings):
        """As cuDNN's gradients by a mask: NaN at some lengths where all scores are low."""
        length = args[0].shape[1]
        assert mask is None or length % 128 != 64, "a mask of this length is never asked for"
        return plain(*args, mask=mask, **settings)

    def only_unmasked(*args, mask=None, **settings):
        if mask is not None:
            raise ValueError("no masks")
        return plain(*args, **settings)

    bfloat16 = jnp.dtype("bfloat16")
    for kernel in (plain, hopper):
        assert fused_problems(bfloat16, 16, kernel) == FusedForms()
    found = fused_problems(bfloat16, 16, forgets)
    assert found.causal == found.masks == ""
    assert "differ" in found.lengths
    assert not found.rows
    assert all("differ" in x for x in fused_problems(bfloat16, 16, broken))
    found = fused_problems(bfloat16, 16, only_unmasked)
    assert found == FusedForms(masks="no masks")
    assert found.rows
    # Also in the middle of tracing another program.
    seen = []
    jax.jit(lambda: seen.append(fused_problems(bfloat16, 16, plain)))()
    assert seen == [FusedForms()]


def test_a_kernel_that_overflows_is_found_out():
    def overflows(q, k, v, **settings):
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        out = jax.nn.dot_product_attention(q, k, v, implementation="xla", **settings)
        scores = jnp.sum(q[:, :, 0] * k[:, :, 0], -1) * q.shape[-1] ** -0.5
        return (out + (0 * jnp.exp(-scores))[:, :, None, None]).astype(jnp.bfloat16)

    found = fused_problems(jnp.dtype("bfloat16"), 16, overflows)
    assert all("low" in x for x in found)


def test_where_masks_do_not_work_only_shared_rows_are_plain(on_a_gpu, monkeypatch):
    problems = FusedForms(masks="NaN")
    monkeypatch.setattr(attention, "fused_forms", lambda dtype, head_dim: problems)
    parts = heads(13)
    layout = AttentionLayout(segments=np.array(SEGMENTS["shared"], np.int32))
    out = attend(*parts, layout, "auto")
    assert [settings for _, settings in on_a_gpu] == [["key_value_seq_lengths"]]
    real = (layout.segments > 0)[..., None]
    expected = attend(*parts, layout, "dense")
    np.testing.assert_allclose(np.where(real, out, 0), np.where(real, expected, 0), atol=2e-5)


def test_a_gpu_without_cudnn_is_a_warning_and_dense(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    fused_probe._tried.cache_clear()
    with pytest.warns(UserWarning, match="fused attention of heads of 24 does not work"):
        assert not fused_forms(jnp.dtype("bfloat16"), 24).rows
    fused_probe._tried.cache_clear()


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
