"""Data sets of Hugging Face on the disk: repositories, saved folders, and the hub's cache."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.hub import hub_folder
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.errors import CatalogueError, ConfigError
from afmrl_jax.testing import write_badge_catalogue

COLUMNS = "title=name,image=photo"


@pytest.fixture
def shop(tmp_path):
    return write_badge_catalogue(tmp_path / "shop", listings_per_product=2)


@pytest.fixture
def rows(shop):
    """Rows with the pictures as `datasets` stores them, and columns of other names."""
    out = []
    for line in (shop / "listings.jsonl").read_text().splitlines():
        x = json.loads(line)
        image = {"bytes": (shop / x["image"]).read_bytes(), "path": x.pop("image")}
        out.append(x | {"photo": image, "name": x.pop("title")})
    return out


def write_shards(folder, rows, name="data/train", count=2):
    for n in range(count):
        path = folder / f"{name}-{n:05d}-of-{count:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = -(-len(rows) // count)
        pq.write_table(pa.Table.from_pylist(rows[n * size : (n + 1) * size]), path)
    (folder / "README.md").write_text("---\n---\n")
    return folder


def write_saved(folder, rows):
    """A folder as `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-00002.arrow" for n in range(2)]
    whole = pa.Table.from_pylist(rows)
    for n, name in enumerate(names):
        half = whole.slice(n * len(rows) // 2, -(-len(rows) // 2))
        path = str(folder / name)
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, half.schema) as out:
            out.write_table(half, max_chunksize=7)
    state = {"_data_files": [{"filename": x} for x in names], "_fingerprint": "1", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


def test_shards_of_a_repository_read_as_the_folder_does(shop, rows, tmp_path):
    folder = write_shards(tmp_path / "set", rows)
    found = load_catalogue(folder, columns=COLUMNS)
    assert found.fingerprint == load_catalogue(shop).fingerprint
    assert found.name == "set"
    with pytest.raises(ConfigError, match=r"train-00000-of-00002.parquet has no column 'nam'; it"):
        load_catalogue(folder, columns="title=nam")


@pytest.mark.parametrize("name", ["train", "default/train", "data/train"])
def test_splits_are_named(rows, tmp_path, name):
    folder = write_shards(tmp_path / "set", rows[:40], name, 3)
    write_shards(folder, rows[40:], name.replace("train", "test"), 1)
    place = folder / "default" if "default" in name else folder
    with pytest.raises(
        CatalogueError, match=r"has the splits test, train; name one, as in .*#test"
    ):
        load_catalogue(place, columns=COLUMNS)
    with pytest.raises(CatalogueError, match="has no split 'x'; it has test, train"):
        load_catalogue(f"{place}#x", columns=COLUMNS)
    sizes = {x: len(load_catalogue(f"{place}#{x}", columns=COLUMNS)) for x in ("train", "test")}
    assert sizes == {"train": 40, "test": 20}
    for split in ("all", "test+train"):
        assert len(load_catalogue(f"{place}#{split}", columns=COLUMNS)) == 60


def test_a_missing_shard_is_named(rows, tmp_path):
    folder = write_shards(tmp_path / "set", rows)
    (folder / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(
        CatalogueError, match=r"'train' has 1 file\(s\), but .* tell of 2; download"
    ):
        load_catalogue(folder, columns=COLUMNS)


def test_saved_folders_read_as_the_folder_does(shop, rows, tmp_path):
    whole = load_catalogue(shop).fingerprint
    folder = write_saved(tmp_path / "one", rows)
    assert load_catalogue(folder, columns=COLUMNS).fingerprint == whole
    write_saved(tmp_path / "many" / "train", rows)
    write_saved(tmp_path / "many" / "test", rows[:20])
    (tmp_path / "many" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = load_catalogue(f"{tmp_path / 'many'}#train", columns=COLUMNS)
    assert found.fingerprint == whole
    with pytest.raises(CatalogueError, match="has the splits train, test"):
        load_catalogue(tmp_path / "many", columns=COLUMNS)


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"_data_files": [{"filename": "../data.arrow"}]}, "does not name the files"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "does not name the files"),
        ({"_data_files": []}, "does not name the files"),
        ({"_data_files": 7}, "does not name the files"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow is missing"),
        (
            {"_data_files": [{"filename": "data-00000-of-00002.arrow"}], "_indices_files": [1]},
            "selects some of the rows",
        ),
        ([], "cannot be read by TFDS|cannot be read"),
    ],
)
def test_a_saved_folder_that_names_other_files_is_refused(rows, tmp_path, state, what):
    folder = write_saved(tmp_path / "one", rows)
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CatalogueError, match=what):
        load_catalogue(folder, columns=COLUMNS)


def test_damage_of_an_arrow_file_is_named(rows, tmp_path):
    folder = write_saved(tmp_path / "one", rows)
    path = folder / "data-00001-of-00002.arrow"
    whole, seen = path.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 20):
        data = bytearray(whole)
        data[place] ^= 0x55
        path.write_bytes(data)
        problems = []
        check_catalogue(folder, problems.append, look="open", columns=COLUMNS)
        errors = [x for x in problems if x.severity == "error"]
        seen += any("Arrow" in x.what for x in errors)
        assert all(x.remedy for x in errors)
    assert seen
    path.write_bytes(whole[: len(whole) // 2])
    problems = []
    check_catalogue(folder, problems.append, look="open", columns=COLUMNS)
    assert "Arrow" in problems[0].what


@pytest.mark.parametrize(
    ("image", "what"),
    [
        ({"bytes": None, "path": None}, "'image' is missing or empty"),
        ({"bytes": None, "path": "gone.png"}, "does not exist"),
        ({"bytes": None, "path": "../../x.png"}, "outside the catalogue folder"),
        ({"bytes": b"x", "path": None}, "cannot be read"),
    ],
)
def test_pictures_that_are_no_picture(rows, tmp_path, image, what):
    rows[3]["photo"] = image
    folder = write_shards(tmp_path / "set", rows)
    with pytest.raises(CatalogueError, match=what):
        load_catalogue(folder, columns=COLUMNS)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, which cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache, folder, commit, *references):
    """Put a folder into the cache, as a download does: links to blobs."""
    place = cache / "datasets--user--set"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "blobs").mkdir(exist_ok=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            blob = place / "blobs" / f"{len(list((place / 'blobs').iterdir()))}"
            blob.write_bytes(path.read_bytes())
            link = place / "snapshots" / commit / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    for name in references:
        (place / "refs" / name).write_text(commit)
    return place / "snapshots" / commit


def test_a_set_of_the_hub_is_read_from_its_cache(cache, shop, rows, tmp_path):
    old, new = "a" * 40, "b" * 40
    put(cache, write_shards(tmp_path / "old", rows[:20], count=1), old, "v1")
    put(cache, write_shards(tmp_path / "new", rows), new, "main")
    found = load_catalogue("hf://user/set", columns=COLUMNS)
    assert found.fingerprint == load_catalogue(shop).fingerprint
    assert found.name == "set"
    assert len(load_catalogue("hf://datasets/user/set@v1#train", columns=COLUMNS)) == 20
    assert len(load_catalogue(f"hf://user/set@{old}/data", columns=COLUMNS)) == 20
    file = "hf://user/set/data/train-00000-of-00002.parquet"
    assert len(load_catalogue(file, columns=COLUMNS)) == 30
    with pytest.raises(CatalogueError, match="has no 'else'; correct the path"):
        load_catalogue("hf://user/set/else")


def test_pictures_of_the_cache_are_links_that_may_be_followed(cache, shop, tmp_path):
    snapshot = put(cache, shop, "c" * 40, "main")
    whole = load_catalogue(shop).fingerprint
    assert load_catalogue("hf://user/set").fingerprint == whole
    assert load_catalogue(snapshot).fingerprint == whole
    (tmp_path / "secret.png").write_bytes(next((shop / "images").iterdir()).read_bytes())
    link = next((snapshot / "images").iterdir())
    link.unlink()
    link.symlink_to(tmp_path / "secret.png")
    with pytest.raises(CatalogueError, match="outside the catalogue folder"):
        load_catalogue("hf://user/set")


def test_without_a_network_the_error_says_how_to_get_the_set(cache):
    with pytest.raises(CatalogueError) as error:
        load_catalogue("hf://user/set@v2#train")
    told = "`hf download user/set --repo-type dataset --revision v2 --local-dir FOLDER`"
    assert told in str(error.value)


@pytest.mark.parametrize("name", ["hf://", "hf://set", "hf://user/set/../x", "hf://user/se t"])
def test_a_name_that_the_hub_cannot_have(name):
    with pytest.raises(ConfigError, match="is no name of the hub"):
        hub_folder(name)
