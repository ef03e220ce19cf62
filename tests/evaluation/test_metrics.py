"""Retrieval metrics against scikit-learn, pytrec_eval, the definitions written out, and by hand."""

import math
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score, top_k_accuracy_score

from afmrl_jax.evaluation import ranking
from afmrl_jax.evaluation.metrics import (
    AT_K,
    depth,
    macro,
    metric_values,
    positive_ranks,
    recall_at_k,
    retrieval_values,
)
from afmrl_jax.evaluation.ranking import VectorScorer, rank_gallery

KS = (1, 2, 3, 5, 10)
NAMES = (*(f"{kind}@{k}" for kind in AT_K for k in KS), "MRR")


def ranked_list(scores, labels, label, own):
    """Labels of the gallery as a query finds them; among equal scores its own label comes last."""
    places = [j for j in range(len(labels)) if j != own]
    places.sort(key=lambda j: (-scores[j], labels[j] == label))
    return [labels[j] for j in places]


def literal(name, found, label, judged):
    """One metric of one query from the labels it finds, in order, written out.

    `judged` is how many listings of the label there are, the query included.
    """
    hits = [x == label for x in found]
    total = sum(hits)
    kind, _, k = name.partition("@")
    k = int(k or 0)
    if kind == "map_m5":
        return literal_m5(hits, judged, k)[0]
    if kind == "prec_m5":
        return literal_m5(hits, judged, k)[1]
    if not total:
        return math.nan
    if kind == "R":
        return float(any(hits[:k]))
    if kind == "Prec":
        return sum(hits[:k]) / k
    if kind == "MRR":
        return 1 / (1 + hits.index(True))
    if kind == "nDCG":
        gain = sum(1 / math.log2(n + 2) for n, hit in enumerate(hits[:k]) if hit)
        return gain / sum(1 / math.log2(n + 2) for n in range(min(k, total)))
    precision = [sum(hits[: n + 1]) / (n + 1) for n, hit in enumerate(hits[:k]) if hit]
    return sum(precision) / min(k, total)


def literal_m5(hits, judged, topk):
    """The dataset authors' rule as DESIGN words it: (AP, precision).

    Positives include the query, whose own id is not in its list; the list is cut to min(topk,
    positives, list length); AP divides by the hits in it, and is 0 without; so does precision
    divide by the cut.
    """
    cut = min(topk, judged, len(hits))
    seen, sums = 0, 0.0
    for place in range(cut):
        if hits[place]:
            seen += 1
            sums += seen / (place + 1)
    return (sums / seen if seen else 0.0), seen / cut


def brute(query, gallery, query_labels, gallery_labels, own):
    scores = np.float32(query) @ np.float32(gallery).T
    out = {name: [] for name in NAMES}
    for i, label in enumerate(query_labels):
        place = -1 if own is None else own[i]
        found = ranked_list(scores[i], gallery_labels, label, place)
        outside = [n for n in range(len(query)) if own is None or own[n] < 0]
        judged = sum(gallery_labels == label) + sum(query_labels[outside] == label)
        for name in NAMES:
            out[name].append(literal(name, found, label, judged))
    return out


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.fixture
def small_tiles(monkeypatch):
    """Many blocks and tiles, with ragged last ones."""
    monkeypatch.setattr(ranking, "QUERIES", 16)
    monkeypatch.setattr(ranking, "TILE", 24)
    monkeypatch.setattr(ranking, "STEP", 8)


def case(kind, rng):
    """Vectors and labels of queries and gallery, and own places."""
    if kind == "few values":  # Nearly all scores are tied with others.
        vectors = rng.integers(-1, 2, (77, 3)).astype(float)
        labels = rng.integers(0, 20, 77)
        return vectors, vectors, labels, labels, np.arange(77)
    if kind == "apart":  # No query is in the gallery.
        return (
            rng.integers(-2, 3, (41, 4)), rng.integers(-2, 3, (90, 4)),
            rng.integers(0, 9, 41), rng.integers(0, 12, 90), None,
        )  # fmt: skip
    gallery, labels = rng.normal(size=(90, 4)), rng.integers(0, 30, 90)
    own = np.where(np.arange(50) % 3 == 0, -1, np.arange(50))
    query, query_labels = gallery[:50].copy(), labels[:50].copy()
    query_labels[own < 0] = rng.integers(0, 40, (own < 0).sum())
    return query, gallery, query_labels, labels, own


@pytest.mark.parametrize("kind", ["few values", "apart", "half in the gallery"])
@pytest.mark.parametrize("seed", range(3))
def test_every_metric_is_its_definition(kind, seed, small_tiles):
    given = case(kind, np.random.default_rng(seed))
    query, gallery, query_labels, gallery_labels, own = given
    found = retrieval_values(query, gallery, query_labels, gallery_labels, NAMES, own)
    assert_same(found, brute(*given))


