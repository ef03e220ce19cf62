"""Broken and hostile tokenizer.json files: errors that name the file, and no long waits."""

import json
import os
import time

import pytest

from afmrl_jax.data.batching.tokenizer import MAX_TEXT, BpeTokenizer
from afmrl_jax.errors import InputError, RunError


@pytest.fixture
def load(tokenizer, tmp_path):
    """Loads the tokenizer from a file whose values were changed by a function."""

    def loaded(change):
        tokenizer.save(tmp_path)
        raw = json.loads((tmp_path / "tokenizer.json").read_text())
        change(raw)
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
        return BpeTokenizer.load(tmp_path)

    return loaded


def refused(load, change, message):
    with pytest.raises(RunError, match=message) as error:
        load(change)
    assert "tokenizer.json" in str(error.value)
    assert "download" in str(error.value)


# F1
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"{}", b"\xac", b"[" * 100_000])
def test_what_is_no_tokenizer(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(RunError, match=r"tokenizer\.json.*download"):
        BpeTokenizer.load(tmp_path)


# F1
def test_a_cut_or_changed_byte_is_a_projects_error_or_harmless(tokenizer, tmp_path, rng):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = path.read_bytes()
    for case in range(150):
        place = int(rng.integers(len(good)))
        bad = good[:place] if case % 3 == 0 else bytearray(good)
        if case % 3:
            bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try:
            found = BpeTokenizer.load(tmp_path)
            found.decode(found.encode("a red badge"))
            found.token_bytes()
        except RunError:
            pass


# F1, W8
@pytest.mark.parametrize("number", [10**7, 10**9, 2**31, 2**40, -1, 1.5, "7", None, True])
def test_ids_that_no_model_has(load, number):
    refused(load, lambda raw: raw["model"]["vocab"].update(badge=number), "badge")


# W8
def test_one_id_for_two_tokens(load):
    refused(load, lambda raw: raw["model"]["vocab"].update(zz=300), "id 300: .*'zz'")


# W8
def test_an_added_token_with_the_id_of_another(load):
    refused(load, lambda raw: raw["added_tokens"][1].update(id=2), "several tokens have the id 2")


# W8
def test_an_added_token_that_the_library_numbers_otherwise(load):
    token = {"id": 9000, "content": "<|new|>", "special": True, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    refused(load, lambda raw: raw["added_tokens"].append(token), "has id 9000 where")


def regex(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return {"pre_tokenizer": split | {"invert": False}}


def replace(content, pattern="a"):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def normalizers(*parts):
    return {"normalizer": {"type": "Sequence", "normalizers": list(parts)}}


# F1
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (regex("(a+)+$"), "regular expression"),
        (regex(["a"]), "regular expression"),
        (normalizers(replace("b" * 10**6)), "longer"),
        (normalizers(*[replace("aa")] * 30), "longer"),
        (normalizers(*[{"type": "NFC"}] * 1000), "more than 32"),
        (normalizers({"type": "Prepend", "prepend": "b" * 10**6}), "before a text"),
        (normalizers({"type": "Precompiled", "precompiled_charsmap": ""}), "Precompiled"),
        (normalizers(7), "type 7"),
        ({"normalizer": 7}, "normalizer"),
        ({"decoder": replace("b" * 10**6)}, "longer"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{}] * 10**5}}, "pieces"),
    ],
)
def test_parts_that_could_take_time_or_memory_without_end(load, change, message):
    begun = time.monotonic()
    refused(load, lambda raw: raw.update(change), message)
    assert time.monotonic() - begun < 5


def test_merges_drawn_anew_for_each_text(load):
    with pytest.raises(RunError, match="dropout"):
        load(lambda raw: raw["model"].update(dropout=0.5))


def test_another_kind_of_model(load):
    refused(load, lambda raw: raw["model"].update(type="Unigram"), r"model\.type")


def test_a_missing_special_token_names_the_file(load):
    def change(raw):
        raw["added_tokens"] = [x for x in raw["added_tokens"] if x["content"] != "<|im_end|>"]
        del raw["model"]["vocab"]["<|im_end|>"]

    with pytest.raises(RunError, match=r"tokenizer\.json lacks <\|im_end\|>"):
        load(change)


def test_tokens_that_are_not_written_in_bytes(load):
    found = load(lambda raw: raw["model"]["vocab"].update({"木": 5000}))
    assert found.vocab_size == 5001
    with pytest.raises(RunError, match="木"):
        found.token_bytes()


# F17
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(RunError, match=r"tokenizer\.json"):
        BpeTokenizer.load(tmp_path)


# F16
@pytest.mark.parametrize("text", ["\ud800", "red \udfff badge"])
def test_half_of_a_surrogate_pair(tokenizer, text):
    with pytest.raises(InputError, match="surrogate pair"):
        tokenizer.encode(text)


def test_a_text_of_any_length_ends_in_time(tokenizer):
    begun = time.monotonic()
    found = tokenizer.encode("red badge " * 10**6)
    assert found == tokenizer.encode(("red badge " * 10**6)[:MAX_TEXT])
    assert time.monotonic() - begun < 20


def test_panics_of_the_library_are_the_projects_errors(tokenizer):
    from afmrl_jax.data.batching.tokenizer_file import library_errors

    class Panic(BaseException):
        pass

    with pytest.raises(RunError, match=r"x\.json: .*boom"), library_errors("x.json"):
        raise Panic("boom")
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), library_errors("x.json"):
            raise kind


def test_a_tokenizer_must_fit_its_model(tokenizer):
    tokenizer.check_model(tokenizer.vocab_size, tokenizer.image_pad_id)
    with pytest.raises(RunError, match="model rows for 300"):
        tokenizer.check_model(300, tokenizer.image_pad_id)
    with pytest.raises(RunError, match="image_token_id is 6"):
        tokenizer.check_model(tokenizer.vocab_size, 6)
