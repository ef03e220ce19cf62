"""What a service answers is what the library gives."""

import base64
import dataclasses
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.errors import RunError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.runs.embed import embed_catalogue
from afmrl_jax.runs.living.filters import parse_where
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.runs.search import Query, Searcher
from afmrl_jax.runtime.compilation import compiling
from afmrl_jax.serving.settings import Limits
from afmrl_jax.serving.shapes import KINDS
from tests.serving.conftest import WRITE, coded, picture, serving


@pytest.fixture(scope="module")
def embedder(run):
    return Embedder.of(run, run.system("agcl+distilled"))


def results(answer):
    assert answer.status_code == 200, answer.text
    return [(x["listing_id"], x["score"]) for x in answer.json()["results"]]


def same(found, wanted):
    """The same listings, but for those whose scores differ by no more than they are rounded."""
    np.testing.assert_allclose([x for _, x in found], [x for _, x in wanted], atol=1e-4)
    known, last = dict(wanted), wanted[-1][1] if wanted else 0
    for listing, score in found:
        assert abs(score - known.get(listing, last)) < 2e-4, listing


def test_a_search_finds_what_the_command_finds(client, run, embedded, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(picture(3))
    searcher = Searcher(run, embedded)
    for text, image in [("red circle", None), (None, path), ("red circle", path)]:
        for where in ([], ["price<12", "title~badge"]):
            (found,) = searcher.search([Query.of("q", text, image)], 5, parse_where(where))
            wanted = [(x["listing_id"], x["score"]) for x in found.results]
            asked = {"k": 5, "where": where, "attributes": "auto" if image is None else "on"}
            asked |= {} if text is None else {"text": text}
            if image is not None and text is None:
                asked["attributes"] = "off"
            as_json = asked | ({} if image is None else {"image": coded(path.read_bytes())})
            answer = client.post("/search", json=as_json)
            same(results(answer), wanted)
            assert (answer.json().get("attributes") or {}).get("text", "") == found.attributes
            files = {"image": ("photo.png", path.read_bytes())} if image else {}
            files |= {"attributes": (None, asked.pop("attributes"))}
            same(results(client.post("/search", data=asked, files=files)), wanted)
    hit = client.post("/search", json={"text": "badge", "k": 1}).json()["results"][0]
    assert set(hit) >= {"title", "product_id", "attributes", "extra", "thumbnail"}
    small = client.get(hit["thumbnail"])
    assert small.headers["content-type"] == "image/jpeg"
    assert small.content[:2] == b"\xff\xd8"


def test_vectors_are_those_of_the_library(client, embedder):
    items = [{"text": "a red badge"}, {"image": coded(picture(1)), "text": "badge"}]
    items += [{"text": "badge", "attributes": {"shape": "ring"}}, {"image": coded(picture(2))}] * 4
    plain = [x | {k: base64.b64decode(v) for k, v in x.items() if k == "image"} for x in items]
    found = client.post("/embed", json={"items": items}).json()
    np.testing.assert_allclose(found["vectors"], embedder.encode(plain), atol=1e-5)
    assert (found["dim"], found["embedder"]) == (embedder.dim, embedder.identity)


def test_the_shape_of_openai(client, embedder):
    texts = ["a red badge", "blue"]
    wanted = embedder.encode(texts)
    found = client.post("/v1/embeddings", json={"input": texts, "model": "any"}).json()
    assert (found["object"], [x["index"] for x in found["data"]]) == ("list", [0, 1])
    np.testing.assert_allclose([x["embedding"] for x in found["data"]], wanted, atol=1e-5)
    assert found["usage"]["prompt_tokens"] > 0
    coded_answer = client.post(
        "/v1/embeddings", json={"input": texts[0], "encoding_format": "base64", "dimensions": 8}
    ).json()["data"][0]["embedding"]
    short = np.frombuffer(base64.b64decode(coded_answer), "<f4")
    np.testing.assert_allclose(short, wanted[0, :8] / np.linalg.norm(wanted[0, :8]), atol=1e-5)
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + coded(picture(1))}},
        {"type": "text", "text": "badge"},
    ]
    message = client.post("/v1/embeddings", json={"messages": [{"role": "user", "content": parts}]})
    both = embedder.encode([{"text": "badge", "image": picture(1)}])
    np.testing.assert_allclose([message.json()["data"][0]["embedding"]], both, atol=1e-5)
    said = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "shape: circle"},
    ]
    message = client.post("/v1/embeddings", json={"messages": said})
    told = {"text": "badge", "image": picture(1), "attributes": "shape: circle"}
    wanted = embedder.encode([told])
    np.testing.assert_allclose([message.json()["data"][0]["embedding"]], wanted, atol=1e-5)
    two = client.post(
        "/v1/embeddings", json={"messages": [{"role": "user", "content": [*parts, parts[0]]}]}
    )
    assert (two.status_code, "2 pictures; the models read 1" in two.text) == (422, True)


