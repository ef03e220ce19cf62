"""Kill the commands that write at random moments, start them again, and compare what they wrote.

    python -m experiments.reliability.kill_commands --kills 50
    python -m experiments.reliability.kill_commands --kills 200     # an hour on two cores
    python -m experiments.reliability.kill_commands --kills 200 --go-on    # after an interruption

Every command first runs uninterrupted, on a run of tiny models. Then it gets SIGKILL at a random
moment of the same work. After each kill the output's name must be free, or hold a whole output
(for `embed --update`, the old one or the new one); started again until it ends, the command must
have written what the uninterrupted one wrote, and have left no temporary file. Commands are forked
from a process that has imported everything, so that moments fall into the work and not into
imports. Writes experiments/results/reliability/kill_commands.json.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from afmrl_jax.cli.main import main as afmrl
from afmrl_jax.cli.search import Embed
from afmrl_jax.errors import RunError
from afmrl_jax.runtime.compilation import CACHE_VARIABLE
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.runtime.setup import reported
from afmrl_jax.types import JsonObject
from experiments.reliability.fuzz.commands import tree_of
from experiments.reliability.fuzz.network import Server, good_reply
from experiments.reliability.fuzz.tiny_run import train_tiny_run
from experiments.reliability.record import write_record_aside

RESULTS = Path(__file__).parents[1] / "results" / "reliability"
UPDATES = "update" in {x.name for x in dataclasses.fields(Embed)}
"""Whether `afmrl embed` has --update."""
NOTED = 4
"""After so many trials each, what came of them so far is written."""
LIMIT = 600
"""Seconds after which a command counts as hung."""


@dataclass(frozen=True)
class KillCommands:
    """What to kill, and how often."""

    commands: tuple[str, ...] = ("embed", "catalogue-convert", "annotate", "oracle", "export") + (
        ("update",) if UPDATES else ()
    )
    """`update` is `embed --update`."""
    kills: int = 50
    """Total number of kills, cycling over the commands."""
    seed: int = 0
    run: Path | None = None
    """A finished run of tiny models; by default one is trained in `out`."""
    out: Path = Path("runs/kill-commands")
    result: Path = RESULTS / "kill_commands.json"
    go_on: bool = False
    """Add to the kills in `result`, with what undisturbed commands have written in `out`."""


@dataclass(frozen=True)
class Setting:
    """What all commands work on."""

    run: Path
    shop: Path
    changed: Path
    """The shop later: a listing gone, one with another title, some new."""
    url: str

    def arguments(self, command: str, out: Path) -> list[str]:
        """The command line that writes `out`."""
        run, shop = ["--run", str(self.run)], ["--catalogue", str(self.shop)]
        given = {
            "embed": ["embed", *run, *shop, "--system", "infonce"],
            "update": [
                *("embed", *run, "--catalogue", str(self.changed)),
                *("--system", "infonce", "--update"),
            ],
            "catalogue-convert": ["catalogue-convert", *shop, "--shard-bytes", "20000"],
            "annotate": ["annotate", *run, *shop],
            "oracle": [
                *("oracle", *shop, "--url", self.url, "--model", "x"),
                *("--split", "all", "--concurrency", "2"),
            ],
            "export": ["export", *run, "--no-check"],
        }
        return [*given[command], "--out", str(out)]


def _command(arguments: list[str], log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    afmrl(arguments)


def started(arguments: list[str], log: Path) -> multiprocessing.process.BaseProcess:
    """A forked process that runs a command."""
    process = multiprocessing.get_context("fork").Process(target=_command, args=(arguments, log))
    process.start()
    return process


def finish(arguments: list[str], log: Path) -> float:
    """Run a command to its end; returns seconds.

    Raises:
        RunError: it fails.
    """
    began = time.monotonic()
    process = started(arguments, log)
    # Second by second, so that a pause of this process and all that it started does not count.
    for _ in range(LIMIT):
        process.join(1.0)
        if process.exitcode is not None:
            break
    if process.exitcode != 0:
        process.kill()
        raise RunError(f"{' '.join(arguments)}: status {process.exitcode}\n{log.read_text()}")
    return time.monotonic() - began


def content_of(out: Path) -> dict[str, str] | None:
    """Everything in an output, to compare; None if there is none."""
    if out.is_dir():
        return tree_of(out)
    return tree_of_file(out) if out.exists() else None


def tree_of_file(path: Path) -> dict[str, str]:
    """A file of JSON lines without the order of its lines, which threads decide."""
    return {"lines": "\n".join(sorted(path.read_text(encoding="utf-8").splitlines()))}


def left_behind(folder: Path) -> list[str]:
    """Temporary files in the folder of an output."""
    names = [x.name for x in folder.iterdir()]
    return [x for x in names if x.endswith(".partial") or (x[0] == "." and "lock" not in x)]


def trial(
    setting: Setting,
    command: str,
    whole: Path,
    folder: Path,
    seconds: float,
    moments: Sequence[float],
) -> JsonObject:
    """Kill a command at some moments, in parts of its whole time, and then let it end.

    Args:
        setting: what it works on.
        command: its name.
        whole: what it writes if nothing disturbs it, in a folder of its name.
        folder: of the output; emptied first.
        seconds: of the undisturbed command.
        moments: when it is killed, each in a start of its own.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out, log = folder / "out", folder.with_suffix(".log")
    wanted = content_of(whole)
    allowed: list[dict[str, str] | None] = [None, wanted]
    if command == "update":
        shutil.copytree(whole.parent.with_name("embed") / "out", out)
        allowed = [content_of(out), wanted]
    arguments, kills, damaged = setting.arguments(command, out), 0, 0
    for moment in moments:
        if command != "update" and out.exists():
            break
        process = started(arguments, log)
        process.join(moment * seconds)
        if process.is_alive():
            process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        damaged += content_of(out) not in allowed
    if command == "update" or not out.exists():
        finish(arguments, log)
    return {
        "command": command,
        "kills": kills,
        "moments": [round(x, 3) for x in moments],
        "damaged_under_final_name": damaged,
        "equal": content_of(out) == wanted,
        "left_behind": left_behind(folder),
    }


