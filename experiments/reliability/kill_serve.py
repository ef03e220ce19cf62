"""Kill `afmrl serve` at random moments while clients change its listings.

    python -m experiments.reliability.kill_serve --kills 25

A service of tiny models gets additions, replacements, price changes and removals from several
clients at once, each of its own listings, and SIGKILL at a random moment. The next service, on the
same index, must hold what was acknowledged: of each client at most the one change that it was
waiting for may be there or not, whole. Writes experiments/results/reliability/kill_serve.json.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from afmrl_jax.cli.main import main as afmrl
from afmrl_jax.errors import RunError
from afmrl_jax.performance.record import write_record
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.runtime.setup import reported
from afmrl_jax.types import JsonObject
from experiments.reliability.fuzz.good import png_of
from experiments.reliability.fuzz.tiny_run import train_tiny_run
from experiments.reliability.kill_index import Held
from experiments.reliability.local_job import AFMRL

RESULTS = Path(__file__).parents[1] / "results" / "reliability"
TOKEN = "only-for-these-kills"
PICTURE = base64.b64encode(png_of(48, 48)).decode()
LIMIT = 600
"""Seconds in which a service must be ready, and a request answered."""


@dataclass(frozen=True)
class KillServe:
    """How often, and where."""

    kills: int = 25
    clients: int = 4
    """That change listings at once."""
    seed: int = 0
    longest: float = 3.0
    """Most seconds that a service works before it is killed."""
    out: Path = Path("runs/kill-serve")
    """Folder of the run and its index."""
    result: Path = RESULTS / "kill_serve.json"


class Service:
    """`afmrl serve` as a process, ready for requests."""

    def __init__(self, run: Path, index: Path, log: Path) -> None:
        command = [*AFMRL, "serve", "--run", str(run), "--index", str(index), "--port", "0"]
        with log.open("w") as file:
            environment = {**os.environ, "AFMRL_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
            self.process = subprocess.Popen(
                [*command, "--no-page"], stdout=file, stderr=file, env=environment
            )
        began = time.monotonic()
        while True:
            said = log.read_text(errors="replace")
            if self.process.poll() is not None or time.monotonic() > began + LIMIT:
                self.process.kill()
                raise RunError(f"the service did not become ready:\n{said[-3000:]}")
            if found := re.search(r"http://127\.0\.0\.1:\d+", said):
                self.base = found[0]
                if self.ask("GET", "/readyz")[0] == 200:
                    return
            time.sleep(0.1)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, JsonObject]:
        """Status and content of an answer; status 0 where there is none."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {}
        except (OSError, ValueError, urllib.error.URLError):
            return 0, {}

    def price(self, name: str) -> int | None:
        """The version of a listing, None if there is none of this id."""
        status, found = self.ask("GET", f"/listings?{urllib.parse.urlencode({'listing_id': name})}")
        if status == 404:
            return None
        if status != 200:
            raise RunError(f"GET of {name}: status {status}")
        return int(found["extra"]["price"])


