"""Kill `afmrl oracle` at random moments, start it again, and count what it asks for twice.

    python -m experiments.reliability.kill_oracle --out runs/kill_oracle

The captioner is a server in this process that answers after a moment and counts the requests for
each listing. The command is started until it has asked for something, gets SIGKILL, SIGTERM or
SIGINT at a random moment, and is started again until it is finished. After each signal the file of
replies must hold whole replies, all that it held before, and half a line at most; no listing whose
reply it holds may be asked for again; the final file must be that of an uninterrupted run.
Writes experiments/results/reliability/kill_oracle.json.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from afmrl_jax.data.attributes.endpoint import INSTRUCTION
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.errors import RunError
from afmrl_jax.performance.record import write_record
from afmrl_jax.runtime.files import file_hash, write_text
from afmrl_jax.runtime.json_files import read_records
from afmrl_jax.runtime.preemption import STATUS
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.runtime.setup import reported
from afmrl_jax.testing import write_badge_catalogue
from afmrl_jax.types import JsonObject
from experiments.reliability.local_job import AFMRL, LocalJob

RESULTS = Path(__file__).parents[1] / "results" / "reliability"
STATUSES = {"KILL": -signal.SIGKILL, "TERM": STATUS, "INT": 130}
WIDTH = 4
"""Requests at a time."""


@dataclass(frozen=True)
class KillOracle:
    """What to send, and how often."""

    kills: int = 30
    """Total number of signals, cycling over `signals`."""
    signals: tuple[Literal["KILL", "TERM", "INT"], ...] = ("KILL", "TERM", "INT")
    pause: float = 0.05
    """Seconds that the server takes for a reply."""
    seed: int = 0
    out: Path = Path("runs/kill_oracle")
    """Folder of the catalogue and the files."""
    result: Path = RESULTS / "kill_oracle.json"


class Captioner:
    """A server that answers chat completions, and counts them by title."""

    def __init__(self, pause: float):
        self.asked: Counter[str] = Counter()
        owner, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                title = body["messages"][0]["content"][1]["text"].removeprefix(INSTRUCTION)
                with lock:
                    owner.asked[title] += 1
                time.sleep(pause)
                message = {"role": "assistant", "content": f"title: {title.lower()}"}
                raw = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Whoever asked was killed."""

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()


def numbered_catalogue(folder: Path) -> Path:
    """Listings of which each has another title, by which the server tells them apart."""
    path = write_badge_catalogue(folder, listings_per_product=8) / "listings.jsonl"
    records = [x | {"title": f"{x['title']} {n}"} for n, x in enumerate(read_records(path))]
    write_text(path, "".join(json.dumps(x) + "\n" for x in records))
    return folder


def start(catalogue: Path, captioner: Captioner, out: Path) -> LocalJob:
    """Start the command."""
    options = {"--catalogue": catalogue, "--url": captioner.url, "--model": "captioner"}
    options |= {"--out": out, "--split": "all", "--concurrency": WIDTH}
    command = [*AFMRL, "oracle", *(str(x) for pair in options.items() for x in pair)]
    # A proxy of this machine must not be asked for its own address.
    return LocalJob(command, out.parent / "logs", NO_PROXY="127.0.0.1")


def kept(out: Path) -> list[JsonObject]:
    """The whole replies in the file."""
    return read_records(out.with_name(f"{out.name}.replies.jsonl"))


def interrupt(
    catalogue: Path, captioner: Captioner, out: Path, name: str, moment: float
) -> JsonObject:
    """Signal the command `moment` seconds after its first request; what it left is checked.

    Raises:
        RunError: the process ended with an unexpected status, a reply is lost, or one that was
            kept has been asked for again.
    """
    titles = {x.listing_id: x.title for x in load_catalogue(catalogue).listings}
    before, asked = kept(out), captioner.asked.copy()
    job = start(catalogue, captioner, out)
    # If the last signal came after the last reply, there is nothing left to ask for.
    job.until(lambda: captioner.asked > asked or out.is_file(), "the first request")
    time.sleep(moment)
    began = time.monotonic()
    job.send(0, getattr(signal, f"SIG{name}"))
    (status,) = job.wait()
    seconds = time.monotonic() - began
    if not out.is_file() and status != STATUSES[name]:
        raise RunError(f"{name}: the process ended with {status}\n{job.text()}")
    after = kept(out)
    if after[: len(before)] != before:
        raise RunError(f"{name}: {len(before)} replies were kept, and some are lost")
    again = captioner.asked - asked
    twice = [x["listing_id"] for x in before if again[titles[x["listing_id"]]]]
    if twice:
        raise RunError(f"{name}: {twice} were asked for again though their replies were kept")
    return {
        "signal": name,
        "after_seconds": round(moment, 2),
        "ended_within_seconds": round(seconds, 2),
        "status": status,
        "kept_before": len(before),
        "kept_after": len(after),
    }


def run(settings: KillOracle) -> tuple[JsonObject, list[JsonObject]]:
    """Totals, and one record for each signal.

    Raises:
        RunError: see `interrupt`; or the final file differs from an uninterrupted run's.
    """
    shutil.rmtree(settings.out, ignore_errors=True)
    catalogue = numbered_catalogue(settings.out / "badges")
    found: list[JsonObject] = []
    captioner = Captioner(settings.pause)
    whole, out = settings.out / "whole" / "oracle.jsonl", settings.out / "killed" / "oracle.jsonl"
    statuses, files, repeated = start(catalogue, captioner, whole).wait(), 0, 0
    if statuses != [0]:
        raise RunError(f"the uninterrupted run ended with {statuses}")
    count = len(kept(whole))
    seconds = count * settings.pause / WIDTH
    with Progress("signals", settings.kills) as progress:
        while len(found) < settings.kills:
            shutil.rmtree(out.parent, ignore_errors=True)
            captioner.asked.clear()
            signals = 0
            # Two or three signals for each file, so that resumed commands are killed too.
            while len(found) < settings.kills and signals < 3 and not out.is_file():
                rng = np.random.default_rng([settings.seed, len(found)])
                name = settings.signals[len(found) % len(settings.signals)]
                moment = float(rng.uniform(0.0, 0.5)) * seconds
                found.append(interrupt(catalogue, captioner, out, name, moment))
                log_info(str(found[-1]))
                progress.update(len(found))
                signals += 1
            start(catalogue, captioner, out).wait()
            if file_hash(out) != file_hash(whole):
                raise RunError(f"{out} differs from {whole}")
            files += 1
            repeated += sum(captioner.asked.values()) - count
    captioner.close()
    # One that comes after the last reply finds a command that is ending by itself.
    met = [x for x in found if x["status"] == STATUSES[x["signal"]]]
    return {
        "signals": len(met),
        "listings": count,
        "files": files,
        "equal_files": files,
        "lost_replies": 0,
        "kept_replies_asked_for_again": 0,
        # Sent by the server and not yet kept when the signal came: one for each request at most.
        "in_flight_replies_asked_for_again": repeated,
        "ended_within_seconds": max((x["ended_within_seconds"] for x in met), default=None),
    }, found


def main(settings: KillOracle) -> None:
    """Send all signals; exit status 1 if anything is lost or asked for twice."""
    # What a shell starts in the background ignores Ctrl-C, and so would the commands.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    total, found = run(settings)
    write_record(settings.result, "kill_oracle", total, found)
    print(total)
    print(settings.result)
    if total["in_flight_replies_asked_for_again"] > WIDTH * total["signals"]:
        sys.exit(1)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(KillOracle, description=__doc__))
