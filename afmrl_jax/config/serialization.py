"""Configs to and from plain JSON values, and their hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, get_args, get_type_hints

from afmrl_jax.config.validation import require


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: Any, value: Any) -> Any:
    """A config from what `to_dict` made of it.

    Args:
        kind: the dataclass, or the type of a field of one.
        value: plain JSON values.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    if dataclasses.is_dataclass(kind):
        types = get_type_hints(kind)
        unknown = sorted(set(value) - set(types))
        require(not unknown, f"unknown setting {', '.join(unknown)} in {kind}")
        return kind(**{k: from_dict(types[k], v) for k, v in value.items()})  # type: ignore[operator]
    nested = [x for x in get_args(kind) if dataclasses.is_dataclass(x)]
    if nested and value is not None:
        return from_dict(nested[0], value)
    return tuple(value) if isinstance(value, list) else value


def fingerprint(value: Any) -> str:
    """A short stable hash of a config or of plain JSON values."""
    plain = to_dict(value) if dataclasses.is_dataclass(value) else value
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
