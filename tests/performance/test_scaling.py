"""`afmrl bench scaling`: programs of a tiny model, and predictions by hand."""

import dataclasses
from importlib import import_module

import pytest

from afmrl_jax.models.qwen_vl.presets import PRESETS
from afmrl_jax.performance.accelerators import CHIPS
from afmrl_jax.performance.request import Request
from afmrl_jax.testing import tiny_config


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny_r", tiny_config())
    size = {"batch_size": 2, "visual_tokens": 4, "text_tokens": 8, "dtype": "float32"}
    return Request("tiny_r", "agcl", trained="lora", **size)


@pytest.mark.parametrize("chunks", [0, 2])
def test_a_program_is_compiled_and_read(tiny, chunks):
    programs = import_module("afmrl_jax.performance.sweep.programs")
    found = programs.exchanged(programs.Case("tiny", tiny, chunks), 4, 1)
    assert found["rows"] == 16
    assert found["all_loops_known"]
    assert set(found["axes"]) == {"data"}
    sent = found["axes"]["data"]["sent"]
    assert sent == sum(found["by_kind"]["data"].values()) > 0
    # float32 stays what it is, so the CPU's program sends about as much.
    assert sum(found["compiled_for_cpu"]["data"].values()) == pytest.approx(sent, rel=0.2)


def test_chunks_that_do_not_divide_are_refused(tiny):
    programs = import_module("afmrl_jax.performance.sweep.programs")
    with pytest.raises(programs.RunError, match="3 equal chunks"):
        programs.exchanged(programs.Case("tiny", tiny, 3), 4, 1)


def program(sent, sliced=0, big=10, group=8, axes="data"):
    own = {"sent": sent, "sliced": sliced, "big": big, "group": group}
    largest = [
        {
            "kind": "all-gather",
            "payload": 8,
            "times": 1,
            "sent": sent // 2,
            "source": "jit(_take)/g",
        }
    ]
    kinds = {axes: {"all-gather": sent}}
    return {
        "axes": {axes: own},
        "by_kind": kinds,
        "compiled_for_cpu": kinds,
        "largest": largest,
    }


def test_a_prediction_by_hand():
    predict = import_module("afmrl_jax.performance.sweep.predict")
    given = predict.Assumptions(mfu_alone=0.5, link_share=0.8, node_seconds=1e-3)
    request = Request(batch_size=128, mesh="data=8,model=1", trained="lora")
    found = predict.predict(program(72e9, sliced=14e9), request, CHIPS["h200"], given)
    assert found.links == pytest.approx(65e9 / (0.8 * 450e9))
    assert found.starts == pytest.approx(0.01)
    assert found.computing == pytest.approx(predict.useful(request) / 8 / (0.5 * 989e12))
    exchange = found.links + found.starts
    assert found.seconds[1] == pytest.approx(found.computing + exchange)
    assert found.seconds[0] == pytest.approx(max(found.computing, exchange))
    assert 0 < found.efficiency[0] < found.efficiency[1] <= 1
    whole = dataclasses.replace(request, batch_size=256)
    assert predict.useful(whole) == pytest.approx(2 * predict.useful(request))


def test_the_page_says_what_was_predicted(tiny):
    page, programs = (
        import_module("afmrl_jax.performance.sweep.page"),
        import_module("afmrl_jax.performance.sweep.programs"),
    )
    given = import_module("afmrl_jax.performance.sweep.predict").Assumptions()
    case = programs.Case("R, at once", tiny)
    mixed = program(9_000_000, axes="model", group=4)
    text = page.page(
        [
            (case, (8, 1), program(1_000_000)),
            (case, (64, 1), program(7_000_000, group=64)),
            (case, (16, 4), mixed),
        ],
        given,
    )
    for wanted in ("h200", "v5e", "v6e", "## Assumptions", "Visual tokens travel", "`model` axis"):
        assert wanted in text
    assert f"{given.link_share:g}" in text
    rows = [x for x in text.splitlines() if x.startswith("| 64 | R, at once | 64 x 1")]
    assert len(rows) == 3
