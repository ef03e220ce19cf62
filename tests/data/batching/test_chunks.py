"""Batches in chunks: every row and picture once, little padding, few shapes."""

import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching.chunk_shapes import (
    MOST_SHAPES,
    Budget,
    Misfit,
    Shape,
    chunks_needed,
    divide,
)
from afmrl_jax.data.batching.chunks import Chunker
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.batching.images import cut
from afmrl_jax.data.batching.packing import best_fit_decreasing
from afmrl_jax.data.batching.shapes import padding_counts
from afmrl_jax.errors import CatalogueError

CONFIG = ImageConfig()
TEXT = TextBudget()


def batch_of_rows(tokenizer, rng, count=64, longest=40):
    """Rows of every length, a tenth of them without a picture; each has a word of its own."""
    rows = []
    for number in range(count):
        side = tuple(rng.integers(1, 5, 2).tolist())
        pixels = rng.integers(0, 256, (16 * side[0], 16 * side[1], 3), np.uint8)
        pictures = (cut(pixels, CONFIG),) if rng.random() > 0.1 else ()
        pads = [tokenizer.image_pad_id] * (side[0] * side[1]) * len(pictures)
        words = [100 + number, *rng.integers(20, 90, rng.integers(1, longest)).tolist()]
        rows.append(Row([*pads, *words, tokenizer.eos_id], pictures, len(pads) + 1))
    return rows


@pytest.fixture
def samples(tokenizer):
    return [batch_of_rows(tokenizer, np.random.default_rng(n)) for n in range(6)]


def chunker(tokenizer, samples, shares, tokens=256):
    return Chunker.of(samples, tokenizer, CONFIG, TEXT, tokens=tokens, shares=shares)


@pytest.mark.parametrize("shares", [1, 4])
def test_every_row_and_its_picture_are_found_again(tokenizer, samples, shares):
    make = chunker(tokenizer, samples, shares)
    rows = samples[3]
    chunks = make(rows)
    merged = CONFIG.merge_size**2
    # What the tower would give for each merged square: its first number.
    seen = [x.patches[..., ::merged, 0].swapaxes(0, 1).reshape(shares, -1) for x in chunks.pictures]
    visual = np.concatenate(seen, axis=1)
    slots = [
        (text, n, s, r) for text in chunks.texts for n, s, r in np.ndindex(text.visual_start.shape)
    ]
    assert len(set(chunks.place.tolist())) == len(rows)
    for row, place in zip(rows, chunks.place, strict=True):
        text, n, s, r = slots[place]
        own = text.tokens[n, s, r][text.token_mask[n, s, r]]
        assert own.tolist() == row.tokens
        assert text.bare_last[n, s, r] == row.bare_last
        for picture in row.pictures:
            start = text.visual_start[n, s, r]
            expected = picture.pixels[::merged, 0]
            np.testing.assert_array_equal(visual[s, start : start + len(expected)], expected)
    pictures = sum(len(row.pictures) for row in rows)
    assert sum(int(x.patch_segment.max(-1).sum()) for x in chunks.pictures) == pictures


def test_patches_of_a_picture_share_a_segment_of_their_own(tokenizer, samples):
    chunks = chunker(tokenizer, samples, 2)(samples[0])
    counts = []
    for x in chunks.pictures:
        flat = x.patch_segment.reshape(-1, x.patch_segment.shape[-1])
        counts += [n for bin_ in flat for n in np.bincount(bin_)[1:].tolist()]
    assert sorted(counts) == sorted(len(p.pixels) for row in samples[0] for p in row.pictures)


def test_padding_is_what_the_masks_leave_of_the_chunks_in_use(tokenizer, samples):
    make = chunker(tokenizer, samples, 4)
    chunks = make(samples[1])
    assert all(0 <= x.used <= len(x.tokens) for x in chunks.texts)
    text = sum(x.used * x.tokens[0].size for x in chunks.texts)
    patches = sum(x.used * x.patch_segment[0].size for x in chunks.pictures)
    used = sum(len(row.tokens) for row in samples[1])
    pixels = sum(len(p.pixels) for row in samples[1] for p in row.pictures)
    assert padding_counts(chunks) == {
        "text": (text - used, text),
        "patch": (patches - pixels, patches),
    }


def test_two_plans_hold_any_batch_and_one_nearly_all(tokenizer, samples):
    make = chunker(tokenizer, samples, 2)
    assert len(make.plans) == 2
    for plan in make.plans:
        assert max(len(plan.text), len(plan.bins)) <= MOST_SHAPES + 1
    first = 0
    for seed in range(40):
        rng = np.random.default_rng([9, seed])
        chunks = make(batch_of_rows(tokenizer, rng))
        first += len(chunks.texts) == len(make.plans[0].text)
    assert first >= 38
    # Nothing like the samples: all rows as long as can be.
    rows = [Row([7] * TEXT.buckets[-1])] * len(samples[0])
    assert len(make(rows).texts) == 1


def test_no_chunk_is_above_its_budget(tokenizer, samples):
    make = chunker(tokenizer, samples, 4, tokens=200)
    for plan in make.plans:
        for shape in plan.text:
            assert shape.rows % 4 == 0
            assert shape.length * shape.rows // 4 <= 200
        for shape in plan.bins:
            assert shape.length * shape.rows <= 200 * CONFIG.merge_size**2


def test_a_row_longer_than_any_bucket_is_refused(tokenizer, samples):
    long = Row([7] * (TEXT.buckets[-1] + 1))
    with pytest.raises(CatalogueError, match=r"add a bucket to text\.buckets"):
        chunker(tokenizer, samples, 1)([*samples[0][1:], long])


def test_shapes_take_few_places_and_have_room():
    rng = np.random.default_rng(0)

    def draw():
        return np.sort(rng.integers(40, 100, 512))[::-1]

    shapes = divide([draw() for _ in range(4)], Budget(1024, 2), 4.0, 100)
    assert 1 < len(shapes) <= MOST_SHAPES + 1
    for _ in range(50):
        sizes = draw()
        used = chunks_needed(sizes, shapes)
        places = sum(n * x.rows * x.length for n, x in zip(used, shapes, strict=True))
        assert places < 1.10 * sizes.sum()
    equal = np.full(64, 30)
    (shape,) = divide([equal, equal], Budget(300), 0.0, 30)
    assert 64 <= shape.rows * chunks_needed(equal, [shape])[0] <= 66
    assert divide([np.zeros(0, int)], Budget(300), 0.0, 30) == ()


def test_items_beyond_the_chunks_are_a_misfit():
    shapes = (Shape(9, 2, 1), Shape(5, 2, 2))
    assert chunks_needed(np.array([9, 8, 5, 4, 3]), shapes) == [1, 2]
    for sizes in ([10, 4], [9, 8, 7], [5] * 5):
        with pytest.raises(Misfit):
            chunks_needed(np.array(sizes), shapes)


def test_best_fit_wastes_no_more_than_a_bin_in_halves(rng):
    for _ in range(50):
        sizes = rng.integers(0, 65, 40).tolist()
        bins = best_fit_decreasing(sizes, 64)
        fills = [sum(sizes[i] for i in x) for x in bins]
        assert max(fills) <= 64
        assert sorted(i for x in bins for i in x) == [i for i, s in enumerate(sizes) if s]
        assert sum(fill <= 32 for fill in fills) <= 1
