"""Configs to and from plain JSON values, and their hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, TypeVar, cast

from afmrl_jax.config.marketplace import MARKETPLACE
from afmrl_jax.config.reads import Reads
from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.json_files import checked
from afmrl_jax.types import JsonObject

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def to_dict(config: DataclassInstance) -> JsonObject:
    """A config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


T = TypeVar("T")
REMEDY = "`afmrl config` prints every setting"
RENAMED = {"optimiser": "optimizer", "normalisation": "normalization"}
"""Old names of settings, as in older run directories, and their present names."""
_FIRST_NAMES = {new: old for old, new in RENAMED.items()}


def _with_names(value: object, names: dict[str, str]) -> object:
    """JSON values with the keys in `names` replaced, at any depth."""
    if isinstance(value, dict):
        return {names.get(k, k): _with_names(v, names) for k, v in value.items()}
    return [_with_names(x, names) for x in value] if isinstance(value, list) else value


ADDED: JsonObject = {
    "family": None,
    "bm25_reverse": False,
    "positives": "pair",
    "vector_precision": "auto",
    "packed": False,
    "ema_decay": 0.0,
    "title_dropout": 0.0,
    "picture_dropout": 0.0,
    "views": dict.fromkeys(
        ("image_both", "text_image", "image_text", "text_both", "image_image"), 0.0
    ),
    "lists": {"lone": False, "samples": 0, "temperature": 1.0},
    "controls": False,
    "grammar": False,
    "columns": None,
    "mask_warmup": 0.0,
    "teacher_share": None,
    "oracle_mask": None,
    "positive_weight": "own",
    "weighted_pairs": "all",
    "normalize_weights": False,
    "permute_weights": False,
    "fresh_batches": False,
    "rar_between": False,
    "permute_rewards": False,
    "live_by": "reward",
    "candidates": None,
    "report_share": 0.0,
    "judged": "sampled",
    "choose_by": "reward",
    "refresh_gallery": None,
    "gallery_lists": "greedy",
    "tower_targets": [],
    "rank_stabilized": False,
    "dora": False,
    "reads": to_dict(Reads()),
    "log": "tensorboard",
    "profile": 0,
}
"""Settings that older run directories lack, and the value that means the old behavior."""


BEFORE: JsonObject = {"packed": False, "cit": {"fresh_batches": False}}
"""Settings of a run in `ADDED` whose default is another than the old behavior."""


def _without_added(value: object) -> object:
    """JSON values without what older run directories lack and means nothing, at any depth.

    That is settings in `ADDED` that have the old value, and those of a drawn marketplace in a run
    on another catalogue.
    """
    if isinstance(value, dict):
        cleaned = {k: _without_added(v) for k, v in value.items()}
        kept = {k: v for k, v in cleaned.items() if k not in ADDED or v != ADDED[k]}
        if kept.get("catalogue") != MARKETPLACE:
            # Of a run on another catalogue they say nothing.
            kept.pop("marketplace", None)
        return kept
    return [_without_added(x) for x in value] if isinstance(value, list) else value


def _completed(value: JsonObject, missing: JsonObject) -> JsonObject:
    """JSON values with what they lack of others, at any depth."""
    out = missing | value
    for name, inner in missing.items():
        if isinstance(inner, dict) and isinstance(out[name], dict):
            out[name] = _completed(out[name], inner)
    return out


def with_present_names(value: T) -> T:
    """JSON values of any version with the present names of settings."""
    return cast(T, _with_names(value, RENAMED))


def migrated(value: T) -> T:
    """JSON values of a run directory of any version, so that equal settings compare equal.

    Settings get their present names, and those in `ADDED` are dropped if they have the old value.
    """
    return cast(T, _without_added(with_present_names(value)))


def from_dict(
    kind: type[T], value: object, where: object = "the settings", *, stored: bool = False
) -> T:
    """A config from what `to_dict` made of it.

    Whole numbers where a number belongs become one: a stage's inputs are hashed, and there 1 must
    equal 1.0.

    Args:
        kind: the dataclass.
        value: plain JSON values.
        where: what the error calls them, such as the path of their file.
        stored: the values are all of a run directory's: what they lack, in `BEFORE`, is older.

    Raises:
        ConfigError: a setting is unknown, of another type or out of range.
    """
    plain = with_present_names(value)
    if stored and isinstance(plain, dict):
        plain = _completed(plain, BEFORE)
    return checked(kind, plain, where, error=ConfigError, remedy=REMEDY)


def fingerprint(value: object) -> str:
    """A short stable hash of a config or of plain JSON values.

    A setting counts under its first name, and one that was added later only if it changes
    something, so that stages finished earlier stay finished.
    """
    plain = value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = to_dict(value)
    text = json.dumps(
        _with_names(_without_added(plain), _FIRST_NAMES), sort_keys=True, ensure_ascii=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
