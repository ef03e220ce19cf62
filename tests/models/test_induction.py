"""The copying circuit: a model that has learned nothing repeats what its prompt says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, InitConfig
from afmrl_jax.data.batching.collate import Row, collate
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.families import FAMILIES
from afmrl_jax.models.induction import add_induction_head

COPYING = InitConfig.copying()
PLAIN = dataclasses.replace(COPYING, induction=False)


def demo(tokenizer, **text):
    """The demo's generator with other settings of its decoder."""
    config = FAMILIES["qwen2_5_vl"].demo(tokenizer.vocab_size, tokenizer.image_pad_id)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **text))


def repeated(architecture, tokenizer, init):
    """Share of the tokens of random texts that the untrained model repeats."""
    rng = np.random.default_rng(0)
    texts = rng.integers(10, tokenizer.vocab_size, (16, 9)).tolist()
    end, start = tokenizer.eos_id, tokenizer.im_start_id
    rows = [Row([start, *text, end, start, *text, end]) for text in texts]
    batch = collate(rows, tokenizer, ImageConfig(), 24, with_patches=False)
    model = architecture.bind(architecture.init(0, init))
    guessed = np.asarray(jnp.argmax(model.logits(model(batch)), -1))[:, 11:20]
    return float(np.mean(guessed == np.array(texts)))


def test_an_untrained_generator_copies_and_one_without_the_circuit_does_not(tokenizer):
    architecture = Architecture.of(demo(tokenizer))
    with_circuit = repeated(architecture, tokenizer, COPYING)
    without = repeated(architecture, tokenizer, PLAIN)
    assert without < 0.05
    assert with_circuit > 0.3


def test_only_the_named_heads_change(tokenizer):
    config = demo(tokenizer)
    params = Architecture.of(config).init(0, PLAIN)
    changed = add_induction_head(params, config.text, jax.random.key(1))
    assert set(changed) == set(params)
    head = config.text.head_dim
    # The demo has four heads in two groups. In layer 1 both groups' keys and values are new.
    kept = {0: {"q": [1, 2, 3], "k": [1], "v": [1], "o": [1, 2, 3]}, 1: {"q": [1, 3], "o": [1, 3]}}
    for name, before in params.items():
        after, before = np.asarray(changed[name]), np.asarray(before)
        if "self_attn" not in name or name.endswith("v_proj/bias"):
            np.testing.assert_array_equal(after, before)
            continue
        kind = name.split("self_attn/")[1][0]
        for layer in range(config.text.num_layers):
            new, old = after[layer], before[layer]
            if layer not in kept:
                np.testing.assert_array_equal(new, old)
                continue
            if kind == "o":
                new, old = new.T, old.T
            for number in kept[layer].get(kind, []):
                own = np.s_[..., number * head : (number + 1) * head]
                np.testing.assert_array_equal(new[own], old[own])


@pytest.mark.parametrize("text", [{"num_layers": 1}, {"rope_theta": 1.0}])
def test_a_decoder_without_room_is_refused(tokenizer, text):
    with pytest.raises(ConfigError, match="an induction head needs"):
        Architecture.of(demo(tokenizer, **text)).init(0, COPYING)
