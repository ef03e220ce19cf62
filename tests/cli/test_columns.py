"""Every command that takes a catalogue takes it alike: `--columns` says which column is which."""

import csv
import dataclasses
import json

import pytest

from afmrl_jax.cli import bench, index
from afmrl_jax.cli import main as cli
from afmrl_jax.testing import write_badge_catalogue

COLUMNS = "listing_id=id,product_id=sku,title=name,image=photo"
NAMES = {"listing_id": "id", "product_id": "sku", "title": "name", "image": "photo"}
RUN = ["--run", "RUN"]
COMMANDS = {
    "train": ["--fast", "--out", "OUT"],
    "catalogue-check": [],
    "catalogue-convert": ["--out", "OUT"],
    "annotate": [*RUN, "--generator", "distill", "--out", "OUT"],
    "oracle": ["--url", "http://127.0.0.1:9/v1", "--model", "m", "--out", "OUT"],
    "embed": [*RUN, "--system", "infonce", "--out", "OUT"],
    "index add": [*RUN, "--index", "OUT"],
    "match": [*RUN, "--out", "OUT"],
    "evaluate": [*RUN, "--out", "OUT"],
    "baselines": [],
    "check-endpoint": ["http://127.0.0.1:9/v1", *RUN],
    "bench throughput": ["--out", "OUT", "--rows", "ROWS", "--model", "demo_embedder"],
}
ELSEWHERE = {"config", "export", "compare"}
"""They print a setting, read listings only where torch is, and read a name."""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Badges as a shop has them: a CSV with names of its own."""
    folder = write_badge_catalogue(tmp_path_factory.mktemp("shop") / "shop", splits=True)
    path = folder / "listings.jsonl"
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    with (folder / "products.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*NAMES.values(), "split"])
        writer.writerows([*[x[name] for name in NAMES], x["split"]] for x in rows)
    path.unlink()
    return folder / "products.csv"


def test_no_command_with_a_catalogue_is_without_columns():
    known = {x: cli.command_class(x) for x in cli.COMMANDS if x not in ("index", "bench")}
    known |= {f"index {name}": kind for name, kind in index.COMMANDS.items()}
    known |= {f"bench {name}": kind for name, kind in bench.BENCHMARKS.items()}
    fields = {name: {x.name for x in dataclasses.fields(kind)} for name, kind in known.items()}
    taking = {name for name, names in fields.items() if "catalogue" in names} | {"train"}
    assert taking - ELSEWHERE == set(COMMANDS)
    assert all("columns" in fields[name] for name in taking - {"compare", "train"})


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_wrong_map_says_which_columns_there_are(name, table, written_run, tmp_path, capsys):
    places = {"OUT": "out", "ROWS": "rows.jsonl"}
    given = [str(tmp_path / places[x]) if x in places else x for x in COMMANDS[name]]
    given = [str(written_run) if x == "RUN" else x for x in given]
    wrong = COLUMNS.replace("=name", "=heading")
    with pytest.raises(SystemExit) as ended:
        cli.main([*name.split(), *given, "--catalogue", str(table), "--columns", wrong])
    assert ended.value.code == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "has no column 'heading'; it has id, sku, name, photo, split" in told


def test_a_right_map_is_read(table, written_run, tmp_path, capsys):
    shop = ["--catalogue", str(table), "--columns", COLUMNS]
    cli.main(["catalogue-check", *shop])
    assert "120 listings of 30 products" in capsys.readouterr().out
    run = ["--run", str(written_run)]
    cli.main(["embed", *run, "--system", "infonce", *shop, "--out", str(tmp_path / "index")])
    assert "120 listings" in capsys.readouterr().out
    cli.main(["index", "add", *run, "--index", str(tmp_path / "index"), *shop])
    assert "120 unchanged" in capsys.readouterr().out
