"""Settings refuse nonsense and survive a round trip through JSON."""

import dataclasses
import json
import subprocess
import sys

import pytest

from afmrl_jax.config import (
    AgclConfig,
    BackboneConfig,
    CitConfig,
    DistillConfig,
    EvaluationConfig,
    GuardConfig,
    ImageConfig,
    InputDropout,
    KeptCheckpoints,
    ListsConfig,
    MeshConfig,
    MiningConfig,
    ModelSettings,
    OptimizerConfig,
    OracleConfig,
    QwenVLConfig,
    RarConfig,
    RunConfig,
    TextBudget,
    TextConfig,
    ViewShares,
    VisionConfig,
    fingerprint,
    from_dict,
    read_config,
    to_dict,
)
from afmrl_jax.errors import ConfigError
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.cit import cit_settings


@pytest.mark.parametrize(
    "make",
    [
        lambda: AgclConfig(batch_size=1),
        lambda: AgclConfig(temperature=0),
        lambda: AgclConfig(category_share=1.0),
        lambda: AgclConfig(duplicate_share=-0.1),
        lambda: AgclConfig(category_batch=1),
        lambda: MiningConfig(hard_negatives=-1),
        lambda: MiningConfig(every=0),
        lambda: MiningConfig(margin=1.5),
        lambda: MiningConfig(hard_negatives=4, skip=7, depth=10),
        lambda: InputDropout(title=0.6, picture=0.5),
        lambda: RarConfig(group_size=1),
        lambda: RarConfig(k=0),
        lambda: RarConfig(gallery_splits=("train",)),
        lambda: RarConfig(refresh_gallery=0),
        lambda: RarConfig(gallery_lists="sampled"),
        lambda: RarConfig(queries=8, candidates=7),
        lambda: RarConfig(held_out_share=0.6, report_share=0.4),
        lambda: RarConfig(baseline="greedy", permute_rewards=True),
        lambda: CitConfig(share=0),
        lambda: OracleConfig(wrong_rate=2),
        lambda: OptimizerConfig(learning_rate=0),
        lambda: OptimizerConfig(ema_decay=1.0),
        lambda: DistillConfig(title_dropout=0.5, picture_dropout=0.5),
        lambda: ListsConfig(samples=-1),
        lambda: ListsConfig(temperature=0),
        lambda: ViewShares(image_both=0.7, image_image=0.4),
        lambda: TextBudget(buckets=(64, 48)),
        lambda: RunConfig(vocab_size=100),
        lambda: RunConfig(image=ImageConfig.qwen()),
        lambda: TextBudget(max_title_tokens=0),
        lambda: TextBudget(max_attribute_tokens=1),
        lambda: ImageConfig(max_pixels=10),
        lambda: ImageConfig(max_pictures=0),
        lambda: ImageConfig(pack_shares=()),
        lambda: ImageConfig(pack_shares=(0.5, 0.25, 1.0)),
        lambda: ImageConfig(pack_shares=(0.0, 1.0)),
        lambda: ImageConfig(pack_shares=(0.5,)),
        lambda: VisionConfig(2, 30, 4, 8, 8),
        lambda: TextConfig(300, 64, 64, 2, 4, 3),
        lambda: TextConfig(300, 64, 64, 2, 4, 2, mrope_section=(1, 1, 1)),
    ],
)
def test_nonsense_is_refused_when_it_is_built(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("config", [RunConfig.demo(), RunConfig.fast(), RunConfig.pretrained()])
def test_a_run_config_survives_json(config):
    assert from_dict(RunConfig, to_dict(config)) == config
    assert fingerprint(config) == fingerprint(from_dict(RunConfig, to_dict(config)))


def test_padded_rows_survive_json():
    config = dataclasses.replace(RunConfig.demo(), packed=False)
    assert from_dict(RunConfig, to_dict(config)) == config
    assert from_dict(RunConfig, to_dict(config), stored=True) == config


def test_a_model_config_survives_json():
    config = tiny_config("qwen2_5_vl")
    assert from_dict(QwenVLConfig, to_dict(config)) == config


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match="surplus"):
        from_dict(RunConfig, {"surplus": 1})


def test_fast_differs_from_the_demo_in_amounts_only():
    demo, fast = to_dict(RunConfig.demo()), to_dict(RunConfig.fast())
    assert demo.keys() == fast.keys()
    assert demo["catalogue"] == fast["catalogue"]
    assert fast["cit"]["cycles"] == demo["cit"]["cycles"]


