"""adapter_config.json: what a PEFT adapter says of itself, in and out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from afmrl_jax.config import LoraConfig
from afmrl_jax.errors import RunError
from afmrl_jax.models.huggingface.peft_patterns import matched
from afmrl_jax.models.qwen_vl.hub_fields import MAX_WIDTH
from afmrl_jax.runtime.json_files import checked, read_json
from afmrl_jax.types import JsonObject

CONFIG = "adapter_config.json"
REMEDY = "copy the adapter again"
_MAX_ALPHA = 1e9
_UNSUPPORTED = (
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
    "modules_to_save",
    "lora_bias",
    "layer_replication",
    "layers_pattern",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""Settings of variants that compute something else, or keep more than factors and magnitudes."""
_CHANGE_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""How values of init_lora_weights begin with which `peft` changes the weights beneath, too."""


@dataclass(frozen=True)
class PeftConfig:
    """What is read of an adapter_config.json."""

    peft_type: str | None = None
    bias: str = "none"
    r: int | None = None
    lora_alpha: float | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    rank_pattern: dict[str, int] | None = field(default_factory=dict)
    alpha_pattern: dict[str, float] | None = field(default_factory=dict)
    base_model_name_or_path: str | None = None

    @property
    def rank(self) -> int:
        """Of modules that no pattern fits."""
        assert self.r is not None
        return self.r

    @property
    def alpha(self) -> float:
        """Of modules that no pattern fits."""
        assert self.lora_alpha is not None
        return self.lora_alpha

    def sizes(self, modules: Sequence[str], where: Path) -> list[tuple[int, float]]:
        """Rank and alpha of each module by its name.

        Raises:
            RunError: a pattern of the file `where` cannot be matched.
        """
        ranks = matched(self.rank_pattern or {}, modules, self.rank, where)
        alphas = matched(self.alpha_pattern or {}, modules, self.alpha, where)
        return list(zip(ranks, alphas, strict=True))


def read_peft_config(folder: Path) -> PeftConfig:
    """What the adapter of a folder is.

    Raises:
        RunError: no LoRA adapter, a variant that is not supported, or numbers that cannot be.
    """
    path = folder / CONFIG
    raw = read_json(path, remedy=REMEDY)
    found = checked(PeftConfig, raw, path, remedy=REMEDY)
    used = [name for name in _UNSUPPORTED if raw.get(name)]
    # Layer 0 is a number, too.
    used += ["layers_to_transform"] if raw.get("layers_to_transform") not in (None, []) else []
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
        used.append(f"init_lora_weights {start[:20]}")
    if found.peft_type != "LORA" or used or found.bias != "none":
        what = ", ".join(used) or f"peft_type {found.peft_type}, bias {found.bias}"
        raise RunError(
            f"{path}: LoRA adapters are read, also with use_rslora, use_dora and patterns, but not "
            f"{what}; merge it with peft"
        )
    if found.r is None or found.lora_alpha is None:
        raise RunError(f"{path} has no r or no lora_alpha; {REMEDY}")
    ranks = {"r": found.r, **(found.rank_pattern or {})}
    alphas = {"lora_alpha": found.lora_alpha, **(found.alpha_pattern or {})}
    odd = [f"{n[:80]} {x}" for n, x in ranks.items() if not 1 <= x <= MAX_WIDTH]
    odd += [f"{n[:80]} {x}" for n, x in alphas.items() if not 0 < x <= _MAX_ALPHA]
    if odd:
        raise RunError(
            f"{path}: {', '.join(odd[:5])}: r and lora_alpha must be above zero and not huge; "
            f"{REMEDY}"
        )
    return found


def written_config(
    lora: LoraConfig,
    base: str,
    sizes: dict[str, tuple[int, float]],
) -> JsonObject:
    """adapter_config.json of an adapter.

    Args:
        lora: what it is.
        base: the folder or hub name of its model.
        sizes: rank and alpha of each module, by its name in memory.
    """
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": _plain(lora.alpha),
        "use_rslora": lora.rank_stabilized,
        "use_dora": lora.dora,
        "rank_pattern": {n: rank for n, (rank, _) in sizes.items() if rank != lora.rank},
        "alpha_pattern": {n: _plain(x) for n, (_, x) in sizes.items() if x != lora.alpha},
        "target_modules": _target_pattern(lora),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _plain(alpha: float) -> int | float:
    return int(alpha) if alpha == int(alpha) else alpha


def _target_pattern(lora: LoraConfig) -> str:
    """A pattern, because bare names would also match maps of another part of the model."""
    parts = []
    if lora.targets:
        parts.append(rf".*\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(lora.targets)})")
    for target in lora.tower_targets:
        stack, _, rest = target.partition(".")
        if stack == "deepstack_merger_list":
            name = rf"{stack}\.\d+\.{re.escape(rest)}"
        else:
            name = ("" if stack == "merger" else r"blocks\.\d+\.") + re.escape(target)
        parts.append(rf".*\.visual\.{name}")
    return "|".join(parts)
