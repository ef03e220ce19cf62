"""What strangers' text may do to a terminal: nothing."""

import json

import pytest

from afmrl_jax.runtime.terminal import cleaned, printable

WHOLE = [
    "Chair, oak",
    "כיסא עץ אלון",
    "كرسي \u200f(بلوط)",
    "می\u200cخواهم",
    "👩\u200d👩\u200d👧",
    "\\x1b",
]


@pytest.mark.parametrize("text", WHOLE)
def test_harmless_text_stays(text):
    assert printable(text) == text
    assert cleaned(text) == text


@pytest.mark.parametrize(
    "text",
    ["\x1b]0;own\x07", "\x9b2J", "a\nb", "a\rb", "\x00", "\u202egnp", "\ud800", "\u2028"],
)
def test_what_controls_a_terminal_is_escaped(text):  # S9
    shown = printable(text)
    assert not set(shown) & set("\x1b\x07\x9b\n\r\x00\u202e\ud800\u2028")
    shown.encode()
    assert json.loads(f'"{shown}"') == text


def test_cleaning_keeps_line_ends_and_replaces_what_else_controls():  # W5
    assert cleaned("a\tb\nc\x00d\x1b[1me\x85f") == "a\tb\nc d [1me f"
