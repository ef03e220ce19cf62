"""No command replaces what it did not write."""

import json
from pathlib import Path

import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.cli.evaluation import _is_baselines, _is_comparison
from afmrl_jax.evaluation.evaluate import is_evaluation
from afmrl_jax.reporting import audit, report
from afmrl_jax.runtime.outputs import is_marked
from afmrl_jax.runtime.provenance import provenance

LISTING = '{"listing_id": "a", "product_id": "b", "title": "chair"}\n'


# S1
@pytest.mark.parametrize(
    "command",
    [
        ["annotate", "--run", "run", "--catalogue", "shop"],
        ["oracle", "--catalogue", "shop", "--checkpoint", "model"],
        ["evaluate", "--run", "run", "--catalogue", "shop"],
        ["baselines", "--catalogue", "shop"],
        ["compare", "run", "run"],
        ["report", "--run", "run"],
        ["embed", "--run", "run", "--catalogue", "badges"],
        ["export", "--run", "run"],
        ["catalogue-convert", "--catalogue", "badges"],
        ["audit-negatives", "--run", "run"],
        ["bench", "bm25"],
        ["bench", "scaling"],
        ["bench", "throughput"],
    ],
    ids=lambda x: " ".join(x[:2]) if x[0] == "bench" else x[0],
)
def test_a_file_of_someone_else_is_refused(command, tmp_path, monkeypatch, capsys, badges):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    out = tmp_path / "mine.html"
    out.write_text(LISTING)
    command = [str(badges) if x == "badges" else x for x in command]
    with pytest.raises(SystemExit):
        cli.main([*command, "--out", str(out)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "was not written by `afmrl " in error
    assert "listing_id" in error
    assert "choose another --out" in error
    assert out.read_text() == LISTING
    assert {x.name for x in tmp_path.iterdir()} == {"run", "mine.html"}


def test_baselines_and_comparisons_may_be_written_again(tmp_path):  # S1
    for own, known in (
        ({"catalogue": "shop", "rows": []}, _is_baselines),
        ({"a": {}, "b": {}, "metrics": {}}, _is_comparison),
    ):
        path = tmp_path / "own.json"
        for entries in (own, own | provenance()):
            path.write_text(json.dumps(entries))
            assert known(path)


def test_pages_are_known_by_their_titles():
    templates = Path(report.__file__).parent / "templates"
    for module, name in ((report, "report.html.j2"), (audit, "audit.html.j2")):
        assert is_marked(templates / name, module.PAGE_TITLE)


def test_what_a_run_measured_is_not_replaced_by_evaluate(tmp_path):
    path = tmp_path / "evaluation.json"
    own = {"catalogue": "shop", "rows": [], "comparisons": []}
    path.write_text(json.dumps(own))
    assert is_evaluation(path)
    path.write_text(json.dumps(own | {"peak_memory_gb": 1.0}))
    assert not is_evaluation(path)
