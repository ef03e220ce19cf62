"""Settings refuse nonsense and survive a round trip through JSON."""

import pytest

from afmrl_jax.config import (
    AgclConfig,
    CitConfig,
    ImageConfig,
    InputDropout,
    MiningConfig,
    OptimizerConfig,
    OracleConfig,
    QwenVLConfig,
    RarConfig,
    RunConfig,
    TextBudget,
    TextConfig,
    VisionConfig,
    fingerprint,
    from_dict,
    to_dict,
)
from afmrl_jax.errors import ConfigError
from afmrl_jax.testing import tiny_config


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
        lambda: CitConfig(share=0),
        lambda: OracleConfig(wrong_rate=2),
        lambda: OptimizerConfig(learning_rate=0),
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


def test_infonce_is_agcl_without_its_parts():
    infonce = AgclConfig(gamma=1.0, agreement_rho=0.9).infonce()
    assert (infonce.gamma, infonce.delta, infonce.agreement_rho) == (0, None, None)
    assert infonce.steps == AgclConfig().steps


def test_qwens_pictures_have_256_visual_tokens_by_default():
    config = ImageConfig.qwen()
    assert (config.patch_size, config.merge_size, config.temporal_patch_size) == (14, 2, 2)
    assert (config.min_pixels, config.max_pixels) == (3136, 200_704)
    assert config.max_patches == config.bin_patches == 4 * 256
    assert ImageConfig(max_pictures=3).bin_patches == 3 * ImageConfig().max_patches
