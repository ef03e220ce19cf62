"""Targets: model folders, their weights, adapters and tokenizers."""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.huggingface.folder import load_model
from experiments.reliability.fuzz.case import AcceptedWrongError, Case, Room, target
from experiments.reliability.fuzz.good import RTL
from experiments.reliability.fuzz.mutate import (
    Rng,
    Spoiled,
    pick,
    spoil_bytes,
    spoil_file,
    spoil_json,
    spoil_place,
)

FOLDERS = ("hub", "hub25")


def _loaded(room: Room, name: str) -> tuple[Architecture, dict[str, np.ndarray]]:
    """A good model, read once by each worker."""
    key = f"model {name}"
    if key not in room.kept:
        architecture, params = load_model(room.good / name)
        room.kept[key] = (architecture, {n: np.asarray(x) for n, x in params.items()})
    found: tuple[Architecture, dict[str, np.ndarray]] = room.kept[key]
    return found


def check_params(found: Params, wanted: dict[str, np.ndarray]) -> None:
    """Refuse weights that are not those that were written."""
    if found.keys() != wanted.keys():
        raise AcceptedWrongError("other tensors were read than were written")
    for name, value in wanted.items():
        array = np.asarray(found[name])
        if array.dtype != value.dtype or array.tobytes() != value.tobytes():
            raise AcceptedWrongError(f"{name} is not what was written")


def check_config(config: Any) -> None:
    """Refuse sizes that no model has."""
    vision, text = config.vision, config.text
    sizes = {f"vision.{k}": v for k, v in vars(vision).items()}
    sizes |= {f"text.{k}": v for k, v in vars(text).items()}
    for name, value in sizes.items():
        if isinstance(value, bool) or value is None or isinstance(value, str | tuple | list):
            continue
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise AcceptedWrongError(f"{name} {value!r} was taken")
        # A tower without learned positions has a table of side 0.
        if value == 0 and not name.endswith(("window_size", "dropout", "position_side")):
            raise AcceptedWrongError(f"{name} 0 was taken")
    if not 0 <= config.image_token_id < text.vocab_size:
        raise AcceptedWrongError(f"image_token_id {config.image_token_id} was taken")
    blocks = vision.full_attention_blocks
    if any(not 0 <= x < vision.depth for x in blocks):
        raise AcceptedWrongError(f"full attention in blocks {blocks} of {vision.depth} was taken")


@target("hubconfig")
def hubconfig(room: Room) -> Case:
    """config.json of a model's folder with a broken value."""
    name, rng = pick(room.rng, FOLDERS), room.rng
    folder = room.folder / name
    shutil.copytree(room.good / name, folder)
    path = folder / "config.json"
    if rng.random() < 0.8:
        found = spoil_json(json.loads(path.read_text()), rng)
        path.write_bytes(found.text)
        spoiled = found.spoiled
    else:
        spoiled = spoil_file(path, rng)

    def act() -> None:
        architecture, params = load_model(folder)
        check_config(architecture.config)
        check_params(params, _loaded(room, name)[1])

    return Case(spoiled.what, act, wrong=spoiled.invalid)


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _with_header(path: Path, header: bytes, rest: bytes, length: int | None = None) -> None:
    size = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + header + rest)


def _spoil_weights(path: Path, rng: Rng) -> Spoiled:
    header, rest = _header(path)
    kind = pick(rng, ("header", "header", "bytes", "bit", "bit", "number", "length", "place"))
    if kind == "header":
        found = spoil_json(header, rng)
        _with_header(path, found.text, rest)
        return found.spoiled
    if kind == "length":
        text = json.dumps(header).encode()
        size = pick(rng, (0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63, 10**8))
        _with_header(path, text, rest, size)
        return Spoiled(f"a header of {size} bytes", True)
    if kind in ("bit", "number"):
        changed = bytearray(rest)
        at = int(rng.integers(len(rest)))
        if kind == "bit":
            changed[at] ^= 1 << int(rng.integers(8))
        else:
            at -= at % 4
            changed[at : at + 4] = struct.pack("<f", pick(rng, (math.nan, math.inf, 1e30)))
        _with_header(path, json.dumps(header).encode(), bytes(changed))
        return Spoiled(f"{kind} changed at {at} of the numbers", True)
    if kind == "place":
        return spoil_place(path, rng)
    data, spoiled = spoil_bytes(path.read_bytes(), rng)
    path.write_bytes(data)
    return spoiled


