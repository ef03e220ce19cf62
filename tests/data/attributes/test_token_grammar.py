"""The machine over tokens against the grammar's parser."""

import numpy as np
import pytest

from afmrl_jax.data.attributes.text_format import is_malformed, parse_attributes
from afmrl_jax.data.attributes.token_grammar import NEVER, attribute_grammar
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.errors import ConfigError

KEYS = ("color", "collar", "size")


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["color: red; size: xl; collar: v-neck", "颜色 红色", "size: m; color: blue"] * 3
    return BpeTokenizer.train(texts, 330)


@pytest.fixture(scope="module")
def grammar(tokenizer):
    return attribute_grammar(tokenizer.token_bytes(), KEYS)


def walk(grammar, tokens):
    """State and keys behind tokens, or None where one is forbidden."""
    state, used = 0, []
    for token in tokens:
        key = int(grammar.completes[state, token])
        state = int(grammar.following[state, token])
        if state < 0 or key in used:
            return None
        if key < len(KEYS):
            used.append(key)
    return state, used


def test_bytes_of_tokens_spell_the_text(tokenizer):
    text = "color: naïve 红色; size: 2 x 3"
    spelled = b"".join(tokenizer.token_bytes()[i] or b"?" for i in tokenizer.encode(text))
    assert spelled.decode() == " " + text


@pytest.mark.parametrize(
    "text",
    ["color: red", "size: xl; color: red", "collar: v-neck; size: m; color: blue", "color: 红色"],
)
def test_lists_of_the_grammar_pass_and_may_end(tokenizer, grammar, text):
    state, used = walk(grammar, tokenizer.encode(text))
    assert grammar.ends[state]
    keys = sorted(KEYS)
    assert [keys[i] for i in used] == [key for key, _ in parse_attributes(text)]


@pytest.mark.parametrize(
    "text",
    [
        "red",
        "color red",
        "weight: 3",
        "color: red; color: blue",
        "color:  red",
        "color: a; ; size",
        "color: red: blue",
        "color: \u3000",
        "color: \u00a0x",
        "; color: red",
        "color: a\nb",
    ],
)
def test_what_breaks_the_grammar_is_forbidden(tokenizer, grammar, text):
    assert walk(grammar, tokenizer.encode(text)) is None


@pytest.mark.parametrize("text", ["color", "color:", "color: ", "color: red;", "color: red; size"])
def test_the_beginning_of_a_list_cannot_end_it(tokenizer, grammar, text):
    state, _ = walk(grammar, tokenizer.encode(text))
    assert not grammar.ends[state]


@pytest.mark.parametrize("seed", range(20))
def test_any_walk_within_its_budget_is_a_list(tokenizer, grammar, seed):
    rng = np.random.default_rng(seed)
    keys, eos = len(KEYS), tokenizer.eos_id
    budget = int(rng.integers(grammar.distance[0].min(), 40))
    state, used, tokens = 0, np.zeros(keys + 1, bool), []
    for left in range(budget - 1, -1, -1):
        following, completes = grammar.following[state], grammar.completes[state]
        near = ((grammar.distance <= left) & ~used).any(1)
        legal = (following >= 0) & near[following] & ~used[completes]
        offered = np.flatnonzero(legal).tolist() + ([eos] if grammar.ends[state] else [])
        token = int(rng.choice(offered))
        if token == eos:
            break
        tokens.append(token)
        used[completes[token]] |= completes[token] < keys
        state = int(following[token])
    else:
        pytest.fail("no end within the budget")
    assert not is_malformed(tokenizer.decode(tokens).strip())


def test_distances_are_those_of_the_shortest_lists(tokenizer, grammar):
    ways = [len(tokenizer.encode(f"{key}: a")) + 1 for key in sorted(KEYS)]
    assert (grammar.distance[0, : len(KEYS)] <= ways).all()
    assert grammar.distance[0, len(KEYS)] == NEVER


def test_a_budget_without_room_is_refused(grammar):
    with pytest.raises(ConfigError, match="max_attribute_tokens"):
        grammar.check(2)
    grammar.check(40)


@pytest.mark.parametrize("keys", [(), ("Color",), ("a:b",), (" a",), ("",)])
def test_keys_that_are_none_are_refused(tokenizer, keys):
    with pytest.raises(ConfigError):
        attribute_grammar(tokenizer.token_bytes(), keys)


def test_rows_beyond_the_tokenizer_are_never_written(tokenizer):
    grammar = attribute_grammar(tokenizer.token_bytes(), KEYS, vocab_size=512)
    assert (grammar.following[:, tokenizer.vocab_size :] == -1).all()
