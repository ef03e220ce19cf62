"""Targets: catalogues in CSV and in folders of Hugging Face's `datasets`."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.reliability.fuzz.case import Case, Room, target
from experiments.reliability.fuzz.catalogues import use_catalogue
from experiments.reliability.fuzz.mutate import pick, spoil_bytes, spoil_file, spoil_place

SIGNS = ',;\t"\n\r\0'
CELLS = (
    "",
    '"',
    '""',
    'a"b',
    "a\nb",
    "\u202e",
    "\x1b[2J",
    "x" * 200_000,
    "../../outside/secret.png",
)


def _rows(shop: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (shop / "listings.jsonl").read_text().splitlines()]


@target("csv")
def table(room: Room) -> Case:
    """A folder with listings.csv, of which a cell, a sign, a byte or the file is broken."""
    folder, rng = room.folder / "shop", room.rng
    shutil.copytree(room.good / "shop", folder)
    rows, out = _rows(folder), io.StringIO()
    (folder / "listings.jsonl").unlink()
    names, sign = list(rows[0]), pick(rng, ",;\t")
    cells = [[json.dumps(x[n]) if isinstance(x[n], dict) else x[n] for n in names] for x in rows]
    kind = pick(rng, ("cell",) * 3 + ("ragged", "sign", "sign", "bytes", "bytes", "place"))
    place, wrong = int(rng.integers(len(cells))), kind == "ragged"
    what = kind
    if kind == "cell":
        name = pick(rng, names)
        cells[place][names.index(name)] = found = pick(rng, CELLS)
        what = f"{name}: {found[:20]!r}"
    elif kind == "ragged":
        cells[place] = cells[place][:-1] if rng.random() < 0.5 else [*cells[place], "more"]
    csv.writer(out, delimiter=sign).writerows([names, *cells])
    data, path = out.getvalue().encode(), folder / "listings.csv"
    if kind == "sign":
        at = int(rng.integers(len(data)))
        data = data[:at] + pick(rng, SIGNS).encode() + data[at + int(rng.integers(2)) :]
        what = f"another sign at {at}"
    elif kind == "bytes":
        data, spoiled = spoil_bytes(data, rng)
        what = spoiled.what
    path.write_bytes(data)
    if kind == "place":
        what, wrong = spoil_place(path, rng).what, True
    return Case(what, lambda: use_catalogue(folder), wrong=wrong)


@target("datasets")
def saved(room: Room) -> Case:
    """A folder of `save_to_disk`, or of a repository, of which one file is broken."""
    folder, rng = room.folder / "set", room.rng
    rows = _rows(room.good / "shop")
    for x in rows:
        name = x["image"]
        x["image"] = {"bytes": (room.good / "shop" / name).read_bytes(), "path": name}
    whole = pa.Table.from_pylist(rows)
    if rng.random() < 0.3:
        (folder / "data").mkdir(parents=True)
        for n in range(2):
            part = whole.slice(n * len(rows) // 2, -(-len(rows) // 2))
            pq.write_table(part, folder / "data" / f"train-{n:05d}-of-00002.parquet")
    else:
        folder.mkdir()
        path = str(folder / "data.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, whole.schema) as out:
            out.write_table(whole, max_chunksize=5)
        state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "1"}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")
    chosen = pick(rng, [x for x in sorted(folder.rglob("*")) if x.is_file()])
    spoiled = spoil_file(chosen, rng)
    return Case(f"{chosen.name}: {spoiled.what}", lambda: use_catalogue(folder))
