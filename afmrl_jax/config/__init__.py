"""Every setting of the system, as frozen dataclasses that reject invalid values when built.

`RunConfig` holds all settings of a run; `RunConfig.demo()`, `RunConfig.fast()` and
`RunConfig.pretrained()` are the shipped presets. `tyro` turns them into command lines, so the
docstring of a field is also its `--help` text.
"""

from afmrl_jax.config.contrastive import AgclConfig, BackboneConfig, MiningConfig
from afmrl_jax.config.data import (
    ImageConfig,
    InputDropout,
    ListsConfig,
    OracleConfig,
    TextBudget,
    ViewShares,
)
from afmrl_jax.config.file import read_config, to_yaml
from afmrl_jax.config.lora import LoraConfig, LoraMap
from afmrl_jax.config.marketplace import MarketplaceSettings
from afmrl_jax.config.model import (
    Execution,
    InitConfig,
    ModelSettings,
    QwenVLConfig,
    Remat,
    TextConfig,
    VisionConfig,
)
from afmrl_jax.config.rar import CitConfig, RarConfig
from afmrl_jax.config.reads import Reads
from afmrl_jax.config.run import (
    GuardConfig,
    KeptCheckpoints,
    MeshConfig,
    RunConfig,
    pretrained_for,
)
from afmrl_jax.config.serialization import fingerprint, from_dict, migrated, to_dict
from afmrl_jax.config.stages import DistillConfig, EvaluationConfig, OptimizerConfig

__all__ = [
    "AgclConfig",
    "BackboneConfig",
    "CitConfig",
    "DistillConfig",
    "EvaluationConfig",
    "Execution",
    "GuardConfig",
    "ImageConfig",
    "InitConfig",
    "InputDropout",
    "KeptCheckpoints",
    "ListsConfig",
    "LoraConfig",
    "LoraMap",
    "MarketplaceSettings",
    "MeshConfig",
    "MiningConfig",
    "ModelSettings",
    "OptimizerConfig",
    "OracleConfig",
    "QwenVLConfig",
    "RarConfig",
    "Reads",
    "Remat",
    "RunConfig",
    "TextBudget",
    "TextConfig",
    "ViewShares",
    "VisionConfig",
    "fingerprint",
    "from_dict",
    "migrated",
    "pretrained_for",
    "read_config",
    "to_dict",
    "to_yaml",
]