def test_one_tile_of_crowded_scores_is_searched_whole(rng, monkeypatch):
    # Later places are nearer, so that every tile brings more candidates than a list holds.
    monkeypatch.setattr(ranking, "QUERIES", 8)
    monkeypatch.setattr(ranking, "TILE", 64)
    monkeypatch.setattr(ranking, "STEP", 8)
    angle = np.linspace(1.5, 0.0, 300)
    gallery = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    query = np.array([[1.0, 0.0], [0.0, 1.0]])
    labels, query_labels = np.arange(300) // 3, np.array([20, 97])
    found = retrieval_values(query, gallery, query_labels, labels, NAMES)
    assert_same(found, brute(query, gallery, query_labels, labels, None))


def test_several_ways_of_telling_positives_share_a_pass(rng, small_tiles):
    vectors = rng.normal(size=(70, 5))
    products, categories = rng.integers(0, 25, 70), rng.integers(0, 4, 70)
    own = np.arange(70)
    scorer = VectorScorer(vectors, vectors)
    sets = [(products, products), (categories, categories)]
    shared = rank_gallery(scorer, sets, 10, own)
    for labels, found in zip((products, categories), shared, strict=True):
        alone = retrieval_values(vectors, vectors, labels, labels, NAMES, own)
        assert_same(metric_values(found, NAMES), alone)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_recall_with_one_positive_a_query_is_scikit_learns_top_k_accuracy(rng, k):
    gallery = rng.normal(size=(9, 4))
    labels = np.arange(9)
    query_labels = rng.integers(0, 9, 40)
    query = gallery[query_labels] + rng.normal(size=(40, 4))
    ranks = positive_ranks(query, gallery, query_labels, labels)
    expected = top_k_accuracy_score(query_labels, query @ gallery.T, k=k, labels=labels)
    assert recall_at_k(ranks, k).mean() == pytest.approx(expected, abs=1e-9)


def test_whole_lists_have_scikit_learns_precision_and_gain(clustered):
    vectors, products, _, _ = clustered
    own = np.arange(len(vectors))
    names = ("mAP@59", "nDCG@59", "nDCG@5")
    found = retrieval_values(vectors, vectors, products, products, names, own)
    for i in range(len(vectors)):
        rest = np.arange(len(vectors)) != i
        truth, scores = (products == products[i])[rest], (vectors @ vectors[i])[rest]
        expected = average_precision_score(truth, scores)
        assert found["mAP@59"][i] == pytest.approx(expected, abs=1e-9)
        for name, k in (("nDCG@59", None), ("nDCG@5", 5)):
            expected = ndcg_score(truth[None], scores[None], k=k)
            assert found[name][i] == pytest.approx(expected, abs=1e-9)


def test_metrics_are_trec_evals(clustered):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="pip install pytrec_eval-terrier")
    vectors, products, _, _ = clustered
    size = len(vectors)
    own = np.arange(size)
    theirs = {"P": "Prec", "ndcg_cut": "nDCG", "success": "R"}
    measures = {f"{x}.1,5,10" for x in theirs} | {"recip_rank", "map"}
    scores = vectors @ vectors.T
    truth = {
        str(i): {str(j): int(products[j] == products[i]) for j in range(size) if j != i}
        for i in range(size)
    }
    lists = {
        str(i): {str(j): float(scores[i, j]) for j in range(size) if j != i} for i in range(size)
    }
    expected = pytrec_eval.RelevanceEvaluator(truth, measures).evaluate(lists)
    pairs = {f"{x}_{k}": f"{name}@{k}" for x, name in theirs.items() for k in (1, 5, 10)}
    pairs |= {"recip_rank": "MRR", "map": "mAP@59"}
    found = retrieval_values(vectors, vectors, products, products, tuple(pairs.values()), own)
    for their_name, name in pairs.items():
        each = [expected[str(i)][their_name] for i in range(size)]
        np.testing.assert_allclose(found[name], each, atol=1e-9, err_msg=name)