def test_chat_completions_are_the_generators_lists(client, embedder):
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + coded(picture(1))}},
        {"type": "text", "text": "badge"},
    ]
    said = [{"role": "user", "content": parts}]
    found = client.post("/v1/chat/completions", json={"messages": said, "temperature": 0}).json()
    wanted = embedder.generator.write([{"text": "badge", "image": picture(1)}])
    assert [x["message"]["content"] for x in found["choices"]] == wanted
    assert found["object"] == "chat.completion"
    for body, why in [
        ({"messages": said, "stream": True}, "stream"),
        ({"messages": [*said, {"role": "assistant", "content": "a: b"}]}, "leave it out"),
        ({"messages": [{"role": "user", "content": "badge"}]}, "needs one"),
        ({"messages": []}, "messages"),
    ]:
        answer = client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, why in answer.text) == (422, True)


def test_several_pictures_are_read_as_by_the_run(run, badge_shop, tmp_path, monkeypatch):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["image"]["max_pictures"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    own, catalogue = FinishedRun(folder), load_catalogue(badge_shop)
    few = dataclasses.replace(catalogue, listings=catalogue.listings[:3])
    embed_catalogue(own, "agcl+distilled", few, tmp_path / "index")
    embedder = Embedder.of(own, own.system("agcl+distilled"))
    shown = [picture(n) for n in (1, 2)]
    with serving(own, tmp_path / "index", monkeypatch) as client:
        before = compiling()
        for given in (shown, shown[:1]):
            item = {"text": "badge", "image": [coded(x) for x in given]}
            found = client.post("/embed", json={"items": [item]}).json()["vectors"]
            served = compiling().since(before).programs
            wanted = embedder.encode([{"text": "badge", "image": given}])
            np.testing.assert_allclose(found, wanted, atol=1e-5)
            assert served == 0
            before = compiling()
        three = {"text": "badge", "image": [coded(shown[0])] * 3}
        answer = client.post("/embed", json={"items": [three]})
        assert (answer.status_code, "3 pictures; the models read 2" in answer.text) == (422, True)
        new = {"listing_id": "two", "title": "badge", "image": [coded(x) for x in shown]}
        assert client.post("/listings", json={"listings": [new]}, headers=WRITE).status_code == 200
        entry = client.service.engine.index.entry("two")
        told = {"text": "badge", "image": shown, "attributes": entry.line["attributes"]}
        np.testing.assert_allclose(entry.vector, embedder.encode([told])[0], atol=1e-5)


def test_attributes_are_those_of_the_generator(client, embedder):
    given = [{"image": picture(n), "text": "badge"} for n in range(3)]
    items = [{**x, "image": coded(x["image"])} for x in given]
    found = client.post("/attributes", json={"items": items}).json()["attributes"]
    assert [x["text"] for x in found] == embedder.generator.write(given)
    answer = client.post("/attributes", json={"items": [{"text": "badge"}]})
    assert (answer.status_code, "needs one" in answer.text) == (422, True)


def test_nothing_is_compiled_once_it_is_ready(client):
    before = compiling()
    for n in (1, 3, 8, 17):
        items = [{"text": "word " * (5 * m + 1), "image": coded(picture(m))} for m in range(n)]
        items += [{"text": "a badge", "attributes": "shape: ring; color: red"}] * n
        assert client.post("/embed", json={"items": items[:32]}).status_code == 200
        asked = {"text": "badge", "image": coded(picture(n)), "attributes": "on", "k": 7 * n % 100}
        assert client.post("/search", json=asked | {"k": 7 * n % 99 + 1}).status_code == 200
    assert compiling().since(before).programs == 0
    text = client.get("/metrics").text
    assert 'afmrl_requests_total{path="/search",status="200"}' in text
    assert "afmrl_ready 1.0" in text


@pytest.mark.parametrize("singly", [1, 7])
def test_requests_at_once_share_batches_and_agree(client, monkeypatch, singly):
    """Whether up to so many of a batch are worked on one by one, or all of it at once."""
    engine, sizes = client.service.engine, []
    assert set(engine._singly) >= {*KINDS, "search few", "search many", "write"}
    monkeypatch.setattr(engine, "_singly", dict.fromkeys(engine._singly, singly))
    work = engine._batcher._work

    def counted(kind, items):
        sizes.append(len(items))
        return work(kind, items)

    monkeypatch.setattr(engine._batcher, "_work", counted)
    monkeypatch.setattr(engine, "_wait", lambda kind: 0.05)
    monkeypatch.setattr(engine._batcher, "_wait", lambda kind: 0.05)
    texts = [f"badge {n}" for n in range(16)]
    one = [results(client.post("/search", json={"text": x})) for x in texts]
    sizes.clear()
    with ThreadPoolExecutor(16) as pool:
        many = list(pool.map(lambda x: results(client.post("/search", json={"text": x})), texts))
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose([x for _, x in a], [x for _, x in b], atol=1e-4)
    assert max(sizes) > 1
    assert sum(sizes) == 32


def test_listings_come_change_and_go_and_outlive_the_service(run, embedded, tmp_path, monkeypatch):
    folder = shutil.copytree(embedded, tmp_path / "index")
    photo = picture(77, "square", "blue")
    new = {"listing_id": "new/1 é", "title": "a new badge", "image": coded(photo)}
    new["extra"] = {"price": 9.5}
    # Models of this run read one picture, and a listing may have more.
    new["image"] = [new["image"], coded(picture(5))]
    with serving(run, folder, monkeypatch) as client:
        with pytest.raises(RunError, match="another"):
            LivingIndex(folder, writer="afmrl index add")
        answer = client.post("/listings", json={"listings": [new]}, headers=WRITE)
        assert answer.json() == {"changed": 1, "listings": 31}
        form = {"listing_id": "new-2", "title": "another", "extra": json.dumps({"price": 3})}
        answer = client.post("/listings", data=form, files={"image": photo}, headers=WRITE)
        assert answer.json() == {"changed": 1, "listings": 32}
        asked = {"image": coded(photo), "text": "a new badge", "attributes": "on", "k": 1}
        (hit,) = client.post("/search", json=asked).json()["results"]
        assert hit["listing_id"] == "new/1 é"
        assert hit["score"] > 0.999
        assert client.get(hit["thumbnail"]).status_code == 200
        change = {"listing_id": "new/1 é", "extra": {"price": 1, "stock": 2}}
        assert client.patch("/listings", json=change, headers=WRITE).status_code == 200
        gone = client.delete("/listings", params={"listing_id": ["new-2"]}, headers=WRITE)
        assert gone.json()["listings"] == 31
        shown = client.get("/listings", params={"listing_id": "new/1 é"}).json()
        assert (shown["extra"], "content" in shown) == ({"price": 1, "stock": 2}, False)
        assert client.get("/listings", params={"listing_id": "new-2"}).status_code == 404
        again = client.delete("/listings", params={"listing_id": ["new-2"]}, headers=WRITE)
        assert again.status_code == 409
    with LivingIndex(folder, writer="afmrl index add") as index:
        assert index.shown("new/1 é") == shown
        assert len(index) == 31
        assert index.entry("new/1 é").thumbnail


def refused(answer, status, reason):
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text


def test_what_cannot_be_used_is_named(client):
    good = {"listing_id": "a", "title": "t", "image": coded(picture(1))}
    for row, reason in [
        ({**good, "title": " "}, "listings[0]: 'title' is empty"),
        ({**good, "listing_id": "a\u0000"}, "control characters"),
        ({**good, "image": coded(b"no picture")}, "cannot be read"),
        ({**good, "image": "/etc/passwd"}, "base64"),
        ({**good, "extra": {"image": "/etc/passwd"}}, "listing's own"),
        ({**good, "extra": {"a": "x" * 2000}}, "longer than"),
        ({**good, "attributes": "a: b"}, "no attributes are taken"),
        ({**good, "other": 1}, "other"),
    ]:
        refused(client.post("/listings", json={"listings": [row]}, headers=WRITE), 422, reason)
    twice = {"listings": [good, good]}
    refused(client.post("/listings", json=twice, headers=WRITE), 422, "repeated")
    for asked, reason in [
        ({}, "give a text"),
        ({"text": "a", "k": 0}, "k"),
        ({"text": "a", "k": 101}, "100 at most"),
        ({"text": "a", "k": "5"}, "k"),
        ({"text": "a", "where": ["price"]}, "NAME OPERATOR VALUE"),
        ({"text": "a", "where": ["prize<3"]}, "there are listing_id"),
        ({"text": "a", "attributes": "on"}, "no attributes can be written"),
        ({"text": "x" * 10_001}, "text"),
    ]:
        refused(client.post("/search", json=asked), 422, reason)
    assert len(client.service.engine.index) == 30


def test_only_the_token_writes(client, run, embedded, monkeypatch):
    body = {"listing_id": "old", "extra": {"a": 1}}
    for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {WRITE}"}):
        for method in ("POST", "PATCH", "DELETE"):
            answer = client.request(method, "/listings?listing_id=x", json=body, headers=headers)
            refused(answer, 401, "Bearer")
    monkeypatch.setattr(client.service, "token", None)
    refused(client.patch("/listings", json=body, headers=WRITE), 403, "without a token")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:8080"}, 421),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": "localhost:1"}, 200),
    ],
)
def test_no_foreign_page_gets_an_answer(client, headers, status):
    headers = {"Content-Type": "application/json", **WRITE, **headers}
    answer = client.post("/search", content=b'{"text": "badge"}', headers=headers)
    assert answer.status_code == status
    assert "set-cookie" not in answer.headers
    assert not any(x.startswith("access-control") for x in answer.headers)