def test_lone_pictures_are_written_for_only_by_a_generator_that_has_seen_some():
    lists = ListsConfig(lone=True)
    with pytest.raises(ConfigError, match=r"--distill\.title-dropout and --distill\.picture"):
        RunConfig(lists=lists)
    with pytest.raises(ConfigError, match=r"--distill\.title-dropout and --distill\.picture"):
        RunConfig(lists=lists, distill=DistillConfig(title_dropout=0.2))
    RunConfig(lists=lists, distill=DistillConfig(title_dropout=0.2, picture_dropout=0.1))
    RunConfig(lists=lists, generator=ModelSettings(weights="/models/qwen"))


def test_the_backbone_has_the_views_and_the_average_of_the_rows():
    agcl = AgclConfig(views=ViewShares.mixed(), optimizer=OptimizerConfig(ema_decay=0.9))
    for settings in (BackboneConfig().settings(agcl), agcl.infonce()):
        assert settings.views == ViewShares.mixed()
        assert settings.optimizer.ema_decay == 0.9
    assert ViewShares.mixed().by_sides["both", "both"] == pytest.approx(0.35)


def test_infonce_is_agcl_without_its_parts():
    infonce = AgclConfig(gamma=1.0, agreement_rho=0.9).infonce()
    assert (infonce.gamma, infonce.delta, infonce.agreement_rho) == (0, None, None)
    assert infonce.steps == AgclConfig().steps
    varied = AgclConfig(
        gamma=-0.3,
        agreement_rho=0.9,
        mask_warmup=0.3,
        teacher_share=0.95,
        oracle_mask="product",
        positive_weight="neutral",
        weighted_pairs="agreeing",
        normalize_weights=True,
        permute_weights=True,
    )
    assert varied.infonce() == infonce


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"normalize_weights": True}, "--agcl.positive-weight neutral"),
        (
            {
                "normalize_weights": True,
                "positive_weight": "neutral",
                "positives": "product",
            },
            "--agcl.positives pair",
        ),
        ({"weighted_pairs": "agreeing"}, "--agcl.agreement-rho"),
        ({"permute_weights": True, "gamma": 0.0}, "set --agcl.gamma"),
        ({"mask_warmup": 0.3, "delta": None}, "both are off"),
        ({"mask_warmup": 2.5}, "whole number of steps below the 60"),
        ({"mask_warmup": 60.0}, "whole number of steps below the 60"),
        ({"teacher_share": 1.2}, "teacher_share must lie between"),
        ({"teacher_share": 0.0}, "teacher_share must lie between"),
    ],
)
def test_weights_and_masks_that_do_not_go_together_are_refused_with_a_remedy(given, remedy):
    with pytest.raises(ConfigError, match=remedy):
        AgclConfig(**given)


def test_masks_wait_a_share_or_a_number_of_steps_and_not_in_a_cycle():
    waits = [AgclConfig(mask_warmup=x).warmup_steps for x in (0.0, 0.3, 1.0, 18.0)]
    assert waits == [0, 18, 1, 18]
    config = RunConfig(agcl=AgclConfig(mask_warmup=50.0))
    assert config.cit.steps < 50
    assert cit_settings(config).warmup_steps == 0


def test_qwens_pictures_have_256_visual_tokens_by_default():
    config = ImageConfig.qwen()
    assert (config.patch_size, config.merge_size, config.temporal_patch_size) == (14, 2, 2)
    assert (config.min_pixels, config.max_pixels) == (3136, 200_704)
    assert config.max_patches == config.bin_patches == 4 * 256
    assert ImageConfig(max_pictures=3).bin_patches == 3 * ImageConfig().max_patches


