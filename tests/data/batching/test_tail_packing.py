"""Continuations that share rows: every token is there once, behind its own, and is predicted."""

import numpy as np
import pytest

from afmrl_jax.data.batching.tail_packing import packed_tails

LONGEST = 12


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_token_is_read_once_and_predicted_from_the_one_before(rng, parts):
    lengths = rng.integers(1, LONGEST + 1, (8, 5))
    lengths[0], lengths[1] = 1, LONGEST
    found = packed_tails(lengths, LONGEST, parts)
    for part in range(parts):
        own, of = lengths[part::parts], [x[part] for x in found]
        prompt, source, segment, inside, back = of
        group = own.shape[1]
        used = segment > 0
        number = np.broadcast_to(prompt[:, None], used.shape)[used] * group + segment[used] - 1
        # Each continuation's tokens but the last, in order, in one row.
        expected = [
            n * LONGEST + t for n, x in enumerate(own.ravel().tolist()) for t in range(x - 1)
        ]
        assert sorted(source[used].tolist()) == expected
        assert (source[used] == number * LONGEST + inside[used]).all()
        flat, states = source.ravel(), own.size
        for n, size in enumerate(own.ravel().tolist()):
            places = back.reshape(-1, LONGEST)[n, :size]
            assert places[0] == n
            assert (flat[places[1:] - states] == n * LONGEST + np.arange(size - 1)).all()
            assert len(set(((places[1:] - states) // LONGEST).tolist())) <= 1


def test_rows_are_few_and_come_in_few_numbers(rng):
    batches = [np.clip(rng.normal(30, 6, (64, 8)), 4, 80).astype(int) for _ in range(20)]
    counts = {packed_tails(x, 80).prompt.shape[1] for x in batches}
    assert len(counts) <= 2
    assert max(counts) * 80 < 0.65 * 64 * 8 * 64


def test_lists_of_one_token_need_no_place():
    found = packed_tails(np.ones((4, 3), int), 6)
    assert not found.segment.any()
    assert (found.back[0, :, :, 0].ravel() == np.arange(12)).all()
