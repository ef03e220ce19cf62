"""The ladder: its committed plan, a run of it that resumes, its sums and its page."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from afmrl_jax.config import to_dict
from afmrl_jax.errors import AfmrlError, ConfigError, RunError
from afmrl_jax.inference.systems import systems_of
from experiments.studies.ladder import __main__ as ladder
from experiments.studies.ladder import cells, page, summary
from experiments.studies.ladder.plan import ARM, PLAN, Plan, merged, plan_hash

FAMILIES = [(x, 3) for x in "abcdefghij"]


def test_the_committed_plan_names_what_there_is():
    plan = Plan.read(PLAN)
    config = plan.config("primary", 3)
    assert config.seed == 3
    assert config.catalogue == "marketplace"
    known = {x.name for x in systems_of(config)} | cells.RIVALS.keys()
    for point in plan.points.values():
        assert {x for x in point.systems if not x.startswith(ARM)} <= known
    tested = {x for test in plan.tests for x in (test.before, test.after)}
    assert tested <= set(plan.points["primary"].systems)
    assert len(plan.seeds) == 10
    # At most five points a curve, three seeds each, one axis at a time.
    axes = [x.axis for x in plan.points.values() if x.axis]
    assert all(axes.count(x) <= 5 for x in axes)
    base = to_dict(plan.config("primary", 0))
    for name, point in plan.points.items():
        if point.axis:
            own = to_dict(plan.config(name, 0))
            assert len(plan.seeds_of(name)) == 3
            assert len([x for x in base if base[x] != own[x]]) <= 1


@pytest.fixture
def plan_file(tmp_path, tiny_run):
    """A plan on the badges whose run is the tests' whole run."""

    def write(**changes):
        settings = to_dict(tiny_run)
        plan = {
            "state": "draft",
            "about": "A test.",
            "preset": "demo",
            "seeds": [0],
            "settings": settings,
            "arms": {"soft": {"gamma": -1.0, "positive_weight": "neutral"}},
            "points": {"primary": {"systems": ["infonce", "arm:soft", "afmrl+random-reward"]}},
            "tests": [
                {"step": "RAR", "before": "infonce", "after": "afmrl+random-reward",
                 "about": "made up", "low": 0.0, "high": 1.0}
            ],
        }  # fmt: skip
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(plan | changes))
        return path

    return write


@pytest.mark.usefixtures("tiny_models")
def test_a_ladder_is_climbed_once(plan_file, whole_run, tmp_path, monkeypatch):
    out, plan = tmp_path / "out", plan_file()
    run = out / "primary" / "seed-0"
    shutil.copytree(whole_run, run, ignore=shutil.ignore_patterns(".lock"))
    settings = ladder.Ladder(plan=plan, out=out)
    made = ladder.make

    def dying(pipeline, plan, point, name, *rest):
        if name == "afmrl+random-reward":
            raise KeyboardInterrupt
        return made(pipeline, plan, point, name, *rest)

    monkeypatch.setattr(ladder, "make", dying)
    with pytest.raises(KeyboardInterrupt):
        ladder.Runner(settings).run()
    monkeypatch.undo()
    folder = out / "cells-reward" / "primary" / "seed-0"
    assert {x.name for x in folder.iterdir()} == {"infonce.json", "arm-soft.json"}
    before = {x: x.stat().st_mtime_ns for x in folder.iterdir()}
    text = ladder.Runner(settings).run().read_text()
    assert "3 of 3 cells" in text
    assert {x: x.stat().st_mtime_ns for x in before} == before
    found = cells.Cell.read(folder / "afmrl+random-reward.json", plan_hash(plan))
    assert found.system == "afmrl+random-reward"
    assert len(found.ranks) == len(found.family_of_query) > 0
    stage = json.loads((run / "rar-permuted" / "inputs.json").read_text())["inputs"]
    assert stage["settings"]["permute_rewards"]
    # What is finished is not made again, and not by another plan.
    monkeypatch.setattr(ladder, "Pipeline", None)
    assert ladder.Runner(settings).run().read_text() == text
    # Cells can be looked at without the runs that made them, whole or not.
    kept = shutil.copytree(out / "cells-reward", tmp_path / "kept" / "cells-reward").parent
    drawn = dataclasses.replace(settings, out=kept, draw=True)
    assert ladder.Runner(drawn).run().read_text() == text
    (kept / "cells-reward" / "primary" / "seed-0" / "infonce.json").unlink()
    assert "2 of 3 cells" in ladder.Runner(drawn).run().read_text()
    plan_file(about="Another.")
    with pytest.raises(RunError, match="a plan does not change under its results"):
        ladder.Runner(settings)._read_finished()


