"""The study of RAR on a tiny run: every part runs, resumes and is summed up."""

import dataclasses
import json

import pytest
from PIL import Image

from experiments.studies import rar_study as study


@pytest.mark.slow
def test_seeds_long_run_and_collapse(tiny_run, tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        study.Study, "base", lambda self, seed: dataclasses.replace(tiny_run, seed=seed)
    )
    monkeypatch.setattr(
        study.Study, "long", lambda self, rar: dataclasses.replace(rar, steps=4, evaluate_every=2)
    )
    settings = study.Study(
        seeds=(0,),
        out=tmp_path,
        result=tmp_path / "study.json",
        plot=tmp_path / "study.png",
        fast=True,
    )
    study.main(settings)
    result = json.loads(settings.result.read_text())
    assert result["long"]["steps"] == 4
    assert result["seeds"]["0"]["steps"] == tiny_run.rar.steps
    for found in (result["seeds"]["0"], result["long"], result["collapse"]):
        assert found["best"]["reward"] >= found["start"]
        assert [x["step"] for x in found["lines"]] == list(range(found["steps"] + 1))
        assert found["memory"]["last_gb"] > 0
    with Image.open(settings.plot) as picture:
        assert picture.width > 500
    first = settings.result.read_text()
    study.main(settings)
    assert settings.result.read_text() == first
    assert "held-out gain" in capsys.readouterr().out
