"""Calibrated probabilities: true on new families, and in catalogues of another size."""

import dataclasses

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from afmrl_jax.errors import CatalogueError
from afmrl_jax.matching.calibration import cross_fitted, features_of, fit
from afmrl_jax.matching.evaluate import labelled_candidates
from afmrl_jax.matching.reliability import brier_score, calibration_error, reliability_curve
from tests.matching.world import draw_world

K = 15


def labelled(seed, **options):
    return labelled_candidates(*draw_world(seed, **options), K)


@pytest.fixture(scope="module")
def held_out():
    return labelled(0)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_are_true_on_new_families(held_out, method):
    new = labelled(1)
    found = fit(held_out, new.listings, method).probability(new.pairs)
    even = np.ones(len(found))
    assert ((found >= 0) & (found <= 1)).all()
    assert calibration_error(reliability_curve(new.same, found, even)) < 0.05
    base = np.full(len(found), new.same.mean())
    assert brier_score(new.same, found, even) < 0.6 * brier_score(new.same, base, even)


def test_strangers_are_as_many_as_the_catalogue_is_large(held_out):
    """With eight times the families, each listing meets eight times the strangers at any cosine."""
    large = labelled(2, families=320)
    scaled = fit(held_out, large.listings).probability(large.pairs)
    plain = fit(held_out, held_out.listings).probability(large.pairs)
    near = scaled > 0.5
    assert abs(scaled[near].mean() - large.same[near].mean()) < 0.05
    errors = [
        calibration_error(reliability_curve(large.same, x, np.ones(len(x))))
        for x in (scaled, plain)
    ]
    assert errors[0] < errors[1]


def test_agreement_of_lists_counts(held_out):
    without = labelled(0, lists=False)
    found = [cross_fitted(x, x.listings) for x in (held_out, without)]
    scores = [
        brier_score(x.same, p, np.ones(len(p)))
        for x, p in zip((held_out, without), found, strict=True)
    ]
    assert scores[0] < scores[1]
    model = fit(held_out, held_out.listings)
    assert model.slopes[0] > 0
    assert model.slopes[1] > 0
    assert model.slopes[2] < 0
    assert fit(without, without.listings).slopes[1:] == (0, 0)


def test_a_pair_is_judged_by_a_calibration_without_its_families(held_out):
    """Labels of a family that are turned around do not change what is said of it."""
    turned = held_out.families[:, 0] == 3
    other = dataclasses.replace(held_out, same=np.where(turned, ~held_out.same, held_out.same))
    own = turned & (held_out.families[:, 1] == 3)
    before, after = (cross_fitted(x, x.listings) for x in (held_out, other))
    # The folds spread families with pairs, and family 3 has some either way.
    np.testing.assert_allclose(before[own], after[own])
    assert not np.allclose(before, after)


def test_it_is_what_scikit_learn_fitted(held_out):
    features = features_of(held_out.pairs)
    normal = (features - features.mean(0)) / features.std(0)
    weights = held_out.weights(held_out.listings)
    model = LogisticRegression(max_iter=1000).fit(normal, held_out.same, weights)
    found = fit(held_out, held_out.listings).probability(held_out.pairs)
    np.testing.assert_allclose(found, model.predict_proba(normal)[:, 1], atol=1e-12)
    curve = fit(held_out, held_out.listings, "isotonic")
    places, values = np.array(curve.knots).T
    assert (np.diff(values) >= 0).all()
    refit = IsotonicRegression(out_of_bounds="clip").fit(places, values)
    scores = curve.scores(features)
    np.testing.assert_allclose(curve.probability(held_out.pairs), refit.predict(scores), atol=1e-12)


def test_too_few_pairs_are_refused():
    with pytest.raises(CatalogueError, match=r"pairs of one product in 2 families.*hold out more"):
        fit(labelled(0, families=2), 100)
