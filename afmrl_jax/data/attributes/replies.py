"""Replies of a captioner: taken out of what an endpoint sends, kept in a file, and tidied."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from afmrl_jax.data.attributes.text_format import is_malformed, salvage_attributes
from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import take_lock, unwritable
from afmrl_jax.runtime.json_files import checked, parse_json, read_records
from afmrl_jax.runtime.terminal import cleaned

MAX_BODY = 1 << 20
"""Bytes of an endpoint's answer with all that surrounds the reply; the rest is not read."""
MAX_REPLY = 1 << 13
"""Characters of a reply; the lists that are asked for have a few hundred."""

_FENCE = re.compile(r"^```\w*\n?|\n?```$")
_ESCAPE_CODE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # Colors, and where the cursor stands.
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # Titles.
    r"|\x1b[ -/]*[0-~]"
)
_LINE_END = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Marks of direction stay, but not what turns the text around it.
_TURNING = re.compile(r"[\u202a-\u202e\u2066-\u2069\ufeff]")


@dataclass(frozen=True)
class _Message:
    content: str | None = None


@dataclass(frozen=True)
class _Choice:
    message: _Message


@dataclass(frozen=True)
class _Completion:
    """What matters of an endpoint's answer."""

    choices: tuple[_Choice, ...]


@dataclass(frozen=True)
class _Kept:
    """A line of the file."""

    key: str
    reply: str
    listing_id: str = ""


def reply_of(body: bytes, where: str) -> str:
    """The text in the body of a chat completion; "" if the model said nothing.

    Args:
        body: as the endpoint sent it.
        where: what the error calls it.

    Raises:
        RunError: the body is no chat completion, or its text is longer than `MAX_REPLY`.
    """
    if len(body) > MAX_BODY:
        raise RunError(f"{where} is larger than {MAX_BODY:,} bytes")
    found = checked(_Completion, parse_json(body, where), where)
    if not found.choices:
        raise RunError(f"{where} has no choices")
    reply = found.choices[0].message.content or ""
    if len(reply) > MAX_REPLY:
        raise RunError(f"{where} has {len(reply):,} characters, more than {MAX_REPLY:,}")
    return reply


def without_controls(text: str) -> str:
    r"""The text without control characters and escape codes, its lines ended by newlines.

    Example:
        >>> without_controls("\x1b[31mcolor\x1b[0m:\x00 red\r\n")
        'color: red\n'
    """
    text = _LINE_END.sub("\n", _ESCAPE_CODE.sub("", text))
    return _TURNING.sub("", cleaned(text, instead=""))


def tidy(reply: str) -> tuple[str, bool]:
    """The attribute text of a reply, "" if there is none, and whether it had to be repaired.

    Example:
        >>> tidy("Color: red; type: chair.")
        ('color: red; type: chair', True)
    """
    whole = without_controls(reply).strip()
    text = _FENCE.sub("", whole).strip()
    if text and not is_malformed(text) and "\n" not in text:
        return text, whole != reply.strip()
    # Captioners often answer with one pair per line, bullets and periods.
    lines = (line.strip(" -*\u2022\t").rstrip(".") for line in text.splitlines())
    return salvage_attributes("; ".join(line for line in lines if ":" in line)), True


class ReplyCache:
    """Replies by key, in a file of JSON lines that belongs to one process at a time.

    Raises:
        RunError: the file cannot be written, another process writes it, or a line is no reply.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.exists() and not path.is_file():
            raise RunError(
                f"{path} is not a file, but replies are to be kept there; move it away, or choose "
                "another --out"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise (unwritable(path, error) or error) from error
        if not take_lock(self._file):
            self._file.close()
            raise RunError(
                f"another process keeps its replies in {path}; wait for its end, or choose another "
                "--out"
            )
        try:
            self._known = dict(self._read())
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> list[tuple[str, str]]:
        remedy = "repair the line, or remove it to request that listing again"
        lines = enumerate(read_records(self.path, repair=True, remedy=remedy), 1)
        found = [checked(_Kept, x, f"{self.path}:{n}", remedy=remedy) for n, x in lines]
        # Earlier versions kept replies of any length.
        return [(x.key, x.reply) for x in found if len(x.reply) <= MAX_REPLY]

    def get(self, key: str) -> str | None:
        """The reply, or None."""
        return self._known.get(key)

    def put(self, key: str, listing_id: str, reply: str) -> None:
        """Keep a reply; if the process is killed after this, it is still there.

        Raises:
            RunError: the disk is full or cannot be written to.
        """
        record = {"key": key, "listing_id": listing_id, "reply": reply}
        left = memoryview((json.dumps(record, ensure_ascii=False) + "\n").encode())
        before = self._file.tell()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(before)
            raise (unwritable(self.path, error) or error) from error
        self._known[key] = reply

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
