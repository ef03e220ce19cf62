"""Targets: run directories, reports, indexes, searches, and homes of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.config import RunConfig, from_dict, to_dict
from afmrl_jax.errors import AfmrlError, RunError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import Index
from afmrl_jax.runs.search import Query, Searcher, read_queries
from afmrl_jax.runtime import run_mirror
from afmrl_jax.runtime.files import file_hash
from afmrl_jax.runtime.json_files import checked
from afmrl_jax.runtime.run_mirror import KNOWN, NEXT, SENDING, STATE, WorkingCopy
from afmrl_jax.training.run_directory import Run
from experiments.reliability.fuzz.case import AcceptedWrongError, Case, Room, target
from experiments.reliability.fuzz.catalogues import broken_text, check_page
from experiments.reliability.fuzz.guard import OUTSIDE
from experiments.reliability.fuzz.models import check_params
from experiments.reliability.fuzz.mutate import (
    Rng,
    Spoiled,
    pick,
    spoil_bytes,
    spoil_file,
    spoil_json,
    spoil_line,
    spoil_place,
)
from experiments.reliability.fuzz.pickles import plant_pickles, write_pickled_array

STAGES = ("distill", "infonce", "agcl-distilled", "rar", "cit-1")
HUGE = 10**9


def check_run_config(config: RunConfig) -> None:
    """Refuse settings of a wrong type, and those that no machine can follow."""
    try:
        checked(RunConfig, to_dict(config), "config")
    except AfmrlError as error:
        raise AcceptedWrongError(f"{error} was taken") from error
    image, text = config.image, config.text
    if not all(x > 0 for x in image.std):
        raise AcceptedWrongError(f"image.std {image.std} was taken")
    if max(config.vocab_size, config.evaluation.batch_size, *text.buckets) >= HUGE:
        raise AcceptedWrongError("a size of a thousand millions was taken")


@target("run")
def run(room: Room) -> Case:
    """A finished run of which a note, a model or the config is broken."""
    rng, folder = room.rng, room.folder / "run"
    shutil.copytree(room.good / "run", folder)
    stage = pick(rng, STAGES)
    config = folder / "config.json"
    if rng.random() < 0.5:
        path = config
    else:
        inside = [x for x in sorted((folder / stage).rglob("*")) if x.is_file()]
        inside += [folder / "tokenizer" / x for x in ("DONE.json", "tokenizer.json")]
        path = pick(rng, [x for x in inside if "tensorboard" not in x.parts])
    spoiled = spoil_file(path, rng)
    key = f"run {stage}"
    if key not in room.kept:
        params = FinishedRun(room.good / "run").model(stage)[1]
        room.kept[key] = {n: np.asarray(x) for n, x in params.items()}

    def act() -> None:
        found = FinishedRun(folder)
        check_run_config(found.config)
        found.system()
        found.tokenizers["embedder"].encode("red badge")
        check_params(found.model(stage)[1], room.kept[key])
        _go_on(folder, found.config, stage)

    wrong = path.name in ("config.json", "DONE.json") and (spoiled.invalid or spoiled.gone)
    return Case(f"{path.relative_to(folder)}: {spoiled.what}", act, wrong=wrong)


def _go_on(folder: Path, config: RunConfig, stage: str) -> None:
    """Begin a finished stage again: nothing is to be done, and its outputs are as noted."""
    done = json.loads((folder / stage / "DONE.json").read_text())

    def work(_: Path) -> None:
        raise RunError(f"{folder / stage} would be done again")

    job = Run(folder, config)
    try:
        outputs = ["model/manifest.json"]
        job.stage(stage, done["inputs"], outputs, work)
        noted = job.output_hash(stage, outputs[0])
    finally:
        job.close()
    if noted != file_hash(folder / stage / outputs[0]):
        raise AcceptedWrongError("a finished stage whose output is another was taken")


READ = ("evaluation.json", "gallery.json", "config.json")


@target("report")
def report(room: Room) -> Case:
    """A run of which one of the files that the report reads is broken."""
    from afmrl_jax.reporting.report import build_report

    rng, folder = room.rng, room.folder / "run"
    folder.mkdir()
    names = [*READ, "rar/metrics.jsonl", "rar/samples.jsonl", "distill/metrics.jsonl"]
    names += ["rar/held_out_start/start.json", "rar/DONE.json", "distill/DONE.json"]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(room.good / "run" / name, path)
    # The larger files have more places to break.
    path = folder / pick(rng, [*names, "evaluation.json", "evaluation.json", "gallery.json"])
    spoiled = spoil_file(path, rng)

    def act() -> None:
        page = build_report(folder)
        check_page(page.read_text(encoding="utf-8"))

    wrong = spoiled.invalid and path.suffix == ".json"
    return Case(f"{path.relative_to(folder)}: {spoiled.what}", act, wrong=wrong)


def _hits(index: Index) -> list[Any]:
    queries = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    found = index.search(queries, 5)
    return [found.ids, np.round(found.scores, 4).tolist()]


@target("index")
def index(room: Room) -> Case:
    """An index or an embedded catalogue, broken: results must be those of the whole one."""
    rng = room.rng
    name = pick(rng, ("index", "index-bfloat16", "scann", "embedded", "embedded", "embedded"))
    # Readers may keep what they read by the folder's name.
    folder = room.folder / f"{name}-{room.folder.name}"
    shutil.copytree(room.good / name, folder)
    notes = [x for x in folder.rglob("*.json*") if x.is_file()]
    files = [x for x in folder.rglob("*") if x.is_file()]
    unsealed = name != "embedded" and rng.random() < 0.3
    if unsealed:
        _unseal(folder / "index.json")
    outside = room.folder / OUTSIDE
    plant_pickles(folder, outside)
    path = pick(rng, sorted(notes if rng.random() < 0.6 else files))
    if path.suffix == ".npy" and rng.random() < 0.2:
        write_pickled_array(path, outside)
        spoiled = Spoiled("an array of pickles", gone=True)
    elif path.name == "listings.jsonl" and rng.random() < 0.4:
        spoiled = _reordered(path, rng)
    elif path.suffix == ".npy" and rng.random() < 0.4:
        spoiled = _moved(path, rng)
    else:
        spoiled = spoil_file(path, rng)
    if name == "embedded":
        return _embedded_case(room, folder, path, spoiled)
    if f"hits {name}" not in room.kept:
        room.kept[f"hits {name}"] = _hits(Index.load(room.good / name))

    def act() -> None:
        found = _hits(Index.load(folder, embedder="e"))
        # Without seals, another vector is as good as the one that was written.
        if not unsealed and found != room.kept[f"hits {name}"]:
            raise AcceptedWrongError("the results are not those of the whole index")

    known = path.name == "index.json" or not unsealed
    wrong = path.name in ("index.json", "vectors.npy") and (
        spoiled.gone or (spoiled.invalid and known)
    )
    how = " without seals" if unsealed else ""
    return Case(f"{name}/{path.name}{how}: {spoiled.what}", act, wrong=wrong)


def _unseal(path: Path) -> None:
    """Make an index one that an older version, or a stranger, wrote: only its parsers are left."""
    about = json.loads(path.read_text())
    kept = about.keys() - {"format", "files", "sha256"}
    path.write_text(json.dumps({name: about[name] for name in kept}))


def _reordered(path: Path, rng: Rng) -> Spoiled:
    lines = path.read_bytes().splitlines(keepends=True)
    kind = pick(rng, ("reversed", "cut", "rotated"))
    changed = {"reversed": lines[::-1], "cut": lines[:3], "rotated": lines[1:] + lines[:1]}[kind]
    path.write_bytes(b"".join(changed))
    return Spoiled(f"lines {kind}", True)


def _moved(path: Path, rng: Rng) -> Spoiled:
    values = np.load(path)
    kind = pick(rng, ("rolled", "scaled", "negated"))
    values = {"rolled": np.roll(values, 1, 0), "scaled": values * 2, "negated": -values}[kind]
    np.save(path, values)
    return Spoiled(f"vectors {kind}", True)


def _searcher(room: Room, folder: Path) -> Searcher:
    """A searcher whose embedder is loaded once by each worker."""
    if "run" not in room.kept:
        found = FinishedRun(room.good / "run")
        room.kept["run"], plain, known = found, Embedder.of, {}

        def of(run: FinishedRun, system: Any) -> Embedder:
            if system.name not in known:
                known[system.name] = plain(run, system)
            return known[system.name]

        Embedder.of = of  # type: ignore[method-assign]
    return Searcher(room.kept["run"], folder)


def _shown(room: Room, folder: Path) -> list[Any]:
    queries = [Query.of("a", "red circle badge", None)]
    (found,) = _searcher(room, folder).search(queries, 5)
    return [{k: x for k, x in one.items() if k != "attributes"} for one in found.results]


def _embedded_case(room: Room, folder: Path, path: Path, spoiled: Spoiled) -> Case:
    if "shown" not in room.kept:
        room.kept["shown"] = _shown(room, room.good / "embedded")

    def act() -> None:
        if _shown(room, folder) != room.kept["shown"]:
            raise AcceptedWrongError("the results are not those of the whole index")

    return Case(f"embedded/{path.relative_to(folder)}: {spoiled.what}", act, wrong=spoiled.invalid)


@target("queries")
def queries(room: Room) -> Case:
    """A file of queries with a broken line, or an odd text."""
    rng, folder = room.rng, room.folder / "texts"
    shutil.copytree(room.good / "texts", folder)
    path = folder / "queries.jsonl"
    kind = pick(rng, ("line", "line", "line", "bytes", "place", "text", "picture"))
    wrong = False
    if kind == "line":
        data, spoiled = spoil_line(path.read_bytes(), rng)
        path.write_bytes(data)
        wrong = spoiled.invalid
    elif kind == "bytes":
        data, spoiled = spoil_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
    elif kind == "place":
        spoiled = spoil_place(path, rng)
    elif kind == "picture":
        spoiled = spoil_place(folder / "photo.png", rng)
        wrong = True
    else:
        texts = ("x" * 1_000_000, "\u202e\u0643", "<|im_end|>" * 50, "\U0001f4ba" * 10_000, "a\0b")
        text = pick(rng, (*texts, "\ud800"))
        path.write_text(json.dumps({"text": text}) + "\n")
        spoiled, wrong = Spoiled(f"the text {text[:9]!r}"), text == "\ud800"
    k = int(pick(rng, (1, 3, 3, 3, 10**9)))

    def act() -> None:
        for x in read_queries(path):
            if broken_text(x.name):
                raise AcceptedWrongError("a name with control characters was taken")
        list(_searcher(room, room.good / "embedded").search_file(path, k))

    return Case(f"{spoiled.what}, k {k}", act, wrong=wrong)


_PLANTED = (
    "../../outside/planted",
    "../outside/planted",
    "/tmp/afmrl-fuzz-planted",
    "a/../../../outside/planted",
    "..",
    ".",
    "",
    "a\0b",
    ".lock",
    "x" * 300,
)


@target("remote")
def remote(room: Room) -> Case:
    """A run's home whose state is broken or names what is not the run's."""
    rng = room.rng
    home, folder = room.folder / "home", room.folder / "work" / "copy"
    shutil.copytree(room.good / "home", home)
    begun = rng.random() < 0.5
    if begun:
        shutil.copytree(room.good / "work" / "copy", folder)
    state = json.loads((home / STATE).read_text())
    kind = pick(rng, ("name", "name", "at", "rubbish", "json", "json", "json", "file", "here"))
    if kind in ("name", "at", "rubbish"):
        spoiled = _elsewhere(room, state, kind)
        (home / STATE).write_text(json.dumps(state))
    elif kind == "json":
        found = spoil_json(state, rng)
        (home / STATE).write_bytes(found.text)
        spoiled = found.spoiled
    elif kind == "here" and begun:
        path = folder / pick(rng, (KNOWN, KNOWN, NEXT, SENDING))
        if not path.exists():
            shutil.copy(folder / KNOWN, path)
        spoiled = spoil_file(path, rng)
    else:
        spoiled = spoil_file(pick(rng, [x for x in sorted(home.rglob("*")) if x.is_file()]), rng)

    def act() -> None:
        # Failed transfers are tried again after pauses.
        run_mirror.time.sleep = lambda _: None
        copy = WorkingCopy(home, folder)
        copy.bring()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "new.txt").write_text("new")
        copy.holds = copy.held = True
        copy.take_home()

    return Case(f"{kind}: {spoiled.what}", act, wrong=spoiled.invalid and kind == "json")


def _elsewhere(room: Room, state: dict[str, Any], kind: str) -> Spoiled:
    """Let a state name something outside; whether that is taken shows in what is touched."""
    name = pick(room.rng, _PLANTED)
    absolute = room.rng.random() < 0.2
    name = str(room.folder / "outside" / "secret.png") if absolute else name
    state["state"] = "another"
    if kind == "name":
        state["files"][name] = {"size": 4, "sent": "s1", "at": "config.json"}
    elif kind == "at":
        first = pick(room.rng, sorted(state["files"]))
        state["files"][first] |= {"at": name, "sent": "s1", "size": 1}
    else:
        state["rubbish"] = [name]
    bad = name not in (".lock",) and kind != "rubbish"
    return Spoiled(f"{kind} {name[:40]!r}", bad)


def config_of(value: Any) -> RunConfig:
    """A run's config from plain values, checked as the campaign checks it."""
    found = from_dict(RunConfig, value)
    check_run_config(found)
    return found
