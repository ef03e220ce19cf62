"""Embedding a catalogue, updating it, and what damage to the folder leads to."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter

import ml_dtypes
import numpy as np
import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import AfmrlError, CatalogueError, ConfigError, RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import Index, IndexSettings
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runs import embed as embedding
from afmrl_jax.runs import embedded as embedded_folder
from afmrl_jax.runs.embed import embed_catalogue
from afmrl_jax.runs.embedded import content_of, contents_of
from afmrl_jax.runs.search import Query, Searcher, read_queries
from afmrl_jax.runtime.outputs import only_writer
from afmrl_jax.testing import draw_badge, write_badge_catalogue
from afmrl_jax.training.annotate import write_attributes


@pytest.fixture(scope="module")
def run(written_run):
    return FinishedRun(written_run)


@pytest.fixture
def shop(tmp_path):
    return write_badge_catalogue(tmp_path / "shop", listings_per_product=1)


def records(shop):
    return [json.loads(x) for x in (shop / "listings.jsonl").read_text().splitlines()]


def write(shop, rows):
    (shop / "listings.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))


def embed(run, shop, out, **options):
    options = {"system_name": "infonce"} | options
    embed_catalogue(run, catalogue=load_catalogue(shop), out=out, **options)
    return out


@pytest.fixture(scope="module")
def embedded_once(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("embedded")
    shop = write_badge_catalogue(root / "shop", listings_per_product=1)
    return embed(run, shop, root / "index")


@pytest.fixture
def embedded(embedded_once, tmp_path):
    return shutil.copytree(embedded_once, tmp_path / "index")


@pytest.fixture
def seen(monkeypatch):
    """How many rows the encoder has seen, call by call."""
    counts, embed_rows = [], Encoder.embed_rows

    def counted(self, builder, rows, **options):
        counts.append(len(rows))
        return embed_rows(self, builder, rows, **options)

    monkeypatch.setattr(Encoder, "embed_rows", counted)
    return counts


def vectors_of(out, kind="exact"):
    index = json.loads((out / "index" / "index.json").read_text())
    name = "vectors.npy" if kind == "exact" else "dataset.npy"
    return dict(zip(index["ids"], np.load(out / "index" / name), strict=True))


def files(folder):
    return {x.name: x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def changed(shop):
    """One listing gone, one with another title, one with another picture, ten new, one moved."""
    rows = records(shop)
    gone = rows.pop(3)["listing_id"]
    rows[0]["title"] += " again"
    (shop / rows[1]["image"]).write_bytes(
        draw_badge("circle", "red", "z", np.random.default_rng(8))
    )
    new = [dict(x, listing_id=f"new-{n}") for n, x in enumerate(rows[-10:])]
    rows[5]["product_id"], rows[6]["product_id"] = rows[6]["product_id"], rows[5]["product_id"]
    write(shop, [rows[2], *rows[:2], *new, *rows[3:]])
    return gone, [rows[0]["listing_id"], rows[1]["listing_id"]], [x["listing_id"] for x in new]


@pytest.mark.parametrize(
    "settings", [None, IndexSettings(dtype="bfloat16"), IndexSettings(kind="scann")]
)
def test_an_update_costs_what_is_new_and_equals_embedding_anew(run, shop, tmp_path, seen, settings):
    kind = "scann" if settings and settings.kind == "scann" else "exact"
    out = embed(run, shop, tmp_path / "index", settings=settings)
    before = vectors_of(out, kind)
    _, other, new = changed(shop)
    seen.clear()
    embed(run, shop, out, update=True)
    assert sum(seen) == len(other) + len(new) == 12
    fresh = embed(run, shop, tmp_path / "fresh", settings=settings)
    ids = [x["listing_id"] for x in records(shop)]
    assert list(vectors_of(out, kind)) == list(vectors_of(fresh, kind)) == ids
    assert files(out)["listings.jsonl"] == files(fresh)["listings.jsonl"]
    for listing, vector in vectors_of(out, kind).items():
        if listing not in {*other, *new}:
            np.testing.assert_array_equal(vector, before[listing])
        elif vector.dtype == np.float32:
            np.testing.assert_allclose(vector, vectors_of(fresh, kind)[listing], atol=1e-5)
        else:
            one, two = (
                x.view(ml_dtypes.bfloat16).astype(np.float32)
                for x in (vector, vectors_of(fresh, kind)[listing])
            )
            np.testing.assert_allclose(one, two, atol=1e-2)
    assert {x.name for x in tmp_path.iterdir()} == {"shop", "index", "fresh"}
    seen.clear()
    embed(run, shop, out, update=True)
    assert not seen, "nothing has changed"
    assert files(out)["listings.jsonl"] == files(fresh)["listings.jsonl"]


def test_an_update_asks_the_generator_only_for_what_is_new(run, shop, tmp_path, monkeypatch):
    from afmrl_jax.training import annotate

    asked = []

    def counted(architecture, params, builder, indices, **options):
        asked.append(len(indices))
        return write_attributes(architecture, params, builder, indices, **options)

    monkeypatch.setattr(annotate, "write_attributes", counted)
    options = {"system_name": "agcl+distilled"}
    out = embed(run, shop, tmp_path / "index", **options)
    changed(shop)
    embed(run, shop, out, update=True, **options)
    assert asked == [30, 12]
    fresh = embed(run, shop, tmp_path / "fresh", **options)
    assert files(out)["listings.jsonl"] == files(fresh)["listings.jsonl"]
    texts = tmp_path / "index.attributes.jsonl"
    known = {x["listing_id"] for x in map(json.loads, texts.read_text().splitlines())}
    assert known == {x["listing_id"] for x in records(shop)}
    # A change of what the embedder reads is a change of the listing.
    lines = [json.loads(x) for x in texts.read_text().splitlines()]
    lines[0]["attributes"] = "shape: ring"
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps(x) + "\n" for x in lines))
    before = vectors_of(out)
    embed(run, shop, out, update=True, attributes=given, **options)
    apart = [x for x, vector in vectors_of(out).items() if (vector != before[x]).any()]
    assert apart == [lines[0]["listing_id"]]
    with pytest.raises(RunError, match="has attributes of file, not of the generator"):
        embed(run, shop, out, update=True, **options)


def test_another_price_in_a_table_is_shown_and_embeds_nothing(
    run, written_run, shop, tmp_path, seen, capsys
):
    path, out = shop / "products.csv", tmp_path / "index"

    def command(price):
        rows = [(x["listing_id"], x["title"], x["image"], price) for x in records(shop)]
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter=";").writerows([("sku", "name", "image", "price"), *rows])
        columns = "listing_id=sku,product_id=sku,title=name"
        given = ["--run", str(written_run), "--catalogue", str(path), "--columns", columns]
        cli.main(["embed", *given, "--system", "infonce", "--out", str(out), "--update"])

    command("9,90")
    assert sum(seen) == 30
    command("8,90")
    assert sum(seen) == 30
    (found,) = Searcher(run, out).search([Query("q", "badge")], 2)
    assert [x["extra"] for x in found.results] == [{"price": "8,90"}] * 2
    capsys.readouterr()
    cli.main(["search", "--run", str(written_run), "--index", str(out), "--text", "badge"])
    assert "  price: 8,90\n" in capsys.readouterr().out


def test_an_update_of_nothing_embeds_everything(run, shop, tmp_path, seen):
    embed(run, shop, tmp_path / "index", update=True)
    assert sum(seen) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system_name": "agcl+distilled"}, "has another system: infonce, not agcl"),
        ({"settings": IndexSettings(dtype="bfloat16")}, "has another index"),
    ],
)
def test_an_update_of_another_kind_is_refused(run, shop, embedded, options, message):
    before = files(embedded)
    with pytest.raises(RunError, match=f"{message}.*leave --update out"):
        embed(run, shop, embedded, update=True, **options)
    assert files(embedded) == before


@pytest.mark.parametrize("name", ["embedder", "reads"])
def test_an_update_by_another_embedder_is_refused(run, shop, embedded, name):
    about = json.loads((embedded / "embedded.json").read_text())
    (embedded / "embedded.json").write_text(json.dumps(about | {name: "other"}))
    with pytest.raises(RunError, match=r"has another .*: other, not .*leave --update out"):
        embed(run, shop, embedded, update=True)


def test_a_killed_update_leaves_the_old_index_and_goes_on(run, written_run, shop, tmp_path, seen):
    """Killed while vectors are kept, and while the folder is written."""
    out = embed(run, shop, tmp_path / "index")
    before = files(out)
    changed(shop)
    code = """
        import os, signal, sys
        from afmrl_jax.cli import main
        from afmrl_jax.retrieval import vector_file
        from afmrl_jax.runs import embed
        embed.CHUNK_BATCHES = 1
        dies = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv.pop(1) == "vectors":
            vector_file.VectorFile.append = dies
        else:
            embed.About.write = dies
        main.main(sys.argv[1:])
    """
    command = [
        *("embed", "--run", written_run, "--catalogue", shop, "--out", out),
        *("--system", "infonce", "--update"),
    ]
    for moment in ("vectors", "folder"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), moment, *map(str, command)],
            capture_output=True,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
        assert files(out) == before
        assert Searcher(run, out).search([Query.of("q", "red badge", None)], 3)[0].results
    seen.clear()
    embed(run, shop, out, update=True)
    assert not seen, "its vectors were kept"
    assert list(vectors_of(out)) == [x["listing_id"] for x in records(shop)]
    assert {x.name for x in tmp_path.iterdir()} == {"shop", "index"}


@pytest.fixture
def reads(monkeypatch):
    """How often `embed_catalogue` read each listing's picture file."""
    counts, read, begin = Counter(), Listing.read_image_bytes, embedding.require_own_output

    def begins(*given, **options):
        # Before, the catalogue was checked.
        counts.clear()
        begin(*given, **options)

    def counted(self, place=0):
        if isinstance(self.pictures[place], str):
            counts[self.listing_id] += 1
        return read(self, place)

    monkeypatch.setattr(Listing, "read_image_bytes", counted)
    monkeypatch.setattr(embedding, "require_own_output", begins)
    return counts


