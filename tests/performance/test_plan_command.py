"""`afmrl plan`."""

import json
import math
from functools import partial

import pytest

from afmrl_jax.cli.main import main
from afmrl_jax.config import LoraConfig, LoraMap
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.peft import save_adapter
from afmrl_jax.models.lora import add_lora, with_lora
from afmrl_jax.models.qwen_vl.presets import PRESETS

SMALL = ["--batch-size", "4", "--visual-tokens", "4", "--text-tokens", "12", "--device", "t4"]


def plan(capsys, *arguments):
    main(["plan", *arguments, *SMALL, "--as-json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("agcl", "demo_embedder"),
        ("distill", "demo_generator"),
        ("generate", "demo_generator"),
    ],
)
def test_plan_of_a_small_model(task, name, capsys):
    found = plan(capsys, "--preset", name, "--task", task)
    lines = {x["what"]: x for x in found["lines"]}
    numbers = sum(math.prod(x.shape) for x in Architecture.of(PRESETS[name]).shapes.values())
    if task == "generate":
        assert lines["frozen weights (bfloat16)"]["bytes"] == 2 * numbers
        assert lines["keys and values"]["bytes"] == 4 * (16 + 48) * 3 * 2 * 2 * 24 * 2
    else:
        assert lines["weights that learn (float32)"]["bytes"] == 4 * numbers
        # Two counters beside the moments.
        assert lines["optimizer moments"]["bytes"] == 8 * numbers + 8
    assert lines["activations, temporaries"]["how"] == "compiled"
    assert found["total"] == sum(x["bytes"] for x in found["lines"])
    assert found["verdict"] == "fits"


def learned(found):
    lines = {x["what"]: x["bytes"] for x in found["lines"]}
    return lines["weights that learn (float32)"] // 4


def test_plans_of_variants_of_lora(capsys, tmp_path):
    """What learns is counted as the settings, or a folder of peft, have it."""
    asked = partial(plan, capsys, "--preset", "demo_embedder", "--trained", "lora", "--no-compile")
    plain, text = asked("--lora.rank", "4"), PRESETS["demo_embedder"].text
    wide, narrow, middle = text.hidden_dim, text.num_kv_heads * text.head_dim, text.intermediate_dim
    inputs = 2 * (wide + wide) + 2 * (wide + narrow) + (middle + wide)
    assert learned(plain) == 4 * text.num_layers * inputs
    assert learned(asked("--lora.rank", "4", "--lora.rank-stabilized")) == learned(plain)
    # A length for each column.
    columns = 3 * wide + 2 * narrow
    stretched = asked("--lora.rank", "4", "--lora.dora")
    assert learned(stretched) == learned(plain) + text.num_layers * columns
    vision = PRESETS["demo_embedder"].vision
    tower = asked("--lora.rank", "4", "--lora.tower-targets", "attn.qkv")
    assert learned(tower) == learned(plain) + 4 * vision.depth * 4 * vision.embed_dim
    # Patterns are in folders.
    architecture = with_lora(
        Architecture.of(PRESETS["demo_embedder"]),
        LoraConfig(rank=4, targets=("q_proj",)),
        (LoraMap("model/layers/self_attn/q_proj", (4, 2, 8), (4.0, 4.0, 4.0)),),
    )
    save_adapter(tmp_path, architecture, add_lora(architecture, {}, 0), "base")
    # Layers share arrays of the largest rank.
    found = asked("--adapters", str(tmp_path))
    assert learned(found) == 8 * text.num_layers * 2 * wide
    with pytest.raises(SystemExit):
        plan(capsys, "--preset", "demo_embedder", "--adapters", str(tmp_path))


def test_a_large_model_on_a_small_device_gets_advice(capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["plan", "--preset", "qwen2vl_2b", "--device", "t4", "--no-compile"])
    out = capsys.readouterr().out
    assert "does not fit" in out
    assert "estimate" in out
    assert "--trained lora" in out
    assert "license of Qwen2-VL-2B: apache-2.0" in out


@pytest.mark.parametrize(
    ("option", "value", "choice"),
    [("--preset", "qwen3", "qwen2vl_2b"), ("--device", "h300", "h200"), ("--mesh", "x=2", "data=")],
)
def test_unknown_names_are_errors_that_list_the_known(option, value, choice, capsys):
    with pytest.raises(SystemExit):
        main(["plan", option, value])
    assert choice in capsys.readouterr().err
