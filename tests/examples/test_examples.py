"""The examples run as they are."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("agcl_loss.py", "largest difference to the literal gradient"),
        ("custom_reward.py", "advantages"),
        ("own_catalogue.py", "m2-b mug-2 train Camping mug in red"),
    ],
)
def test_an_example_that_needs_no_run(name, told, monkeypatch, capsys):
    run_example(name, monkeypatch)
    assert told in capsys.readouterr().out


def test_search_with_a_run(own_run, monkeypatch, capsys):
    run_example("search.py", monkeypatch, own_run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("oak chair (1.00)")
    assert len(lines) == 2
