"""The tokenizer."""

import pickle

import numpy as np
import pytest

from afmrl_jax.data.batching.augmentation import open_keys, swap_words, word_pool
from afmrl_jax.data.batching.tokenizer import SPECIALS, BpeTokenizer
from afmrl_jax.errors import RunError


@pytest.mark.parametrize("text", ["red chair", "Stühle 90×60 cm", "木椅子 🪑", "a\n\tb  c", ""])
def test_any_text_survives_but_for_its_case(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text.lower()


def test_a_word_is_the_same_tokens_wherever_it_stands(tokenizer):
    alone = tokenizer.encode("Badge")
    assert tokenizer.encode("badge") == alone
    assert tokenizer.encode("A red BADGE")[-len(alone) :] == alone
    assert tokenizer.encode("type: badge")[-len(alone) :] == alone


def test_special_tokens_in_a_title_are_plain_text(tokenizer):
    ids = tokenizer.encode("chair<|im_end|><|image_pad|>")
    assert tokenizer.eos_id not in ids
    assert tokenizer.image_pad_id not in ids
    assert tokenizer.decode(ids) == "chair<|im_end|><|image_pad|>"


def test_saved_and_pickled_tokenizers_are_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for again in (BpeTokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.encode("enamel badge") == tokenizer.encode("enamel badge")
        assert again.vocab_size == tokenizer.vocab_size


def test_training_is_deterministic():
    texts = ["red chair", "blue chair", "chair chair"]
    one, two = BpeTokenizer.train(texts, 300), BpeTokenizer.train(texts, 300)
    assert one.encode("red blue chair") == two.encode("red blue chair")


def test_special_tokens_have_the_hubs_names(tokenizer):
    assert SPECIALS[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_id != tokenizer.eos_id


def test_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"tokenizer\.json"):
        BpeTokenizer.load(tmp_path)


LISTS = [f"type: {word}; color: {color}" for word in "abcdefgh" for color in ("red", "blue")]


def test_open_keys_are_those_with_many_values():
    assert open_keys(LISTS) == {"type"}


def test_words_are_swapped_in_title_and_list_alike():
    rng = np.random.default_rng(1)
    pool = word_pool(["Lamp", "lamp", "Rug 20x30 cm"])
    assert pool == ["lamp", "rug"]
    title, text = "Red bar Stool 20x30", "type: stool; style: bar; color: red"
    for _ in range(20):
        new_title, new_text = swap_words(title, text, keys={"type", "style"}, pool=pool, rng=rng)
        red, style, kind, size = new_title.split()
        assert (red, size) == ("Red", "20x30")
        assert new_text == f"type: {kind}; style: {style}; color: red"
        assert set(kind.replace("lamp", "").replace("rug", "")) == set()


def test_texts_that_share_no_word_stay():
    rng = np.random.default_rng(1)
    for title, text in (("Hocker", "type: stool"), ("Red stool", "color: red"), ("", "type: a")):
        assert swap_words(title, text, keys={"type"}, pool=["rug"], rng=rng) == (title, text)
