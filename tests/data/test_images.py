"""Pictures to patches against Hugging Face's image processor."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from afmrl_jax.data.images import decode, patchify, smart_resize
from afmrl_jax.errors import CatalogueError
from afmrl_jax.model_config import ImageConfig


def encode(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def noise(width, height, rng):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (33, 71), (300, 200), (17, 200)])
def test_patches_are_the_reference_processors(size, rng):
    config = ImageConfig(
        patch_size=14, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 12
    )
    processor = Qwen2VLImageProcessorPil(
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        min_pixels=56 * 56,
        max_pixels=28 * 28 * 12,
    )
    picture = noise(*size, rng)
    found = patchify(encode(picture), config)
    expected = processor(images=[picture], return_tensors="np")
    assert expected["image_grid_thw"].tolist() == [[1, *found.grid]]
    np.testing.assert_array_equal(found.pixels, expected["pixel_values"])


def test_positions_run_merge_block_by_merge_block(rng):
    found = patchify(encode(noise(64, 64, rng)), ImageConfig())
    assert found.position[:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found.position[4].tolist() == [0, 2]
    assert len({tuple(x) for x in found.position.tolist()}) == 64


def test_sizes_are_whole_merged_patches_within_the_budget(rng):
    for _ in range(200):
        height, width = rng.integers(10, 2000, 2)
        if max(height, width) > 200 * min(height, width):
            continue
        rows, columns = smart_resize(int(height), int(width), 16, 32 * 32, 64 * 64)
        assert rows % 16 == columns % 16 == 0
        assert rows * columns <= 64 * 64 or min(rows, columns) == 16


def test_very_long_picture_still_fits_the_patch_budget(rng):
    config = ImageConfig()
    assert len(patchify(encode(noise(1500, 10, rng)), config).pixels) <= config.max_patches
    with pytest.raises(CatalogueError, match="200 to 1"):
        patchify(encode(noise(2100, 10, rng)), config)


def test_transparency_is_laid_on_white():
    picture = decode(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0))))
    assert picture.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert decode(encode(Image.new(mode, (5, 6)), kind)).mode == "RGB"
