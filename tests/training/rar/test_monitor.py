"""What is remembered of the best G, and when a stage warns or ends."""

from pathlib import Path

import pytest

from afmrl_jax.training.rar.monitor import FIRST, RarMonitor, find_warnings, raised, remembered


def line(step, **values):
    return {"step": step, "entropy": 1.0, "kl": 0.01} | values


def names(lines):
    return [x.name for x in find_warnings(lines)]


def test_a_stage_that_goes_well_gives_no_alarm():
    assert names([]) == []
    assert names([line(n) for n in range(20)]) == []
    held = {"held_out/gain": -0.01, "held_out/gain_error": 0.02}
    assert names([line(0), line(1, **held)]) == []


def test_a_held_out_reward_below_its_start_is_a_collapse():
    held = {"held_out/gain": -0.05, "held_out/gain_error": 0.02}
    (found,) = find_warnings([line(0), line(1, **held)])
    assert found.name == "reward_collapse"
    assert "learning_rate" in found.message


def test_entropy_is_judged_by_how_it_began():
    low = [line(n) for n in range(8)] + [line(8, entropy=0.1)]
    assert names(low) == ["entropy_collapse"]
    # A G that was sure from the start has not collapsed.
    assert names([line(n, entropy=0.1) for n in range(9)]) == []


def test_a_kl_divergence_that_runs_away():
    assert names([line(0), line(1, kl=0.8)]) == ["kl_runaway"]


def test_an_alarm_is_said_once_and_logged_every_time(capsys, tmp_path):
    health = RarMonitor(tmp_path, None)
    lines = [line(0), line(1, kl=0.8)]
    assert health.watch(lines) == {"alarm/kl_runaway": 1.0}
    assert "kl_coefficient" in capsys.readouterr().err
    assert health.watch([*lines, line(2, kl=0.9)]) == {"alarm/kl_runaway": 1.0}
    assert capsys.readouterr().err == ""


def test_alarms_are_found_in_the_log_with_their_first_step():
    lines = [line(0), line(1, kl=0.7), line(2, kl=0.8)]
    health = RarMonitor(Path(), None)
    seen = [x | health.watch(lines[: n + 1]) for n, x in enumerate(lines)]
    ((step, alarm),) = raised(seen)
    assert step == 1
    assert alarm.name == "kl_runaway"
    assert raised([line(0)]) == []


def test_what_is_remembered_of_a_long_stage_says_what_all_of_it_would(tmp_path):
    health = RarMonitor(tmp_path, 3)
    health.evaluated(60, 0.5, lambda folder: None)
    whole, short, alarms, stops = [], [], set(), []
    for step in range(200):
        new = line(step, entropy=1 / (1 + step / 20), kl=step / 300)
        if step % 20 == 0:
            gain = {"held_out/gain": 0.1 - step / 1000, "held_out/gain_error": 0.02}
            new |= {"held_out/reward": 0.4, **gain}
        whole.append(new)
        short = [*remembered(short), dict(new)]
        assert names(short) == names(whole)
        assert health.should_stop(short) == health.should_stop(whole)
        alarms |= set(names(short))
        stops.append(health.should_stop(short))
    assert len(alarms) == 3
    assert stops.index(True) == 120
    # The start, an evaluation in twenty steps, and the last.
    assert len(short) == FIRST + 9 + 1


@pytest.fixture
def evaluate(tmp_path):
    """Health of a stage with patience 2, and a function that reports an evaluation."""
    health, lines = RarMonitor(tmp_path, 2), []

    def run(step, reward, health=health):
        lines.append({"step": step, "held_out/reward": reward})
        health.evaluated(step, reward, lambda folder: (folder / "at").write_text(str(step)))
        return health.should_stop(lines)

    return health, run


def test_the_best_is_kept_and_the_stage_ends_when_nothing_better_comes(evaluate, tmp_path):
    health, run = evaluate
    assert health.best_folder is None
    assert [run(n, r) for n, r in enumerate((0.4, 0.5, 0.45, 0.44))] == [False] * 3 + [True]
    assert (health.best_folder / "at").read_text() == "1"
    # A stage that starts again knows it.
    assert (RarMonitor(tmp_path, 2).best_folder / "at").read_text() == "1"


def test_a_repeated_evaluation_replaces_what_it_found_before(evaluate, tmp_path):
    _, run = evaluate
    run(0, 0.4)
    run(1, 0.5)
    again = RarMonitor(tmp_path, 2)
    run(1, 0.48, again)
    run(2, 0.49, again)
    assert (again.best_folder / "at").read_text() == "2"


def test_without_patience_no_stage_ends_early(tmp_path):
    health = RarMonitor(tmp_path, None)
    health.evaluated(0, 1.0, lambda folder: None)
    assert not health.should_stop([{"step": n, "held_out/reward": 0.0} for n in range(9)])
