"""Target: commands whose --out names something that is not theirs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from afmrl_jax.errors import AfmrlError, ConfigError
from experiments.reliability.fuzz.case import AcceptedWrongError, Case, Room, target
from experiments.reliability.fuzz.guard import OUTSIDE
from experiments.reliability.fuzz.mutate import pick
from experiments.reliability.fuzz.network import server_of


def tree_of(folder: Path, without: str = "") -> dict[str, str]:
    """Hash of every file of a folder, and where its links lead; one folder in it is left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if without and name.split("/")[0] == without:
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def _common(room: Room, name: str) -> list[str]:
    return [name, "--run", str(room.folder / "run"), "--catalogue", str(room.folder / "shop")]


def _oracle(room: Room) -> list[str]:
    url = server_of(room).url
    return ["oracle", "--catalogue", str(room.folder / "shop"), "--url", url, "--model", "x"]


def _compare(room: Room) -> list[str]:
    run = str(room.folder / "run")
    return ["compare", run, run, "--resamples", "20", "--permutations", "20"]


COMMANDS: dict[str, Callable[[Room], list[str]]] = {
    "embed": lambda room: [*_common(room, "embed"), "--system", "infonce"],
    "annotate": lambda room: _common(room, "annotate"),
    "oracle": _oracle,
    "catalogue-convert": lambda room: ["catalogue-convert", str(room.folder / "shop")],
    "export": lambda room: ["export", "--run", str(room.folder / "run"), "--no-check"],
    "compare": _compare,
    "baselines": lambda room: ["baselines", "--catalogue", str(room.folder / "shop")],
    "report": lambda room: ["report", "--run", str(room.folder / "run")],
    "evaluate": lambda room: _common(room, "evaluate"),
    "audit-negatives": lambda room: ["audit-negatives", "--run", str(room.folder / "run")],
}
OUTS = (
    "shop",
    "shop/listings.jsonl",
    "shop/images",
    "run",
    "run/config.json",
    "run/cit-1/model",
    "notes",
    "notes/diary.txt",
    "link",
    "notes/pictures",
)


def execute(arguments: list[str]) -> None:
    """Run a command in this process, with its errors as they are raised."""
    from afmrl_jax.cli.main import _parsed

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            _parsed(arguments).execute()
        except SystemExit as ended:
            raise ConfigError(f"{arguments[0]}: ended with status {ended.code}") from ended


@target("overwrite")
def overwrite(room: Room) -> Case:
    """A command told to write where something precious is."""
    folder, rng = room.folder, room.rng
    shutil.copytree(room.good / "shop", folder / "shop")
    shutil.copytree(room.good / "run", folder / "run")
    # The run learned from a catalogue elsewhere; here its own is at hand.
    config = folder / "run" / "config.json"
    value = json.loads(config.read_text()) | {"catalogue": str(folder / "shop")}
    config.write_text(json.dumps(value))
    (folder / "notes" / "pictures").mkdir(parents=True)
    (folder / "notes" / "diary.txt").write_text("dear diary")
    (folder / "notes" / "pictures" / "cat.png").write_bytes(b"meow")
    (folder / "link").symlink_to("notes")
    name, out = pick(rng, list(COMMANDS)), pick(rng, OUTS)
    arguments = [*COMMANDS[name](room), "--out", out]
    before = tree_of(folder, OUTSIDE)

    def act() -> None:
        try:
            execute(arguments)
        except AfmrlError:
            _check(folder, before)
            raise
        _check(folder, before)

    return Case(f"{name} --out {out}", act, named=out)


def _check(folder: Path, before: dict[str, str]) -> None:
    after = tree_of(folder, OUTSIDE)
    lost = [x for x in before if after.get(x) != before[x]]
    if lost:
        raise AcceptedWrongError(f"{len(lost)} files are gone or changed, such as {lost[0]}")