def test_every_picture_is_read_once(run, shop, tmp_path, reads):
    out = embed(run, shop, tmp_path / "index")
    assert reads == Counter(x["listing_id"] for x in records(shop))
    changed(shop)
    embed(run, shop, out, update=True)
    assert reads == Counter(x["listing_id"] for x in records(shop))


@pytest.mark.parametrize("other", [False, True])
def test_a_killed_call_goes_on_only_if_it_saw_the_same_pictures(
    run, shop, tmp_path, monkeypatch, seen, reads, other
):
    def dies(self, folder):
        raise KeyboardInterrupt

    out = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(embedded_folder.About, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            embed(run, shop, out)
    assert not out.exists()
    if other:
        picture = draw_badge("circle", "red", "z", np.random.default_rng(8))
        (shop / records(shop)[1]["image"]).write_bytes(picture)
    seen.clear()
    embed(run, shop, out)
    assert sum(seen) == (30 if other else 0)
    assert set(reads.values()) == {2 if other else 1}
    fresh = embed(run, shop, tmp_path / "fresh")
    for name in ("listings.jsonl", "vectors.npy"):
        assert files(out)[name] == files(fresh)[name]
    assert {x.name for x in tmp_path.iterdir()} == {"shop", "index", "fresh"}


def test_parts_hold_full_batches_or_so_many_listings(monkeypatch):
    monkeypatch.setattr(embedding, "PART", 5)
    new, kept = embedding._Read("", row=Row([], [], 0)), embedding._Read("", place=0)
    listings = [new if x == "n" else kept for x in "nnnkknkkkkkkknkn"]
    parts = [[x is new for x in part] for part in embedding._parts(listings, 2)]
    assert [x for part in parts for x in part] == [x is new for x in listings]
    assert [(len(x), sum(x)) for x in parts] == [(2, 2), (4, 2), (5, 0), (5, 2)]


def test_contents_come_in_the_order_of_the_listings(shop, monkeypatch):
    monkeypatch.setattr(embedded_folder, "READ_AT_ONCE", 7)
    listings = load_catalogue(shop).listings
    found = contents_of(listings)
    assert found == [content_of(x, [x.read_image_bytes()]) for x in listings]
    assert len(set(found)) == len(listings) == 30


def test_of_two_at_once_the_second_is_told(run, shop, tmp_path):
    # S3: two writers shared one file of vectors.
    out = tmp_path / "index"
    told = pytest.raises(RunError, match=r"another `afmrl embed` is writing .*; wait")
    with only_writer(out, "afmrl embed"), told:
        embed(run, shop, out)
    embed(run, shop, out)


def test_embed_replaces_no_catalogue(run, shop):
    # S1
    before = files(shop)
    with pytest.raises(ConfigError, match=r"not written by `afmrl embed`.*images, listings\.jsonl"):
        embed(run, shop, shop)
    assert files(shop) == before
    assert {x.name for x in shop.parent.iterdir()} == {"shop"}


def test_embed_replaces_nothing_that_lies_in_its_output(run, shop, embedded):
    # S1
    (embedded / "index" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"index/notes\.txt, not written by"):
        embed(run, shop, embedded)
    assert (embedded / "index" / "notes.txt").read_text() == "mine"


def test_annotating_over_the_listings_is_refused(written_run, shop, capsys):
    # S1
    before = files(shop)
    for command in ("annotate", "oracle"):
        options = ["--catalogue", str(shop), "--out", str(shop / "listings.jsonl")]
        more = ["--url", "http://localhost:1", "--model", "m"]
        options += ["--run", str(written_run)] if command == "annotate" else more
        with pytest.raises(SystemExit):
            cli.main([command, *options])
        assert "would be replaced" in capsys.readouterr().err
    assert files(shop) == before


@pytest.mark.parametrize("options", [(), ("--as-json",)], ids=["table", "json"])
def test_what_a_search_finds_does_not_control_the_terminal(
    run, written_run, shop, tmp_path, capsys, options
):
    # S9
    catalogue = load_catalogue(shop)
    object.__setattr__(catalogue.listings[3], "title", "chair \x1b]0;own\x07 \u202eseat")
    embed_catalogue(run, "infonce", catalogue, tmp_path / "index")
    capsys.readouterr()
    asked = ["--run", str(written_run), "--index", str(tmp_path / "index"), "-k", "30"]
    cli.main(["search", *asked, "--text", "chair", *options])
    told = capsys.readouterr().out
    assert "own" in told
    assert not set(told) & set("\x1b\x07\u202e")


def test_half_a_surrogate_pair_is_said_before_anything_is_embedded(run, shop, tmp_path, seen):
    # F3
    catalogue = load_catalogue(shop)
    object.__setattr__(catalogue.listings[3], "title", "chair \ud800")
    with pytest.raises(CatalogueError, match="half of a surrogate pair"):
        embed_catalogue(run, "infonce", catalogue, tmp_path / "index")
    assert not seen


def rewritten(change):
    """A damage to the listings' lines."""

    def damage(folder):
        path = folder / "listings.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return damage


def swap_vectors(folder):
    path = folder / "index" / "vectors.npy"
    found = np.load(path)
    found[[0, 1]] = found[[1, 0]]
    np.save(path, found)


def replaced(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def without_system(folder):
    about = json.loads((folder / "embedded.json").read_text())
    del about["system"]
    (folder / "embedded.json").write_text(json.dumps(about))


def link_to_zero(folder):
    (folder / "listings.jsonl").unlink()
    (folder / "listings.jsonl").symlink_to("/dev/zero")


DAMAGE = {
    # W4: joined by number of line, a wrong title was shown with a right score.
    "shuffled": (rewritten(lambda x: x[::-1]), "listings.jsonl is not what was written"),
    "cut": (rewritten(lambda x: x[:-1]), "listings.jsonl is not what was written"),
    "foreign": (
        rewritten(lambda x: [x[0].replace("circle", "square"), *x[1:]]),
        "listings.jsonl is not what was written",
    ),
    "swapped": (swap_vectors, "vectors.npy is not what was written"),
    # F13, F16, F17
    "no vectors": (lambda x: (x / "index/vectors.npy").unlink(), "vectors.npy cannot be read"),
    "no listings": (lambda x: (x / "listings.jsonl").unlink(), "listings.jsonl cannot be read"),
    "no system": (without_system, "embedded.json: system: field required"),
    "a list": (replaced("embedded.json", b"[]"), "embedded.json: input should be an object"),
    "not UTF-8": (replaced("embedded.json", b'{"system": "\xac"}'), "is not UTF-8"),
    "deep": (replaced("embedded.json", b"[" * 100_000), "nested deeper"),
    "index": (replaced("index/index.json", b"[]"), "index.json is not what was written"),
    "endless": (link_to_zero, "listings.jsonl is not what was written"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_when_the_folder_is_read(run, embedded, name):
    damage, message = DAMAGE[name]
    damage(embedded)
    with pytest.raises(RunError, match=message) as caught:
        Searcher(run, embedded)
    assert "embed the catalogue again" in str(caught.value)


def old(folder):
    """The folder as versions before the first format wrote it."""
    for name in ("embedded.json", "index/index.json"):
        about = json.loads((folder / name).read_text())
        for key in ("format", "files", "reads", "embedder", "settings", "attributes"):
            if key != "embedder" or name == "embedded.json":
                about.pop(key, None)
        (folder / name).write_text(json.dumps(about))
    return folder


def test_an_older_folder_is_read_and_joined_by_id(run, shop, embedded):
    # W4
    query = [Query.of("q", records(shop)[4]["title"], None)]
    wanted = Searcher(run, embedded).search(query, 5)
    rewritten(lambda x: x[::-1])(old(embedded))
    assert Searcher(run, embedded).search(query, 5) == wanted
    with pytest.raises(RunError, match="older version; leave --update out"):
        embed(run, shop, embedded, update=True)
    embed(run, shop, embedded)
    assert "content" not in wanted[0].results[0]


OLD_DAMAGE = {
    "cut": (rewritten(lambda x: x[:-2]), "lacks listing .* and 1 more"),
    "twice": (rewritten(lambda x: [*x, x[0]]), r"listings.jsonl:31: .* stands twice"),
    "foreign": (
        rewritten(lambda x: [x[0].replace('"listing_id": "', '"listing_id": "x'), *x[1:]]),
        r"listings.jsonl:1: listing 'x.*' is not in the index",
    ),
    "lists": (rewritten(lambda x: ["[1]\n", *x[1:]]), "listings.jsonl:1 is not an object"),
    "empty": (replaced("listings.jsonl", b""), "listings.jsonl cannot be read"),
    "endless": (link_to_zero, "is a pipe or a device"),
    # F13
    "no vectors": (lambda x: (x / "index/vectors.npy").unlink(), "vectors.npy holds no vectors"),
    "cut vectors": (replaced("index/vectors.npy", b"\x93NUMPY\1\0"), "holds no vectors"),
    "objects": (
        lambda x: np.save(x / "index/vectors.npy", np.array([[{}]], object), allow_pickle=True),
        "holds no vectors",
    ),
    "other vectors": (
        lambda x: np.save(x / "index/vectors.npy", np.zeros((2, 3), np.float32)),
        r"holds float32 \[2, 3\], not 30 vectors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD_DAMAGE)
def test_damage_to_an_older_folder_is_found_by_its_ids(run, embedded, name):
    damage, message = OLD_DAMAGE[name]
    damage(old(embedded))
    with pytest.raises(RunError, match=message) as caught:
        Searcher(run, embedded)
    assert name == "endless" or "embed the catalogue again" in str(caught.value)


def test_a_folder_of_a_newer_version_is_refused(run, embedded):
    about = json.loads((embedded / "embedded.json").read_text())
    (embedded / "embedded.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(RunError, match="format 99 of a newer version; update afmrl-jax"):
        Searcher(run, embedded)


def test_more_results_than_listings_are_all_listings(run, embedded):
    (found,) = Searcher(run, embedded).search([Query.of("q", "red badge", None)], 10**9)
    assert len(found.results) == 30


def test_an_index_is_not_saved_over_something_else(run, shop, embedded):
    # S1
    index = Index.load(embedded)
    before = files(shop)
    with pytest.raises(RunError, match=r"not written by `Index\.save`"):
        index.save(shop)
    assert files(shop) == before
    index.save(embedded / "index")


# F16
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xff"}', "is not UTF-8"),
        (b"[" * 100_000, "nested deeper"),
        (b"[1, 2]", "input should be an object"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": 5}', "text: input should be a valid string"),
        (b'{"image": "a\\u0000b"}', "there is no picture"),
        (b'{"image": "%s"}' % (b"x" * 5000), "there is no picture"),
        (b'{"text": ' + b"9" * 5000 + b"}", "whole number of 5000 digits"),
        (b"{}", "needs --text"),
        (b'{"text": "chair", "id": "a\\u001b[2J"}', "has control characters"),
    ],
)
def test_a_broken_query_is_named_by_its_line(tmp_path, line, message):
    path = tmp_path / "queries.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    queries = read_queries(path)
    assert next(queries) == Query("1", "fine")
    with pytest.raises(AfmrlError, match=f"queries.jsonl, line 3.*{message}"):
        next(queries)


def test_a_text_that_is_not_unicode_is_refused():
    # F16
    with pytest.raises(AfmrlError, match="surrogate"):
        Query.of("q", os.fsdecode(b"\xff"), None)
