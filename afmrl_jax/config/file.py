"""Settings of a run in a file: YAML or JSON that overrides the settings of a preset."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from afmrl_jax.config.run import RunConfig
from afmrl_jax.config.serialization import REMEDY, from_dict, to_dict, with_present_names
from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.json_files import parse_json, read_bytes
from afmrl_jax.types import JsonObject

SUFFIXES = (".yaml", ".yml", ".json")
MAX_BYTES = 1 << 20
"""Largest file of settings."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number; by YAML 1.1 it would be text, because it has no dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), "-+0123456789"
)


def read_config(path: Path, base: RunConfig) -> RunConfig:
    """The settings of a file on top of those of `base`.

    Args:
        path: YAML or JSON, such as the `config.json` of a run directory. Settings it leaves out
            keep their value in `base`.
        base: the settings that the file changes.

    Raises:
        ConfigError: the file cannot be read, or a setting in it is unknown, of another type or out
            of range. The message names the file and the setting.
    """
    return from_dict(RunConfig, _merged(to_dict(base), _read(path)), path)


def catalogue_in(path: Path) -> str | None:
    """The catalogue that a file of settings names, on which a preset depends; None for none.

    Args:
        path: as of `read_config`, which also checks the rest.

    Raises:
        ConfigError: the file cannot be read.
    """
    named = _read(path).get("catalogue")
    return named if isinstance(named, str) else None


def _read(path: Path) -> JsonObject:
    """The settings of a file by their present names, not yet checked."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: the name of a settings file must end in {', '.join(SUFFIXES)}")
    raw = read_bytes(path, limit=MAX_BYTES, error=ConfigError)
    if path.suffix.lower() != ".json":
        raw = _yaml_as_json(raw, path)
    # Not finite numbers are refused with the name of their setting.
    found = parse_json(raw, path, error=ConfigError, nan=True)
    if not isinstance(found, dict | None):
        raise ConfigError(f"{path}: the file must hold settings by name; {REMEDY}")
    return with_present_names(found or {})


def to_yaml(config: RunConfig) -> str:
    """All settings of a run as YAML that `read_config` takes."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _yaml_as_json(raw: bytes, path: Path) -> bytes:
    """A YAML file's text as JSON, which has fewer surprises."""
    parts, size = [], 0
    try:
        found = yaml.load(raw, _Loader)
        # Piece by piece, because aliases can make a small file large; a date becomes text.
        for part in json.JSONEncoder(default=str).iterencode(found):
            size += len(part)
            if size > MAX_BYTES:
                raise ValueError(f"its aliases make it larger than {MAX_BYTES:,} letters")
            parts.append(part)
    except Exception as error:  # Tags that do not fit their value raise whatever they come upon.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: is not valid YAML ({reason})") from error
    return "".join(parts).encode()


def _merged(base: object, changes: object) -> object:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: _merged(base.get(key), value) for key, value in changes.items()}
