"""A run directory that commit 35b8f45 wrote stays readable, and its stages stay finished.

The folder beside this file has its config.json, and the DONE.json of each stage by the stage's
name: the demo at its fast size.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from afmrl_jax.config import (
    AgclConfig,
    CitConfig,
    DistillConfig,
    ListsConfig,
    ModelSettings,
    OptimizerConfig,
    RarConfig,
    RunConfig,
    ViewShares,
    fingerprint,
    from_dict,
    migrated,
    to_dict,
)
from afmrl_jax.training.run_directory import Run

OLD = Path(__file__).parent / "run_35b8f45"
STAGES = sorted(OLD.glob("*.DONE.json"))


def old_config():
    return json.loads((OLD / "config.json").read_text())


def test_its_config_is_todays():
    config = from_dict(RunConfig, old_config(), stored=True)
    assert migrated(old_config()) == migrated(to_dict(config))
    assert not config.packed


def test_a_run_that_began_with_padded_rows_goes_on_with_them(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(old_config()))
    today = dataclasses.replace(from_dict(RunConfig, old_config(), stored=True), packed=True)
    run = Run(tmp_path, today)
    try:
        assert not run.config.packed
        assert not run.config.cit.fresh_batches
    finally:
        run.close()
    later = Run(tmp_path / "new", today)
    assert later.config.packed
    own = Run(tmp_path / "own", RunConfig())
    assert own.config.cit.fresh_batches
    own.close()
    later.close()


def test_settings_of_the_marketplace_count_only_on_it():
    default, fast = RunConfig(), RunConfig.fast()
    other = dataclasses.replace(default, marketplace=fast.marketplace)
    assert fingerprint(other) == fingerprint(default)
    assert migrated(to_dict(other)) == migrated(to_dict(default))
    here, there = (dataclasses.replace(x, catalogue="marketplace") for x in (default, other))
    assert fingerprint(here) != fingerprint(there)
    assert migrated(to_dict(here)) != migrated(to_dict(there))


@pytest.mark.parametrize("path", STAGES, ids=lambda x: x.name)
def test_its_stages_have_the_fingerprints_of_today(path):
    done = json.loads(path.read_text())
    assert fingerprint(done["inputs"]) == done["fingerprint"]
    assert fingerprint(migrated(done["inputs"])) == done["fingerprint"]


def test_the_settings_of_today_give_the_inputs_that_were_recorded():
    config = from_dict(RunConfig, old_config())
    for stage, settings, model in (
        ("agcl", config.agcl, config.embedder),
        ("distill", config.distill, config.generator),
    ):
        done = json.loads((OLD / f"{stage}.DONE.json").read_text())
        now = done["inputs"] | {"settings": to_dict(settings), "model": to_dict(model)}
        assert fingerprint(now) == done["fingerprint"]


@pytest.mark.parametrize(
    "later",
    [
        {"controls": True},
        {"lists": ListsConfig(samples=1)},
        {"agcl": AgclConfig(views=ViewShares(image_text=0.1))},
        {"agcl": AgclConfig(optimizer=OptimizerConfig(2e-3, ema_decay=0.9))},
        {"distill": DistillConfig(title_dropout=0.1)},
        {"agcl": AgclConfig(mask_warmup=0.3)},
        {"agcl": AgclConfig(teacher_share=0.95)},
        {"agcl": AgclConfig(oracle_mask="family")},
        {"agcl": AgclConfig(positive_weight="neutral")},
        {"agcl": AgclConfig(weighted_pairs="agreeing", agreement_rho=0.9)},
        {"agcl": AgclConfig(positive_weight="neutral", normalize_weights=True)},
        {"agcl": AgclConfig(permute_weights=True)},
        {"rar": RarConfig(refresh_gallery=5)},
        {"rar": RarConfig(refresh_gallery=5, gallery_lists="sampled")},
        {"rar": RarConfig(live_by="rank")},
        {"rar": RarConfig(candidates=64)},
        {"rar": RarConfig(permute_rewards=True)},
        {"rar": RarConfig(judged="greedy")},
        {"rar": RarConfig(choose_by="recall")},
        {"rar": RarConfig(report_share=0.2)},
        {"cit": CitConfig(fresh_batches=False)},
        {"cit": CitConfig(rar_between=True)},
    ],
)
def test_settings_of_later_versions_make_another_run(later):
    plain, used = RunConfig(), dataclasses.replace(RunConfig(), **later)
    assert fingerprint(plain) != fingerprint(used)
    assert migrated(to_dict(plain)) != migrated(to_dict(used))


def test_a_later_setting_counts_once_it_is_used():
    chosen = dataclasses.replace(ModelSettings(), family="qwen2_5_vl")
    assert fingerprint(chosen) != fingerprint(ModelSettings())
    assert migrated(to_dict(chosen)) != migrated(to_dict(ModelSettings()))
