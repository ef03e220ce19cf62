"""The study of AGCL's settings: what it tries, how it counts pairs, how it sums up."""

import dataclasses
from contextlib import closing
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from afmrl_jax.config import AgclConfig
from afmrl_jax.data.attributes.text_format import parse_attributes, read_attributes
from afmrl_jax.errors import AfmrlError
from afmrl_jax.objectives.agcl import Teacher, agcl_loss
from afmrl_jax.objectives.agcl_kernels.rules import Weighting
from afmrl_jax.runs.pipeline import Pipeline
from experiments.studies import agcl_study
from experiments.studies.agcl import pairs, plot, variations
from experiments.studies.agcl import summary as summing


@pytest.fixture(scope="module")
def study():
    """The study and its parts."""
    return SimpleNamespace(
        script=agcl_study, pairs=pairs, plot=plot, summary=summing, variations=variations
    )


def test_variations_are_valid_and_change_only_weights_and_masks(study):
    found = study.variations.variations()
    base = AgclConfig(steps=7, batch_size=9)
    names = [x.name for x in found]
    assert len(set(names)) == len(names)
    for x in found:
        settings = x.settings(base)
        changed = {
            field.name
            for field in dataclasses.fields(base)
            if getattr(settings, field.name) != getattr(base.infonce(), field.name)
        }
        assert changed
        assert changed <= {
            *("gamma", "delta", "agreement_rho", "agreement_epsilon", "mask_warmup"),
            *("teacher_share", "oracle_mask", "positive_weight", "weighted_pairs"),
            *("normalize_weights", "permute_weights"),
        }
    shipped = next(x for x in found if x.name == "default")
    assert shipped.settings(base) == base


def batch(study, rng, count=12):
    unit = rng.normal(size=(2, count, 4))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    false = np.eye(count, dtype=bool)
    false[0, 1] = false[3, 2] = True
    siblings = np.zeros_like(false)
    siblings[4, 5] = True
    bm25 = rng.random((count, count)) + np.eye(count)
    return unit, study.pairs.Batch(unit[0] @ unit[1].T, bm25, false, siblings)


@pytest.mark.parametrize(
    "settings",
    [
        AgclConfig(gamma=0.5, delta=0.1),
        AgclConfig(gamma=0.0, delta=None, agreement_rho=0.5, agreement_epsilon=0.3),
        AgclConfig(gamma=2.0, delta=0.3, agreement_rho=0.7),
        AgclConfig(gamma=-1.0, positive_weight="neutral", delta=0.1),
        AgclConfig(gamma=1.0, agreement_rho=0.5, weighted_pairs="agreeing", delta=None),
        AgclConfig(gamma=0.0, delta=None, teacher_share=0.95),
        AgclConfig(gamma=0.3, delta=None, oracle_mask="product"),
    ],
)
def test_masked_pairs_are_those_of_the_loss(study, rng, settings):
    unit, found = batch(study, rng)
    teacher = oracle = None
    if settings.teacher_share is not None:
        seen = rng.normal(size=(2, len(found.scores), 3))
        seen /= np.linalg.norm(seen, axis=-1, keepdims=True)
        found = dataclasses.replace(found, teacher=seen[0] @ seen[1].T)
        teacher = Teacher(*map(jnp.asarray, seen.astype(np.float32)), settings.teacher_share)
    if settings.oracle_mask is not None:
        # As `found.false` has it: candidate 1 is query 0's product, and 2 is query 3's.
        queries = jnp.arange(len(found.scores))
        oracle = queries, queries.at[jnp.array([1, 2])].set(jnp.array([0, 3]))
        false = np.asarray(oracle[0])[:, None] == np.asarray(oracle[1])[None]
        found = dataclasses.replace(found, false=false)
    _, metrics = agcl_loss(
        *map(jnp.asarray, unit.astype(np.float32)),
        jnp.asarray(found.bm25, jnp.float32),
        jnp.arange(len(found.scores)),
        gamma=settings.gamma,
        delta=settings.delta,
        agreement_rho=settings.agreement_rho,
        agreement_epsilon=settings.agreement_epsilon,
        weighting=Weighting(settings.positive_weight, settings.weighted_pairs),
        teacher=teacher,
        oracle_ids=oracle,
        symmetric=False,
    )
    figures = study.pairs.judge_batches([found], settings)
    assert figures["masked_at_end"] > 0
    assert figures["masked_at_end"] == pytest.approx(float(metrics["masked"]), abs=1e-6)


def test_pair_figures_by_hand(study):
    scores = np.array([[0.5, 0.9, 0.7], [0.1, 0.8, 0.2], [0.3, 0.9, 0.4]])
    bm25 = np.array([[3.0, 3.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]])
    false = np.eye(3, dtype=bool)
    false[0, 1] = True
    siblings = np.zeros((3, 3), bool)
    siblings[2, 1] = True
    both = study.pairs.Batch(scores, bm25, false, siblings)
    found = study.pairs.judge_batches([both], AgclConfig(gamma=1.0, delta=0.3))
    # Above their positive by more than 0.3: (0, 1), which is false, and (2, 1), which is not.
    assert found["false_negatives"] == pytest.approx(1 / 6)
    assert found["masked_at_end"] == pytest.approx(2 / 6)
    assert found["masked_false"] == pytest.approx(1 / 2)
    assert found["false_masked"] == pytest.approx(1)
    light, heavy = np.e, np.exp(1 + np.tanh(3.0))
    assert found["weight_false"] == pytest.approx(heavy / ((heavy + 5 * light) / 6))
    assert found["weight_siblings"] == pytest.approx(light / ((heavy + 5 * light) / 6))
    nothing = study.pairs.judge_batches([both], AgclConfig(gamma=1.0, delta=None))
    assert nothing["masked_false"] is None
    assert nothing["false_masked"] == 0