def make_changed(shop: Path, changed: Path) -> Path:
    """The shop a while later, for `embed --update`."""
    if changed.is_dir():
        return changed
    shutil.copytree(shop, changed)
    path = changed / "listings.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    del lines[3]
    lines[5]["title"] = "another title"
    lines += [x | {"listing_id": f"{x['listing_id']}-new"} for x in lines[:10]]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return changed


def _serve(pipe: object) -> None:
    server = Server()
    server.body = json.dumps(good_reply()).encode()
    pipe.send(server.url)  # type: ignore[attr-defined]
    while True:
        time.sleep(60)


def _trained(run: Path) -> None:
    train_tiny_run(run)


def setting_of(settings: KillCommands) -> tuple[Setting, Callable[[], None]]:
    """What the commands work on, and how to end the server."""
    context = multiprocessing.get_context("fork")
    run = settings.run or settings.out / "run"
    if settings.run is None:
        # In another process, because this one must not start JAX before it forks.
        process = context.Process(target=_trained, args=(run,))
        process.start()
        process.join()
    shop = Path(json.loads((run / "config.json").read_text())["catalogue"])
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    changed = make_changed(shop, settings.out / "changed")
    return Setting(run, shop, changed, ours.recv()), server.kill


def figures_of(found: Sequence[JsonObject]) -> dict[str, float]:
    """Totals over the trials."""
    kills: Counter[str] = Counter()
    for x in found:
        kills[x["command"]] += x["kills"]
    return {
        "kills": sum(kills.values()),
        **{f"kills_{name}": n for name, n in kills.items()},
        "trials": len(found),
        "equal": sum(x["equal"] for x in found),
        "damaged_under_final_name": sum(x["damaged_under_final_name"] for x in found),
        "left_behind": sum(bool(x["left_behind"]) for x in found),
    }


def undisturbed(setting: Setting, command: str, folder: Path, *, keep: bool) -> float:
    """Let a command write what its killed ones must have written; returns its seconds.

    Args:
        setting: what it works on.
        command: its name.
        folder: of the output.
        keep: use what an earlier call wrote.
    """
    noted = folder.with_suffix(".json")
    if keep and noted.is_file():
        return float(json.loads(noted.read_text()))
    seconds = 0.0
    # The second one finds its programs compiled, as the killed ones do.
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if command == "update":
            shutil.copytree(folder.with_name("embed") / "out", folder / "out")
        arguments = setting.arguments(command, folder / "out")
        seconds = finish(arguments, folder.with_suffix(".log"))
    log_info(f"{command}: {seconds:.1f} s without kills")
    noted.write_text(json.dumps(seconds))
    return seconds


def kill_all(settings: KillCommands, setting: Setting, found: list[JsonObject]) -> None:
    """Kill the commands in turn, and append each trial to what was found."""
    whole, keep = settings.out / "whole", settings.go_on
    seconds = {
        x: undisturbed(setting, x, whole / x, keep=keep)
        for x in dict.fromkeys(("embed", *settings.commands))
    }
    with Progress("kills", settings.kills) as progress:
        while (done := int(figures_of(found)["kills"])) < settings.kills:
            command = settings.commands[len(found) % len(settings.commands)]
            rng = np.random.default_rng([settings.seed, len(found)])
            moments = rng.uniform(0.02, 0.98, int(rng.integers(1, 4))).tolist()
            folder = settings.out / "killed" / command
            out = whole / command / "out"
            found.append(trial(setting, command, out, folder, seconds[command], moments))
            log_info(str(found[-1]))
            if len(found) % NOTED == 0:
                write_record_aside(settings.result, "kill_commands", figures_of(found), found)
            progress.update(min(done + found[-1]["kills"], settings.kills))


def main(settings: KillCommands) -> None:
    """Kill the commands in turn; exit status 1 if anything is lost or damaged."""
    os.environ[CACHE_VARIABLE] = str((settings.out / "compiled").absolute())
    os.environ["NO_PROXY"] = "127.0.0.1"
    found: list[JsonObject] = []
    if settings.go_on and settings.result.is_file():
        found += json.loads(settings.result.read_text())["details"]
    setting, end = setting_of(settings)
    try:
        kill_all(settings, setting, found)
    finally:
        end()
    total = figures_of(found)
    write_record_aside(settings.result, "kill_commands", total, found)
    print(total)
    print(settings.result)
    lost = total["equal"] != total["trials"] or total["damaged_under_final_name"]
    if lost or total["left_behind"]:
        sys.exit(1)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(KillCommands, description=__doc__))
