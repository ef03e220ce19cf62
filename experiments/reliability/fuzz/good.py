"""The good inputs that cases are mutated from: small, complete, built once."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from afmrl_jax.config import LoraConfig, LoraMap
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.convert import Conversion, convert
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import Index, IndexSettings
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.folder import save_model
from afmrl_jax.models.lora import add_lora, with_lora
from afmrl_jax.runs.embed import embed_catalogue
from afmrl_jax.runtime.files import write_text
from afmrl_jax.runtime.run_mirror import WorkingCopy
from afmrl_jax.testing import tiny_config, write_badge_catalogue
from experiments.reliability.fuzz.living import write_living
from experiments.reliability.fuzz.tiny_run import train_tiny_run

READY = "ready.txt"
VERSION = "3"
"""Good inputs of another version are built again."""
COMPILED = "compiled"
"""Folder of compiled programs beside the good inputs."""
RTL = "\u0643\u0631\u0633\u064a badge \u05db\u05d9\u05e1\u05d0 \U0001f4ba"
"""A title that runs from right to left in part."""


def build(folder: Path, run: Path | None) -> None:
    """Write all good inputs, unless they are there.

    Args:
        folder: to write.
        run: a finished run of tiny models; None trains one beside the good inputs.
    """
    if (folder / READY).is_file() and (folder / READY).read_text() == VERSION:
        return
    for found in folder.iterdir() if folder.is_dir() else ():
        if found.name != COMPILED:
            shutil.rmtree(found) if found.is_dir() else found.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    trained = run or train_tiny_run(folder.with_name(f"{folder.name}-run"))
    ignored = shutil.ignore_patterns("checkpoints", ".lock", "*.html", "tensorboard")
    shutil.copytree(trained, folder / "run", ignore=ignored)
    shop = _shop(folder / "shop")
    _parquet(shop, folder / "parquet")
    convert(open_rows(shop), folder / "store", Conversion(shard_bytes=4000))
    _models(folder, shop)
    _searchable(folder, shop)
    write_living(folder / "living")
    _home(folder)
    (folder / "pictures").mkdir()
    for name, data in bombs().items():
        (folder / "pictures" / name).write_bytes(data)
    write_text(folder / READY, VERSION)


def _shop(folder: Path) -> Path:
    write_badge_catalogue(folder, listings_per_product=2)
    lines = [json.loads(x) for x in (folder / "listings.jsonl").read_text().splitlines()]
    # Two products of each family, so that splits can be drawn.
    kept = [x for x in lines if x["product_id"].endswith(("red", "blue"))][:12]
    for number, x in enumerate(kept):
        x["family_id"] = f"family {number // 4}"
        x["split"] = ("distill", "train", "test")[number // 4]
    kept[0]["title"] = RTL
    names = {x["image"] for x in kept}
    for path in (folder / "images").iterdir():
        if f"images/{path.name}" not in names:
            path.unlink()
    write_text(folder / "listings.jsonl", "".join(json.dumps(x) + "\n" for x in kept))
    return folder


def _parquet(shop: Path, folder: Path) -> None:
    folder.mkdir()
    rows = [json.loads(x) for x in (shop / "listings.jsonl").read_text().splitlines()]
    for x in rows:
        x["image"] = (shop / x["image"]).read_bytes()
        x["attributes"] = json.dumps(x["attributes"])
    pq.write_table(pa.Table.from_pylist(rows), folder / "listings.parquet")


def _models(folder: Path, shop: Path) -> None:
    tokenizer = BpeTokenizer.train([x.title for x in load_catalogue(shop).listings], 300)
    config_of = partial(
        tiny_config, vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id
    )
    plain = Architecture.of(config_of())
    params = plain.init(0)
    save_model(folder / "hub", plain, params, tokenizer=tokenizer)
    other = Architecture.of(config_of("qwen2_5_vl", tie_embeddings=False))
    small = {n: x.astype("bfloat16") for n, x in other.init(1).items()}
    save_model(folder / "hub25", other, small, tokenizer=tokenizer, shard_bytes=20_000)
    lora = LoraConfig(rank=2, alpha=4.0, tower_targets=("attn.qkv",), dora=True)
    maps = (LoraMap("model/layers/self_attn/q_proj", (1, 2), (4.0, 3.0)),)
    adapted = with_lora(plain, lora, maps)
    save_model(
        folder / "adapter", adapted, add_lora(adapted, params, 0), like=folder.absolute() / "hub"
    )


def unit_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Random vectors of length 1, float32 [n d]."""
    found = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _searchable(folder: Path, shop: Path) -> None:
    vectors = unit_vectors(40, 8)
    ids = [f"id-{n}" for n in range(len(vectors))]
    Index.build(vectors, ids, embedder="e").save(folder / "index")
    half = IndexSettings(dtype="bfloat16")
    Index.build(vectors, ids, settings=half, embedder="e").save(folder / "index-bfloat16")
    approximate = Index.build(vectors, ids, settings=IndexSettings("scann"), embedder="e")
    approximate.save(folder / "scann")
    run = FinishedRun(folder / "run")
    embed_catalogue(run, "infonce", load_catalogue(shop), folder / "embedded")
    attributes = [
        {"listing_id": f"id-{n}", "attributes": f"color: red; size: {n}"} for n in range(6)
    ]
    text = "".join(json.dumps(x) + "\n" for x in attributes)
    write_text(folder / "texts" / "attributes.jsonl", text)
    picture = next((shop / "images").iterdir())
    shutil.copy(picture, folder / "texts" / "photo.png")
    queries = [
        {"id": "a", "text": "red circle badge"},
        {"id": "b", "image": "photo.png"},
        {"text": RTL, "image": "photo.png"},
    ]
    text = "".join(json.dumps(x) + "\n" for x in queries)
    write_text(folder / "texts" / "queries.jsonl", text)
    replies = [{"key": f"{n:064x}", "listing_id": f"id-{n}", "reply": "a: b"} for n in range(3)]
    text = "".join(json.dumps(x) + "\n" for x in replies)
    write_text(folder / "texts" / "replies.jsonl", text)


