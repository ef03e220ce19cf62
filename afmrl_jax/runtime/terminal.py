"""Text of strangers: cleaned when it is read, escaped on its way to a terminal."""

from __future__ import annotations

import re

# Line ends and tabs are harmless inside a text, and catalogues have them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Besides all controls: separators of lines, what overrides the direction of other text, and halves
# of surrogate pairs, which no terminal can show. Marks of direction inside a text stay.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def cleaned(text: str, *, instead: str = " ") -> str:
    r"""A text with `instead` in place of every control character but line ends and tabs.

    Example:
        >>> cleaned("Chair\x00 oak\x1b[31m")
        'Chair  oak [31m'
    """
    return text if text.isprintable() else _CONTROLS.sub(instead, text)


def printable(text: str) -> str:
    r"""A text for one line of a terminal: what would control it is escaped, as JSON escapes it.

    So an object of JSON stays the same object.

    Example:
        >>> print(printable("Chair\x1b[2J\nכיסא"))
        Chair\u001b[2J\u000aכיסא
    """
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable_lines(text: str) -> str:
    """As `printable`, line by line."""
    return "\n".join(map(printable, text.split("\n")))