@dataclass
class Client:
    """Changes listings of its own, and knows what it was told."""

    name: str
    seed: int
    held: Held = field(default_factory=dict)
    under_way: tuple[str, int | None] | None = None
    """Id and version, None for a removal, of the change that has no answer."""
    acknowledged: int = 0
    refused: list[str] = field(default_factory=list)
    """Answers that say neither yes nor nothing."""

    def changes(self, turn: int) -> Iterator[tuple[Literal["POST", "PATCH", "DELETE"], str, int]]:
        """Endless changes: method, id and version."""
        rng = np.random.default_rng([self.seed, turn])
        version = 1 + 1_000_000 * turn
        while True:
            version += 1
            kind = rng.choice(["new", "new", "again", "price", "remove"])
            if kind == "new" or not self.held:
                yield "POST", f"{self.name}-{version}", version
            else:
                chosen = str(rng.choice(sorted(self.held)))
                methods = {"again": "POST", "price": "PATCH", "remove": "DELETE"}
                yield methods[kind], chosen, version  # type: ignore[misc]

    def work(self, service: Service, turn: int) -> None:
        """Change listings until the service does not answer."""
        for method, name, version in self.changes(turn):
            self.under_way = name, None if method == "DELETE" else version
            path = "/listings"
            body: JsonObject | None = None
            if method == "DELETE":
                path += "?" + urllib.parse.urlencode({"listing_id": name})
            elif method == "PATCH":
                body = {"listing_id": name, "extra": {"price": version}}
            else:
                about: JsonObject = {"title": f"badge {version}", "image": PICTURE}
                extra = {"listing_id": name, "extra": {"price": version}}
                body = {"listings": [about | extra]}
            status, _ = service.ask(method, path, body)
            if status == 0:
                return
            if status not in (200, 429):
                self.refused.append(f"{method} {name}: {status}")
            if status == 200:
                self.held, self.acknowledged = self.after(), self.acknowledged + 1
            self.under_way = None

    def after(self) -> Held:
        """What is held after the change that is under way."""
        assert self.under_way is not None
        name, version = self.under_way
        held = {x: y for x, y in self.held.items() if x != name}
        return held if version is None else held | {name: version}

    def lost(self, service: Service) -> list[str]:
        """What the service holds otherwise than it may; takes over what became of the last one."""
        names = {*self.held, *([self.under_way[0]] if self.under_way else [])}
        found = {x: y for x in sorted(names) if (y := service.price(x)) is not None}
        possible = [self.held, *([self.after()] if self.under_way else [])]
        known, self.held, self.under_way = self.held, found, None
        if found in possible:
            return []
        return [f"{x}: {known.get(x)} became {found.get(x)}" for x in names]


def kill_serve(settings: KillServe, run: Path, index: Path) -> JsonObject:
    """Kill so many services, one after the other, on one index."""
    clients = [Client(f"client-{n}", settings.seed * 1000 + n) for n in range(settings.clients)]
    rng = np.random.default_rng(settings.seed)
    lost: list[str] = []
    log = settings.out / "serve.log"
    waiting = 0
    service = Service(run, index, log)
    with Progress("kills", settings.kills) as progress:
        for turn in range(settings.kills):
            threads = [threading.Thread(target=x.work, args=(service, turn)) for x in clients]
            for x in threads:
                x.start()
            time.sleep(float(rng.uniform(0.2, settings.longest)))
            service.process.send_signal(signal.SIGKILL)
            service.process.wait()
            for x in threads:
                x.join()
            waiting += sum(x.under_way is not None for x in clients)
            service = Service(run, index, log)
            lost += [y for x in clients for y in x.lost(service)]
            progress.update(turn + 1)
    service.process.send_signal(signal.SIGTERM)
    return {
        "kills": settings.kills,
        "acknowledged": sum(x.acknowledged for x in clients),
        "waiting": waiting,
        "lost": len(lost),
        "refused": sum(len(x.refused) for x in clients),
        "listings": sum(len(x.held) for x in clients),
        "ended_with": service.process.wait(LIMIT),
        "details": [*lost, *(y for x in clients for y in x.refused)],
    }


def main(settings: KillServe) -> None:
    """Run from the command line; exit status 1 if anything acknowledged is lost."""
    run = train_tiny_run(settings.out / "run")
    catalogue = str(read_json(run / "config.json")["catalogue"])
    scratch = Path(tempfile.mkdtemp())
    try:
        index = scratch / "index"
        afmrl(["embed", "--run", str(run), "--catalogue", catalogue, "--out", str(index)])
        found = kill_serve(settings, run, index)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    details = found.pop("details")
    print(json.dumps(found), *details, sep="\n")
    write_record(settings.result, "kill_serve", found, details)
    if found["lost"] or found["refused"]:
        sys.exit(1)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(KillServe, description=__doc__))
