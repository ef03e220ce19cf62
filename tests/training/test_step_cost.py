"""What a training step computes, by the compiled program's own count."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from afmrl_jax.config import (
    AgclConfig,
    Execution,
    LoraConfig,
    QwenVLConfig,
    TextConfig,
    VisionConfig,
)
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.sources.batches import ContrastiveBatch
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.training.agcl import make_agcl_step
from afmrl_jax.training.partition import learns
from afmrl_jax.training.state import initial_state

ROWS, VISUAL, TEXT = 4, 64, 16
DEPTH, LAYERS = 2, 3


@pytest.fixture
def config():
    """Widths in Qwen2-VL's proportions, a few layers of them."""
    vision = VisionConfig(DEPTH, 320, 4, 1280, 384, patch_size=14, temporal_patch_size=2)
    text = TextConfig(1024, 384, 2240, LAYERS, 6, 1, mrope_section=(8, 12, 12))
    return QwenVLConfig("qwen2_vl", vision, text, 5, LoraConfig())


def forward_flops(config):
    """Of one picture: (vision tower with its merger, decoder); matrix products only."""
    vision, text = config.vision, config.text
    patches, size = 4 * VISUAL, vision.embed_dim
    block = 2 * patches * (4 * size**2 + 2 * size * vision.intermediate) + 4 * patches**2 * size
    merger = 2 * VISUAL * (16 * size**2 + 4 * size * vision.out_dim)
    embed = 2 * patches * 3 * 2 * vision.patch_size**2 * size
    tokens, width = VISUAL + TEXT, text.hidden_dim
    narrow = text.num_kv_heads * text.head_dim
    looking = 2 * tokens * (width**2 + 2 * width * narrow) + 4 * tokens**2 * width
    kernels = width**2 + 3 * width * text.intermediate_dim
    # In the last layer only the last token, whose state is the vector, needs the rest.
    rest = 2 * kernels * (tokens * (text.num_layers - 1) + 1)
    return vision.depth * block + merger + embed, text.num_layers * looking + rest


def step_flops(config, trained, remat):
    architecture = Architecture.of(config, Execution(scan=False, remat=remat))
    shapes = architecture.shapes
    if trained != "lora":
        shapes = {n: x for n, x in shapes.items() if "lora" not in n}
        architecture = Architecture.of(
            dataclasses.replace(config, lora=None), architecture.execution
        )
    trainable = {n: x for n, x in shapes.items() if learns(n, trained)}
    frozen = {n: x for n, x in shapes.items() if n not in trainable}
    optimizer = optax.sgd(1.0)
    state = jax.eval_shape(lambda p: initial_state(p, optimizer), trainable)
    tokens, patches = VISUAL + TEXT, 4 * VISUAL

    def shape(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    rows = VLBatch(
        tokens=shape(ROWS, tokens),
        token_mask=shape(ROWS, tokens, dtype=jnp.bool_),
        positions=shape(ROWS, 3, tokens),
        patches=shape(ROWS, patches, 3 * 2 * 14 * 14, dtype=jnp.float32),
        patch_segment=shape(ROWS, patches),
        patch_position=shape(ROWS, patches, 2),
        visual_start=shape(ROWS),
    )
    step = make_agcl_step(architecture, AgclConfig(gamma=0.0), None, optimizer)
    batch = ContrastiveBatch(rows, shape(ROWS // 2))
    lowered = step.lower(frozen, state, batch, jax.eval_shape(lambda: jax.random.key(0)))
    return lowered.compile().cost_analysis()["flops"] / ROWS


def test_a_step_on_adapters_computes_no_gradient_of_frozen_weights(config):
    vision, decoder = forward_flops(config)
    # The tower once; the decoder forward, again in the backward pass, and the gradient of its
    # activations. Gradients of its weights would be a fourth decoder.
    least = vision + 3 * decoder
    found = step_flops(config, "lora", "full")
    assert least * 0.95 < found < least * 1.10


def test_without_recomputation_a_decoder_less_is_computed(config):
    vision, decoder = forward_flops(config)
    assert step_flops(config, "lora", "none") < 1.12 * (vision + 2 * decoder)


def test_a_frozen_tower_is_computed_once(config):
    vision, decoder = forward_flops(config)
    found = step_flops(config, "decoder", "none")
    assert found < 1.10 * (vision + 3 * decoder)
    everything = step_flops(config, "all", "none")
    assert everything > found + 1.8 * vision
