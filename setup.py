"""The long description of the package: README.md without what only works inside the repository.

Where the environment variable README_IMAGES is an address, such as that of the raw files of a
repository, README.md's pictures are shown from there; else they are left out. Links to files become
plain text. Everything else about the package is in pyproject.toml.
"""

import os
import re
from pathlib import Path

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?://)([^)\s]+)\)")
LINKED_PICTURE = re.compile(r"\[(!\[[^\]]*\]\([^)\s]+\))\]\((?!https?://)[^)\s]+\)")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?://|mailto:)([^)\s]+)\)")


def long_description(text, images=""):
    """A README as it is shown outside its repository.

    Args:
        text: the README, in Markdown.
        images: address of the folder to which its pictures are relative; empty drops them.
    """
    # Without pictures, a line that held nothing else goes too.
    shown = rf"![\1]({images.rstrip('/')}/\2)" if images else ""
    lines = []
    for line in text.splitlines():
        changed = LINK.sub(r"\1", LINKED_PICTURE.sub(r"\1", PICTURE.sub(shown, line)))
        if changed.strip() or not line.strip():
            lines.append(changed)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    from setuptools import setup

    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(
        long_description=long_description(readme, os.environ.get("README_IMAGES", "")),
        long_description_content_type="text/markdown",
    )
