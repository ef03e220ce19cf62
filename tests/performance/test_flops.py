"""Useful operations: by hand, by XLA's own count, and against the design's figures."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import Execution, LoraConfig, LoraMap
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.performance.flop_table import embedder_table, rar_table
from afmrl_jax.performance.flops import (
    Passes,
    adapter_flops,
    decoder_flops,
    head_flops,
    tower_adapter_flops,
    utilisation,
    vision_flops,
)
from afmrl_jax.testing import TOWER_TARGETS, tiny_config


@pytest.mark.parametrize(("visual", "forward", "step"), [(256, 2.38, 4.08), (1024, 11.2, 17.1)])
def test_the_published_embedder(visual, forward, step):
    """Terms of 10^12 an image, with 64 text tokens and all layers computed twice."""
    config = preset("qwen2vl_2b")
    found = Passes.over(config, [4 * visual], [visual + 64])
    assert found.forward / 1e12 == pytest.approx(forward, rel=0.03)
    whole = found.step("lora") + found.recomputed("lora", "full")
    assert whole / 1e12 == pytest.approx(step, rel=0.03)


def test_windows_cost_less_than_whole_pictures():
    config = preset("qwen2_5vl_3b")
    full = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, full_attention_blocks=tuple(range(32)))
    )
    patches, wide = 1024, config.vision.embed_dim
    saved = vision_flops(full, [patches]) - vision_flops(config, [patches])
    assert saved == pytest.approx(28 * 4 * wide * patches * (patches - 64))


def test_rows_and_pictures_add_up_and_padding_is_nothing():
    config = preset("demo_embedder")
    assert decoder_flops(config, [3, 5]) == decoder_flops(config, [3]) + decoder_flops(config, [5])
    assert vision_flops(config, [16, 64]) > vision_flops(config, [16]) + vision_flops(config, [16])
    assert Passes.over(config, [], [0, 0]).forward == 0.0


def test_a_continuation_costs_what_the_longer_row_costs_more():
    config = preset("demo_generator")
    more = decoder_flops(config, [50]) - decoder_flops(config, [30])
    assert decoder_flops(config, [20], behind=[30]) == pytest.approx(more)


def test_what_learns_decides_the_passes():
    found = Passes(vision=1.0, decoder=10.0, adapters=100.0, head=1000.0)
    assert found.step("nothing") == 1111
    assert found.step("all") == 3333
    assert found.step("decoder") == 1 + 3 * 1110
    assert found.step("lora") == 1 + 2 * 1010 + 300
    assert found.recomputed("lora", "full") == 110
    assert found.recomputed("all", "full") == 111
    assert found.recomputed("all", "dots") == found.recomputed("nothing", "full") == 0


def test_adapters_on_the_tower_let_gradients_through_it():
    found = Passes(vision=1.0, decoder=10.0, adapters=100.0, head=1000.0, tower_adapters=10_000.0)
    assert found.step("lora") == 2 + 30_000 + 2 * 1010 + 300
    assert found.step("decoder") == 10_001 + 3 * 1110
    assert found.step("all") == 33_333
    assert found.recomputed("lora", "full") == 10_111
    assert found.reinforcement("lora") == 2 * 11_111 + found.step("lora")
    assert found.reinforcement("decoder") == 2 * 1110 + found.step("decoder")


@pytest.mark.parametrize("family", TOWER_TARGETS)
def test_adapters_cost_by_the_shapes_of_their_factors(family):
    targets = ("q_proj", "o_proj", "up_proj", "down_proj")
    lora = LoraConfig(3, targets=targets, tower_targets=TOWER_TARGETS[family], dora=True)
    config = tiny_config(family, lora=lora)
    config = dataclasses.replace(
        config, lora_maps=(LoraMap("model/layers/mlp/up_proj", (1, 3), (1.0, 1.0)),)
    )
    shapes = Architecture.of(config).shapes
    factors = {n: x.size for n, x in shapes.items() if n.endswith(("lora_a", "lora_b"))}
    decoder = sum(x for n, x in factors.items() if n.startswith("model/"))
    missing = 2 * (config.text.hidden_dim + config.text.intermediate_dim)
    assert adapter_flops(config, 7) == 2 * 7 * (decoder - missing)
    mergers = sum(x for n, x in factors.items() if "merger" in n)
    blocks = sum(factors.values()) - decoder - mergers
    assert tower_adapter_flops(config, [8, 4]) == 2 * 12 * (blocks + mergers / 4)
    assert tower_adapter_flops(dataclasses.replace(config, lora=LoraConfig()), [8, 4]) == 0


def test_xla_counts_the_same_for_a_row_without_padding():
    """XLA counts the whole square of a causal row; that difference is taken out."""
    config = dataclasses.replace(preset("demo_embedder"), lora=LoraConfig(rank=4))
    architecture = Architecture.of(config, Execution(scan=False))
    rows, length = 2, 64

    def hidden(params, x, positions, mask):
        return architecture.bind(params).model(x, positions, mask)

    whole = jax.ShapeDtypeStruct
    width = config.text.hidden_dim
    arguments = (
        architecture.shapes,
        whole((rows, length, width), jnp.float32),
        whole((rows, 3, length), jnp.int32),
        whole((rows, length), jnp.bool_),
    )
    counted = jax.jit(hidden).lower(*arguments).compile().cost_analysis()["flops"]
    inner = config.text.num_heads * config.text.head_dim
    square = config.text.num_layers * 4 * inner * rows * (length * (length - 1) / 2)
    ours = decoder_flops(config, [length] * rows) + adapter_flops(config, rows * length) + square
    # Norms, rotations and softmax weigh more at 96 columns than at 1536.
    assert ours < counted < 1.15 * ours


def test_logits():
    config = preset("demo_generator")
    assert head_flops(config, 3) == 2 * 3 * 96 * 2048
    assert adapter_flops(config, 3) == 0


def test_the_page_holds_the_tables():
    page = (Path(__file__).parents[2] / "docs" / "flops.md").read_text(encoding="utf-8")
    assert embedder_table() in page
    assert embedder_table("qwen3vl_2b") in page
    assert rar_table() in page
    assert rar_table("qwen3vl_4b") in page
    config = dataclasses.replace(preset("qwen2vl_2b"), lora=LoraConfig())
    found = Passes.over(config, [1024], [320])
    assert f"| all | {found.forward / 1e12:.3f} |  | {found.step('lora') / 1e12:.3f} |" in page
    assert found.executed("lora", "dots") == found.step("lora") < found.executed("lora", "full")


def test_more_than_the_peak_is_an_error():
    assert utilisation(50.0, 2.0, 100.0) == 0.25
    with pytest.raises(RunError, match="peak"):
        utilisation(np.float64(300.0), 2.0, 100.0)
