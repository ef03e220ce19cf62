"""The task table, rows of the results, roles, ScaNN's cost and shorter vectors."""

import dataclasses

import numpy as np
import pytest

from afmrl_jax.errors import CatalogueError, RunError
from afmrl_jax.evaluation import approximate, tasks
from afmrl_jax.evaluation.approximate import scann_effect
from afmrl_jax.evaluation.evaluate import query_and_gallery
from afmrl_jax.evaluation.metrics import macro, retrieval_values
from afmrl_jax.evaluation.tasks import (
    RETRIEVAL,
    TASKS,
    TaskInputs,
    by_category,
    compare_rows,
    evaluate_row,
    per_query_values,
)
from afmrl_jax.evaluation.truncation import dimensions, truncated, truncation_curve

VIEWS = ("both", "text", "image")


@pytest.fixture
def inputs(rng):
    """60 listings of 15 products in 5 categories; three views of 12 dimensions."""
    products = np.arange(60) // 4
    centres = rng.normal(size=(15, 12))

    def view(noise):
        vectors = (centres[products] + noise * rng.normal(size=(60, 12))).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return TaskInputs(
        both=view(0.8),
        text=view(2.0),
        image=view(1.2),
        products=products,
        families=products // 2,
        categories=np.array(["chair", "lamp", "sofa", "bed", "shelf"])[products // 3],
    )


def alone(inputs, task, queries, gallery):
    """A task's values by the metrics' own function."""
    labels = inputs.products if task.label == "product" else inputs.categories
    place = {p: n for n, p in enumerate(gallery)}
    own = np.array([place.get(p, -1) for p in queries])
    query, searched = getattr(inputs, task.query), getattr(inputs, task.gallery)
    return retrieval_values(
        query[queries], searched[gallery], labels[queries], labels[gallery], task.metrics, own
    )


def test_every_task_of_the_design_is_there_once():
    names = ["fine", "coarse", "text_to_image", "image_to_multimodal", "image_to_image"]
    others = ["classification", "clustering", "clustering_type", "clustering_family"]
    assert [task.name for task in TASKS] == [*names, *others]
    assert [task.name for task in RETRIEVAL] == names


@pytest.mark.parametrize("roles", ["none", "apart", "mixed"])
def test_tasks_are_asked_between_their_views_and_roles(inputs, roles):
    queries = gallery = np.arange(60)
    if roles == "apart":
        queries, gallery = np.flatnonzero(queries % 3 == 0), np.flatnonzero(gallery % 3 != 0)
    elif roles == "mixed":
        queries, gallery = np.arange(0, 40), np.arange(20, 60)
    given = {} if roles == "none" else {"queries": queries, "gallery": gallery}
    found = per_query_values(dataclasses.replace(inputs, **given))
    for task in RETRIEVAL:
        for name, values in alone(inputs, task, queries, gallery).items():
            shown = found[f"{task.name}.{name}"]
            np.testing.assert_allclose(shown[queries], values, atol=1e-9)
            assert np.isnan(np.delete(shown, queries)).all()


def test_a_row_holds_micro_and_macro_means(inputs):
    row, values = evaluate_row("x", inputs, seed=0, resamples=50)
    for task in RETRIEVAL:
        labels = inputs.products if task.label == "product" else inputs.categories
        for name in task.metrics:
            each = values[f"{task.name}.{name}"]
            assert row[task.name][name] == pytest.approx(100 * np.nanmean(each), abs=0.005)
            expected = 100 * macro(each, labels)
            assert row["macro"][task.name][name] == pytest.approx(expected, abs=0.005)
            low, high = row["intervals"][task.name][name]
            assert low <= row[task.name][name] <= high
    assert row["classification"] is None  # No train listings to fit it on.
    assert row["n_queries"] == row["n_gallery"] == 60


def test_views_and_categories_that_are_missing_leave_their_tasks_out(inputs):
    bare = dataclasses.replace(inputs, text=None, categories=None)
    row, values = evaluate_row("x", bare, seed=0, resamples=20)
    for name in ("coarse", "text_to_image", "classification", "clustering"):
        assert row[name] is None
        assert name not in row["macro"]
        assert not [key for key in values if key.startswith(f"{name}.")]
    assert row["fine"]["R@1"] > 0
    assert "per_category" not in row


def test_clusters_are_compared_with_types_and_families_where_there_are_some(inputs):
    names = ("clustering", "clustering_type", "clustering_family")
    typed = dataclasses.replace(inputs, types=inputs.products // 2)
    row, _ = evaluate_row("x", typed, seed=0, resamples=20)
    for name in names:
        for metric, value in row[name].items():
            low, high = row["intervals"][name][metric]
            assert low <= value <= high
        assert row["chance"][name]["NMI"] < row[name]["NMI"]
    # The types are the families here, and clusters and seed are the same.
    assert row["clustering_type"] == row["clustering_family"]
    alone = dataclasses.replace(inputs, families=inputs.products)
    row, _ = evaluate_row("x", alone, seed=0, resamples=20)
    assert row["clustering_type"] is row["clustering_family"] is None


def test_categories_beyond_the_largest_are_summed_up(inputs, monkeypatch):
    values = per_query_values(inputs)
    queries = np.flatnonzero(inputs.categories != "bed")[5:]
    monkeypatch.setattr(tasks, "CATEGORIES_SHOWN", 2)
    found = by_category(values, inputs.categories, queries)
    # Twelve of each category, but seven of chair and none of bed.
    assert list(found) == ["lamp", "shelf", "other (2 categories)"]
    assert [x["queries"] for x in found.values()] == [12, 12, 19]
    chosen = values["fine.R@1"][inputs.categories == "lamp"]
    assert found["lamp"]["fine.R@1"] == pytest.approx(100 * np.nanmean(chosen), abs=0.005)


def test_differences_are_paired(inputs):
    one = per_query_values(inputs)
    other = per_query_values(dataclasses.replace(inputs, both=inputs.image))
    found = compare_rows(one, other, inputs.families, seed=0, resamples=200)
    assert found.keys() == one.keys()
    expected = 100 * np.nanmean(other["fine.mAP@10"] - one["fine.mAP@10"])
    assert found["fine.mAP@10"]["difference"] == pytest.approx(expected, abs=0.005)
    same = found["image_to_image.MRR"]
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_roles_become_places():
    assert query_and_gallery([None, None]) == (None, None)
    queries, gallery = query_and_gallery(["query", None, "gallery", "query"])
    assert queries.tolist() == [0, 1, 3]
    assert gallery.tolist() == [1, 2]
    with pytest.raises(CatalogueError, match="the same role"):
        query_and_gallery(["query", "query"])


class Reversing:
    """An index that finds the farthest, as no good one does."""

    def __init__(self, ids, vectors):
        self.vectors = vectors

    def search(self, queries, k):
        scores = queries @ self.vectors.T
        positions = np.argsort(scores, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(scores, positions, axis=1)
        return approximate.SearchResult(positions, found, np.empty(0, object))


@pytest.mark.parametrize("sides", [(None, None), (np.arange(0, 30), np.arange(15, 60))])
def test_lists_of_an_exact_index_have_the_exact_metrics(inputs, sides, monkeypatch):
    monkeypatch.setattr(approximate, "ScannIndex", approximate.ExactIndex)
    inputs = dataclasses.replace(inputs, queries=sides[0], gallery=sides[1])
    found = scann_effect(inputs)
    row, _ = evaluate_row("x", inputs, seed=0, resamples=20)
    assert found["recall"] == 100
    assert found["recalls"] == {task.name: 100.0 for task in RETRIEVAL}
    for task in RETRIEVAL:
        for name, sides_of in found["metrics"][task.name].items():
            assert sides_of["exact"] == sides_of["scann"]
            assert sides_of["exact"] == pytest.approx(row[task.name][name], abs=0.011)


def test_a_bad_index_costs_what_it_misses(inputs, monkeypatch):
    monkeypatch.setattr(approximate, "ScannIndex", Reversing)
    found = scann_effect(inputs)
    assert found["recall"] == 0
    r1 = found["metrics"]["fine"]["R@1"]
    assert r1["scann"] < r1["exact"]


def test_without_scann_the_reason_is_kept(inputs, monkeypatch):
    def missing(ids, vectors):
        raise RunError("ScaNN is not installed")

    monkeypatch.setattr(approximate, "ScannIndex", missing)
    assert scann_effect(inputs) == {"recall": None, "reason": "ScaNN is not installed"}


def test_scann_finds_nearly_all_of_a_small_gallery(inputs):
    pytest.importorskip("scann")
    assert scann_effect(inputs)["recall"] > 99


def test_shorter_vectors_are_cut_and_renormalised(inputs):
    assert dimensions(12) == [12, 8]
    assert dimensions(128) == [128, 64, 32, 16, 8]
    assert dimensions(6) == [6]
    short = truncated(inputs.both, 8)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, rtol=1e-6)
    curve = truncation_curve(inputs)
    assert curve["dims"] == [12, 8]
    cut = inputs.both[:, :8] / np.linalg.norm(inputs.both[:, :8], axis=1, keepdims=True)
    everything = np.arange(60)
    for place, vectors in enumerate((inputs.both, cut)):
        values = retrieval_values(
            vectors, vectors, inputs.products, inputs.products, ("R@1", "R@10"), everything
        )
        for name, each in values.items():
            assert curve[name][place] == pytest.approx(100 * each.mean(), abs=0.005)
    assert truncation_curve(dataclasses.replace(inputs, both=None)) is None
