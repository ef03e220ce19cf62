"""The oracle errs as often as its settings say, and always writes the grammar."""

import numpy as np
import pytest

from afmrl_jax.config import OracleConfig
from afmrl_jax.data.attributes.oracle import oracle_texts, values_by_key, write_oracle
from afmrl_jax.data.attributes.text_format import is_malformed, parse_attributes

TRUTH = {"type": "gadget", "color": "mauve", "dims": "3x4x5", "shape": "odd"}
CHOICES = {key: [value, "other"] for key, value in TRUTH.items()}
PERFECT = OracleConfig(0, 0, 0, 0, guess_rate=1, shuffle_rate=0)


def texts(config, count=2000, title="gadget 3x4x5"):
    return [
        write_oracle(str(n), title, TRUTH, config, seed=0, choices=CHOICES) for n in range(count)
    ]


def test_a_perfect_oracle_writes_the_truth():
    assert {tuple(parse_attributes(t)) for t in texts(PERFECT, 5)} == {tuple(TRUTH.items())}


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_omissions_have_their_rate(rate):
    config = OracleConfig(0, rate, 0, 0)
    kept = np.mean([len(parse_attributes(t)) for t in texts(config)]) / len(TRUTH)
    # One pair is always written.
    assert kept == pytest.approx(1 - rate + rate**4 / 4, abs=0.02)


def test_wrong_values_have_their_rate():
    config = OracleConfig(0, 0, 0, 0.4)
    pairs = [p for t in texts(config) for p in parse_attributes(t)]
    wrong = np.mean([value != TRUTH[key] for key, value in pairs])
    assert wrong == pytest.approx(0.2, abs=0.02)  # Half of the drawn values are the true one.


def test_fillers_have_their_rate():
    found = [len(parse_attributes(t)) > len(TRUTH) for t in texts(OracleConfig(0, 0, 0.3, 0))]
    assert np.mean(found) == pytest.approx(0.3, abs=0.04)


def test_order_varies_and_the_grammar_holds():
    found = texts(OracleConfig())
    assert not any(map(is_malformed, found))
    assert len({tuple(k for k, _ in parse_attributes(t)) for t in found}) > 20


def test_numbers_that_the_title_does_not_state_are_rarely_guessed():
    config = OracleConfig(0, 0, 0, 0, guess_rate=0.2)
    for title, expected in (("gadget", 0.2), ("gadget 4 cm", 1.0)):
        found = ["dims" in dict(parse_attributes(t)) for t in texts(config, title=title)]
        assert np.mean(found) == pytest.approx(expected, abs=0.03)


def test_the_same_seed_writes_the_same(badge_listings):
    one = oracle_texts(badge_listings, OracleConfig(), 0)
    assert one == oracle_texts(badge_listings, OracleConfig(), 0)
    assert one != oracle_texts(badge_listings, OracleConfig(), 1)
    assert len(one) == len(badge_listings)
    assert set(values_by_key(badge_listings)) == {"shape", "letter", "colour", "finish"}
