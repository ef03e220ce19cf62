"""`afmrl plan`."""

import json
import math

import pytest

from afmrl_jax.cli.main import main
from afmrl_jax.models.architecture import Architecture
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