def _home(folder: Path) -> None:
    work = folder / "work"
    for name in ("config.json", "distill/DONE.json", "distill/metrics.jsonl", "rar/DONE.json"):
        write_text(work / "copy" / name, json.dumps({"name": name}))
    copy = WorkingCopy(folder / "home", work / "copy")
    copy.holds = copy.held = True
    copy.take_home()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(
    width: int,
    height: int,
    *,
    depth: int = 8,
    colour: int = 2,
    more: bytes = b"",
    empty: bool = False,
) -> bytes:
    """A black PNG of any size, made without holding its pixels.

    Args:
        width: pixels.
        height: pixels.
        depth: bits of a channel.
        colour: of the PNG's header: 0 grey, 2 RGB, 3 palette, 6 RGBA.
        more: chunks between header and data.
        empty: leave the pixels out.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    row = bytes(1 + width * {0: 1, 2: 3, 3: 1, 6: 4}[colour] * depth // 8)
    packer, packed = zlib.compressobj(9), []
    for _ in range(0 if empty else height):
        packed.append(packer.compress(row))
    data = b"".join(packed) + packer.flush()
    chunks = _chunk(b"IHDR", header) + more + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def bombs() -> dict[str, bytes]:
    """Small files of enormous pictures, by name."""
    palette = _chunk(b"PLTE", bytes(range(3 * 4)) * 4) + _chunk(b"tRNS", bytes(16))
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00;"
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))
    return {
        "palette.png": png_of(9999, 10_000, colour=3, more=palette),
        "deep.png": png_of(9999, 10_000, depth=16, colour=6),
        "wide.png": png_of(60_000, 1, colour=2),
        "header.png": png_of(2**31 - 1, 2**31 - 1, empty=True),
        "logical.gif": gif,
        "comment.png": png_of(8, 8, more=text),
        "just_below.png": png_of(10_000, 9_999),
    }
