"""Seeds crossed with families, and corrected p-values."""

import numpy as np
import pytest

from afmrl_jax.evaluation.statistics import crossed, holm


def drawn(rng, seeds, families, *, of_seed, of_family, of_both):
    """Differences [s n] of a true mean of 0 with known components, and the families [n]."""
    groups = np.repeat(np.arange(families), rng.integers(1, 7, families))
    cell = of_both * rng.normal(size=(seeds, families)) + of_family * rng.normal(size=families)
    values = cell[:, groups] + rng.normal(size=(seeds, len(groups)))
    return values + of_seed * rng.normal(size=(seeds, 1)), groups


def resampled(rng, values, groups, *, seeds, families, draws=6000):
    """Variance of the mean in a bootstrap over seeds, families or both."""
    sums = np.stack([np.bincount(groups, row) for row in values])
    sizes = np.bincount(groups)
    count, many = sums.shape
    ones = np.ones((draws, 1))
    of_seeds = rng.multinomial(count, np.full(count, 1 / count), draws) if seeds else ones
    of_families = rng.multinomial(many, np.full(many, 1 / many), draws) if families else ones
    of_seeds, of_families = of_seeds * np.ones((1, count)), of_families * np.ones((1, many))
    means = np.einsum("rs,sf,rf->r", of_seeds, sums, of_families)
    return (means / (of_seeds.sum(1) * (of_families @ sizes))).var()


@pytest.mark.parametrize("shares", [(0.4, 0.6, 0.2), (0.0, 0.3, 1.0), (0.6, 0.0, 0.0)])
def test_the_error_is_that_of_the_bootstraps_it_stands_for(rng, shares):
    of_seed, of_family, of_both = shares
    values, groups = drawn(
        rng, 12, 80, of_seed=of_seed, of_family=of_family, of_both=of_both
    )  # Many seeds, so that a bootstrap of seeds is nearly unbiased.
    one, other, both = (
        resampled(rng, values, groups, seeds=x, families=y)
        for x, y in ((True, False), (False, True), (True, True))
    )
    one, other = one * 12 / 11, other * 80 / 79
    # The pigeonhole bootstrap holds the interaction three times; it belongs in once.
    interaction = both - one * 11 / 12 - other * 79 / 80
    expected = max(one + other - interaction, one, other) ** 0.5
    found = crossed(values, groups)
    assert found.error == pytest.approx(expected, rel=0.12)
    assert found.mean == pytest.approx(values.mean())


@pytest.mark.parametrize(
    "shares", [(0.3, 0.0, 0.0), (0.3, 0.5, 0.5), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)]
)
def test_five_seeds_cover_the_truth(shares):
    rng = np.random.default_rng(7)
    of_seed, of_family, of_both = shares
    inside = 0
    for _ in range(300):
        values, groups = drawn(rng, 5, 50, of_seed=of_seed, of_family=of_family, of_both=of_both)
        found = crossed(values, groups)
        inside += found.low <= 0 <= found.high
    # Three standard errors of 300 coins below 95 %; above, the interaction makes it cautious.
    assert 0.91 <= inside / 300 <= 1.0


def test_p_and_interval_say_the_same():
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.3, 0.6, 0.9):
        values, groups = drawn(rng, 5, 40, of_seed=0.3, of_family=0.5, of_both=0.2)
        found = crossed(values + shift, groups)
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


def test_queries_that_a_seed_lacks_are_left_out(rng):
    values, groups = drawn(rng, 3, 20, of_seed=0.1, of_family=0.1, of_both=0.1)
    holed = values.copy()
    holed[1, 4] = np.nan
    assert crossed(holed, groups) == crossed(np.delete(values, 4, 1), np.delete(groups, 4))


def test_no_difference_at_all_has_no_error():
    found = crossed(np.zeros((3, 8)), np.arange(8) // 2)
    assert found == (0, 0, 0, 0, 1)


@pytest.mark.parametrize(("seeds", "families"), [(1, 5), (4, 1)])
def test_one_of_a_kind_cannot_be_generalized(rng, seeds, families):
    with pytest.raises(ValueError, match="two of each are needed"):
        crossed(rng.normal(size=(seeds, 10)), np.arange(10) % families)


def test_holm_by_hand():
    # Wikipedia's example of the procedure, "Holm-Bonferroni method".
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    found = holm([0.02, float("nan"), 0.03])
    assert found[::2] == pytest.approx([0.04, 0.04])
    assert np.isnan(found[1])
    assert holm([]) == []


def test_holm_makes_no_false_claim_more_often_than_it_says():
    rng = np.random.default_rng(2)
    false = [min(holm(rng.random(8).tolist())) < 0.05 for _ in range(2000)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.015)
