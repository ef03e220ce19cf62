"""Baselines: BM25 against the training objective's, folders of other embedders, the command."""

import dataclasses
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from afmrl_jax.cli import main as cli
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.attributes.text_format import format_attributes
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.errors import RunError
from afmrl_jax.evaluation import baselines, external_embedders, latency
from afmrl_jax.evaluation.baselines import Bm25Scorer, bm25_texts, run_baselines
from afmrl_jax.evaluation.external_embedders import OutsideEmbedder
from afmrl_jax.objectives.bm25 import bm25_scores, fit_bm25
from afmrl_jax.runs import evaluate as judging

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["badge", "enamel", "circle", "square", "triangle", "red", "green", "blue", "a", "b", "c"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny BERT as sentence-transformers saves it, the same bare, and a tiny CLIP."""
    pytest.importorskip("sentence_transformers", reason="pip install 'afmrl-jax[embedders]'")
    import transformers as hf
    from sentence_transformers import SentenceTransformer

    root = tmp_path_factory.mktemp("embedders")
    (root / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = hf.BertTokenizerFast(str(root / "vocab.txt"), model_max_length=32)
    size = {
        "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32,
    }  # fmt: skip
    hf.BertModel(hf.BertConfig(**size)).save_pretrained(root / "bare")
    tokenizer.save_pretrained(root / "bare")
    SentenceTransformer(str(root / "bare")).save(str(root / "sentence"))
    vision = {k: v for k, v in size.items() if k not in ("vocab_size", "max_position_embeddings")}
    vision |= {"image_size": 32, "patch_size": 16}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = hf.CLIPConfig(text_config=size | ends, vision_config=vision, projection_dim=8)
    hf.CLIPModel(config).save_pretrained(root / "clip")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    square = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    hf.CLIPProcessor(images, tokenizer).save_pretrained(root / "clip")
    return root


def test_bm25_is_the_objectives(rng, badge_listings):
    texts = [x.title for x in badge_listings] + ["badge badge red", ""]
    queries, gallery = texts[5:60], texts[30:]
    scorer = Bm25Scorer(queries, gallery)
    vocabulary = Bm25Vocabulary.fit(gallery, attributes=False)
    terms, asked = (vocabulary.encode(x, 20, attributes=False) for x in (gallery, queries))
    statistics = fit_bm25(terms, vocabulary.size)
    expected = bm25_scores(statistics, jnp.asarray(asked), jnp.asarray(terms))
    rows, columns = rng.permutation(len(queries))[:9], rng.permutation(len(gallery))[:30]
    found = scorer.tile(scorer.block(rows, 16), columns, 32)
    np.testing.assert_allclose(found, np.asarray(expected)[np.ix_(rows, columns)], atol=1e-5)


def test_attributes_are_added_by_their_values(badge_listings):
    x = badge_listings[0]
    (text,) = bm25_texts([x], {x.listing_id: format_attributes(x.attributes.items())})
    assert text.split()[-4:] == [*map(str, x.attributes.values())]
    assert text.startswith(x.title)
    assert bm25_texts([x], None) == [x.title]


# S5
def test_large_pictures_are_counted_in_bands(badge_listings, monkeypatch):
    whole = baselines.histogram_vectors(badge_listings[:5])
    monkeypatch.setattr(baselines, "PIXELS_AT_ONCE", 100)
    np.testing.assert_array_equal(baselines.histogram_vectors(badge_listings[:5]), whole)


# S5
def test_fewer_large_pictures_are_given_to_a_model_at_once(monkeypatch):
    monkeypatch.setattr(external_embedders, "AT_ONCE", 3)
    monkeypatch.setattr(external_embedders, "PIXELS_AT_ONCE", 200)
    small, large = Image.new("RGB", (5, 5)), {"text": "x", "image": Image.new("RGB", (20, 20))}
    given = [small, "text", small, large, small, large, small]
    sizes = [len(x) for x in external_embedders._groups(given)]
    assert sizes == [3, 1, 2, 1]


def test_roles_hold_for_baselines(badge_listings):
    queries, gallery = np.arange(0, 60), np.arange(60, 120)
    found = run_baselines(badge_listings, (queries, gallery))
    # The two halves share no product, so that nothing is asked.
    assert found["raw pixels"] == dict.fromkeys(("R@1", "R@5", "R@10", "MRR"))
    even, odd = np.arange(0, 120, 2), np.arange(1, 120, 2)
    assert run_baselines(badge_listings, (even, odd))["BM25 over titles"]["R@10"] > 50


@pytest.mark.parity
@pytest.mark.parametrize("name", ["sentence", "bare"])
def test_a_text_embedder_has_no_pictures(folders, badge_listings, name):
    views = OutsideEmbedder(folders / name).views(badge_listings[:5])
    assert views["image"] is None
    np.testing.assert_array_equal(views["both"], views["text"])
    np.testing.assert_allclose(np.linalg.norm(views["text"], axis=1), 1, rtol=1e-5)
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folders / name))
    titles = [x.title for x in badge_listings[:5]]
    expected = model.encode(titles, normalize_embeddings=True)
    np.testing.assert_allclose(views["text"], expected, atol=1e-5)


@pytest.mark.parity
def test_a_model_of_both_gives_the_sum_of_its_vectors(folders, badge_listings):
    views = OutsideEmbedder(folders / "clip").views(badge_listings[:5])
    summed = views["text"] + views["image"]
    summed /= np.linalg.norm(summed, axis=1, keepdims=True)
    np.testing.assert_allclose(views["both"], summed, atol=1e-5)
    assert np.abs(views["image"][0] - views["image"][1]).max() > 1e-4


def test_folders_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"neither modules\.json nor config\.json"):
        OutsideEmbedder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(RunError, match="needs sentence-transformers: pip install"):
        OutsideEmbedder(tmp_path)


@pytest.mark.parity
def test_a_broken_folder_says_what_is_wrong(tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"cannot be loaded as an embedder.*--trust-code"):
        OutsideEmbedder(tmp_path)


@pytest.mark.parity
def test_the_command_measures_all_and_keeps_single_queries(folders, badges, tmp_path, capsys):
    out = tmp_path / "baselines.json"
    command = ["baselines", "--catalogue", str(badges), "--out", str(out), "--split", "test"]
    embedders = [str(folders / "sentence"), str(folders / "clip")]
    cli.main([*command, "--resamples", "50", "--embedder", *embedders])
    found = json.loads(out.read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        "raw pixels",
        "colour histogram",
        "BM25 over titles",
        "BM25 over titles and attributes",
        "sentence",
        "clip",
    ]
    assert rows["BM25 over titles"]["text_to_image"] is None
    assert rows["sentence"]["classification"]["accuracy"] > 0
    assert rows["clip"]["text_to_image"]["R@10"] > 0
    text = capsys.readouterr().out
    assert "BM25 over titles and attributes" in text
    # The same numbers as beside a run.
    listings = load_catalogue(badges).subset("test").listings
    for name, values in run_baselines(listings).items():
        assert {k: rows[name]["fine"][k] for k in values} == values
    more = [str(out), str(out), "--system-a", "raw pixels", "--system-b", "clip", "--as-json"]
    cli.main(["compare", *more])
    compared = json.loads(capsys.readouterr().out)["metrics"]
    assert compared["fine.R@1"]["after"] == pytest.approx(rows["clip"]["fine"]["R@1"], abs=0.01)
    assert not list(tmp_path.rglob("*.partial"))


def test_without_attributes_there_is_no_baseline_of_them(badges, monkeypatch):
    whole = load_catalogue(badges)
    bare = tuple(dataclasses.replace(x, attributes=None) for x in whole.listings)
    monkeypatch.setattr(judging, "read", lambda *_, **__: dataclasses.replace(whole, listings=bare))
    found = judging.evaluate_baselines("x", "test", resamples=20)
    names = [row["name"] for row in found.evaluation["rows"]]
    assert names == ["raw pixels", "colour histogram", "BM25 over titles"]


def test_roles_of_listings_make_queries_and_gallery(badges, monkeypatch):
    whole = load_catalogue(badges)
    # The shop's newest listing of a product is asked for, the others are searched.
    role = {"3": "query", "0": None}
    listings = tuple(
        dataclasses.replace(x, role=role.get(x.listing_id[-1], "gallery")) for x in whole.listings
    )
    monkeypatch.setattr(
        judging, "read", lambda *_, **__: dataclasses.replace(whole, listings=listings)
    )
    found = judging.evaluate_baselines("x", "all", resamples=20)
    assert {row["n_gallery"] for row in found.evaluation["rows"]} == {90}
    assert {row["n_queries"] for row in found.evaluation["rows"]} == {60}
    hits = found.per_query.systems["raw pixels"]["fine.R@10"]
    asked = [x.role != "gallery" for x in listings]
    np.testing.assert_array_equal(np.isfinite(hits), asked)


def test_times_are_percentiles_after_a_warm_up(monkeypatch):
    now, calls = [0.0], []

    def work(number):
        calls.append(number)
        now[0] += 5.0 if len(calls) == 1 else 0.01 * len(calls)

    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(latency, "REPEATS", 5)
    found = latency.timed(work)
    assert calls == [0, 0, 1, 2, 3, 4]
    assert found == {"p50_ms": 40.0, "p95_ms": pytest.approx(58.0), "repeats": 5}
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    assert latency.timed(work)["repeats"] == 3