@pytest.mark.parametrize(
    "make",
    [
        lambda: RunConfig(vocab_size=10**9),
        lambda: RunConfig(seed=-1),
        lambda: RunConfig(save_every=10**12),
        lambda: RunConfig(workers=10**6),
        lambda: MeshConfig(data=0),
        lambda: MeshConfig(model=0),
        lambda: KeptCheckpoints(newest=0),
        lambda: GuardConfig(explosion=float("inf")),
        lambda: ImageConfig(std=(0.0, 0.0, 0.0)),
        lambda: ImageConfig(mean=(float("nan"), 0.0, 0.0)),
        lambda: ImageConfig(scaled_decoding="<script>"),
        lambda: ImageConfig(patch_size=0),
        lambda: ImageConfig(patch_size=10**6),
        lambda: TextBudget(buckets=(10**9,)),
        lambda: TextBudget(buckets=(0, 10)),
        lambda: TextBudget(buckets=tuple(range(100, 1000))),
        lambda: AgclConfig(gamma=float("inf")),
        lambda: AgclConfig(batch_size=10**9),
        lambda: AgclConfig(steps=10**12),
        lambda: DistillConfig(steps=10**12),
        lambda: DistillConfig(batch_size=10**9),
        lambda: BackboneConfig(whole_list=2.0),
        lambda: OptimizerConfig(clip_norm=0.0),
        lambda: OptimizerConfig(weight_decay=float("nan")),
        lambda: RarConfig(evaluate_every=0),
        lambda: RarConfig(queries=10**9),
        lambda: RarConfig(group_size=10**9),
        lambda: RarConfig(top_p=0.0),
        lambda: CitConfig(cycles=10**9),
        lambda: CitConfig(steps=0),
        lambda: EvaluationConfig(batch_size=10**9),
        lambda: EvaluationConfig(bootstrap=10**9),
        lambda: EvaluationConfig(gallery_queries=-1),
    ],
)
def test_absurd_amounts_are_refused_when_they_are_built(make):  # W6, F11
    with pytest.raises(ConfigError):
        make()


ABSURD = [  # W6, F11
    ("embedder.trained", "x"),
    ("image.scaled_decoding", "<script>"),
    ("image.std", [0, 0, 0]),
    ("image.std", [1, 1]),
    ("image.patch_size", "8"),
    ("agcl.gamma", float("inf")),
    ("agcl.gamma", float("nan")),
    ("agcl.steps", True),
    ("agcl.steps", 3.5),
    ("agcl.mining.every", "often"),
    ("vocab_size", 10**9),
    ("evaluation.batch_size", 10**9),
    ("text.buckets", [10**9]),
    ("text.buckets", 7),
    ("cit.cycles", 10**9),
    ("rar.optimizer.learning_rate", [1]),
    ("generator.lora.rank", None),
    ("mesh", []),
    ("seed", {}),
    ("catalogue", 3),
]


@pytest.mark.parametrize(("setting", "value"), ABSURD, ids=str)
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_broken_setting_in_a_file_is_named(tmp_path, suffix, setting, value):
    for name in reversed(setting.split(".")):
        value = {name: value}
    path = tmp_path / f"config{suffix}"
    text = json.dumps(value).replace("Infinity", ".inf").replace("NaN", ".nan")
    path.write_text(json.dumps(value) if suffix == ".json" else text)
    with pytest.raises(ConfigError) as caught:
        read_config(path, RunConfig.demo())
    for word in (str(path), *setting.split(".")):
        assert word in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        from_dict(RunConfig, value, path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, "text", [], [[]], {"agcl": None}])
def test_settings_that_are_none_are_refused(value):
    with pytest.raises(ConfigError):
        from_dict(RunConfig, value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b"\xff{}"),
        ("a.json", b"[" * 100_000),
        ("a.json", b'{"seed": ' + b"7" * 5000 + b"}"),
        ("a.json", b'{"seed": 1, "seed": 2}'),
        ("a.json", b" " * (2 << 20)),
        ("a.yaml", b"\xff\xfe\xff"),
        ("a.yaml", b"[" * 100_000),
        ("a.yaml", b"seed: " + b"7" * 5000),
        ("a.yaml", b"seed: 2020-13-45"),
        ("a.yaml", b"2020-01-01: 3"),
        ("a.yaml", b"seed: 2020-01-01"),
        ("a.yaml", b"seed: !!bool what"),
        ("a.yaml", b"seed: !!python/object/apply:os.system [echo]"),
        ("a.yaml", b"&a [*a]"),
        (
            "a.yaml",
            b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + b"".join(
                b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n"
                % (n + 1, n + 1, n, n, n, n, n, n, n, n, n, n)
                for n in range(ord("a"), ord("k"))
            ),
        ),
    ],
)
def test_a_file_that_cannot_be_parsed_is_named(tmp_path, name, data):  # F2, W6
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=name):
        read_config(tmp_path / name, RunConfig.demo())


def test_a_whole_number_is_the_same_setting_as_a_number(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"agcl": {"gamma": 1}}')
    one, other = read_config(path, RunConfig()), from_dict(RunConfig, {"agcl": {"gamma": 1.0}})
    assert fingerprint(one) == fingerprint(other)


def test_the_package_and_its_settings_do_without_pydantic():
    code = "import sys, afmrl_jax, afmrl_jax.config; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
