from collections import Counter

import numpy as np
import pytest

from afmrl_jax.data.attributes.text_format import parse_attributes
from afmrl_jax.data.marketplace.lexicon import ITEM, LANGUAGES, MARKETING, PHRASES
from afmrl_jax.data.marketplace.lists import canonical, caption, full_list, oracle_text
from afmrl_jax.data.marketplace.sellers import SELLERS
from afmrl_jax.data.marketplace.titles import write_title
from afmrl_jax.data.marketplace.world import (
    ATTRIBUTES,
    HIDDEN,
    VISIBLE,
    draw_combination,
    seeded,
)
from tests.data.marketplace.conftest import tiny


def tokens(text):
    for mark in (",", "|", " - "):
        text = text.replace(mark, " ")
    return text.casefold().split()


def holds(text, phrase):
    words, part = tokens(text), tokens(phrase)
    return any(words[n : n + len(part)] == part for n in range(len(words) - len(part) + 1))


def drawn(count):
    return [draw_combination(seeded("words", n)) for n in range(count)]


def test_every_value_has_words_in_every_language():
    for key, about in ATTRIBUTES.items():
        assert PHRASES[key].keys() == set(about.values)
        for words in PHRASES[key].values():
            assert all(words[language] for language in LANGUAGES)
    assert {x.language for x in SELLERS} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_phrase_of_a_value_occurs_in_that_of_another(language):
    phrases = [
        (key, value, phrase)
        for key in ATTRIBUTES
        for value, words in PHRASES[key].items()
        for phrase in words[language]
    ]
    others = [*((None, None, x) for x in MARKETING[language]), (None, None, ITEM[language])]
    for key, value, phrase in phrases:
        for other_key, other_value, text in (*phrases, *others):
            # The accent is stated with the word of a color, in a frame.
            if (key, value) != (other_key, other_value) and (key, other_key) != ("color", "accent"):
                assert not holds(text, phrase), f"{phrase!r} of {key} in {text!r} of {other_key}"


def test_a_title_says_what_it_states_and_nothing_else():
    for number, combination in enumerate(drawn(400)):
        rng = seeded("title", number)
        seller = SELLERS[number % len(SELLERS)]
        title = write_title(combination, seller, (0.3, 0.5), 0.3, rng)
        for key in ATTRIBUTES:
            said = [
                value
                for value, words in PHRASES[key].items()
                if any(holds(title.text, phrase) for phrase in words[seller.language])
            ]
            if key == "color" and "accent" in title.stated:
                said = [x for x in said if x != combination["accent"]]
            assert said == ([combination[key]] if key in title.stated else [])


def test_titles_state_a_share_of_the_attributes_and_often_not_the_fine_ones():
    shares, keys = [], Counter()
    for number, combination in enumerate(drawn(1000)):
        title = write_title(combination, SELLERS[number % 20], (0.3, 0.5), 0.3, seeded(number))
        shares.append(len(title.stated) / len(combination))
        keys.update(title.stated)
    assert min(shares) > 0.25
    assert max(shares) < 0.56
    assert 0.37 < np.mean(shares) < 0.43
    assert keys["type"] > keys["color"] > keys["trim"]
    assert all(keys[key] < 500 for key in ("collar", "hem", "trim", "pocket", "closure"))
    assert keys["material"] > 200


def test_synonyms_are_a_dial():
    combination = drawn(1)[0]
    english = next(x for x in SELLERS if x.language == "en")

    def usual(synonyms):
        titles = [write_title(combination, english, (1, 1), synonyms, seeded(n)) for n in range(9)]
        return [holds(x.text, PHRASES["color"][combination["color"]]["en"][0]) for x in titles]

    assert all(usual(0.0))
    assert not any(usual(1.0))


def pairs(settings, stated=(), count=600):
    for number, combination in enumerate(drawn(count)):
        text = oracle_text(combination, stated, settings, seeded("oracle", number))
        yield combination, dict(parse_attributes(text))


def test_the_oracle_mentions_keys_by_their_salience():
    seen, there = Counter(), Counter()
    for combination, found in pairs(tiny(oracle_fluff=0.0)):
        seen.update(key for key in found)
        there.update(combination.keys())
    rates = {key: seen[key] / there[key] for key in VISIBLE}
    for key, rate in rates.items():
        wanted = {"obvious": 0.95, "middle": 0.7, "fine": 0.55}[ATTRIBUTES[key].salience]
        assert abs(rate - wanted) < 0.08, key
    assert not any(seen[key] for key in HIDDEN)


def test_the_oracle_reads_off_the_title_what_no_photo_shows():
    found = [x for _, x in pairs(tiny(mention_middle=1.0), stated=("material",))]
    assert all("material" in x and "care" not in x for x in found)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_the_oracle_errs_pads_and_varies_at_its_rates(rate):
    rates = dict.fromkeys(("oracle_errors", "oracle_fluff", "oracle_synonyms"), rate)
    wrong, total, fluff, other = 0, 0, 0, 0
    for combination, found in pairs(tiny(**rates, mention_fine=1.0, mention_middle=1.0)):
        fluff += any(key not in ATTRIBUTES for key in found)
        for key, word in found.items():
            if key in ATTRIBUTES:
                total += 1
                value = canonical(key, word)
                assert value is not None
                wrong += value != combination[key]
                other += word != value
    assert abs(wrong / total - rate) < 0.05
    assert abs(fluff / 600 - rate) < 0.07
    # Some values have no synonym.
    assert (other == 0) if rate == 0.0 else (0.2 < other / total < 0.4)


def test_lists_and_captions_for_pretraining_tell_what_can_be_seen():
    texts = set()
    for number, combination in enumerate(drawn(100)):
        found = dict(parse_attributes(full_list(combination, seeded(number))))
        assert found.keys() == combination.keys() - set(HIDDEN)
        assert all(canonical(key, word) == combination[key] for key, word in found.items())
        text = caption(combination, seeded(number))
        assert any(x in text for x in PHRASES["type"][combination["type"]]["en"])
        texts.add(text)
    assert len(texts) > 95
