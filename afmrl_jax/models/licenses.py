"""Which published weights a model started from, and what their license allows.

The table holds what the publisher's model cards said when it was written; a card that lies beside
the weights is newer and counts first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MOST_CARD = 1 << 20
"""Characters of a model card that are read."""


@dataclass(frozen=True)
class License:
    """Terms of published weights."""

    identifier: str
    """As `license` in a model card's front matter: an SPDX identifier in lower case, or `other`."""
    name: str | None = None
    """`license_name` of the card where the identifier is `other`."""
    allows: str = "its terms are in the license file that comes with the weights"
    """In a few words; no legal advice."""

    def __str__(self) -> str:
        return self.name or self.identifier


APACHE = License("apache-2.0", None, "use, also commercial, with its notices kept")
RESEARCH = License("other", "qwen-research", "research and evaluation, no commercial use")
QWEN = License("other", "qwen", "use; above 100 million users a month a license must be asked for")
TONGYI = License("other", "tongyi-qianwen", QWEN.allows)

PUBLISHED: tuple[tuple[str, License], ...] = (
    (r"Qwen2-VL-(2B|7B)", APACHE),
    (r"Qwen2-VL-72B", TONGYI),
    (r"Qwen2\.5-VL-3B", RESEARCH),
    (r"Qwen2\.5-VL-(7B|32B)", APACHE),
    (r"Qwen2\.5-VL-72B", QWEN),
    (r"Qwen3-VL-(2B|4B|8B|32B)", APACHE),
    (r"Qwen3-VL-(Embedding|Reranker)-(2B|8B)", APACHE),
)
"""How names of published models begin, and the license of each; a suffix (-Instruct) may follow."""

PRESETS = {
    "qwen2vl_2b": "Qwen2-VL-2B",
    "qwen2vl_7b": "Qwen2-VL-7B",
    "qwen2_5vl_3b": "Qwen2.5-VL-3B",
    "qwen2_5vl_7b": "Qwen2.5-VL-7B",
    "qwen3vl_2b": "Qwen3-VL-2B",
    "qwen3vl_4b": "Qwen3-VL-4B",
    "qwen3vl_8b": "Qwen3-VL-8B",
}
"""The published model of each size in `qwen_vl/presets.py`."""


@dataclass(frozen=True)
class Origin:
    """Where the weights of a folder come from, as far as can be told."""

    model: str
    """Name on the hub where it is known (`Qwen/Qwen3-VL-2B-Instruct`), else of the folder."""
    license: License | None
    """None where neither a card nor the table names one."""
    on_hub: bool = False
    """The name is one that the hub knows, and may stand as `base_model` in a card."""

    def __str__(self) -> str:
        if self.license is None:
            return (
                f"{self.model}: license unknown; read the license file that came with the weights"
            )
        return f"{self.model}: {self.license} ({self.license.allows})"


def published_license(name: str) -> License | None:
    """The license of a published model by its name, with or without its owner.

    Args:
        name: such as `Qwen/Qwen2.5-VL-3B-Instruct`.
    """
    own = name.rpartition("/")[2]
    for start, found in PUBLISHED:
        if re.match(start + r"(?![0-9A-Za-z])", own):
            return found
    return None


def preset_origin(preset: str) -> Origin | None:
    """Of the published weights that have the size of a preset; None for sizes of our own."""
    if preset not in PRESETS:
        return None
    return Origin(PRESETS[preset], published_license(PRESETS[preset]), on_hub=True)


def origin(folder: Path) -> Origin:
    """Model and license of a folder of weights.

    A license that the folder's card states counts before the table; a card without one is passed
    over. Folders as `huggingface_hub` keeps them (`models--OWNER--NAME/snapshots/...`) have the
    name in their path, others in their own name.

    Args:
        folder: of a model; need not exist any more.
    """
    name = _hub_name(folder.resolve().parts)
    known = published_license(name or folder.name)
    if name is None and known is not None:
        name = f"Qwen/{folder.name}"
    return Origin(name or folder.name, _stated(folder) or known, on_hub=name is not None)


def _hub_name(parts: Iterable[str]) -> str | None:
    for part in parts:
        if part.startswith("models--") and part.count("--") == 2:
            return "/".join(part.split("--")[1:])
    return None


def _stated(folder: Path) -> License | None:
    """The license in the front matter of the folder's README.md."""
    card = folder / "README.md"
    try:
        if not card.is_file():
            return None
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_CARD)
    except OSError:
        return None
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---", text, re.DOTALL)
    front = found[1] if found else ""
    identifier, name = _field(front, "license"), _field(front, "license_name")
    if identifier is None:
        return None
    same = (x for _, x in PUBLISHED if (x.identifier, x.name) == (identifier, name))
    return next(same, License(identifier, name))


def _field(front: str, key: str) -> str | None:
    """A word at the top level of front matter.

    By line: YAML that is nested on purpose takes its parser minutes. Of anything but plain words
    nothing is taken over into messages and other cards.
    """
    found = re.search(rf"^{key}:[ \t]*(['\"]?)([\w.+ -]{{1,100}}?)\1[ \t]*$", front, re.MULTILINE)
    return found[2] if found else None
