"""The copying circuit: a model that has learned nothing repeats what its prompt says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.data.batches import Row, collate
from afmrl_jax.errors import ConfigError
from afmrl_jax.model_config import ImageConfig, QwenVLConfig
from afmrl_jax.models.functional import Architecture
from afmrl_jax.models.induction import add_induction_head


def demo(tokenizer, **text):
    """The demo's generator with other settings of its decoder."""
    config = QwenVLConfig.demo("qwen2_5_vl", tokenizer.vocab_size, tokenizer.image_pad_id)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **text))


def repeated(architecture, tokenizer):
    """Share of the tokens of random texts that the untrained model repeats."""
    rng = np.random.default_rng(0)
    texts = rng.integers(10, tokenizer.vocab_size, (16, 9)).tolist()
    end, start = tokenizer.eos_id, tokenizer.im_start_id
    rows = [Row([start, *text, end, start, *text, end]) for text in texts]
    batch = collate(rows, tokenizer, ImageConfig(), 24, with_patches=False)
    model = architecture.bind(architecture.init(0))
    guessed = np.asarray(jnp.argmax(model.logits(model(batch)), -1))[:, 11:20]
    return float(np.mean(guessed == np.array(texts)))


def test_an_untrained_generator_copies_and_one_without_the_circuit_does_not(tokenizer):
    with_circuit = repeated(Architecture.of(demo(tokenizer)), tokenizer)
    without = repeated(Architecture.of(demo(tokenizer, init_induction=False)), tokenizer)
    assert without < 0.05
    assert with_circuit > 0.3


def test_only_head_0_of_the_first_two_layers_changes(tokenizer):
    config = demo(tokenizer, init_induction=False)
    params = Architecture.of(config).init(0)
    changed = add_induction_head(params, config.text, jax.random.key(1))
    assert set(changed) == set(params)
    for name, before in params.items():
        after = np.asarray(changed[name])
        if "layers/0/self_attn" not in name and "layers/1/self_attn" not in name:
            np.testing.assert_array_equal(after, before)
            continue
        head = config.text.head_dim
        rest = np.s_[head:] if "o_proj" in name else np.s_[..., head:]
        np.testing.assert_array_equal(after[rest], np.asarray(before)[rest])


@pytest.mark.parametrize("text", [{"num_layers": 1}, {"rope_theta": 1.0}])
def test_a_decoder_without_room_is_refused(tokenizer, text):
    with pytest.raises(ConfigError, match="an induction head needs"):
        Architecture.of(demo(tokenizer, **text)).init(0)
