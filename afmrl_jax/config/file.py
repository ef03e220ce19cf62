"""Settings of a run in a file: YAML or JSON that overrides the settings of a preset."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

import yaml

from afmrl_jax.config.run import RunConfig
from afmrl_jax.config.serialization import from_dict, migrated, to_dict
from afmrl_jax.errors import ConfigError
from afmrl_jax.types import JsonObject

SUFFIXES = (".yaml", ".yml", ".json")


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
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: the name of a settings file must end in {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    try:
        is_json = path.suffix.lower() == ".json"
        found = json.loads(text) if is_json else yaml.load(text, _Loader)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    found = _checked(RunConfig, migrated({} if found is None else found), "", path)
    try:
        return from_dict(RunConfig, _merged(to_dict(base), found))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def to_yaml(config: RunConfig) -> str:
    """All settings of a run as YAML that `read_config` takes."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _merged(base: object, changes: object) -> object:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: _merged(base.get(key), value) for key, value in changes.items()}


def _checked(kind: object, value: object, name: str, path: Path) -> object:
    """The value in the type of its field.

    Rejects what `from_dict` would accept but a stage would fail on hours later.
    """
    if dataclasses.is_dataclass(kind):
        return _settings(kind, value, name, path)
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    nested = [x for x in options if dataclasses.is_dataclass(x)]
    if nested and value is not None:
        return _settings(nested[0], value, name, path)
    if not any(_fits(x, value) for x in options):
        wanted = " or ".join(_described(x) for x in options)
        raise ConfigError(f"{path}: {name} must be {wanted}, found {value!r}")
    # A stage's inputs are hashed, and there 1 must equal 1.0.
    wants_float = float in options and int not in options
    if wants_float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _settings(kind: object, value: object, name: str, path: Path) -> JsonObject:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {name or 'the file'} must hold settings by name")
    hints, found = get_type_hints(kind), {}
    for key, part in value.items():
        full = f"{name}.{key}" if name else str(key)
        if key not in hints:
            raise ConfigError(f"{path}: unknown setting {full}; known ones are {', '.join(hints)}")
        found[key] = _checked(hints[key], part, full, path)
    return found


def _fits(kind: object, value: object) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin is tuple:
        inner = get_args(kind)
        if not isinstance(value, list):
            return False
        if inner[-1] is Ellipsis:
            return all(_fits(inner[0], x) for x in value)
        return len(value) == len(inner) and all(map(_fits, inner, value))
    if origin is dict:
        return isinstance(value, dict)
    if kind in (int, float, bool):
        # Python counts a bool as an int, and every int is a number.
        numbers: tuple[type, ...] = (int, float) if kind is float else (kind,)
        return isinstance(value, numbers) and (kind is bool or not isinstance(value, bool))
    if kind is str:
        return isinstance(value, str)
    if kind is types.NoneType:
        return value is None
    return True


def _described(kind: object) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(map(str, get_args(kind)))
    if origin is tuple:
        return "a list"
    names: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
    }
    return names.get(kind, "null" if kind is types.NoneType else "a set of settings")
