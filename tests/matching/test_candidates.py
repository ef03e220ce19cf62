"""Candidate pairs: those of a table of all with all, in blocks of any size."""

import numpy as np
import pytest

from afmrl_jax.matching.candidates import Side, candidate_blocks, joined, pairs_of
from afmrl_jax.retrieval.exact import ExactIndex
from tests.matching.world import draw_world


def nearest(scores, k):
    return {(n, int(m)) for n, row in enumerate(scores) for m in np.argsort(-row)[:k]}


@pytest.mark.parametrize("block", [7, 1000])
def test_within_one_catalogue_they_are_the_nearest_of_either_side(block):
    side, index, _ = draw_world(0, families=6)
    pairs = joined(list(candidate_blocks(side, side, index, 5, block=block)), len(side))
    scores = side.vectors @ side.vectors.T
    np.fill_diagonal(scores, -2)
    wanted = {(min(x), max(x)) for x in nearest(scores, 5)}
    assert set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == wanted
    np.testing.assert_allclose(pairs.cosine, scores[pairs.left, pairs.right], atol=1e-6)
    again = pairs_of(side, pairs.left, side, pairs.right)
    np.testing.assert_allclose(again.cosine, pairs.cosine, atol=1e-6)
    np.testing.assert_array_equal(again.agree, pairs.agree)


def test_between_two_catalogues_equal_places_are_no_listing_itself():
    one, _, _ = draw_world(1, families=3, lists=False)
    other = Side(one.vectors[::-1].copy())
    index = ExactIndex([str(n) for n in range(len(other))], other.vectors)
    pairs = joined(list(candidate_blocks(one, other, index, 3, block=10)), len(other))
    wanted = nearest(one.vectors @ other.vectors.T, 3)
    assert set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == wanted
    assert not pairs.agree.any()


class Counting:
    """An index that notes how many queries it gets at a time."""

    def __init__(self, inner):
        self.inner, self.sizes = inner, []

    def search(self, queries, k):
        self.sizes.append(len(queries))
        return self.inner.search(queries, k)


def test_only_a_block_is_searched_at_a_time():
    side, index, _ = draw_world(0, families=6)
    counting = Counting(index)
    blocks = list(candidate_blocks(side, side, counting, 4, block=20))
    assert max(counting.sizes) == 20
    assert sum(counting.sizes) == len(side)
    assert all(len(x.left) <= 20 * 5 for x in blocks)


def test_ids_do_not_overflow_where_a_million_meet_a_million():
    side, index, _ = draw_world(0, families=2)
    (pairs,) = candidate_blocks(side, side, index, 1, block=1000)
    far = pairs._replace(left=pairs.left + 10**6, right=pairs.right + 10**6)
    assert (far.order(2 * 10**6) > 2**40).all()
