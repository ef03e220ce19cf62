"""Windows as rows against windows as a mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import Execution
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.qwen_vl import attention, vision
from afmrl_jax.models.qwen_vl.decoder import front_order
from afmrl_jax.models.qwen_vl.fused_probe import FusedForms
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.models.qwen_vl.windows import (
    make_windows,
    reordered,
    rows_of_windows,
    window_numbers,
)


def bins(grids, patches, merge=2):
    """Segments and positions of bins that hold pictures of these sizes in patches."""
    segment = np.zeros((len(grids), patches), np.int32)
    position = np.zeros((len(grids), patches, 2), np.int32)
    for number, pictures in enumerate(grids):
        at = 0
        for which, (rows, columns) in enumerate(pictures):
            place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
            place = place.reshape(rows // merge, merge, columns // merge, merge, 2)
            own = slice(at, at + rows * columns)
            position[number, own] = place.transpose(0, 2, 1, 3, 4).reshape(-1, 2)
            segment[number, own] = which + 1
            at = own.stop
    return segment, position


GRIDS = [[(16, 16)], [(2, 50), (6, 6), (10, 12)], [], [(2, 2)] * 64, [(12, 20)]]


def test_every_window_has_places_of_its_own_in_one_row():
    segment, position = bins(GRIDS, 256)
    numbers = np.asarray(window_numbers(segment, position, 8))
    windows = make_windows(numbers, 8)
    rows, places = rows_of_windows(256, 8)
    assert windows.segments.shape == (len(GRIDS) * rows, places)
    for which in range(len(GRIDS)):
        keys = [tuple(x) for x in np.c_[segment[which], position[which] // 8]]
        own, back = numbers[which], np.asarray(windows.back[which])
        # The same number is the same picture and window.
        assert len(set(zip(own, keys, strict=True))) == len(set(own)) == len(set(keys))
        real = segment[which] > 0
        assert ((own > 0) == real).all()
        assert (back[~real] == rows * places).all()
        assert (np.asarray(windows.order[which])[back[real]] == np.flatnonzero(real)).all()
        held = np.asarray(windows.segments).reshape(len(GRIDS), rows, places)[which]
        assert (held.ravel()[back[real]] == own[real]).all()
        assert (held > 0).sum() == real.sum()
        for window in set(own[real]):
            assert len({x // places for x in back[own == window]}) == 1


def test_reordering_has_the_gradient_of_plain_indexing():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 3)).astype(np.float32))
    order, back = (
        np.array([[4, 5, 0, 2], [1, 0, 5, 5]]),
        np.array([[2, 4, 3, 4, 0], [1, 0, 4, 4, 4]]),
    )
    weights = jnp.asarray(rng.normal(size=(2, 4, 3)).astype(np.float32))

    def plain(x):
        padded = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
        return jnp.take_along_axis(padded, jnp.asarray(order)[..., None], axis=1)

    ours = lambda x: reordered(x, jnp.asarray(order), jnp.asarray(back))  # noqa: E731
    np.testing.assert_array_equal(ours(x), plain(x))
    found, expected = (jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(x) for f in (ours, plain))
    np.testing.assert_array_equal(found, expected)


def tower(scan, dtype="float32"):
    config = preset("demo_generator")
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=3, full_attention_blocks=(1,)),
    )
    return Architecture.of(config, Execution(scan=scan, dtype=dtype))


@pytest.mark.parametrize(("scan", "form"), [(True, "dense"), (False, "dense"), (True, "fused")])
def test_windows_as_rows_equal_a_mask(scan, form, monkeypatch):
    """The tower's outputs and the gradients of all its weights."""
    architecture = tower(scan)
    params = architecture.init(0)
    own = {n: x for n, x in params.items() if n.startswith("visual_tower/")}
    grids = [[(8, 16)], [(2, 10), (6, 6), (10, 4)], [], [(2, 2)] * 32]
    segment, position = bins(grids, 128)
    pixels = np.random.default_rng(0).normal(size=(*segment.shape, 192)).astype(np.float32)
    real = (segment > 0).reshape(len(grids), -1, 4)[..., 0]

    def loss(own):
        tokens = architecture.bind(params | own).visual(pixels, segment, position).tokens
        tokens = jnp.where(real[..., None], tokens, 0)
        return jnp.sum(tokens**2), tokens

    def run():
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(own)

    monkeypatch.setattr(vision, "LESS_IN_WINDOWS", 10**9)
    (_, expected), slopes = run()
    monkeypatch.setattr(vision, "LESS_IN_WINDOWS", 4)
    made = []
    real_make = vision.make_windows
    monkeypatch.setattr(vision, "make_windows", lambda *x: made.append(x) or real_make(*x))
    if form == "fused":
        plain = jax.nn.dot_product_attention
        monkeypatch.setattr(
            jax.nn,
            "dot_product_attention",
            lambda *x, implementation, **y: plain(*x, implementation="xla", **y),
        )
        monkeypatch.setattr(attention, "fused_forms", lambda dtype, head_dim: FusedForms())
    (_, found), ours = run()
    assert made
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for name in slopes:
        np.testing.assert_allclose(ours[name], slopes[name], atol=2e-3, err_msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_padded_on_either_side_are_turned_to_the_front(side):
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], bool)
    mask = mask if side == "right" else mask[:, ::-1]
    order, back = (np.asarray(x) for x in front_order(mask))
    turned = np.take_along_axis(mask, order, axis=1)
    assert (turned == (np.arange(5) < mask.sum(1)[:, None])).all()
    assert (np.take_along_axis(turned, back, axis=1) == mask).all()
