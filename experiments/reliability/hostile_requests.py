"""Broken and hostile requests against a service: each is answered with a reason, none with a trace.

    python -m experiments.reliability.hostile_requests --run demo-weights --index my-index

Requests are drawn from a seed: good ones with a part broken, parts of the wrong type, sizes beyond
limits, paths that lead elsewhere, headers that do not fit; and uploads of every kind of picture,
good, odd and hostile. The service runs in this process on a copy of the index. A case fails with a
status of 500 or more other than 504, an answer that shows a trace or a path of this machine, a
status below 400 where nothing may be accepted, a good picture that is refused, a listing that was
changed without the token, or anything that is written outside the service's folder. Writes
experiments/results/reliability/hostile_requests.json.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image

from afmrl_jax.errors import RunError
from afmrl_jax.inference.shipped import models_of
from afmrl_jax.performance.record import write_record
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.runtime.setup import reported, set_up
from afmrl_jax.types import JsonObject
from experiments.reliability.fuzz.good import png_of
from experiments.reliability.fuzz.guard import Guard, peak_mb
from experiments.reliability.fuzz.mutate import pick
from experiments.reliability.fuzz.pictures import MAKERS, Picture

TOKEN = "only-for-these-requests"
PATHS = ("/search", "/embed", "/attributes", "/v1/embeddings", "/listings", "/thumbnails")
METHODS = ("POST", "POST", "POST", "POST", "PATCH", "DELETE", "GET", "PUT", "OPTIONS")
HEADER = "application/json"
RESULTS = Path(__file__).parents[1] / "results" / "reliability"


@dataclass(frozen=True)
class Settings:
    """What is served, and how many requests."""

    run: Path
    """Run directory, or `demo-weights`."""
    index: Path
    """Is copied; the original is not touched."""
    cases: int = 2000
    uploads: int = 500
    """Further requests, each with a picture from the campaign's makers."""
    seed: int = 0
    out: Path = RESULTS / "hostile_requests.json"
    """JSON file to write."""


@dataclass(frozen=True)
class Case:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    content: bytes
    allowed: bool = field(default=False)
    """Whether it has the token, so that listings may change."""
    wanted: Literal["taken", "refused"] | None = None
    """What must become of it; None where either will do."""


def _picture(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    size = int(rng.integers(1, 60)), int(rng.integers(1, 60))
    kind = str(rng.choice(["PNG", "JPEG", "GIF", "BMP"]))
    Image.new("RGB", size, "teal").save(file, kind)
    data = bytearray(file.getvalue())
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 20))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data[: int(rng.integers(1, len(data) + 1))] if rng.random() < 0.2 else data)


VALUES: tuple[Callable[[np.random.Generator], Any], ...] = (
    lambda rng: None,
    lambda rng: True,
    lambda rng: int(rng.integers(-5, 2000)),
    lambda rng: 10**18,
    lambda rng: 1e308,
    lambda rng: "",
    lambda rng: "a" * int(rng.integers(1, 20_000)),
    lambda rng: "badge \u0000\u001b[2J\u202e",
    lambda rng: "\ud800",
    lambda rng: "../../../../etc/passwd",
    lambda rng: "file:///etc/passwd",
    lambda rng: "http://127.0.0.1:1/x.png",
    lambda rng: "data:image/png;base64,AAAA",
    lambda rng: base64.b64encode(_picture(rng)).decode(),
    lambda rng: [],
    lambda rng: ["price<5", "a" * 600],
    lambda rng: [["price<5"]],
    lambda rng: {},
    lambda rng: {"__class__": "x", "price": 3},
    lambda rng: {"a": {"b": [1, 2, {"c": None}]}},
    lambda rng: ["price<nan", "__import__('os')=1", "'; DROP TABLE listings; --=1"],
    lambda rng: [{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}],
)
NAMES = (
    "text", "image", "k", "where", "attributes", "items", "listings", "listing_id", "title",
    "product_id", "extra", "input", "messages", "encoding_format", "dimensions", "model", "x\u0000",
)  # fmt: skip


def _good(rng: np.random.Generator, path: str) -> dict[str, Any]:
    image = base64.b64encode(_picture(rng)).decode()
    item = {"text": "red badge", "image": image}
    listing = {"listing_id": f"hostile {rng.integers(9)}", "title": "badge", "image": image}
    bodies: dict[str, dict[str, Any]] = {
        "/search": {**item, "k": int(rng.integers(1, 50)), "where": ["price<9"]},
        "/embed": {"items": [item] * int(rng.integers(1, 5))},
        "/attributes": {"items": [item]},
        "/v1/embeddings": {"input": ["a", "b"], "encoding_format": "base64"},
        "/listings": {"listings": [listing]},
        "/thumbnails": {},
    }
    return bodies[path]