@target("weights")
def weights(room: Room) -> Case:
    """Weights, their index or their manifest, broken: what is read must be what was written."""
    name, rng = pick(room.rng, FOLDERS), room.rng
    folder = room.folder / name
    shutil.copytree(room.good / name, folder)
    files = sorted(folder.glob("*.safetensors"))
    notes = [x for x in folder.glob("*.json") if "index" in x.name or "manifest" in x.name]
    if rng.random() < 0.25:
        path = pick(rng, sorted(notes))
        spoiled = spoil_file(path, rng)
    else:
        path = pick(rng, files)
        spoiled = _spoil_weights(path, rng)

    def act() -> None:
        check_params(load_model(folder)[1], _loaded(room, name)[1])

    return Case(f"{path.name}: {spoiled.what}", act, wrong=spoiled.invalid)


@target("adapter")
def adapter(room: Room) -> Case:
    """An adapter's folder, broken."""
    rng, folder = room.rng, room.folder / "adapter"
    shutil.copytree(room.good / "adapter", folder)
    config = folder / "adapter_config.json"
    value = json.loads(config.read_text())
    if rng.random() < 0.05:
        value["base_model_name_or_path"] = str(folder)
        config.write_text(json.dumps(value))
        spoiled = Spoiled("its own base", True)
    elif rng.random() < 0.6:
        found = spoil_json(value, rng)
        config.write_bytes(found.text)
        spoiled = found.spoiled
    else:
        spoiled = _spoil_weights(folder / "adapter_model.safetensors", rng)

    def act() -> None:
        architecture, params = load_model(folder)
        good, wanted = _loaded(room, "adapter")
        check_params(params, wanted)
        lora = architecture.config.lora
        assert lora is not None
        maps = architecture.config.lora_maps
        ranks = (lora.rank, *(x for own in maps for x in own.ranks))
        alphas = (lora.alpha, *(x for own in maps for x in own.alphas))
        if not all(map(math.isfinite, alphas)) or min(alphas) <= 0 or min(ranks) < 1:
            raise AcceptedWrongError(f"ranks {ranks}, alphas {alphas} were taken")
        # Which scale the adapter was trained with cannot be seen from the rest of the folder.
        del good

    return Case(spoiled.what, act, wrong=spoiled.invalid)


TEXTS = ("red circle badge", RTL, "<|im_end|> 12 cm", "")


def use_tokenizer(folder: Path) -> None:
    """Read a tokenizer, and encode and decode some texts."""
    tokenizer = BpeTokenizer.load(folder)
    known = tokenizer.token_bytes()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        if any(not 0 <= x < tokenizer.vocab_size for x in ids) or len(ids) > 1000:
            raise AcceptedWrongError(f"{text!r} has the ids {ids[:8]}")
        tokenizer.decode(ids)
    if len(known) != tokenizer.vocab_size:
        raise AcceptedWrongError("the vocabulary has holes")
    raw = json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]
    if len(set(raw.values())) < len(raw):
        raise AcceptedWrongError("one id stands for two tokens")


@target("tokenizer")
def tokenizer(room: Room) -> Case:
    """tokenizer.json, broken."""
    rng, folder = room.rng, room.folder / "tokenizer"
    folder.mkdir()
    path = folder / "tokenizer.json"
    data = (room.good / "hub" / path.name).read_bytes()
    value = json.loads(data)
    kind = pick(rng, ("json", "json", "json", "shallow", "bytes", "place", "made"))
    if kind == "json":
        found = spoil_json(value, rng)
        path.write_bytes(found.text)
        spoiled = found.spoiled
    elif kind == "shallow":
        top = pick(rng, [x for x in value if isinstance(value[x], dict)])
        found = spoil_json(value, rng, (top, pick(rng, list(value[top]))))
        path.write_bytes(found.text)
        spoiled = found.spoiled
    elif kind == "bytes":
        changed, spoiled = spoil_bytes(data, rng)
        path.write_bytes(changed)
    elif kind == "place":
        path.write_bytes(data)
        spoiled = spoil_place(path, rng)
    else:
        spoiled = _made(value, rng)
        path.write_text(json.dumps(value))
    return Case(spoiled.what, lambda: use_tokenizer(folder), wrong=spoiled.invalid)


def _made(value: dict[str, Any], rng: Rng) -> Spoiled:
    """Changes that a stranger might make on purpose."""
    vocab = value["model"]["vocab"]
    token = pick(rng, [x for x in vocab if not x.startswith("<|")])
    kind = pick(rng, ("huge id", "same id", "multiplies", "backtracks", "special"))
    if kind == "huge id":
        vocab[token] = int(pick(rng, (2**31, 10**9, 2**32 - 1)))
    elif kind == "same id":
        vocab[token] = (vocab[token] + 1) % len(vocab)
    elif kind == "multiplies":
        grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10_000}
        value["normalizer"] = {"type": "Sequence", "normalizers": [grow, grow]}
    elif kind == "backtracks":
        split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
        value["pre_tokenizer"] = {**split, "invert": False}
    else:
        value["added_tokens"] = value["added_tokens"][1:]
    return Spoiled(kind, kind in ("huge id", "same id"))
