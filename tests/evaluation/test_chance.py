"""What a random ranking scores, against rankings drawn at random."""

import json

import numpy as np
import pytest

from afmrl_jax.errors import CatalogueError
from afmrl_jax.evaluation.chance import chance_values, random_recall, random_reciprocal_rank
from afmrl_jax.evaluation.ideal import ideal_values
from afmrl_jax.evaluation.tasks import TaskInputs, per_query_values


@pytest.mark.parametrize(("positives", "candidates"), [(1, 7), (3, 10), (5, 5), (2, 30)])
def test_it_is_the_mean_over_all_rankings(rng, positives, candidates):
    first = np.array([rng.permutation(candidates)[:positives].min() + 1 for _ in range(20_000)])
    for k in (1, 5, 100):
        found = random_recall(positives, candidates, k)
        assert found == pytest.approx((first <= k).mean(), abs=0.015)
    found = random_reciprocal_rank(positives, candidates)
    assert found == pytest.approx((1 / first).mean(), abs=0.01)


@pytest.mark.parametrize("roles", [False, True])
def test_vectors_without_meaning_score_as_it_says(rng, roles):
    products = np.repeat(np.arange(12), [1, 2, 3, 4] * 3)
    sides = {"queries": np.arange(0, 20), "gallery": np.arange(8, 30)} if roles else {}

    def inputs(vectors):
        views = dict.fromkeys(("both", "image"), vectors)
        return TaskInputs(**views, text=None, products=products, families=products, **sides)

    found = chance_values(inputs(np.ones((30, 4), np.float32)))
    assert {key.split(".")[0] for key in found} == {
        "fine", "image_to_multimodal", "image_to_image",
    }  # fmt: skip
    means = []
    for _ in range(300):
        vectors = rng.normal(size=(30, 4)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        values = per_query_values(inputs(vectors))
        means.append([np.nanmean(values[f"fine.{m}"]) for m in ("R@1", "R@5", "MRR")])
        assert (np.isnan(values["fine.R@1"]) == np.isnan(found["fine.R@1"])).all()
    expected = [np.nanmean(found[f"fine.{m}"]) for m in ("R@1", "R@5", "MRR")]
    np.testing.assert_allclose(np.mean(means, 0), expected, atol=0.015)


def test_the_ideal_is_read_for_the_listings_it_was_computed_for(tmp_path):
    tasks = {"fine": {"ideal": {"R@1": 93.5}, "chance": {"R@1": 0.1}}, "coarse": {"chance": {}}}
    (tmp_path / "ideal.json").write_text(json.dumps({"queries": 60, "gallery": 60, "tasks": tasks}))
    assert ideal_values(tmp_path, 60) == {"fine": {"R@1": 93.5}}
    assert ideal_values(tmp_path, 61) == {}
    assert ideal_values(None, 60) == ideal_values(tmp_path / "other", 60) == {}
    (tmp_path / "ideal.json").write_text('{"queries": 60, "gallery": 60}')
    with pytest.raises(CatalogueError, match=r"ideal\.json: tasks"):
        ideal_values(tmp_path, 60)
