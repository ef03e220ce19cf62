import io
import itertools

import numpy as np
import pytest
from PIL import Image

from afmrl_jax.data.marketplace.listings import photo_of
from afmrl_jax.data.marketplace.photo import copy_photo, encode, take_photo
from afmrl_jax.data.marketplace.sellers import SELLERS
from afmrl_jax.data.marketplace.world import (
    ATTRIBUTES,
    VISIBLE,
    allowed,
    draw_combination,
    seeded,
)
from tests.data.marketplace.conftest import tiny

TOKEN = 16 * 16
"""Pixels of a visual token: patches of 8, of which 2 x 2 are merged."""
PLAIN = 24
"""A difference of a channel that is plain to see, of 255."""


def pixels(image):
    return np.asarray(image, np.int16)


def variants(key, number):
    """A random product in all values of a key; what no longer applies is left out."""
    base = draw_combination(seeded("variants", key, number))
    out = {}
    for value in allowed(key, base):
        chosen = {}
        for other in ATTRIBUTES:
            values = allowed(other, chosen)
            wanted = value if other == key else base.get(other)
            if values:
                chosen[other] = wanted if wanted in values else values[0]
        if chosen.get(key) == value:
            out[value] = chosen
    return out


@pytest.mark.parametrize("key", VISIBLE)
def test_any_two_values_differ_in_more_than_a_visual_token(key):
    """In the median product, photographed the same way; no product hides the difference."""
    changed = {}
    bases = (n for n in itertools.count() if len(variants(key, n)) > 1)
    for number in itertools.islice(bases, 16):
        seller = SELLERS[number % len(SELLERS)]
        photos = {
            value: pixels(take_photo(x, seller, 96, 0.0, seeded("same", number)))
            for value, x in variants(key, number).items()
        }
        for one, other in itertools.combinations(photos, 2):
            difference = np.abs(photos[one] - photos[other]).max(axis=-1)
            changed.setdefault((one, other), []).append(int((difference > PLAIN).sum()))
    values = ATTRIBUTES[key].values
    assert len(changed) == len(values) * (len(values) - 1) // 2
    for pair, counts in changed.items():
        assert np.median(counts) >= TOKEN, (pair, counts)
        assert min(counts) >= TOKEN // 3, (pair, counts)


def test_what_is_hidden_changes_nothing():
    combination = draw_combination(seeded(0))
    other = combination | {"material": "silk", "care": "dry"}
    photos = [pixels(take_photo(x, SELLERS[0], 96, 0.5, seeded(1))) for x in (combination, other)]
    np.testing.assert_array_equal(*photos)


def test_photos_of_a_product_differ_by_seller_and_by_listing():
    combination = draw_combination(seeded(0))
    one, again, other, elsewhere = (
        photo_of(name, combination, seller, tiny())
        for name, seller in (
            ("a", SELLERS[0]),
            ("a", SELLERS[0]),
            ("b", SELLERS[0]),
            ("a", SELLERS[1]),
        )
    )
    assert one == again
    assert len({one, other, elsewhere}) == 3


def test_badges_are_a_dial():
    combination = draw_combination(seeded(0))

    def corners(badges):
        photo = pixels(take_photo(combination, SELLERS[3], 96, badges, seeded(2)))
        return photo

    assert (corners(0.0) != corners(1.0)).any()


@pytest.mark.parametrize("side", [48, 96, 192])
def test_a_photo_has_the_asked_size_and_is_a_small_jpeg(side):
    image = take_photo(draw_combination(seeded(1)), SELLERS[2], side, 0.0, seeded(3))
    assert image.size == (side, side)
    encoded = encode(image, 86)
    with Image.open(io.BytesIO(encoded)) as found:
        assert (found.format, found.mode, found.size) == ("JPEG", "RGB", (side, side))
    assert len(encoded) < side * side


def test_a_copied_photo_is_closer_to_its_original_than_a_new_one():
    for number in range(12):
        combination = draw_combination(seeded("copy", number))
        first, second = SELLERS[number % 20], SELLERS[(number + 7) % 20]
        original = photo_of("a", combination, first, tiny())
        with Image.open(io.BytesIO(original)) as file:
            shown = pixels(file)
        copied = pixels(copy_photo(original, 0.0, seeded(number)))
        new = pixels(take_photo(combination, second, 96, 0.0, seeded(number)))
        assert copied.shape == shown.shape
        assert (copied != shown).any()
        assert np.abs(copied - shown).mean() < np.abs(new - shown).mean()


def test_most_of_the_fabric_has_the_main_color():
    """So that a color and an accent are not each other's."""
    for number, pattern in enumerate(ATTRIBUTES["pattern"].values):
        product = {"type": "poncho", "length": "full", "neckline": "turtleneck", "hem": "straight"}
        product |= {
            "pattern": pattern,
            "color": "green",
            "trim": "untrimmed",
            "pocket": "pocketless",
        }
        product |= {"closure": "pullover"} | ({} if pattern == "plain" else {"accent": "red"})
        photo = pixels(take_photo(product, SELLERS[number], 96, 0.0, seeded("main", pattern)))
        red, green, _ = np.moveaxis(photo, -1, 0)
        main, other = int((green > red + 40).sum()), int((red > green + 40).sum())
        assert main > 1.1 * other, pattern
        assert (other > 400) == (pattern != "plain"), pattern
