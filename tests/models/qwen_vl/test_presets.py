"""The published sizes: names and shapes of all tensors equal Hugging Face's.

`golden_presets.json` was written from the reference, and is rewritten by
`python tests/models/qwen_vl/test_presets.py` (needs torch; nothing is allocated).
"""

import functools
import hashlib
import json
import math
from pathlib import Path

import pytest

from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.config import to_hub_config
from afmrl_jax.models.huggingface.names import canonical_name, hub_tensors
from afmrl_jax.models.qwen_vl.presets import PRESETS, preset

GOLDEN = Path(__file__).with_name("golden_presets.json")
PUBLISHED = [name for name in PRESETS if name.startswith("qwen")]


def summary(tensors):
    listed = sorted((name, list(shape)) for name, shape in tensors.items())
    return {
        "tensors": len(listed),
        "parameters": sum(math.prod(shape) for _, shape in listed),
        "sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
    }


@functools.cache
def ours(name):
    tensors = hub_tensors(Architecture.of(PRESETS[name]))
    return {x.name: tuple(x.shape) for x in tensors}


def reference(name):
    import torch
    import transformers

    config = PRESETS[name]
    raw = to_hub_config(config, dtype="float32", ids={})
    family = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[
        config.family
    ]
    hub = getattr(transformers, f"{family}Config").from_dict(raw)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForConditionalGeneration")(hub)
    tensors = {canonical_name(n): tuple(x.shape) for n, x in model.state_dict().items()}
    if config.text.tie_embeddings:
        # In memory the tied head has a name of its own; in files it has none.
        tensors.pop("lm_head.weight", None)
    return tensors


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_equal_the_reference(name):
    pytest.importorskip("torch", reason="the reference needs `pip install torch`")
    assert ours(name) == reference(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_equal_the_recorded_reference(name):
    assert summary(ours(name)) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


def test_demo_presets_are_of_under_a_million_parameters():
    for name in ("demo_embedder", "demo_generator"):
        assert summary(ours(name))["parameters"] < 1e6


def test_an_unknown_preset_is_an_error_that_lists_the_known():
    with pytest.raises(ConfigError, match="qwen2vl_2b, qwen2vl_7b"):
        preset("qwen3")


if __name__ == "__main__":
    found = {name: summary(reference(name)) for name in PUBLISHED}
    GOLDEN.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
