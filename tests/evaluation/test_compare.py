"""Per-query values on disk, and `afmrl compare` on them."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.evaluation.compare import check_comparable, compare, find_values
from afmrl_jax.evaluation.per_query import QueryValues, read_query_values, write_query_values
from afmrl_jax.evaluation.statistics import paired_difference, sign_flip_p_value
from afmrl_jax.reporting.comparison import comparison_table
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.provenance import PROVENANCE, provenance

N = 40
FAMILIES = tuple(f"family {n // 4}" for n in range(N))


def values_of(seed, *, lift=0.0, fingerprint="abc"):
    rng = np.random.default_rng(seed)

    def hits(share):
        out = (rng.random(N) < share).astype(float)
        out[7] = np.nan  # A query that nothing answers.
        return out

    systems = {
        "infonce": {"fine.R@1": hits(0.3), "coarse.mAP@10": rng.random(N)},
        "afmrl": {"fine.R@1": hits(0.5 + lift), "clustering.NMI": rng.random(N)},
    }
    ids = tuple(f"listing-{n}" for n in range(N))
    return QueryValues("shop", "test", fingerprint, ids, FAMILIES, systems)


def write_run(folder, values):
    path = write_query_values(folder / "evaluations", values)
    write_json(folder / "evaluation.json", {"per_query": f"evaluations/{path.name}"})
    return folder


@pytest.fixture
def runs(tmp_path):
    return write_run(tmp_path / "a", values_of(0)), write_run(tmp_path / "b", values_of(1))


def test_values_survive_the_disk(tmp_path):
    values = values_of(3)
    found = read_query_values(write_query_values(tmp_path, values))
    assert dataclasses.replace(found, systems={}) == dataclasses.replace(values, systems={})
    assert list(found.systems) == ["infonce", "afmrl"]
    for name, each in values.systems.items():
        assert found.systems[name].keys() == each.keys()
        for key, numbers in each.items():
            np.testing.assert_array_equal(found.systems[name][key], numbers)


def test_differences_are_those_of_bootstrap_and_permutation(runs):
    found = compare(*map(find_values, runs), "infonce", "afmrl", resamples=300, seed=2)
    assert found["metrics"].keys() == {"fine.R@1"}  # What both have.
    before = values_of(0).systems["infonce"]["fine.R@1"]
    after = values_of(1).systems["afmrl"]["fine.R@1"]
    families = np.array(FAMILIES)
    expected = paired_difference(before, after, families, resamples=300, seed=2)
    x = found["metrics"]["fine.R@1"]
    assert [x["difference"], x["low"], x["high"]] == pytest.approx(
        [100 * e for e in expected], abs=1e-3
    )
    assert x["p"] == sign_flip_p_value(after - before, families)
    assert x["n_queries"] == N - 1
    assert x["after"] - x["before"] == pytest.approx(x["difference"], abs=2e-3)
    assert found["n_families"] == 10


def test_a_run_equals_itself(runs):
    found = compare(find_values(runs[0]), find_values(runs[0] / "evaluation.json"))
    assert found["metrics"]["fine.R@1"]["difference"] == 0
    assert found["metrics"]["fine.R@1"]["p"] == 1.0
    assert found["a"]["system"] == "afmrl"  # The last row.


def test_order_of_listings_does_not_matter(runs, tmp_path):
    one, other = map(find_values, runs)
    turned = np.random.default_rng(0).permutation(N)
    values = other.values
    mixed = dataclasses.replace(
        values,
        listing_ids=tuple(values.listing_ids[i] for i in turned),
        families=tuple(values.families[i] for i in turned),
        systems={
            name: {key: each[turned] for key, each in found.items()}
            for name, found in values.systems.items()
        },
    )
    same = compare(one, dataclasses.replace(other, values=mixed))
    assert same["metrics"] == compare(one, other)["metrics"]


def test_other_listings_are_refused_by_name(runs):
    one = find_values(runs[0])
    fewer = dataclasses.replace(
        one.values, fingerprint="other", listing_ids=(*one.values.listing_ids[5:], "new")
    )
    with pytest.raises(
        RunError,
        match=r"5 of 40 listings are in the first only: 'listing-0'.*and 2 more; 1 of 36.*'new'",
    ):
        check_comparable(one, dataclasses.replace(one, values=fewer))
    retitled = dataclasses.replace(one.values, fingerprint="other")
    with pytest.raises(RunError, match="same ids but different contents"):
        compare(one, dataclasses.replace(one, values=retitled))
    elsewhere = dataclasses.replace(one.values, catalogue="mart")
    with pytest.raises(RunError, match=r"\(shop, test\) and .*\(mart, test\)"):
        compare(one, dataclasses.replace(one, values=elsewhere))


def test_other_queries_of_a_metric_are_refused(runs):
    one, other = map(find_values, runs)
    hits = other.values.systems["afmrl"]["fine.R@1"].copy()
    hits[3] = np.nan
    other.values.systems["afmrl"]["fine.R@1"] = hits
    with pytest.raises(RunError, match=r"different queries for fine\.R@1"):
        compare(one, other)


def test_another_evaluation_is_chosen_by_its_catalogue(runs):
    other = dataclasses.replace(values_of(5, fingerprint="def"), catalogue="mart")
    for run in runs:
        write_query_values(run / "evaluations", other)
    assert find_values(runs[0], "mart").values.catalogue == "mart"
    with pytest.raises(RunError, match="no evaluations of catalogue 'bazaar'; it has: "):
        find_values(runs[0], "bazaar")
    write_query_values(runs[0] / "evaluations", dataclasses.replace(other, fingerprint="ghi"))
    with pytest.raises(RunError, match="has several evaluations"):
        find_values(runs[0], "mart")


def test_files_that_are_missing_or_old_are_named(runs, tmp_path):
    with pytest.raises(RunError, match=r"not a run with an evaluation\.json"):
        find_values(tmp_path / "nowhere")
    write_json(tmp_path / "old" / "evaluation.json", {"rows": []})
    with pytest.raises(RunError, match="names no per-query values"):
        find_values(tmp_path / "old")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet")
    with pytest.raises(RunError, match="contains no per-query values"):
        find_values(broken)
    with pytest.raises(RunError, match="has no system 'best'; choose from infonce, afmrl"):
        compare(*map(find_values, runs), "best")


# S9
def test_names_in_an_evaluation_do_not_control_the_terminal(runs, tmp_path, capsys):
    values = values_of(2)
    systems = {"afmrl\x1b]0;own\x07\u202e": values.systems["afmrl"]}
    other = write_run(tmp_path / "c", dataclasses.replace(values, systems=systems))
    cli.main(["compare", str(runs[0]), str(other)])
    told = capsys.readouterr().out
    assert "own" in told
    assert not set(told) & set("\x1b\x07\u202e")


def test_the_command_prints_a_table_and_writes_json(runs, tmp_path, capsys):
    out = tmp_path / "compared.json"
    cli.main(["compare", *map(str, runs), "--system-a", "infonce", "--out", str(out)])
    text = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert {x: found[x] for x in PROVENANCE} == provenance()
    x = found["metrics"]["fine.R@1"]
    assert f"{x['difference']:+.2f}" in text
    assert f"{x['p']:.4f}" in text
    assert f"A: infonce of {runs[0]}" in text
    cli.main(["compare", *map(str, runs), "--system-a", "infonce", "--as-json"])
    assert json.loads(capsys.readouterr().out) == found
    with pytest.raises(ConfigError, match="no task 'coarse' was measured; choose from fine"):
        comparison_table(found, ("coarse",))
    with pytest.raises(SystemExit):
        cli.main(["compare", str(runs[0]), str(tmp_path)])
    assert "not a run with an evaluation.json" in capsys.readouterr().err


def test_a_flipped_bit_is_an_error_or_changes_nothing_else(tmp_path):  # F6
    path = write_query_values(tmp_path, values_of(0))
    whole = path.read_bytes()
    read, count = 0, 0
    for bit in range(0, 8 * len(whole), 97):
        count += 1
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with contextlib.suppress(RunError):
            read_query_values(path)
            read += 1
    assert read < count - 20
    for data in (b"", whole[: len(whole) // 2], b"PAR1" * 5):
        path.write_bytes(data)
        with pytest.raises(RunError, match=r"evaluate the run again"):
            read_query_values(path)
