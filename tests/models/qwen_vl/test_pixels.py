"""Bytes become, on the device, the numbers of the reference's image processor."""

import dataclasses

import jax
import numpy as np
import pytest

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.images import cut, erase_patches
from afmrl_jax.data.batching.packing import pack
from afmrl_jax.models.qwen_vl.pixels import normalized
from afmrl_jax.testing import normalized_pixels


@pytest.mark.parametrize("frames", [1, 2])
def test_bytes_erased_patches_and_padding_become_what_they_were_on_the_host(rng, frames):
    config = dataclasses.replace(
        ImageConfig(max_pixels=48 * 48), temporal_patch_size=frames, mean=(0.1, 0.5, 0.9)
    )
    pictures = [cut(rng.integers(0, 256, (*x, 3), np.uint8), config) for x in ((32, 16), (48, 48))]
    pictures[0] = erase_patches(pictures[0], rng, 0.5, config)
    assert not pictures[0].kept.all()
    bins = pack([(x,) for x in pictures], config)
    assert bins.patches.dtype == np.uint8
    found = jax.jit(normalized, static_argnums=2)(bins.patches, bins.normalization, frames)
    merged = config.merge_size**2
    expected = np.zeros(found.shape, np.float32).reshape(-1, found.shape[-1])
    for picture, start in zip(pictures, merged * bins.visual_start, strict=True):
        expected[start : start + len(picture.pixels)] = normalized_pixels(picture, config)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6, rtol=0)


def test_bytes_without_their_constants_are_refused():
    with pytest.raises(ValueError, match="need a normalization"):
        normalized(np.zeros((1, 4, 3), np.uint8), None, 1)
