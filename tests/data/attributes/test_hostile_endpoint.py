"""Whatever an endpoint answers: a failed listing that is named, or clean attributes."""

import json
import resource
import time
from functools import partial

import pytest

from afmrl_jax.data.attributes.endpoint import Endpoint
from afmrl_jax.data.attributes.replies import MAX_BODY, MAX_REPLY, ReplyCache, tidy
from afmrl_jax.errors import ConfigError, RunError
from tests.data.attributes.captioner_server import Server, ask

ODD = "badge 005"
"""Title of the one listing that is answered strangely."""


def send(handler, body, status=200, **headers):
    """Answer with bytes."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def raw(body, status=200, **headers):
    """A step that answers with bytes, or a text."""
    body = body if isinstance(body, bytes) else body.encode()
    return partial(send, body=body, status=status, **headers)


def holding(message):
    """A step that answers with a message that may be anything."""
    return raw(json.dumps({"choices": [{"message": message}]}))


def deep(levels=100_000):
    return "[" * levels + "]" * levels


BODIES = {
    "a page": (raw("<html>Welcome</html>", Content_Type="text/html"), "not valid JSON"),
    "nothing": (raw(""), "not valid JSON"),
    "half": (raw('{"choices": [{"mess'), "not valid JSON"),
    "no UTF-8": (raw(b'{"choices": "\xac"}'), "not UTF-8"),
    "compressed": (raw(b"\x1f\x8b\x08\x00", Content_Encoding="gzip"), "not UTF-8"),
    "a text": (raw('"color: red"'), "should be an object"),
    "an error": (raw('{"error": {"message": "no"}}'), "choices: field required"),
    "no choices": (raw('{"choices": []}'), "no choices"),
    "choices null": (raw('{"choices": null}'), "choices"),
    "choices a text": (raw('{"choices": "color: red"}'), "choices"),
    "a choice null": (raw('{"choices": [null]}'), "choices.0"),
    "no message": (raw('{"choices": [{}]}'), "message"),
    "a message of text": (holding("color: red"), "message"),
    "content a list": (holding({"content": [{"text": "color: red"}]}), "content"),
    "content a number": (holding({"content": 7}), "content"),
    "a lone surrogate": (raw('{"choices": [{"message": {"content": "a: \\ud800"}}]}'), "surrogate"),
    "deep": (raw(deep()), "nested deeper"),
    "deep content": (raw('{"choices": ' + deep() + "}"), "nested deeper"),
    "a huge number": (raw('{"choices": ' + "9" * 5000 + "}"), "digits"),
    "a long reply": (holding({"content": "a: " + "b" * MAX_REPLY}), "8,195 characters"),
    "a large body": (raw('"' + "x" * MAX_BODY + '"'), "larger than 1,048,576 bytes"),
    "an error page": (raw("<html>" + "x" * 9_000_000, status=400), "BadRequestError"),
    "deep error": (raw(deep(), status=400, Content_Type="application/json"), "BadRequestError"),
    "refused later": (raw("no", status=403), "refuses the key"),
    "gone later": (raw("no", status=404), "no model"),
    "a status of no kind": (raw("", status=999), "999"),
}


@pytest.mark.parametrize("name", BODIES)
def test_an_odd_answer_is_a_failed_listing(server, listings, tmp_path, name):
    # S10, F14
    step, words = BODIES[name]
    server.script = {ODD: [step]}
    found = ask(server, listings[:7], tmp_path, concurrency=1, retries=0)
    assert list(found.failed) == [listings[5].listing_id]
    assert words in found.failed[listings[5].listing_id]
    assert len(found.failed[listings[5].listing_id]) < 400
    assert len(found.texts) == 6
    # It was no reply, so the next start asks again.
    assert len(ask(server, listings[:7], tmp_path).texts) == 7


@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": ""}])
def test_a_model_that_says_nothing_is_asked_once_more_and_then_no_more(
    server, listings, tmp_path, message
):
    server.script = {ODD: [holding(message), holding(message)]}
    for _ in range(2):
        found = ask(server, listings[:7], tmp_path)
        assert found.failed == {listings[5].listing_id: "no attributes in the reply ''"}
    assert server.asked[ODD] == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(server, listings, tmp_path, status):
    # S10: not even to the same host, and the message names the address.
    other = Server()
    step = raw("", status=status, Location=f"{other.endpoint.url}/chat/completions")
    server.script = {ODD: [step]}
    found = ask(server, listings[:7], tmp_path, concurrency=1)
    assert "redirects to" in found.failed[listings[5].listing_id]
    assert other.endpoint.url in found.failed[listings[5].listing_id]
    assert "--url" in found.failed[listings[5].listing_id]
    assert not other.asked
    other.close()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_drips_ends_at_the_deadline(server, listings, tmp_path, start):
    # S10: every read succeeds at once, before, within and after the headers.
    def drip(handler):
        handler.wfile.write(start)
        while not server.closed.wait(0.05):
            handler.wfile.write(b"x")

    server.script = {ODD: [drip]}
    began = time.monotonic()
    found = ask(server, listings[:7], tmp_path, timeout=0.5, retries=0)
    assert time.monotonic() - began < 3
    assert "APITimeoutError" in found.failed[listings[5].listing_id]


def test_a_huge_answer_is_not_read(server, listings, tmp_path):
    # S10: 300 MB take neither memory nor disk.
    sent = []

    def flood(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b'{"choices": [{"message": {"content": "a: ')
        chunk = b"b" * 1_000_000
        for _ in range(300):
            handler.wfile.write(chunk)
            sent.append(len(chunk))

    server.script = {ODD: [flood]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = ask(server, listings[:7], tmp_path, timeout=30.0, retries=0)
    assert "larger than 1,048,576 bytes" in found.failed[listings[5].listing_id]
    assert sum(sent) < 50_000_000  # Buffers of the sockets.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    assert (tmp_path / "replies.jsonl").stat().st_size < 10_000


CODES = "\x1b[31mcolor\x1b[0m: \x00red\x07; \x1b]0;own\x07size: x\u202el\x9b1m"


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (CODES, "color: red; size: xl"),
        ("color: red\r\n\x85size: xl\x0b", "color: red; size: xl"),
        ("\x1b]0;never ends\ncolor: red", "color: red"),
        ("\x1b\x1b[\x00", ""),
        # Text from right to left stays, with its marks.
        ("\u05e6\u05d1\u05e2: \u05d0\u200f\u05d3", "\u05e6\u05d1\u05e2: \u05d0\u200f\u05d3"),
    ],
)
def test_control_characters_never_become_attributes(reply, text):
    # W9
    assert tidy(reply)[0] == text


def test_codes_in_a_reply_are_cleaned_and_counted_as_repaired(server, listings, tmp_path):
    # W9
    server.script = {ODD: [CODES]}
    found = ask(server, listings[:7], tmp_path)
    assert found.texts[listings[5].listing_id] == "color: red; size: xl"
    assert found.repaired == [listings[5].listing_id]


def test_the_key_is_in_no_message_and_no_file(server, listings, tmp_path, monkeypatch):
    secret = "sk-1234567890abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    server.script = {
        "badge 001": [raw(f"no, {secret}\x1b[1m", status=400)],
        "badge 002": [f"color: red; key: {secret}"],
        "badge 003": [f"{secret}", f"{secret}"],
    }
    found = ask(server, listings, tmp_path)
    assert len(found.failed) == 2
    assert found.texts[listings[2].listing_id] == "color: red; key: [key]"
    assert secret not in str(found) + (tmp_path / "replies.jsonl").read_text()
    assert "\x1b" not in str(found.failed)
    server.status = 401
    with pytest.raises(ConfigError) as refused:
        ask(server, listings, tmp_path, model="other")
    assert secret not in str(refused.value)


def test_a_key_that_cannot_be_sent_is_refused_without_its_text(
    server, listings, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-12345678\n")
    with pytest.raises(ConfigError, match=r"\$OPENAI_API_KEY has a space") as refused:
        ask(server, listings, tmp_path)
    assert "sk-" not in str(refused.value)


def test_an_address_without_a_scheme_is_refused():
    with pytest.raises(ConfigError, match="--url"):
        Endpoint("localhost:8000/v1", "captioner")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"key": "a", "reply": "b"}\n{"key": "a", "reply": 7}\n', r"replies.jsonl:2: reply"),
        (b'{"key": "a"}\n', r"replies.jsonl:1: reply"),
        (b"[]\n", r"replies.jsonl:1 is not an object"),
        (b'{"key": "a", "reply": "\xac"}\n', r"replies.jsonl:1 is not UTF-8"),
        (b'{"key": "a", "reply": "\\ud800"}\n', r"replies.jsonl:1 has half of a surrogate"),
        (deep().encode() + b"\n", r"replies.jsonl:1 is nested deeper"),
    ],
)
def test_a_broken_line_of_the_cache_is_named(tmp_path, content, words):
    # F14, W9
    path = tmp_path / "replies.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunError, match=words + r".*repair the line, or remove it"):
        ReplyCache(path)
    assert path.read_bytes() == content


def test_a_folder_in_place_of_the_cache_is_named(tmp_path):
    # F14
    (tmp_path / "replies.jsonl").mkdir()
    with pytest.raises(RunError, match=r"replies.jsonl is not a file.*another --out"):
        ReplyCache(tmp_path / "replies.jsonl")


def test_two_processes_do_not_share_a_cache(tmp_path):
    with ReplyCache(tmp_path / "replies.jsonl") as held:
        held.put("a", "1", "color: red")
        with pytest.raises(RunError, match="another process"):
            ReplyCache(tmp_path / "replies.jsonl")
    with ReplyCache(tmp_path / "replies.jsonl") as held:
        assert held.get("a") == "color: red"


def test_a_long_reply_that_was_kept_is_asked_for_again(tmp_path):
    # S10: earlier versions kept replies of any length.
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps({"key": "a", "reply": "b" * 60_000}) + "\n")
    with ReplyCache(path) as held:
        assert held.get("a") is None


class FullAfter:
    """A file on a disk that has room for some lines and a half."""

    def __init__(self, file, lines):
        self._file = file
        self._lines = lines

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, line):
        self._lines -= 1
        if self._lines < -1:
            raise OSError(28, "No space left on device")
        return self._file.write(line if self._lines >= 0 else line[:20])


def test_a_full_disk_ends_the_command_and_leaves_whole_lines(
    server, listings, tmp_path, monkeypatch
):
    class Cache(ReplyCache):
        def __init__(self, path):
            super().__init__(path)
            self._file = FullAfter(self._file, 3)

    monkeypatch.setattr("afmrl_jax.data.attributes.captioner.ReplyCache", Cache)
    with pytest.raises(RunError, match="no space left"):
        ask(server, listings, tmp_path, concurrency=1)
    assert sum(server.asked.values()) == 4
    kept = (tmp_path / "replies.jsonl").read_text()
    assert kept.count("\n") == 3
    assert kept.endswith("}\n")