def test_too_much_is_said_to_be_too_much(client):
    limits = client.service.settings.limits
    big = b"x" * (limits.body_bytes + 1)
    kind = {"Content-Type": "application/json"}
    refused(client.post("/embed", content=big, headers=kind), 413, "bytes")
    pieces = (big[:1000] for _ in range(limits.body_bytes // 1000 + 2))
    refused(client.post("/embed", content=pieces, headers=kind), 413, "bytes")
    many = {"items": [{"text": "a"}] * (limits.items + 1)}
    refused(client.post("/embed", json=many), 422, "may have 32")
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (6000, 6000)).save(file, "PNG")
    refused(client.post("/search", json={"image": coded(file.getvalue())}), 422, "pixels")


def test_a_full_and_a_slow_service_say_so(run, embedded, tmp_path, monkeypatch):
    folder = shutil.copytree(embedded, tmp_path / "index")
    limits = Limits(requests=2, seconds=1.0)
    with serving(run, folder, monkeypatch, limits=limits) as client:
        blocked = threading.Event()
        work = client.service.engine._batcher._work
        monkeypatch.setattr(
            client.service.engine._batcher, "_work", lambda *x: blocked.wait(20) and work(*x)
        )
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: client.post("/search", json={"text": "a"}), range(3)))
        assert sorted(x.status_code for x in answers) == [429, 504, 504]
        full = next(x for x in answers if x.status_code == 429)
        assert full.headers["retry-after"]
        assert client.get("/healthz").status_code == 200
        blocked.set()
        assert client.post("/search", json={"text": "a"}).status_code == 200


def test_it_is_documented(client):
    document = client.get("/openapi.json").json()
    assert {"/search", "/embed", "/attributes", "/listings", "/v1/embeddings"} <= set(
        document["paths"]
    )
    content = document["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    page = client.get("/docs")
    assert "POST /search" in page.text
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
