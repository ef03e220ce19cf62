"""What a parameter's path says of it."""

from __future__ import annotations

import re

TOWER = "visual_tower/"
"""How the paths of the vision tower's parameters begin."""
NORM = re.compile(r"(norm|norm1|norm2|ln_q)/(scale|bias)$")
STACKS = re.compile(r"(^|/)(layers|blocks|deepstack_merger_list)/")


def is_stacked(ours: str) -> bool:
    """Whether the first axis of a parameter counts layers."""
    return STACKS.search(ours) is not None


def is_matrix(ours: str) -> bool:
    """Whether a parameter multiplies (kernel, adapter, token table) and is no bias or scale."""
    return ours.rpartition("/")[2] in ("kernel", "lora_a", "lora_b", "embed_tokens", "lm_head")


def stays_wide(ours: str) -> bool:
    """Whether a parameter, of a norm or of DoRA, is used in float32 whatever is computed in."""
    return NORM.search(ours) is not None or ours.endswith("/lora_magnitude")


def is_adapter(ours: str) -> bool:
    """Whether a parameter belongs to a low-rank adapter."""
    return ours.rpartition("/")[2] in ("lora_a", "lora_b", "lora_magnitude")
