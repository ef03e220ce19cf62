"""The vectors of an embedded catalogue for other search engines, by their own clients.

All hold the same: unit vectors, so that an inner product is the cosine; the listing's id, product
and title, its attributes, and the columns that its shop carried.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from afmrl_jax.errors import ConfigError
from afmrl_jax.runs.living.changes import Entry
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.runtime.files import atomic_path, write_json
from afmrl_jax.runtime.outputs import require_own_output
from afmrl_jax.types import JsonObject

Target = Literal["faiss", "qdrant", "lancedb", "parquet"]
PART = 1024
"""Listings that are written at a time."""
COLLECTION = "listings"
"""Name of the collection of Qdrant and of the table of LanceDB."""
FAISS_INDEX, FAISS_LISTINGS = "index.faiss", "listings.jsonl"


def export_index(folder: Path, out: Path, target: Target) -> int:
    """Write all listings of an embedded catalogue, those of its log included; gives their number.

    Args:
        folder: what `embed_catalogue` wrote.
        out: a file for Parquet, otherwise a folder; it must not exist.
        target: which engine.

    Raises:
        ConfigError: the engine's client is not installed, or `out` exists.
        RunError: the folder is damaged.
    """
    write = _WRITERS[target]
    is_file = target == "parquet"
    require_own_output(out, "afmrl index export", file=(lambda _: False) if is_file else None)
    with LivingIndex(folder) as index, atomic_path(out) as temporary:
        write(index, temporary)
        return len(index)


def client(module: str, extra: str) -> ModuleType:
    """The client of an engine.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this needs {module} ({error}); `pip install 'afmrl-jax[{extra}]'` installs it"
        ) from error


def payload_of(x: Entry) -> JsonObject:
    """What goes with a vector: carried columns keep their names unless a listing's own has it."""
    own = {name: x.line[name] for name in ("listing_id", "product_id", "title")}
    if "attributes" in x.line:
        own["attributes"] = x.line["attributes"]
    return {**(x.line.get("extra") or {}), **own}


def _parts(index: LivingIndex) -> Iterator[list[Entry]]:
    entries = index.entries()
    while part := list(islice(entries, PART)):
        yield part


def _parquet(index: LivingIndex, out: Path) -> None:
    schema = _schema(index)
    with pq.ParquetWriter(out, schema) as writer:
        for part in _parts(index):
            writer.write_table(_table(part, schema))


def _lancedb(index: LivingIndex, out: Path) -> None:
    schema = _schema(index)
    table = client("lancedb", "lancedb").connect(str(out)).create_table(COLLECTION, schema=schema)
    for part in _parts(index):
        table.add(_table(part, schema))


def _qdrant(index: LivingIndex, out: Path) -> None:
    qdrant = client("qdrant_client", "qdrant")
    models: Any = qdrant.models
    store = qdrant.QdrantClient(path=str(out))
    try:
        store.create_collection(
            COLLECTION,
            vectors_config=models.VectorParams(size=index.dim, distance=models.Distance.COSINE),
        )
        number = 0
        for part in _parts(index):
            points = [
                # Qdrant's own ids are numbers or UUIDs; ours stand in the payload.
                models.PointStruct(id=n, vector=x.vector.tolist(), payload=payload_of(x))
                for n, x in enumerate(part, number)
            ]
            store.upsert(COLLECTION, points)
            number += len(part)
    finally:
        store.close()


def _faiss(index: LivingIndex, out: Path) -> None:
    faiss = client("faiss", "faiss")
    out.mkdir()
    made = faiss.IndexFlatIP(index.dim)
    with (out / FAISS_LISTINGS).open("w", encoding="utf-8") as lines:
        for part in _parts(index):
            made.add(np.ascontiguousarray([x.vector for x in part], np.float32))
            lines.writelines(json.dumps(payload_of(x), ensure_ascii=False) + "\n" for x in part)
    faiss.write_index(made, str(out / FAISS_INDEX))
    write_json(out / "about.json", {"embedder": index.about.embedder, "dim": index.dim})


_WRITERS: dict[Target, Callable[[LivingIndex, Path], None]] = {
    "faiss": _faiss,
    "qdrant": _qdrant,
    "lancedb": _lancedb,
    "parquet": _parquet,
}


def _schema(index: LivingIndex) -> pa.Schema:
    """Columns of a table of all listings: a carried one is of the narrowest type that fits all."""
    kinds: dict[str, set[type]] = {}
    attributes = False
    for x in index.entries():
        attributes |= "attributes" in x.line
        for name, value in payload_of(x).items():
            kinds.setdefault(name, set()).add(type(value))
    own = ["listing_id", "product_id", "title", *(["attributes"] if attributes else [])]
    fields = [pa.field(name, pa.string()) for name in own]
    fields.append(pa.field("vector", pa.list_(pa.float32(), index.dim)))
    taken = {*own, "vector"}
    fields += [pa.field(name, _type(found)) for name, found in kinds.items() if name not in taken]
    about = {"embedder": index.about.embedder, "system": index.about.system}
    return pa.schema(fields, {f"afmrl.{key}": value for key, value in about.items()})


def _type(kinds: set[type]) -> pa.DataType:
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def _table(part: list[Entry], schema: pa.Schema) -> pa.Table:
    rows = [payload_of(x) for x in part]
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(np.concatenate([x.vector for x in part])), schema.field("vector").type.list_size
    )
    columns = [
        pa.array([_cell(r.get(x.name), x.type) for r in rows], x.type)
        if x.name != "vector"
        else vectors
        for x in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _cell(value: object, kind: pa.DataType) -> object:
    if value is None or not pa.types.is_string(kind) or isinstance(value, str):
        return value
    return json.dumps(value)
