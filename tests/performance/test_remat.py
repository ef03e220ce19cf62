"""`remat: auto`: the least recomputation that fits, chosen once a run."""

import dataclasses
import json

import pytest

from afmrl_jax.config import (
    Execution,
    LoraConfig,
    MeshConfig,
    ModelSettings,
    RunConfig,
    fingerprint,
    to_dict,
)
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.lora import with_lora
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.performance import remat
from afmrl_jax.performance.remat import RECORD, cheapest, planned_bytes, with_remat
from afmrl_jax.performance.request import Request


def run_with(auto, **changes):
    settings = ModelSettings(execution=Execution(remat="auto" if auto else "dots"))
    return dataclasses.replace(RunConfig(), embedder=settings, **changes)


def test_the_fastest_that_fits_is_taken():
    architecture = with_lora(Architecture.of(preset("demo_embedder")), LoraConfig(rank=4))
    step = Request(preset="demo_embedder", trained="lora", batch_size=64, visual_tokens=16)
    needs = {
        x: planned_bytes(architecture, dataclasses.replace(step, remat=x)) for x in remat.ORDER
    }
    assert needs["none"] > needs["dots"] > needs["full"]
    for name, bytes_ in needs.items():
        room = int(bytes_ / (1 - remat.SPARE)) + 2
        assert cheapest(architecture, [step], room) == name
        # The largest step of several decides.
        small = dataclasses.replace(step, batch_size=2)
        assert cheapest(architecture, [small, step], room) == name
    assert cheapest(architecture, [step], 1000) == "full"


def test_a_run_chooses_once_and_goes_on_with_it(tmp_path, monkeypatch, capsys):
    config = run_with(auto=True)
    monkeypatch.setattr(remat, "bytes_here", lambda sharing: 1 << 40)
    chosen = with_remat(config, tmp_path)
    assert chosen.embedder.execution.remat == "none"
    assert chosen.generator == config.generator
    assert json.loads((tmp_path / RECORD).read_text()) == {"embedder": "none"}
    assert "embedder: remat none" in "".join(capsys.readouterr())
    # On another device, the run computes as it began.
    monkeypatch.setattr(remat, "bytes_here", lambda sharing: 1000)
    assert with_remat(config, tmp_path) == chosen
    (tmp_path / RECORD).write_text('{"embedder": "some"}')
    with pytest.raises(RunError, match=RECORD):
        with_remat(config, tmp_path)


def test_what_is_not_open_is_left_alone(tmp_path):
    config = run_with(auto=False)
    assert with_remat(config, tmp_path) is config
    assert not list(tmp_path.iterdir())


def test_a_new_choice_is_no_new_setting():
    """Older configs keep their fingerprints, and the pretrained preset leaves the choice open."""
    known = to_dict(Execution(dtype="bfloat16", remat="full"))
    assert known == {"dtype": "bfloat16", "scan": None, "remat": "full", "attention": "auto"}
    assert fingerprint(known) != fingerprint(Execution(dtype="bfloat16", remat="auto"))
    assert RunConfig.pretrained().embedder.execution.remat == "auto"


def test_every_stage_of_the_pretrained_preset_is_planned():
    config = dataclasses.replace(RunConfig.pretrained(), mesh=MeshConfig(data=1))
    (embedder,) = remat.requests(config, "embedder")
    assert embedder.visual_tokens == 256
    assert embedder.batch_size == config.agcl.batch_size
    distill, rar = remat.requests(config, "generator")
    assert distill.batch_size == config.distill.batch_size
    assert rar.text_tokens > distill.text_tokens + 8 * 90
    few = dataclasses.replace(config, rar=dataclasses.replace(config.rar, chunk_tokens=1))
    assert remat.requests(few, "generator")[1].batch_size == 1