def _broken(rng: np.random.Generator, value: Any, depth: int = 0) -> Any:
    """A value with one place of it replaced, added or taken away."""
    if depth > 3 or rng.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return VALUES[int(rng.integers(len(VALUES)))](rng)
    if isinstance(value, list):
        at = int(rng.integers(len(value)))
        return [*value[:at], _broken(rng, value[at], depth + 1), *value[at + 1 :]]
    if rng.random() < 0.3:
        return {**value, str(rng.choice(NAMES)): _broken(rng, None)}
    name = str(rng.choice(list(value)))
    if rng.random() < 0.2:
        return {key: x for key, x in value.items() if key != name}
    return {**value, name: _broken(rng, value[name], depth + 1)}


def _mangled(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes that are no longer what they were."""
    what = int(rng.integers(6))
    if what == 0:
        return data[: int(rng.integers(len(data) + 1))]
    if what == 1:
        return b"[" * int(rng.integers(1, 100_000))
    if what == 2:
        return rng.bytes(int(rng.integers(0, 3000)))
    if what == 3:
        return data.replace(b":", b": NaN, :", 1)
    if what == 4:
        return b'{"k": ' + b"9" * 10_000 + b"}"
    at = int(rng.integers(len(data) + 1))
    return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]


def _form(rng: np.random.Generator, fields: dict[str, Any]) -> tuple[str, bytes]:
    """A form of some fields, often broken."""
    mark = "mark" if rng.random() < 0.8 else "m" * 300
    parts = []
    for name, value in fields.items():
        file = '; filename="../../a.png"' if name == "image" else ""
        text = value if isinstance(value, str) else json.dumps(value)
        data = _picture(rng) if file else text.encode("utf-8", "surrogatepass")
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts.append(head.encode("utf-8", "surrogatepass") + data + b"\r\n")
    body = b"".join(parts) + f"--{mark}--\r\n".encode()
    if rng.random() < 0.4:
        body = _mangled(rng, body)
    return f"multipart/form-data; boundary={mark}", body


def draw(seed: int, number: int) -> Case:
    """The case of a number."""
    rng = np.random.default_rng([seed, number])
    path = str(rng.choice(PATHS))
    value = _good(rng, path)
    for _ in range(int(rng.integers(0, 3))):
        value = _broken(rng, value)
    # Half a surrogate pair only stands in JSON escaped.
    kind, content = HEADER, json.dumps(value).encode()
    if rng.random() < 0.25:
        kind, content = _form(rng, value if isinstance(value, dict) else {"text": "a"})
    elif rng.random() < 0.25:
        content = _mangled(rng, content)
    headers = {"Content-Type": kind}
    allowed = rng.random() < 0.5
    if allowed:
        headers["Authorization"] = f"Bearer {TOKEN}"
    elif rng.random() < 0.3:
        headers["Authorization"] = str(rng.choice(["Bearer", "Bearer \xe9", "Basic a", "x" * 5000]))
    if rng.random() < 0.1:
        headers["Origin"] = str(rng.choice(["null", "https://evil.example", "x", "http://[", ""]))
    if rng.random() < 0.05:
        headers["Host"] = str(rng.choice(["evil", "[::1", "a:b:c", "127.0.0.1:99999999", "a@b"]))
    if rng.random() < 0.05:
        headers["Content-Type"] = str(rng.choice(["", "text/html", "multipart/form-data", "\xe9"]))
    query = ""
    if path in ("/listings", "/thumbnails") and rng.random() < 0.7:
        ids = ["hostile 1", "..%2f..%2fetc%2fpasswd", "%00", "%ff%fe", "a" * 3000, "", "%ed%a0%80"]
        query = f"?listing_id={rng.choice(ids)}"
    if rng.random() < 0.05:
        path = str(rng.choice(["/../etc/passwd", "/search/", "//search", "/%2e%2e/x", "/\xe9"]))
    return Case(str(rng.choice(METHODS)), path + query, headers, content, bool(allowed))


UPLOADS = ("/search", "/search", "/embed", "/attributes", "/listings")
FORMS = ("/search", "/listings")
"""Where a picture may come as a file of a form."""
BOMBS = {"a PNG of 2**31 pixels a side": png_of(2**31 - 1, 2**31 - 1, empty=True)}
BOMBS |= {"a PNG of 5,001 x 5,000": png_of(5001, 5000), "a long PNG": png_of(20_001, 1)}


def draw_upload(seed: int, number: int) -> Case:
    """A request with a picture of some kind, in a form or in JSON."""
    rng = np.random.default_rng([seed, number, 1])
    path, image = str(rng.choice(UPLOADS)), pick(rng, MAKERS)(rng)
    if rng.random() < 0.04:
        name = str(rng.choice(list(BOMBS)))
        image = Picture(name, BOMBS[name], refused=True)
    fields = {"listing_id": f"upload {rng.integers(9)}", "title": "badge"}
    fields = fields if path == "/listings" else {"text": "red badge"}
    wanted: Literal["taken", "refused"] | None = None
    if image.good or image.refused:
        wanted = "taken" if image.good else "refused"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    if path in FORMS and rng.random() < 0.6:
        name = str(rng.choice(["a.png", "../../a.png", "/etc/passwd", "a" * 300, "", "\u202e.gif"]))
        body = [_field(x, value.encode()) for x, value in fields.items()]
        body.append(_field("image", image.data, name))
        content, kind = b"".join(body) + b"--mark--\r\n", "multipart/form-data; boundary=mark"
    else:
        item = fields | {"image": base64.b64encode(image.data).decode()}
        many = {"/search": item, "/listings": {"listings": [item]}}
        content, kind = json.dumps(many.get(path, {"items": [item]})).encode(), HEADER
    return Case("POST", path, headers | {"Content-Type": kind}, content, True, wanted)


def _field(name: str, data: bytes, file: str | None = None) -> bytes:
    """A part of a form with the mark `mark`."""
    named = "" if file is None else f'; filename="{file}"'
    head = f'--mark\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def problem_of(case: Case, status: int, text: str) -> str | None:
    """What is wrong with an answer; None if nothing."""
    if status >= 500 and status != 504:
        return f"status {status}: {text[:200]}"
    for sign in ("Traceback", 'File "', "site-packages", os.path.expanduser("~") + "/"):
        if sign in text:
            return f"shows {sign!r}: {text[:200]}"
    changes = case.path.startswith("/listings") and case.method in ("POST", "PATCH", "DELETE")
    if changes and not case.allowed and status < 400:
        return f"changed listings without the token: {status}"
    if case.wanted == "taken" and status >= 400:
        return f"a good picture is refused: {status}: {text[:200]}"
    if case.wanted == "refused" and status < 400:
        return f"a picture that is none was taken: {status}"
    if "root:x:0" in text:
        return "shows a file of this machine"
    return None


def send(client: Any, case: Case) -> tuple[int, str]:
    """The status and text of an answer; 0 where the client itself refuses to send it."""
    headers = {k.encode(): v.encode("latin-1", "replace") for k, v in case.headers.items()}
    try:
        answer = client.request(
            case.method, case.path, headers=headers, content=case.content, follow_redirects=False
        )
    except (ValueError, UnicodeError) as error:  # No such address can be sent.
        return 0, str(error)
    return answer.status_code, answer.text if "image" not in str(answer.headers) else ""


def run(settings: Settings, scratch: Path) -> tuple[Counter[str], list[str]]:
    """How many answers there were of each kind and status, and what is wrong with some."""
    from starlette.testclient import TestClient

    from afmrl_jax.serving.app import build_app
    from afmrl_jax.serving.engine import Engine
    from afmrl_jax.serving.settings import ServiceSettings

    folder = Path(shutil.copytree(settings.index, scratch / "index"))
    finished, service = models_of(settings.run), ServiceSettings()
    app = build_app(lambda metrics: Engine(finished, folder, service, metrics.batch), service)
    jobs = [("request", draw, n) for n in range(settings.cases)]
    jobs += [("upload", draw_upload, n) for n in range(settings.uploads)]
    statuses, problems, guard = Counter[str](), list[str](), Guard()
    base = "http://127.0.0.1:8080"
    with TestClient(app, base_url=base, raise_server_exceptions=False) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.1)
        with Progress("requests", len(jobs)) as progress, guard.armed(scratch):
            for done, (kind, drawn, number) in enumerate(jobs, 1):
                case = drawn(settings.seed, number)
                status, text = send(client, case)
                statuses[f"{kind} {status}"] += 1
                if (problem := problem_of(case, status, text)) is not None:
                    problems.append(f"{kind} {number}: {case.method} {case.path}: {problem}")
                progress.update(done)
    left = {x.name for x in scratch.iterdir()} - {"index", "tmp"}
    problems += [f"outside: {x}" for x in [*guard.found, *sorted(left)]]
    return statuses, problems


def main(settings: Settings) -> None:
    """Send all cases; exit status 1 if one fails."""
    from afmrl_jax.serving.settings import TOKEN_VARIABLE

    set_up()
    os.environ[TOKEN_VARIABLE] = TOKEN
    warnings.simplefilter("ignore")  # Of decoders; there are many odd pictures.
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "tmp").mkdir()
        # Where forms keep large parts.
        tempfile.tempdir = str(Path(scratch) / "tmp")
        statuses, problems = run(settings, Path(scratch))
        tempfile.tempdir = None
    figures = {"requests": settings.cases, "uploads": settings.uploads, "problems": len(problems)}
    figures |= {"seed": settings.seed, "peak_mb": peak_mb()}
    details: list[JsonObject] = [dict(sorted(statuses.items()))]
    details += [{"problem": x} for x in problems]
    write_record(settings.out, "hostile_requests", figures, details)
    print(dict(sorted(statuses.items())))
    if problems:
        total = settings.cases + settings.uploads
        raise RunError(f"{len(problems)} of {total} failed:\n" + "\n".join(problems[:20]))


if __name__ == "__main__":
    with reported():
        main(tyro.cli(Settings, description=__doc__))