def test_m5s_precision_by_hand():
    """A list with hits at places 2 and 4, of a label with three listings beside the query."""
    gallery = np.array([[1.0, 0], [0.9, 0], [0.8, 0], [0.7, 0], [0.6, 0], [0.5, 0]])
    labels = np.array([0, 1, 0, 1, 1, 1])
    query, query_labels = np.array([[1.0, 0]]), np.array([1])
    # The query itself is the last of the gallery.
    names = ("map_m5@1", "map_m5@2", "map_m5@10", "prec_m5@10", "mAP@10", "mAP@2", "Prec@10")
    found = retrieval_values(query, gallery, query_labels, labels, names, np.array([5]))
    assert found["map_m5@1"] == 0
    assert found["map_m5@2"] == pytest.approx(1 / 2)  # One hit: the second place, divided by it.
    # Four listings of the label, so four places: hits at 2 and 4.
    assert found["map_m5@10"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found["prec_m5@10"] == pytest.approx(2 / 4)
    # The standard definition looks at all five places, and divides by the three positives.
    assert found["mAP@10"] == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert found["mAP@2"] == pytest.approx((1 / 2) / 2)
    assert found["Prec@10"] == pytest.approx(3 / 10)


def test_a_query_without_positives_has_no_value_but_m5s_zero():
    vectors, labels = np.eye(3), np.array([0, 0, 1])
    found = retrieval_values(vectors, vectors, labels, labels, NAMES, np.arange(3))
    for name, values in found.items():
        assert np.isfinite(values[:2]).all()
        assert values[2] == 0 if "_m5" in name else np.isnan(values[2]), name


def test_own_listing_is_excluded():
    vectors = np.eye(3)
    labels = np.array([0, 0, 1])
    ranks = positive_ranks(vectors, vectors, labels, labels, np.arange(3))
    assert ranks.tolist() == [2, 2, 0]  # Tied with the negative; the last has no positive.


def test_ties_count_against_the_query():
    same = np.ones((4, 2))
    labels = np.array([0, 0, 1, 2])
    assert positive_ranks(same[:1], same, labels[:1], labels, np.array([0])).tolist() == [3]
    names = ("mAP@1", "mAP@3")
    found = retrieval_values(same[:1], same, labels[:1], labels, names, np.array([0]))
    assert found["mAP@1"] == 0
    assert found["mAP@3"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("size", [61, 300, 1025])
def test_copies_of_a_vector_are_tied_wherever_they_stand(rng, size):
    """The same pair has the same score in every corner of every matrix product."""
    copies, dim = 7, 129
    vectors = rng.normal(size=(size, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.arange(size)
    places = np.concatenate([[0, size - 1], rng.permutation(np.arange(1, size - 1))[: copies - 2]])
    vectors[places] = vectors[places[0]]
    query = vectors[places[:1]] + 0.1 * rng.normal(size=(1, dim)).astype(np.float32)
    for place in places:
        (rank,) = positive_ranks(query, vectors, labels[place : place + 1], labels)
        assert rank == copies


def test_blocks_do_not_change_the_result(clustered, monkeypatch):
    vectors, products, _, _ = clustered
    own = np.arange(len(vectors))
    whole = retrieval_values(vectors, vectors, products, products, NAMES, own)
    monkeypatch.setattr(ranking, "QUERIES", 8)
    monkeypatch.setattr(ranking, "TILE", 16)
    monkeypatch.setattr(ranking, "STEP", 8)
    assert_same(retrieval_values(vectors, vectors, products, products, NAMES, own), whole)


def test_memory_does_not_grow_with_the_gallery(rng, monkeypatch):
    monkeypatch.setattr(ranking, "QUERIES", 64)
    monkeypatch.setattr(ranking, "TILE", 128)
    peaks = []
    for size in (1000, 4000):
        vectors = rng.normal(size=(size, 4)).astype(np.float32)
        labels = np.arange(size) // 2
        positive_ranks(vectors, vectors, labels, labels, np.arange(size))
        tracemalloc.start()
        positive_ranks(vectors, vectors, labels, labels, np.arange(size))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # All pairs would be 4 and 64 MB; what grows is a few numbers a listing.
    assert peaks[1] < 3e6
    assert peaks[1] - peaks[0] < 3000 * 200


def test_mistakes_are_refused(clustered):
    vectors, products, _, categories = clustered
    with pytest.raises(ValueError, match=r"unknown metric 'P@1'; known are R@k"):
        depth(["P@1"])
    with pytest.raises(ValueError, match="own listing has another label"):
        positive_ranks(vectors, vectors, products, products, np.arange(60)[::-1])
    with pytest.raises(ValueError, match="labels of 60 x 59"):
        positive_ranks(vectors, vectors, products, products[1:])
    (ranked,) = rank_gallery(VectorScorer(vectors, vectors), [(categories, categories)], 2)
    with pytest.raises(ValueError, match="need 5 places, 2 were ranked"):
        metric_values(ranked, ["R@5"])


def test_macro_is_the_mean_over_labels_of_their_means(rng):
    values, labels = rng.random(50), rng.integers(0, 6, 50)
    values[labels == 2] = np.nan
    means = [values[labels == x].mean() for x in range(6) if x != 2]
    assert macro(values, labels) == pytest.approx(np.mean(means))
    assert math.isnan(macro(np.full(3, np.nan), labels[:3]))