def scores(study, seed, ranks):
    fate = {
        "pairs": dict.fromkeys(study.pairs.PAIR_FIGURES, 0.25) | {"masked_false": None},
        "logged": dict.fromkeys(study.summary.LOGGED, 0.5),
    }
    found = {name: {"ranks": each, **fate} for name, each in ranks.items()}
    families = np.array(["a", "a", "b", "b", "c"])
    return study.summary.SeedScores(seed, families, found)


@pytest.fixture
def summary(study):
    gamma, delta = study.variations.variations()[:2]
    seeds = [
        # The fifth query has no positive and is not asked.
        scores(study, 0, {"infonce": [1, 2, 3, 9, 0], gamma.name: [1, 1, 3, 9, 0],
                          delta.name: [2, 2, 3, 9, 0]}),
        scores(study, 1, {"infonce": [1, 2, 3, 9, 0], gamma.name: [1, 1, 1, 1, 0],
                          delta.name: [1, 2, 3, 4, 0]}),
    ]  # fmt: skip
    return study.summary.summarise(seeds, [gamma, delta], resamples=50)


def test_summary_of_made_up_ranks(summary, study):
    gamma, delta = (x.name for x in study.variations.variations()[:2])
    assert summary["seeds"] == [0, 1]
    assert summary["queries"] == [4, 4]
    assert summary["infonce"]["R@1"]["values"] == [25, 25]
    assert summary["infonce"]["R@5"]["mean"] == 75
    first = summary["variations"][gamma]
    assert first["R@1"]["values"] == [50, 100]
    assert first["difference"]["R@1"]["values"] == [25, 75]
    assert first["difference"]["R@5"]["values"] == [0, 25]
    assert first["difference"]["verdict"] == "not shown"
    assert summary["variations"][delta]["difference"]["R@1"]["values"] == [-25, 0]
    assert first["pairs"]["masked_at_end"] == {"mean": 0.25, "values": [0.25, 0.25]}
    assert first["pairs"]["masked_false"] is None
    for low, high in first["difference"]["R@1"]["within_seed_intervals"]:
        assert low <= high


def test_table_has_a_line_a_variation(summary, study):
    lines = study.summary.table(summary).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| gamma 0.1 | +50.0 [")
    assert "+25.0, +75.0" in lines[2]
    assert lines[2].endswith("|  |  | not shown |")


def test_plot_is_a_picture_of_every_variation(summary, study, tmp_path):
    path = tmp_path / "plot.png"
    study.plot.draw_study(summary, path)
    with Image.open(path) as picture:
        assert picture.size[0] > 800


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_models")
def test_a_seed_from_the_tokenizer_to_the_summary(study, tiny_run, tmp_path, monkeypatch):
    chosen = [x for x in study.variations.variations() if x.name == "default-true"]
    run = tmp_path / "run"
    families = study.script.run_seed(run, tiny_run, chosen)
    seed = study.summary.SeedScores.read(run, 0, families, ["infonce", "default-true"])
    found = study.summary.summarise([seed], chosen, resamples=20)
    assert found["queries"] == [20]
    row = found["variations"]["default-true"]
    assert 0 <= row["R@1"]["mean"] <= row["R@5"]["mean"] <= 100
    assert row["logged"]["mean_weight"]["mean"] > np.e
    assert row["pairs"]["weight_siblings"] is None  # A batch of four has none.
    assert row["difference"]["verdict"] == "one seed says nothing"
    # A seed that is done is not repeated.
    monkeypatch.setattr(study.script, "score", None)
    monkeypatch.setattr(study.script.Pipeline, "_fit", None)
    study.script.run_seed(run, tiny_run, chosen)


@pytest.mark.parametrize("source", ["TRUE", "ORACLE"])
def test_lists_of_the_catalogue_and_of_the_oracle(study, source, tiny_run, tmp_path):
    stage = getattr(study.variations, source)
    pipeline = Pipeline(tmp_path / "run", tiny_run)
    with closing(pipeline.run):
        study.script.source_stages(pipeline, {stage})
    texts = read_attributes(tmp_path / "run" / stage / "attributes.jsonl")
    train = pipeline.catalogue.subset("train").listings
    assert list(texts) == [x.listing_id for x in train]
    right = [dict(parse_attributes(texts[x.listing_id])) == dict(x.attributes) for x in train]
    # The oracle leaves keys out, uses synonyms and errs.
    assert all(right) == (source == "TRUE")


def test_an_unknown_variation_is_refused(study):
    with pytest.raises(AfmrlError, match=r"no variation gamma-7; choose from gamma-0\.1"):
        study.script.Study(names=("gamma-7",))
