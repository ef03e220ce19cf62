"""JSON from a disk or a stranger: bounded, parsed without surprises, and checked against types.

Everything that is read as JSON comes through here, so that a broken file is an `AfmrlError` that
names it, never a trace of another library.
"""

from __future__ import annotations

import functools
import json
import math
import os
import stat
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from afmrl_jax.errors import AfmrlError, RunError
from afmrl_jax.types import JsonObject

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

MAX_BYTES = 1 << 28
"""Largest JSON file that is read as a whole."""
MAX_LINE = 1 << 24
"""Longest line, in bytes, of a file with a JSON value a line."""
MAX_DEPTH = 64
"""Deepest nesting of lists and objects."""
MAX_DIGITS = 20
"""Longest whole number; more does not fit in 64 bits."""

T = TypeVar("T")
Errors = type[AfmrlError]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    found = float(text)
    if math.isinf(found):
        raise ValueError(f"the number {text[:20]} is too large")
    return found


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


_HOOKS = {"object_pairs_hook": _object, "parse_int": _integer, "parse_float": _number}
_STRICT = json.JSONDecoder(**_HOOKS, parse_constant=_constant)  # type: ignore[arg-type]
_WITH_NAN = json.JSONDecoder(**_HOOKS)  # type: ignore[arg-type]


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level:
        inside = [x for x in level if isinstance(x, dict | list)]
        level = [y for x in inside for y in (x.values() if isinstance(x, dict) else x)]
        depth += bool(inside)
    return depth


def parse_json(
    text: str | bytes,
    where: object,
    *,
    error: Errors = RunError,
    remedy: str = "",
    nan: bool = False,
) -> Any:
    """The value of a JSON text.

    Args:
        text: as bytes, in UTF-8.
        where: what the error calls it: a path, or a path and a line.
        error: the kind that is raised.
        remedy: what the user should do, at the end of the message.
        nan: accept NaN and infinities, as Python writes them.

    Raises:
        AfmrlError: of the kind `error`: not JSON, not UTF-8, nested deeper than `MAX_DEPTH`, a key
            twice in one object, a number out of range, or half a surrogate pair.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = (_WITH_NAN if nan else _STRICT).decode(text)
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise RecursionError
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as problem:
        reason = f"is not UTF-8 (byte {problem.start})"
    except UnicodeEncodeError:
        reason = "has half of a surrogate pair in a text"
    except json.JSONDecodeError as problem:
        line = f"line {problem.lineno}, " if "\n" in problem.doc else ""
        reason = f"is not valid JSON ({problem.msg} at {line}column {problem.colno})"
    except RecursionError:
        reason = f"is nested deeper than {MAX_DEPTH} levels"
    except ValueError as problem:
        reason = f"is not valid JSON ({problem})"
    else:
        return value
    raise error(f"{where} {reason}" + (f"; {remedy}" if remedy else ""))


def json_text(value: object, *, indent: int | None = None) -> str:
    """A value as JSON that any parser reads: NaN and infinities become null.

    Example:
        >>> json_text({"loss": float("nan"), "step": 3})
        '{"loss": null, "step": 3}'
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_bytes(
    path: Path | str, *, limit: int = MAX_BYTES, error: Errors = RunError, remedy: str = ""
) -> bytes:
    """A whole file of bounded size.

    Raises:
        AfmrlError: of the kind `error`: the file cannot be read, is no regular file (a pipe or a
            device would never end), or is larger than `limit` bytes.
    """
    hint = f"; {remedy}" if remedy else ""
    path = path if isinstance(path, os.PathLike) else Path(path)
    try:
        with open_regular(path, error=error) as file:
            # Reading to a limit takes memory for all of it at once.
            size = os.fstat(file.fileno()).st_size if isinstance(path, Path) else limit
            found = file.read(min(size, limit) + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path} cannot be read ({reason}){hint}") from problem
    if len(found) > limit:
        raise error(f"{path} is larger than {limit:,} bytes{hint}")
    return cast(bytes, found)


def open_regular(path: Path | str, *, error: Errors = RunError) -> Any:
    """A regular file opened for reading bytes; remote paths are opened as they are.

    Raises:
        AfmrlError: of the kind `error`: a pipe, a socket or a device.
        OSError: it cannot be opened.
    """
    path = path if isinstance(path, os.PathLike) else Path(path)
    if not isinstance(path, Path):
        return path.open("rb")
    # Not blocking: opening a pipe without a writer would wait for one.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, "is a folder", str(path))
    raise error(f"{path} is a pipe or a device, not a file; put a regular file there")


