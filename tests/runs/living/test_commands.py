"""`afmrl embed --thumbnails`, `afmrl index` and `afmrl search --where` on a small shop."""

import json

import numpy as np
import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.errors import RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.runs.embed import embed_catalogue
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.runs.living.maintenance import compact
from afmrl_jax.runs.living.writing import add_listings
from afmrl_jax.testing import write_badge_catalogue


@pytest.fixture
def shop(tmp_path):
    shop = write_badge_catalogue(tmp_path / "shop", listings_per_product=1)
    write(shop, [x | {"price": n} for n, x in enumerate(records(shop))])
    return shop


def records(shop):
    return [json.loads(x) for x in (shop / "listings.jsonl").read_text().splitlines()]


def write(shop, rows):
    (shop / "listings.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))


def held(folder):
    with LivingIndex(folder) as index:
        return {x.listing_id: (x.line, x.vector, x.thumbnail) for x in index.entries()}


def shown(line):
    return {k: x for k, x in line.items() if k != "thumbnail"}


@pytest.mark.parametrize("system", ["infonce", "agcl+distilled"])
def test_adding_is_embedding_everything(written_run, shop, tmp_path, system):
    run, out = FinishedRun(written_run), tmp_path / "index"
    whole = tmp_path / "whole"
    rows = records(shop)
    embed_catalogue(run, system, load_catalogue(shop), whole, thumbnails=32)
    write(shop, rows[:20])
    embed_catalogue(run, system, load_catalogue(shop), out, thumbnails=32)
    # Ten are new, one has another price, one another title, the others are the same.
    write(shop, [rows[0] | {"price": 999}, rows[1] | {"title": "other"}, *rows[2:]])
    catalogue = load_catalogue(shop)
    found = add_listings(run, catalogue, out)
    assert (found.embedded, found.rewritten, found.same) == (11, 1, 18)
    again = add_listings(run, catalogue, out)
    assert (again.embedded, again.rewritten, again.same) == (0, 0, 30)
    for _ in range(2):
        have, wanted = held(out), held(whole)
        assert have.keys() == wanted.keys()
        changed = {rows[0]["listing_id"], rows[1]["listing_id"]}
        for name in wanted:
            if name not in changed:
                assert shown(have[name][0]) == shown(wanted[name][0])
                assert have[name][2] == wanted[name][2]
            if name != rows[1]["listing_id"]:
                np.testing.assert_allclose(have[name][1], wanted[name][1], atol=1e-5)
        assert have[rows[0]["listing_id"]][0]["extra"]["price"] == 999
        compact(out)
    picture = decode(have[rows[5]["listing_id"]][2])
    assert max(picture.size) == 32
    given = tmp_path / "given.jsonl"
    given.write_text('{"listing_id": "a", "attributes": "a: b"}\n')
    with pytest.raises(RunError, match="none of a file: leave --attributes out"):
        add_listings(run, catalogue, out, attributes=given)


def command(*arguments):
    cli.main([str(x) for x in arguments])


def test_the_commands(written_run, shop, tmp_path, capsys):
    out, run = tmp_path / "index", ["--run", written_run]
    rows = records(shop)
    write(shop, rows[:20])
    command("embed", *run, "--catalogue", shop, "--out", out, "--system", "infonce")
    write(shop, rows[20:])
    command("index", "add", *run, "--index", out, "--catalogue", shop)
    assert "10 embedded, 0 with other columns only, 0 unchanged" in capsys.readouterr().out
    command("index", "remove", "--index", out, rows[0]["listing_id"], rows[25]["listing_id"])
    command("index", "stats", "--index", out, "--as-json")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["listings"], found["base"], found["added"], found["removed"]) == (28, 19, 9, 1)
    asked = ["search", *run, "--index", out, "--text", "badge", "-k", "30", "--as-json"]
    command(*asked, "--where", "price>=18", "price<22")
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert {x["listing_id"] for x in lines} == {x["listing_id"] for x in rows[18:22]}
    with pytest.raises(SystemExit):
        command("embed", *run, "--catalogue", shop, "--out", out, "--system", "infonce")
    assert "afmrl index compact" in capsys.readouterr().err
    command(*asked)
    before = capsys.readouterr().out
    command("index", "compact", "--index", out)
    capsys.readouterr()
    command(*asked)
    assert capsys.readouterr().out == before
    command("embed", *run, "--catalogue", shop, "--out", out, "--update", "--system", "infonce")
    command("index", "export", "--index", out, "--out", tmp_path / "a.parquet")
    command("index", "stats", "--index", out)
    assert "price (10)" in capsys.readouterr().out
