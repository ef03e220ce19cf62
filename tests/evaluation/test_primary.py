"""The list of what is claimed, for one run and for several seeds."""

import numpy as np
import pytest

from afmrl_jax.evaluation.chance import CHANCE
from afmrl_jax.evaluation.primary import (
    LAST,
    PRIMARY,
    PrimaryTest,
    primary_over_seeds,
    primary_results,
    verdict,
)
from afmrl_jax.evaluation.statistics import crossed, holm, paired_difference, sign_flip_p_value

N = 120
FAMILIES = np.arange(N) // 4


def systems(seed, lift):
    """A run whose lists lift the hits, and whose cycle does nothing at all."""
    rng = np.random.default_rng(seed)
    base = rng.random(N)
    base[5] = np.nan

    def row(more):
        return {"fine.R@1": np.where(np.isnan(base), np.nan, base < 0.4 + more), "fine.MRR": base}

    rows = {"agcl": row(0.0), "agcl+distilled": row(lift), "afmrl": row(lift)}
    rows["afmrl"] |= {"text_to_image.R@1": np.full(N, 0.5)}
    return {CHANCE: {"text_to_image.R@1": np.full(N, 0.01)}} | rows


def by_pair(found):
    return {(x["from"], x["to"], x["metric"]): x for x in found}


def test_every_step_of_the_method_is_on_the_list():
    steps = list(dict.fromkeys(x.step for x in PRIMARY))
    assert steps == ["attributes", "AGCL", "RAR", "CIT", "text to image"]


def test_a_run_is_tested_by_bootstrap_sign_flips_and_holm():
    given = systems(0, 0.3)
    found = primary_results(given, FAMILIES, resamples=300, seed=2)
    # Neither InfoNCE nor the cycle is in this run.
    assert {x["step"] for x in found} == {"attributes", "RAR", "text to image"}
    x = by_pair(found)["agcl", "agcl+distilled", "R@1"]
    before, after = (given[y]["fine.R@1"] for y in ("agcl", "agcl+distilled"))
    expected = paired_difference(before, after, FAMILIES, resamples=300, seed=2)
    assert [x["difference"], x["low"], x["high"]] == pytest.approx(
        [100 * e for e in expected], abs=1e-3
    )
    assert x["p"] == sign_flip_p_value(after - before, FAMILIES, seed=2)
    assert x["after"] - x["before"] == pytest.approx(x["difference"], abs=2e-3)
    assert (x["n_queries"], x["n_families"]) == (N - 1, 30)
    assert x["verdict"] == "gain"
    corrected = holm([y["p"] for y in found])
    assert [y["p_holm"] for y in found] == pytest.approx(corrected, abs=1e-6)


def test_nothing_is_claimed_where_nothing_changed():
    x = by_pair(primary_results(systems(0, 0.3), FAMILIES, resamples=50))
    assert x["agcl+distilled", "afmrl", "R@1"]["verdict"] == "not shown"
    assert x["agcl+distilled", "afmrl", "R@1"]["p_holm"] == 1.0


def test_the_last_row_is_compared_with_chance():
    x = by_pair(primary_results(systems(0, 0.3), FAMILIES, resamples=50))
    found = x[CHANCE, "afmrl", "R@1"]
    assert (found["task"], found["before"], found["after"]) == ("text_to_image", 1.0, 50.0)
    assert found["verdict"] == "gain"


def test_a_verdict_needs_both_the_interval_and_the_corrected_test():
    assert verdict(0.2, 1.4, 0.01) == "gain"
    assert verdict(-1.4, -0.2, 0.01) == "harm"
    assert verdict(0.2, 1.4, 0.06) == "not shown"
    assert verdict(-0.2, 1.4, 0.01) == "not shown"
    assert verdict(0.2, 1.4, float("nan")) == "not shown"


def test_seeds_are_tested_crossed_with_families():
    runs = [systems(seed, 0.3) for seed in range(4)]
    # Which queries are asked is the same for all.
    found = primary_over_seeds(runs, FAMILIES)
    x = by_pair(found)["agcl", "agcl+distilled", "R@1"]
    values = np.stack([r["agcl+distilled"]["fine.R@1"] - r["agcl"]["fine.R@1"] for r in runs])
    expected = crossed(values, FAMILIES)
    assert [x["difference"], x["low"], x["high"], x["error"]] == pytest.approx(
        [100 * y for y in expected[:4]], abs=1e-3
    )
    assert x["seeds"] == pytest.approx(100 * np.nanmean(values, 1), abs=1e-3)
    assert x["verdict"] == "gain"
    assert [y["p_holm"] for y in found] == pytest.approx(holm([y["p"] for y in found]), abs=1e-6)


def test_another_list_can_be_given():
    own = (PrimaryTest("lists", "agcl", LAST),)
    found = primary_results(systems(1, 0.2), FAMILIES, tests=own, resamples=20)
    assert [(x["from"], x["to"], x["metric"]) for x in found] == [
        ("agcl", "afmrl", "R@1"),
        ("agcl", "afmrl", "MRR"),
    ]
