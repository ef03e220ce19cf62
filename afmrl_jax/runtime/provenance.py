"""Where a result comes from: the commit of this package, the libraries, the machine."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

from afmrl_jax.runtime.hardware import machine
from afmrl_jax.types import JsonObject

PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "peft", "numpy")
DISTRIBUTION = "afmrl-jax"
PROVENANCE = ("commit", "versions", "machine")
"""What a file of results says of its origin."""
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10.0
"""Longest wait for git."""


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that affect speed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path = ROOT) -> str | None:
    """The commit of this package, with `-dirty` after changes to it; None if it is not known.

    Args:
        root: the folder that holds the package: a checkout, or where it was installed.
    """
    # Where it is installed, a checkout around it would be another project's.
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
        command += ["--exclude", "*"]
        try:
            found = subprocess.run(command, capture_output=True, check=True, timeout=SECONDS)
        except (OSError, subprocess.SubprocessError):
            return None
        return found.stdout.decode().strip() or None
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        known = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        return None
    return known if isinstance(known, str) else None


def provenance() -> JsonObject:
    """What every file of results records: the entries named in `PROVENANCE`."""
    return dict(zip(PROVENANCE, (commit(), versions(), machine()), strict=True))
