"""Turn `$$...$$` and `$...$` into MathML while the site is built, so that pages load no script."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

CODE = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ \t]*$|(?P<tick>`+).+?(?P=tick)", re.M | re.S
)
MATH = re.compile(
    r"\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$(?![\w$])", re.S
)
MARK = "mathml{}equation"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put a mark in the place of every equation outside code; Markdown leaves marks alone."""
    page.equations = []

    def marked(found: re.Match[str]) -> str:
        block = found["block"] is not None
        source = (found["block"] if block else found["inline"]).strip()
        page.equations.append(convert(source, display="block" if block else "inline"))
        return MARK.format(len(page.equations) - 1)

    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [MATH.sub(marked, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, MATH.sub(marked, markdown[end:])])


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Put the equations where their marks are."""
    return re.sub(MARK.format(r"(\d+)"), lambda x: page.equations[int(x[1])], html)
