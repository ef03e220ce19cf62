"""Rows to batches: bins of patches, positions, padding."""

import numpy as np
import pytest

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.collate import Row, collate, merged_grid, mrope_positions
from afmrl_jax.data.batching.images import cut
from afmrl_jax.data.batching.packing import bin_count, first_fit_decreasing, pack
from afmrl_jax.errors import CatalogueError

CONFIG = ImageConfig(max_pictures=2)  # Bins of 128 patches.


def picture(rows, columns, rng, config=CONFIG):
    """A picture of merged rows and columns."""
    factor = config.patch_size * config.merge_size
    pixels = rng.integers(0, 256, (rows * factor, columns * factor, 3), np.uint8)
    return cut(pixels, config)


def row(tokenizer, pictures, config=CONFIG, words=3):
    tokens = [tokenizer.im_start_id]
    for one in pictures:
        rows, columns = merged_grid(one, config)
        pads = [tokenizer.image_pad_id] * (rows * columns)
        tokens += [tokenizer.vision_start_id, *pads, tokenizer.vision_end_id]
    return Row([*tokens, *range(20, 20 + words), tokenizer.eos_id], tuple(pictures))


def test_items_fit_and_bins_are_few(rng):
    for _ in range(100):
        sizes = rng.integers(0, 65, 40).tolist()
        places, count = first_fit_decreasing(sizes, 64)
        taken = np.zeros((count, 64), int)
        for size, (chosen, offset) in zip(sizes, places, strict=True):
            assert offset + size <= 64
            if size:
                taken[chosen, offset : offset + size] += 1
        assert taken.max() == 1
        # Where two bins were half empty, what is in the later one would have gone to the earlier.
        assert (taken.sum(1) <= 32).sum() <= 1
        assert first_fit_decreasing(sizes, 64) == (places, count)


def test_items_that_fill_a_bin_keep_their_numbers():
    assert first_fit_decreasing([8] * 5, 8) == ([(n, 0) for n in range(5)], 5)
    assert first_fit_decreasing([], 8) == ([], 0)


@pytest.mark.parametrize(("needed", "expected"), [(0, 8), (8, 8), (9, 16), (17, 32), (32, 32)])
def test_bins_come_in_a_few_numbers(needed, expected):
    assert bin_count(needed, 32, CONFIG.pack_shares) == expected


def test_every_picture_is_found_where_its_row_points(rng, tokenizer):
    sizes = [[(4, 4)], [], [(1, 2), (2, 2)], [(2, 3)], [(4, 4), (4, 4)], [(1, 1)]]
    rows = [row(tokenizer, [picture(*size, rng) for size in group]) for group in sizes]
    bins = pack([x.pictures for x in rows], CONFIG)
    assert bins.patches.shape == (2, CONFIG.bin_patches, CONFIG.patch_bytes)
    patches, place = bins.patches.reshape(-1, CONFIG.patch_bytes), bins.position.reshape(-1, 2)
    seen = np.zeros(len(patches), bool)
    for one, start in zip(rows, bins.visual_start * 4, strict=True):
        for part in one.pictures:
            own = slice(int(start), int(start) + len(part.pixels))
            np.testing.assert_array_equal(patches[own], part.pixels)
            np.testing.assert_array_equal(place[own], part.position)
            assert len(set(bins.segment.reshape(-1)[own].tolist())) == 1
            assert not seen[own].any()
            seen[own] = True
            start = own.stop
    np.testing.assert_array_equal(seen, bins.segment.reshape(-1) > 0)
    for numbers in bins.segment:
        used = numbers[numbers > 0]
        # Pictures of a bin are numbered 1, 2, ... and each number is one block.
        assert (np.diff(used) >= 0).all()
        assert sorted(set(used.tolist())) == list(range(1, len(set(used.tolist())) + 1))


def test_pictures_of_full_size_have_a_bin_each(rng, tokenizer):
    config = ImageConfig()
    rows = [row(tokenizer, [picture(4, 4, rng, config)], config) for _ in range(8)]
    batch = collate(rows, tokenizer, config, 24)
    assert batch.patches.shape == (8, 64, config.patch_bytes)
    assert batch.visual_start.tolist() == [16 * n for n in range(8)]
    for number, one in enumerate(rows):
        np.testing.assert_array_equal(batch.patches[number], one.pictures[0].pixels)


