"""The trace of a span of steps."""

import jax
import jax.numpy as jnp
import pytest

from afmrl_jax.runtime.profiling import PROFILE, StepTrace


@pytest.fixture
def seen(monkeypatch):
    """What was asked of JAX's profiler."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def traced(folder, count, begin, end, calls):
    trace = StepTrace(folder, count, begin, end)
    for step in range(begin, end):
        with trace.step(step):
            calls.append(step)
        trace.stepped(step, {"x": jnp.zeros(1)})
    trace.close()
    return calls


@pytest.mark.parametrize(
    ("span", "wanted"),
    [
        ((2, 0, 6), [0, 1, "start", 2, 3, "stop", 4, 5]),
        ((2, 4, 9), [4, 5, "start", 6, 7, "stop", 8]),
        ((3, 0, 4), [0, "start", 1, 2, 3, "stop"]),
        ((9, 0, 3), ["start", 0, 1, 2, "stop"]),
        ((0, 0, 3), [0, 1, 2]),
    ],
)
def test_the_steps_that_are_traced(tmp_path, seen, span, wanted):
    assert traced(tmp_path, *span, seen) == wanted


def test_a_stage_that_stops_within_writes_its_trace(tmp_path, seen):
    trace = StepTrace(tmp_path, 5, 0, 20)
    for step in range(4):
        with trace.step(step):
            pass
        trace.stepped(step, {})
    assert seen == ["start"]
    trace.close()
    trace.close()
    assert seen == ["start", "stop"]


def test_xprof_gets_its_file(tmp_path):
    double = jax.jit(lambda x: 2 * x)
    trace = StepTrace(tmp_path / "agcl", 1, 0, 3)
    state = jnp.ones(4)
    for step in range(3):
        with trace.step(step):
            state = double(state)
        trace.stepped(step, state)
    (file,) = (tmp_path / "agcl" / PROFILE).rglob("*.xplane.pb")
    assert b"agcl" in file.read_bytes()
