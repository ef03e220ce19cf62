"""Attribute texts to term ids."""

import json

import numpy as np
import pytest

from afmrl_jax.data.attributes.bm25_terms import (
    Bm25Vocabulary,
    attribute_terms,
    batch_vocabulary,
    split_terms,
)
from afmrl_jax.errors import AfmrlError


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Rote Stühle", ["rote", "stühle"]),
        ("STU\u0308HLE", ["stühle"]),  # A decomposed accent is the same letter.
        ("59x63x105 cm", ["59x63x105", "cm"]),
        ('78.7" x 1,200.5', ["78.7", "x", "1,200.5"]),
        ("3.5mm, 2. 4,red", ["3.5mm", "2", "4", "red"]),
        ("木椅子", ["木椅", "椅子"]),
        ("木", ["木"]),
        ("木3個ア・ー", ["木", "3", "個ア", "ー"]),
        ("white木椅子chair", ["white", "木椅", "椅子", "chair"]),
        ("कुर्सी 한국어 کرسی", ["कुर्सी", "한국어", "کرسی"]),
        ("a_b - !?", ["a", "b"]),
        ("", []),
    ],
)
def test_split_terms(text: str, terms: list[str]) -> None:
    assert split_terms(text) == terms


def test_attribute_terms_leave_keys_out() -> None:
    assert attribute_terms("type: dining chair; color: red") == ["dining", "chair", "red"]
    assert attribute_terms("ratio: 16:9") == ["16", "9"]
    assert attribute_terms("color:") == []
    assert attribute_terms("no colon; color: red") == ["no", "colon", "red"]


def test_encode_pads_cuts_repeats_and_marks_unknown_terms() -> None:
    vocabulary = Bm25Vocabulary.fit(["color: red", "type: chair; accent: red"])
    assert dict(vocabulary.ids) == {"chair": 0, "red": 1}
    assert vocabulary.size == 2
    encoded = vocabulary.encode(["a: red; b: red; c: sofa", "", "a: chair; b: red; c: red"], 3)
    assert encoded.dtype == np.int32
    assert encoded.tolist() == [[1, 1, 2], [-1, -1, -1], [0, 1, 1]]
    assert vocabulary.encode(["a: chair red red"], 2).tolist() == [[0, 1]]


def test_plain_texts_keep_every_word() -> None:
    vocabulary = Bm25Vocabulary.fit(["Red chair: oak"], attributes=False)
    assert vocabulary.encode(["red chair"], 2, attributes=False).tolist() == [[2, 0]]


def test_empty_corpus_still_has_a_size() -> None:
    vocabulary = Bm25Vocabulary.fit([])
    assert vocabulary.size == 1
    assert vocabulary.encode(["a: red"], 2).tolist() == [[1, -1]]


def test_round_trip_through_json() -> None:
    vocabulary = Bm25Vocabulary.fit(["color: rot; type: Stühle 木椅子"])
    again = Bm25Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary


@pytest.mark.parametrize(
    "value",
    [{}, {"kind": "bm25_vocabulary"}, {"kind": "bm25_vocabulary", "terms": ["a", "a"]}],
)
def test_foreign_json_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(AfmrlError, match="fit it again"):
        Bm25Vocabulary.from_dict(value)


def test_batch_vocabulary_keeps_shared_terms_and_every_length() -> None:
    rng = np.random.default_rng(0)
    query, candidate = (rng.integers(-1, 42, (6, width), np.int32) for width in (5, 7))
    found = batch_vocabulary(query, candidate, 40)
    assert found.terms.shape == (256,)
    assert found.query.dtype == found.candidate.dtype == found.terms.dtype == np.int32
    shared = sorted(set(query.ravel()) & set(candidate.ravel()) & set(range(40)))
    assert found.terms[: len(shared)].tolist() == shared
    assert set(found.terms[len(shared) :]) == {-1}
    for old, new in ((query, found.query), (candidate, found.candidate)):
        np.testing.assert_array_equal(new < 0, old < 0)
        known = np.isin(old, shared)
        np.testing.assert_array_equal(found.terms[new[known]], old[known])
        assert set(new[~known & (old >= 0)]) <= {256}


def test_batch_vocabulary_sizes() -> None:
    many = np.arange(300, dtype=np.int32)[None]
    assert len(batch_vocabulary(many, many, 300).terms) == 320
    assert len(batch_vocabulary(many, many, 300, size=300).terms) == 300
    assert len(batch_vocabulary(many[:, :0], many, 300).terms) == 256
    with pytest.raises(AfmrlError, match="shares 300 attribute terms and has room for 299"):
        batch_vocabulary(many, many, 300, size=299)