def test_the_test_split_waits_for_a_fixed_plan(plan_file, tmp_path):
    with pytest.raises(ConfigError, match=r'set "state": "fixed" in it'):
        ladder.Runner(ladder.Ladder(plan=plan_file(), split="test", out=tmp_path / "out"))
    ladder.Runner(ladder.Ladder(plan=plan_file(state="fixed"), split="test", out=tmp_path / "out"))


def test_a_plan_that_names_nothing_known_is_refused(plan_file, tmp_path):
    with pytest.raises(ConfigError, match=r"no point none; it has primary"):
        ladder.Runner(ladder.Ladder(plan=plan_file(), points=("none",), out=tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"no arm 'hard'; it has soft"):
        Plan.read(plan_file(points={"primary": {"systems": ["arm:hard"]}}))
    with pytest.raises(AfmrlError, match="gamma_ray"):
        Plan.read(plan_file(settings={"agcl": {"gamma_ray": 1}}))


def cell(rng, seed, system, better):
    ranks = np.where(rng.random(3 * len(FAMILIES)) < 0.3 + better, 1, 4)
    return cells.Cell("x", "p", seed, system, "reward", ranks.tolist(), FAMILIES, 1.0)


@pytest.mark.parametrize("seeds", [1, 3])
def test_sums_and_page_of_made_up_cells(rng, plan_file, tmp_path, seeds):
    systems = ["infonce", "afmrl+random-reward"]
    points = {"primary": {"systems": systems}} | {
        f"d{n}": {"axis": "duplicates", "at": n / 10, "systems": systems} for n in range(2)
    }
    plan = Plan.read(plan_file(points=points, seeds=list(range(seeds))))
    made = {
        point: {
            seed: {x: cell(rng, seed, x, 0.6 * n) for n, x in enumerate(systems)}
            for seed in range(seeds)
        }
        for point in points
    }
    # A seed of which a system is missing counts in the means, and not in the tests.
    made["primary"][seeds] = {"infonce": cell(rng, seeds, "infonce", 0.0)}
    found = summary.summarise(plan, made)
    own = found["points"]["primary"]
    assert own["systems"]["infonce"]["seeds"] == list(range(seeds + 1))
    first = next(x for x in own["tests"] if x["metric"] == "R@1")
    assert (first["runs"], first["predicted"]) == (seeds, [0.0, 1.0])
    one, other = (
        [np.mean(np.array(made["primary"][n][x].ranks) == 1) for n in range(seeds)] for x in systems
    )
    expected = 100 * (np.mean(other) - np.mean(one))
    assert first["difference"] == pytest.approx(expected, abs=0.01)
    assert found["points"]["d0"]["tests"] == []
    whole = found | {"plan": "x", "split": "reward", "done": 1, "all": 2}
    text = page.write_page(whole, tmp_path / "page.html").read_text()
    assert text.count("<svg") == 1
    assert "afmrl+random-reward" in text


def test_queries_without_a_positive_do_not_count():
    made = dataclasses.replace(cell(np.random.default_rng(0), 0, "x", 0.0), ranks=[1, 0, 4])
    found = summary.values_of(made)
    np.testing.assert_array_equal(found["fine.R@1"], [1.0, np.nan, 0.0])
    np.testing.assert_array_equal(found["fine.MRR"], [1.0, np.nan, 0.25])


def test_settings_are_merged_at_any_depth():
    base = {"a": {"b": {"c": 1, "d": 2}}, "e": [1]}
    assert merged(base, {"a": {"b": {"c": 3}}, "e": [2]}) == {
        "a": {"b": {"c": 3, "d": 2}},
        "e": [2],
    }
    assert base["a"]["b"]["c"] == 1
