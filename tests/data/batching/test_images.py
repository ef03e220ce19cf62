"""Pictures to patches against Hugging Face's image processor."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.images import patchify, smart_resize
from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.errors import CatalogueError
from afmrl_jax.testing import normalized_pixels


def encode(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def noise(width, height, rng):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


MAX_PIXELS = 28 * 28 * 64
QWEN = ImageConfig.qwen(max_pixels=MAX_PIXELS)
QWEN3 = ImageConfig.qwen3(max_pixels=32 * 32 * 64)
GOLDEN = Path(__file__).with_name("golden_patches.json")
EDGES = [(1, 1), (1, 200), (200, 1), (3, 597), (28, 28), (14, 14), (13, 13), (57, 11), (2000, 10)]
"""Sizes (width, height) at the borders of what is allowed; the rest are drawn."""


def sizes():
    """200 sizes: tiny ones, photographs, and long ones just under 200 to 1."""
    rng = np.random.default_rng(7)
    out = list(EDGES)
    while len(out) < 200:
        short, long = rng.integers(1, 40), rng.integers(1, 700)
        ratio = int(rng.integers(150, 201))
        drawn = [
            (int(rng.integers(1, 30)), int(rng.integers(1, 30))),
            (int(rng.integers(30, 700)), int(rng.integers(30, 700))),
            (int(short), int(min(long, 200 * short))),
            (ratio * int(rng.integers(1, 5)), int(rng.integers(4, 8))),
        ][len(out) % 4]
        out.append(drawn if rng.random() < 0.5 else drawn[::-1])
    assert all(max(x) <= 200 * min(x) for x in out)
    return out


def gradient(width, height):
    """A picture that depends on its size alone, with edges, ramps and noise of its own making."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [(x * 7 + y * 3) % 256, (x * y) % 256, ((x // 5 + y // 3) % 2) * 255]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.mark.parametrize("config", [QWEN, QWEN3], ids=["qwen2", "qwen3"])
def test_patches_are_the_reference_processors_bit_for_bit(rng, config):
    """Qwen3-VL's is the same class with other settings."""
    reference = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = reference.Qwen2VLImageProcessorPil(
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        patch_size=config.patch_size,
        image_mean=config.mean,
        image_std=config.std,
    )
    assert processor.size["shortest_edge"] == config.min_pixels
    equal = 0
    for size in sizes():
        picture = noise(*size, rng)
        found = patchify(encode(picture), config)
        expected = processor(images=[picture], return_tensors="np")
        if len(expected["pixel_values"]) > config.max_patches:
            # The reference lets a very long picture exceed its budget; we have fixed shapes.
            assert max(size) > 64 * min(size)
            assert len(found.pixels) <= config.max_patches
            continue
        equal += 1
        assert expected["image_grid_thw"].tolist() == [[1, *found.grid]], size
        np.testing.assert_array_equal(
            normalized_pixels(found, config), expected["pixel_values"], err_msg=str(size)
        )
    assert equal > 150


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (2001, 10), (10, 2001), (603, 3)])
def test_pictures_longer_than_200_to_1_are_refused_here_and_there(size):
    picture = gradient(*size)
    with pytest.raises(CatalogueError, match="200 to 1"):
        patchify(encode(picture), QWEN)
    reference = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = reference.Qwen2VLImageProcessorPil(max_pixels=MAX_PIXELS)
    with pytest.raises(ValueError, match="aspect ratio"):
        processor(images=[picture], return_tensors="np")


def digest(size):
    found = patchify(encode(gradient(*size)), QWEN)
    pixels = normalized_pixels(found, QWEN)
    return {"grid": list(found.grid), "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}


def test_patches_have_the_hashes_they_had():
    """Where transformers has moved its processor. `golden_patches.json` was equal to it."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(golden) >= 8
    for name, expected in golden.items():
        width, height = map(int, name.split("x"))
        assert digest((width, height)) == expected, name


def test_the_demos_geometry_is_the_reference_processors_too(rng):
    reference = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    config = ImageConfig()
    processor = reference.Qwen2VLImageProcessorPil(
        patch_size=8, temporal_patch_size=1, min_pixels=32 * 32, max_pixels=64 * 64
    )
    for size in [(64, 64), (100, 40), (33, 71), (300, 200), (5, 9)]:
        picture = noise(*size, rng)
        expected = processor(images=[picture], return_tensors="np")
        found = patchify(encode(picture), config)
        np.testing.assert_array_equal(normalized_pixels(found, config), expected["pixel_values"])


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


def photograph(rng, side=320):
    """A JPEG with coarse and fine detail."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return encode(coarse.resize((side, side), Image.Resampling.BICUBIC), "JPEG")


def test_every_byte_becomes_what_the_reference_makes_of_it():
    values = np.arange(256, dtype=np.uint8)
    reference = (values.astype(np.float64) * (1 / 255)).astype(np.float32)
    np.testing.assert_array_equal(np.divide(values, np.float32(255), dtype=np.float32), reference)


def test_scaled_decoding_is_the_reference_after_the_same_draft(rng):
    data = photograph(rng)
    config = ImageConfig.qwen(max_pixels=4 * 4 * 28 * 28)
    scaled = dataclasses.replace(config, scaled_decoding=True)
    found, whole = patchify(data, scaled), patchify(data, config)
    assert found.grid == whole.grid
    picture = Image.open(io.BytesIO(data))
    picture.draft("RGB", tuple(n * config.patch_size for n in found.grid[::-1]))
    assert picture.size == (160, 160), "libjpeg has left half of each side out"
    np.testing.assert_array_equal(
        found.pixels, patchify(encode(picture.convert("RGB")), config).pixels
    )
    apart = normalized_pixels(found, config) - normalized_pixels(whole, config)
    assert 0 < np.abs(apart).mean() < 0.05
    # There is nothing to scale in a PNG, or in a JPEG that is small already.
    small = photograph(rng, 120)
    for other in (encode(Image.open(io.BytesIO(data))), small):
        np.testing.assert_array_equal(
            patchify(other, scaled).pixels, patchify(other, config).pixels
        )
