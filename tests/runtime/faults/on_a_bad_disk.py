"""Runs every command that writes on a disk that is full or cannot be written; started by a test.

It needs a mount namespace of its own (`unshare -m`). Prints a JSON object for each command; with
`training` in the place of the disk's kind, one for each number of bytes that `afmrl train` found
free, and one for the same command when there is room again.
"""

import contextlib
import gc
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from afmrl_jax.cli.main import main
from experiments.reliability.fuzz.commands import tree_of
from experiments.reliability.fuzz.network import Server, good_reply
from experiments.reliability.fuzz.tiny_run import with_tiny_models
from experiments.reliability.kill_commands import make_changed

FREE = {"full": 0, "nearly-full": 12_288}
"""Bytes that are left."""
TRAINING_FREE = (0, 12_288, 49_152, 98_304, 196_608)
"""Bytes that a training finds free, one after the other: less than it needs, in all stages."""


CHANGING = ("update", "index-add", "index-remove", "index-compact")
"""Commands that change an index; the others write something new."""


def commands(run, shop, url):
    """The arguments of every command, without --out."""
    on = ["--run", str(run), "--catalogue", str(shop)]
    few = ["--resamples", "20"]
    return {
        "embed": ["embed", *on, "--system", "infonce"],
        "update": ["embed", *on, "--system", "infonce", "--update"],
        "annotate": ["annotate", *on],
        "oracle": ["oracle", *on[2:], "--url", url, "--model", "x", "--split", "all"],
        "catalogue-convert": ["catalogue-convert", str(shop)],
        "export": ["export", "--run", str(run), "--no-check"],
        "compare": ["compare", str(run), str(run), *few, "--permutations", "20"],
        "baselines": ["baselines", *on[2:], *few],
        "report": ["report", "--run", str(run)],
        "evaluate": ["evaluate", *on],
        "match": ["match", *on],
    }


def index_commands(run, changed, earlier):
    """The arguments of the commands on an index, without its name or --out."""
    listing_id = json.loads((changed / "listings.jsonl").read_text().splitlines()[0])["listing_id"]
    return {
        "index-add": ["index", "add", "--run", str(run), "--catalogue", str(changed)],
        "index-remove": ["index", "remove", listing_id],
        "index-compact": ["index", "compact"],
        "index-export": ["index", "export", "--index", str(earlier)],
    }


def fill(disk, free):
    """Leave only so many bytes."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    size = (disk / "filler").stat().st_size
    os.truncate(disk / "filler", max(0, size - free))


def content(out):
    """What is in an output that is a folder; nothing where it says that it is not finished."""
    about = out / "match.json"
    if about.is_file() and not json.loads(about.read_text())["finished"]:
        return {}
    return tree_of(out) if out.is_dir() else None


def tried(name, arguments, out):
    """What a command does when told to write `out`."""
    said, before = io.StringIO(), content(out)
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            named = "--index" if name in CHANGING[1:] else "--out"
            main([*arguments, named, str(out)])
            status = 0
        except SystemExit as ended:
            status = ended.code
        except BaseException as error:
            status = repr(error)
    after = content(out)
    lines = said.getvalue().strip().splitlines() or [""]
    return {
        "command": name,
        "status": status,
        "said": lines[-1],
        "traced": any("Traceback" in x for x in lines),
        # An empty folder is nothing.
        "written": out.exists() and after != {} and (before is None or after != before),
        "kept": before is None or after == before,
    }


def run_all(kind, run, shop, disk):
    """Mount the disk, and try every command on it."""
    earlier = disk.with_name(f"{disk.name}-index")
    main([*commands(run, shop, "")["embed"], "--out", str(earlier)])
    # What compacting has to do.
    logged = shutil.copytree(earlier, disk.with_name(f"{disk.name}-logged"))
    last = json.loads((shop / "listings.jsonl").read_text().splitlines()[-1])["listing_id"]
    main(["index", "remove", last, "--index", str(logged)])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], check=True)
    (disk / "kept.txt").write_text("kept")
    server = Server()
    server.body = json.dumps(good_reply()).encode()
    changed = make_changed(shop, disk.with_name(f"{disk.name}-changed"))
    all_commands = commands(run, shop, server.url) | index_commands(run, changed, earlier)
    if kind not in FREE:
        for name in CHANGING:
            before = logged if name == "index-compact" else earlier
            shutil.copytree(before, disk / "work" / name / "out")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for name, arguments in all_commands.items():
        out = disk / "work" / name / ("out.json" if name in ("compare", "baselines") else "out")
        if kind in FREE:
            # Others before it may have left something to go on from.
            subprocess.run(["rm", "-rf", str(disk / "work"), str(disk / "filler")], check=True)
            out.parent.mkdir(parents=True)
            if name in CHANGING:
                shutil.copytree(logged if name == "index-compact" else earlier, out)
            # A removed file takes space as long as an error's trace still has it mapped.
            gc.collect()
            fill(disk, FREE[kind])
        print(json.dumps(tried(name, arguments, out)), flush=True)
    assert (disk / "kept.txt").read_text() == "kept"


def run_training(run, disk):
    """Train into one folder on a disk with ever more room, and to the end with enough."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
    arguments = ["train", "--config", str(run / "config.json")]
    with with_tiny_models():
        for free in (*TRAINING_FREE, None):
            (disk / "filler").unlink(missing_ok=True)
            gc.collect()
            if free is not None:
                fill(disk, free)
            found = tried("train", arguments, disk / "run")
            left = [str(x) for x in (disk / "run").rglob("*.tmp*")]
            print(json.dumps({**found, "free": free, "left": left}), flush=True)


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    if kind == "training":
        run_training(*map(Path, paths))
    else:
        run_all(kind, *map(Path, paths))