def read_json(
    path: Path | str,
    *,
    error: Errors = RunError,
    remedy: str = "delete it and run again",
    nan: bool = False,
) -> Any:
    """The value of a JSON file; see `parse_json` and `read_bytes` for what is refused."""
    return parse_json(
        read_bytes(path, error=error, remedy=remedy), path, error=error, remedy=remedy, nan=nan
    )


def read_checked(
    path: Path | str,
    kind: type[T],
    *,
    error: Errors = RunError,
    remedy: str = "delete it and run again",
    nan: bool = False,
) -> T:
    """A JSON file as a value of a type; see `read_json` and `checked`."""
    found = read_json(path, error=error, remedy=remedy, nan=nan)
    return checked(kind, found, path, error=error, remedy=remedy, nan=nan)


def lines_of(
    path: Path | str, *, limit: int = MAX_LINE, error: Errors = RunError
) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line that is not blank, without its end.

    Raises:
        AfmrlError: of the kind `error`: the file cannot be read, or a line is longer than `limit`.
    """
    try:
        with open_regular(path, error=error) as file:
            number = 0
            while line := file.readline(limit + 1):
                number += 1
                if len(line) > limit:
                    raise error(f"{path}:{number} is longer than {limit:,} bytes; split it")
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror or problem})") from problem


def read_records(
    path: Path | str, *, repair: bool = False, error: Errors = RunError, remedy: str = ""
) -> list[JsonObject]:
    """The objects of an append-only file, one a line; none if the file does not exist.

    A torn last line, as a killed process leaves it, is skipped.

    Args:
        path: of the file.
        repair: also truncate the torn line, so that the file can be appended to.
        error: the kind that is raised.
        remedy: what the user should do, at the end of the message.

    Raises:
        AfmrlError: of the kind `error`: a whole line is not an object; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if repair and len(whole) < len(raw):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    records = []
    # Not `splitlines`, which also splits at some characters inside JSON text.
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        found = parse_json(line, f"{path}:{number}", error=error, remedy=remedy, nan=True)
        if not isinstance(found, dict):
            hint = f"; {remedy}" if remedy else ""
            raise error(f"{path}:{number} is not an object of JSON{hint}")
        records.append(found)
    return records


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    # Takes 0.1 s to import, and nothing that only imports the package needs it.
    from pydantic import TypeAdapter

    return TypeAdapter(cast(Any, kind))


def checked(
    kind: type[T],
    value: object,
    where: object,
    *,
    error: Errors = RunError,
    remedy: str = "",
    nan: bool = False,
) -> T:
    """Plain JSON values as a value of a type: a dataclass, NamedTuple, TypedDict or the like.

    Nothing is converted but lists to tuples and whole numbers to floats.

    Args:
        kind: what it should be.
        value: plain JSON values.
        where: what the error calls it.
        error: the kind that is raised.
        remedy: what the user should do, at the end of the message.
        nan: accept NaN and infinities.

    Raises:
        AfmrlError: of the kind `error`; it names the first field that does not fit.
    """
    from pydantic import ValidationError

    try:
        text = json.dumps(value, allow_nan=nan)
        return cast(T, _adapter(cast(Hashable, kind)).validate_json(text, strict=True))
    except ValidationError as problem:
        reason = _first(problem)
    except ValueError:
        reason = ".".join(_place_of_infinite(value) or []) + ": a number that is not finite"
    raise error(f"{where}: {reason}" + (f"; {remedy}" if remedy else ""))


def _place_of_infinite(value: object) -> list[str] | None:
    """The names that lead to the first number that is not finite; None if there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else []
    parts: Any = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list | tuple) else parts
    for name, inner in parts:
        if (place := _place_of_infinite(inner)) is not None:
            return [str(name), *place]
    return None


def _first(problem: ValidationError) -> str:
    """The first thing that is wrong, by the place in the value."""
    details = problem.errors(include_url=False, include_context=True)
    found = details[0]
    cause = found.get("ctx", {}).get("error")
    message = str(cause) if isinstance(cause, Exception) else found["msg"]
    if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        message = "unknown name"
    message = message[0].lower() + message[1:]
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    # Names of models are in the place where a union was tried; they say nothing to a user.
    place = ".".join(str(x) for x in found["loc"])
    return (f"{place}: " if place else "") + message + more