def test_small_pictures_share_a_bin(rng, tokenizer):
    config = ImageConfig()
    rows = [row(tokenizer, [picture(2, 2, rng, config)], config) for _ in range(8)]
    assert collate(rows, tokenizer, config, 24).patches.shape[0] == 2


def test_a_batch_of_text_has_no_patches_where_none_are_asked_for(tokenizer):
    rows = [row(tokenizer, []) for _ in range(3)]
    batch = collate(rows, tokenizer, CONFIG, 16, with_patches=False)
    assert len(batch.patches) == len(batch.patch_segment) == len(batch.patch_position) == 0
    assert batch.visual_start.tolist() == [0, 0, 0]


def test_rows_that_do_not_fit_are_refused_with_a_remedy(rng, tokenizer):
    three = row(tokenizer, [picture(4, 4, rng) for _ in range(3)])
    with pytest.raises(CatalogueError, match=r"row 1 holds 3 pictures.*raise image\.max_pictures"):
        collate([row(tokenizer, []), three], tokenizer, CONFIG, 80)
    long = row(tokenizer, [], words=30)
    with pytest.raises(CatalogueError, match=r"32 tokens.*room for 24.*max_title_tokens"):
        collate([long], tokenizer, CONFIG, 24)


def test_padding_stands_on_either_side(rng, tokenizer):
    rows = [row(tokenizer, [picture(1, 2, rng)]), row(tokenizer, [], words=1)]
    right = collate(rows, tokenizer, CONFIG, 16)
    left = collate(rows, tokenizer, CONFIG, 16, side="left")
    for number, one in enumerate(rows):
        count = len(one.tokens)
        assert right.token_mask[number].tolist() == [n < count for n in range(16)]
        assert left.token_mask[number].tolist() == [n >= 16 - count for n in range(16)]
        for name in ("tokens", "positions"):
            there, here = getattr(left, name)[number], getattr(right, name)[number]
            np.testing.assert_array_equal(there[..., -count:], here[..., :count])
        assert (left.positions[number][:, : 16 - count] == 0).all()
    for name in ("patches", "patch_segment", "patch_position", "visual_start"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_positions_count_up_around_a_picture():
    tokens = [1, 2, 9, 9, 9, 9, 9, 9, 3, 4]
    found = mrope_positions(tokens, [(2, 3)], image_pad_id=9)
    assert found[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert found[1].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert found[2].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]


def test_a_second_picture_starts_behind_the_first():
    found = mrope_positions([1, 9, 9, 2, 9, 3], [(2, 1), (1, 1)], image_pad_id=9)
    assert found[0].tolist() == [0, 1, 1, 3, 4, 5]
    assert found[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert found[2].tolist() == [0, 1, 1, 3, 4, 5]
    assert mrope_positions([1, 2, 3], [], image_pad_id=9).tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("tokens", "grids"), [([1, 9, 9], []), ([1, 9], [(1, 2)]), ([9, 1, 9], [(1, 2)])]
)
def test_picture_places_that_do_not_match_are_refused(tokens, grids):
    with pytest.raises(ValueError, match="picture"):
        mrope_positions(tokens, grids, image_pad_id=9)


@pytest.mark.parity
def test_positions_equal_the_reference(rng):
    torch = pytest.importorskip("torch", reason="the reference needs `pip install torch`")
    from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl

    config = configuration_qwen2_vl.Qwen2VLConfig()
    owner = modeling_qwen2_vl.Qwen2VLModel
    model = owner.__new__(owner)
    torch.nn.Module.__init__(model)
    model.config = config
    for _ in range(50):
        grids = rng.integers(1, 7, (int(rng.integers(1, 5)), 2)).tolist()
        tokens = [1] * int(rng.integers(1, 6))
        for rows, columns in grids:
            tokens += [9] * (rows * columns) + [1] * int(rng.integers(1, 6))
        ids = torch.tensor([tokens])
        thw = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
        expected, _ = model.get_rope_index(ids, (ids == 9).int(), thw)
        np.testing.assert_array_equal(
            mrope_positions(tokens, [tuple(x) for x in grids], 9), expected[:, 0].numpy()
        )
