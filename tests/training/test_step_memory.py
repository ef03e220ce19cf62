"""What a step holds on each device of a mesh, by the compiled program's own account."""

import dataclasses

import pytest

from afmrl_jax.config import LoraConfig
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.lora import with_lora
from afmrl_jax.performance.plan import compiled
from afmrl_jax.performance.request import Request
from afmrl_jax.testing import tiny_config

ROWS = 8
FAMILIES = {"agcl": "qwen2_vl", "distill": "qwen2_5_vl", "generate": "qwen2_5_vl"}


def temporaries(task, trained, mesh, batch_size):
    request = Request(
        task=task,
        trained=trained,
        mesh=mesh,
        batch_size=batch_size,
        visual_tokens=16,
        text_tokens=16,
        max_new_tokens=8,
    )
    config = tiny_config(FAMILIES[task])
    # Weights of a size to be worth splitting, in a loop: there the compiler may prefer to leave
    # them where they are.
    text = dataclasses.replace(
        config.text, num_layers=3, hidden_dim=256, intermediate_dim=1024, mrope_section=(8, 12, 12)
    )
    vision = dataclasses.replace(config.vision, embed_dim=128, intermediate=512, out_dim=256)
    config = dataclasses.replace(config, text=text, vision=vision)
    execution = dataclasses.replace(request.execution, scan=True)
    architecture = Architecture.of(config, execution)
    if trained == "lora":
        architecture = with_lora(architecture, LoraConfig())
    return compiled(request, architecture)


@pytest.mark.parametrize(
    ("task", "trained"),
    [("agcl", "lora"), ("distill", "all"), ("generate", "all")],
)
def test_eight_devices_hold_eight_times_the_batch(task, trained):
    one = temporaries(task, trained, "data=1", ROWS)
    eight = temporaries(task, trained, "data=8", 8 * ROWS)
    # Were rows or features of the whole batch on every device, it would be twice to five times.
    assert eight <= 1.1 * one
