"""Following a grammar on the device keeps to what its tables say, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.data.attributes.token_grammar import attribute_grammar
from afmrl_jax.models.constrained import WORD, advance, allowed, begin
from afmrl_jax.models.sampling import likeliest

LETTERS = [bytes([x]) for x in b"abcdefghijklmnopqrstuvwxyz;: "]
EOS = len(LETTERS)


def plainly(grammar, state, used, left, token):
    """Whether a token may come next, by the tables' definitions."""
    if token == EOS:
        return bool(grammar.ends[state])
    after, key = grammar.following[state, token], grammar.completes[state, token]
    ways = [d for k, d in enumerate(grammar.distance[after]) if k not in used]
    return after >= 0 and min(ways) <= left and key not in used


@pytest.mark.parametrize("keys", [3, 3 * WORD])
@pytest.mark.parametrize("lists", [2, 600])
def test_every_token_is_allowed_as_the_tables_say(keys, lists):
    names = [chr(97 + n // 26) + chr(97 + n % 26) for n in range(keys)]
    tokens = [*LETTERS, None, *(f"{name}: {name}".encode() for name in names)]
    grammar = attribute_grammar(tokens, names)
    # Fewer lists than states are looked up in another order.
    assert (lists > 500) == (lists >= len(grammar.following))
    rng, budget = np.random.default_rng(keys), 40
    place, used = begin(grammar, lists, 1), [set() for _ in range(lists)]
    states, wrote = [0] * lists, 0
    follow = jax.jit(advance)
    judge = jax.jit(allowed, static_argnums=2)
    for step in range(budget):
        left = budget - 1 - step
        legal = np.asarray(judge(grammar, place, EOS, jnp.int32(left)))[:, 0]
        chosen = []
        for n in range(lists):
            if n < 5:
                expected = [
                    plainly(grammar, states[n], used[n], left, x) for x in range(len(tokens))
                ]
                np.testing.assert_array_equal(legal[n], expected)
            options = np.flatnonzero(legal[n])
            # The end is taken last, so that many keys are written.
            options = options[options != EOS] if len(options) > 1 else options
            chosen.append(int(rng.choice(options)))
        place = follow(grammar, place, jnp.asarray(chosen, jnp.int32)[:, None])
        for n, token in enumerate(chosen):
            after, key = grammar.following[states[n], token], grammar.completes[states[n], token]
            if after >= 0:
                states[n] = int(after)
                if key < keys:
                    used[n].add(int(key))
                    wrote += 1
        np.testing.assert_array_equal(place.state[:, 0], states)
    assert wrote > lists


def test_the_likeliest_token_is_the_first_of_the_highest():
    logits = np.random.default_rng(0).integers(-3, 3, (5, 4, 33)).astype(np.float32)
    logits[0, 0] = -np.inf
    np.testing.assert_array_equal(likeliest(jnp.asarray(logits)), logits.argmax(-1))
