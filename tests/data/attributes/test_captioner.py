"""The captioner's client against a real server that fails, stalls and talks rubbish."""

import dataclasses

import pytest

from afmrl_jax.data.attributes import captioner as module
from afmrl_jax.data.attributes.replies import tidy
from afmrl_jax.errors import ConfigError, RunError
from tests.data.attributes.captioner_server import ask


def test_all_are_asked_once_some_at_a_time_and_in_order(server, listings, tmp_path):
    found = ask(server, listings, tmp_path)
    assert list(found.texts) == [x.listing_id for x in listings]
    assert set(found.texts.values()) == {"color: red; name: 9"}
    assert set(server.asked.values()) == {1}
    assert server.most <= 4
    assert not found.failed
    assert not found.repaired


def test_nothing_is_asked_for_twice(server, listings, tmp_path):
    first = ask(server, listings[:7], tmp_path)
    # A killed process leaves half a line behind.
    with (tmp_path / "replies.jsonl").open("a") as file:
        file.write('{"key": "abc", "repl')
    second = ask(server, listings, tmp_path)
    assert set(server.asked.values()) == {1}
    assert first.texts.items() <= second.texts.items()
    # Another question is another key.
    ask(server, listings[:1], tmp_path, max_tokens=20)
    assert server.asked["badge 000"] == 2


def test_as_many_pictures_are_sent_as_are_wanted(server, listings, tmp_path):
    several = [
        dataclasses.replace(x, more_images=(y.image,) * 2)
        for x, y in zip(listings[:2], listings[2:4], strict=True)
    ]
    ask(server, several, tmp_path)
    assert server.pictures == [1, 1]
    # The first alone was another question than all of them, and was not paid for again.
    ask(server, several, tmp_path, max_pictures=3)
    ask(server, listings[:2], tmp_path, max_pictures=3)
    assert server.pictures == [1, 1, 3, 3]


@pytest.mark.parametrize("step", [500, 429, "stall"])
def test_a_server_that_fails_or_stalls_is_asked_again(server, listings, tmp_path, step):
    server.script = {"badge 003": [step]}
    found = ask(server, listings, tmp_path)
    assert len(found.texts) == 12
    assert server.asked["badge 003"] == 2


def test_rubbish_is_repaired_or_asked_for_anew(server, listings, tmp_path):
    server.script = {
        "badge 001": ["Sure! Here you go:\n- Color: red.\n- Shape: round"],
        "badge 002": ["I cannot see a picture.", "shape: star"],
        "badge 004": ["no", "still no"],
    }
    found = ask(server, listings, tmp_path)
    texts = {x.title: found.texts.get(x.listing_id) for x in listings}
    assert texts["badge 001"] == "color: red; shape: round"
    assert found.repaired == [listings[1].listing_id]
    assert texts["badge 002"] == "shape: star"
    assert list(found.failed) == [listings[4].listing_id]
    assert "still no" in found.failed[listings[4].listing_id]
    # Rubbish was paid for too.
    again = ask(server, listings, tmp_path)
    assert again.failed == found.failed
    assert server.asked["badge 004"] == 2


@pytest.mark.parametrize(("status", "words"), [(401, "OPENAI_API_KEY"), (404, "--model")])
def test_a_refusal_ends_at_once_and_says_what_to_do(server, listings, tmp_path, status, words):
    server.status = status
    with pytest.raises(ConfigError, match=words):
        ask(server, listings, tmp_path)
    assert sum(server.asked.values()) <= 8


def test_a_server_that_is_down_is_not_asked_for_every_listing(
    server, listings, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "IN_A_ROW", 3)
    server.status = 500
    with pytest.raises(RunError, match="start the same command again"):
        ask(server, listings, tmp_path, retries=0, concurrency=1)
    assert len(server.asked) < 12
    server.status = 200
    assert len(ask(server, listings, tmp_path).texts) == 12


def test_a_cache_that_is_none_is_named(server, listings, tmp_path):
    (tmp_path / "replies.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(RunError, match=r"replies.jsonl:1: key"):
        ask(server, listings, tmp_path)


@pytest.mark.parametrize(
    ("reply", "text", "repaired"),
    [
        ("color: red; size: xl", "color: red; size: xl", False),
        (" color: red\n", "color: red", False),
        ("```text\ncolor: red\n```", "color: red", False),
        ("Color: red", "color: red", True),
        ("* color: red\n* size: xl.", "color: red; size: xl", True),
        ("color: red; color: blue", "color: red", True),
        ("nothing to see", "", True),
        ("", "", True),
    ],
)
def test_replies_are_tidied(reply, text, repaired):
    assert tidy(reply) == (text, repaired)
