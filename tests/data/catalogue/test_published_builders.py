"""TFDS builders of the published datasets: raw folder, ArrayRecord, rows again."""

import gzip
import json
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from afmrl_jax.data.catalogue.published import layout_of, shards
from afmrl_jax.data.catalogue.published.examples import stored_rows
from afmrl_jax.data.catalogue.tfds_examples import PART
from afmrl_jax.errors import CatalogueError

# TFDS 4.9.10 under protobuf 6, which Apache Beam needs.
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")
RAW = ["m5product", "abo", "product1m", "online-products", "mbe"]


def wanted(rows, folder):
    """Rows by id as they come back: pictures as bytes, without empty columns."""
    found = {}
    for _, row in rows:
        row = {name: value for name, value in row.items() if value is not None}
        if not isinstance(row["image"], bytes):
            row["image"] = (folder / row["image"]).read_bytes()
        found[row["listing_id"]] = row
    return found


def stored(builder):
    found = [row for _, row in stored_rows(builder.as_data_source(split=PART))]
    assert len({row["listing_id"] for row in found}) == len(found)
    return {row["listing_id"]: row for row in found}


@pytest.mark.parametrize("name", RAW)
def test_builders_give_back_the_rows(name, raw_folder, tmp_path):
    from afmrl_jax.data.catalogue.published.builders import BUILDERS, prepare

    folder = raw_folder(name)
    builder = prepare(BUILDERS[name], folder, tmp_path / "data")
    want = wanted(layout_of(folder).rows(folder, lambda _: None), folder)
    assert stored(builder) == want
    assert "tensorflow" not in sys.modules
    assert builder.info.citation == layout_of(folder).citation
    # A second call reads nothing.
    (folder / "listings").rename(folder / "gone") if name == "abo" else None
    assert stored(prepare(BUILDERS[name], folder, tmp_path / "data")) == want


def test_configs_are_the_options_of_the_reader(raw_folder, tmp_path):
    from afmrl_jax.data.catalogue.published.builders import Abo, ListingsConfig, M5Product, prepare

    folder = raw_folder("m5product")
    for task in ("coarse", "classification"):
        rows = layout_of(folder).rows(folder, lambda _: None, task=task)
        builder = prepare(M5Product, folder, tmp_path / "data", config=task)
        assert stored(builder) == wanted(rows, folder)
    folder = raw_folder("abo")
    german = ListingsConfig(name="de", options={"language": "de", "other_images": 0})
    found = stored(prepare(Abo, folder, tmp_path / "data", config=german))
    assert {x["title"] for x in found.values()} == {"Eichenstuhl", "Phone case"}
    assert (tmp_path / "data/abo/de/1.0.0/features.json").is_file()


def test_a_folder_of_another_layout_is_refused(raw_folder, tmp_path):
    from afmrl_jax.data.catalogue.published.builders import Product1m, prepare

    with pytest.raises(CatalogueError, match=r"abo is not a raw folder of product1m; download"):
        prepare(Product1m, raw_folder("abo"), tmp_path / "data")


def test_a_broken_record_stops_or_is_left_out(raw_folder, tmp_path):
    from afmrl_jax.data.catalogue.published.builders import ListingsConfig, Product1m, prepare

    folder = raw_folder("product1m")
    (folder / "images/3.jpg").write_bytes(b"no picture")
    (folder / "images/5.jpg").unlink()
    with pytest.raises(CatalogueError, match=r"listing '3' \(product1m_gallery.*, line 2\).*; rep"):
        prepare(Product1m, folder, tmp_path / "data")
    lenient = ListingsConfig(name="lenient", skip_bad=True)
    builder = prepare(Product1m, folder, tmp_path / "data", config=lenient)
    assert sorted(stored(builder)) == ["1", "2", "4-1", "4-2"]
    assert [x.record.split(" (")[0] for x in builder.problems] == ["listing '3'", "listing '5'"]


def test_a_repeated_id_is_named(raw_folder, tmp_path):
    from afmrl_jax.data.catalogue.published.builders import Product1m, prepare

    folder = raw_folder("product1m")
    path = folder / "product1m_gallery_ossurl_v2.txt"
    path.write_text(path.read_text() + path.read_text().splitlines()[0])
    with pytest.raises(CatalogueError, match=r"product1m: listing '2' occurs twice; give every"):
        prepare(Product1m, folder, tmp_path / "data")


def test_builders_are_registered(raw_folder, tmp_path):
    import tensorflow_datasets as tfds

    from afmrl_jax.data.catalogue.published.builders import BUILDERS

    names = [builder.name for builder in BUILDERS.values()]
    assert names == [
        "m5_product", "abo", "product1m", "online_products", "online_products_tfds", "mbe",
        "listing_shards",
    ]  # fmt: skip
    for name in names:
        assert isinstance(tfds.builder(name, data_dir=tmp_path), BUILDERS[name_of(name)])


def name_of(name):
    return {"m5_product": "m5product", "listing_shards": "shards"}.get(name, name.replace("_", "-"))


# TFDS's own Stanford Online Products


@pytest.fixture
def tfds_online_products(raw_folder, tmp_path):
    """A dataset as TFDS's builder `stanford_online_products` writes it."""
    import tensorflow_datasets as tfds

    own = tfds.builder_cls("stanford_online_products")
    folder = raw_folder("online-products")

    class StanfordOnlineProducts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "stanford_online_products"
        code_path = epath.Path(__file__)
        VERSION = own.VERSION

        def _info(self):
            classes = own._info.__globals__["_SUPER_CLASSES"]
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "class_id": tfds.features.ClassLabel(num_classes=22634),
                        "super_class_id/num": tfds.features.ClassLabel(num_classes=len(classes)),
                        "super_class_id": tfds.features.ClassLabel(names=classes),
                        "image": tfds.features.Image(),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {half: self._generate_examples(half) for half in ("train", "test")}

        def _generate_examples(self, half):
            lines = (folder / f"Ebay_{half}.txt").read_text().splitlines()[1:]
            for n, line in enumerate(lines):
                _, product, kind, path = line.split()
                yield (
                    n,
                    {
                        "class_id": int(product) - 1,
                        "super_class_id/num": int(kind) - 1,
                        "super_class_id": int(kind) - 1,
                        "image": folder / path,
                    },
                )

    builder = StanfordOnlineProducts(data_dir=tmp_path / "tfds")
    builder.download_and_prepare(file_format="array_record")
    return folder, tmp_path / "tfds/stanford_online_products/1.0.0"


def test_online_products_of_tfds(tfds_online_products, tmp_path):
    from afmrl_jax.data.catalogue.published.builders import OnlineProductsTfds, prepare

    folder, stored_folder = tfds_online_products
    layout = layout_of(stored_folder)
    assert layout.name == "online-products-tfds"
    found = list(layout.rows(stored_folder, pytest.fail))
    assert [where for where, _ in found] == [
        *(f"train, example {n}" for n in range(3)),
        *(f"test, example {n}" for n in range(2)),
    ]
    # The same listings as those of the archive, but for their names and order.
    want = wanted(layout_of(folder).rows(folder, pytest.fail), folder)
    assert unnamed(row for _, row in found) == unnamed(want.values())
    builder = prepare(OnlineProductsTfds, stored_folder, tmp_path / "data")
    assert stored(builder) == {row["listing_id"]: row for _, row in found}


def unnamed(rows):
    rows = [{k: v for k, v in row.items() if k != "listing_id"} for row in rows]
    return sorted(rows, key=lambda row: row["image"])


# Files of our own columns, and Beam


@pytest.fixture
def shard_folder(badges, tmp_path):
    """The badges in three files: JSON lines, the same compressed, Parquet with pictures inside."""
    folder = tmp_path / "shards"
    folder.mkdir()
    lines = (badges / "listings.jsonl").read_text().splitlines()[:30]
    shutil.copytree(badges / "images", folder / "images")
    (folder / "part-0.jsonl").write_text("\n".join(lines[:10]))
    (folder / "part-1.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[10:20]).encode()))
    rows = [json.loads(x) for x in lines[20:]]
    for row in rows:
        row["image"] = (badges / row["image"]).read_bytes()
        row["attributes"] = json.dumps(row.get("attributes"))
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-2.parquet")
    return folder


def test_shards(shard_folder):
    found = list(shards.rows(shard_folder, pytest.fail))
    assert len(found) == 30
    assert [where for where, _ in found][::10] == [
        "part-0.jsonl, line 1", "part-1.jsonl.gz, line 1", "part-2.parquet, row 1",
    ]  # fmt: skip
    assert isinstance(found[-1][1]["image"], bytes)


def test_broken_shards(shard_folder):
    (shard_folder / "part-3.parquet").write_bytes(b"no parquet")
    table = pa.table({"listing_id": ["1"], "title": ["x"]})
    pq.write_table(table, shard_folder / "part-4.parquet")
    problems = []
    assert len(list(shards.rows(shard_folder, problems.append))) == 30
    said = [str(x) for x in problems]
    assert said[0].startswith(f"{shard_folder / 'part-3.parquet'}: file: not a Parquet file")
    assert said[1] == (
        f"{shard_folder / 'part-4.parquet'}: file: the column product_id, image is missing; it has "
        "listing_id, title; add it, or say which one it is: --columns product_id=NAME"
    )


def test_without_beam_the_remedy_is_named(shard_folder, tmp_path, monkeypatch):
    from afmrl_jax.data.catalogue.published.builders import ListingShards, prepare

    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(CatalogueError, match=r"pip install 'afmrl-jax\[beam\]'"):
        prepare(ListingShards, shard_folder, tmp_path / "data")


def pipeline_options(*flags):
    options = pytest.importorskip("apache_beam.options.pipeline_options")
    return options.PipelineOptions(["--runner=DirectRunner", *flags])


@pytest.fixture
def beam_options():
    """Two worker processes of Beam's local runner."""
    return pipeline_options("--direct_running_mode=multi_processing", "--direct_num_workers=2")


@pytest.fixture
def beam_inside():
    """The same runner in this process, which starts faster."""
    return pipeline_options("--direct_running_mode=in_memory")


@pytest.mark.slow
def test_beam_equals_one_process(shard_folder, tmp_path, beam_options):
    from afmrl_jax.data.catalogue.published.builders import ListingsConfig, ListingShards, prepare

    alone = ListingsConfig(name="alone")
    want = stored(prepare(ListingShards, shard_folder, tmp_path / "data", config=alone))
    builder = prepare(ListingShards, shard_folder, tmp_path / "data", beam_options=beam_options)
    assert len(want) == 30
    assert stored(builder) == want


@pytest.mark.slow
def test_beam_reads_a_published_layout(raw_folder, tmp_path, beam_options):
    from afmrl_jax.data.catalogue.published.builders import Abo, ListingsConfig, prepare

    folder = raw_folder("abo")
    want = wanted(layout_of(folder).rows(folder, pytest.fail), folder)
    config = ListingsConfig(name="beam", beam=True)
    builder = prepare(Abo, folder, tmp_path / "data", config=config, beam_options=beam_options)
    assert stored(builder) == want


@pytest.mark.slow
def test_beam_names_or_leaves_out_broken_records(shard_folder, tmp_path, beam_inside):
    from afmrl_jax.data.catalogue.published.builders import ListingsConfig, ListingShards, prepare

    path = shard_folder / "part-0.jsonl"
    path.write_text(path.read_text() + '\n{"listing_id": "x"}\n{')
    with pytest.raises(Exception, match=r"listing 'x' \(part-0.jsonl, line 11\).*add it"):
        prepare(ListingShards, shard_folder, tmp_path / "data", beam_options=beam_inside)
    config = ListingsConfig(name="lenient", beam=True, skip_bad=True)
    options = {"config": config, "beam_options": beam_inside}
    assert len(stored(prepare(ListingShards, shard_folder, tmp_path / "data", **options))) == 30


@pytest.mark.slow
def test_beam_refuses_a_repeated_id(shard_folder, tmp_path, beam_inside):
    from afmrl_jax.data.catalogue.published.builders import ListingShards, prepare

    shutil.copy(shard_folder / "part-0.jsonl", shard_folder / "part-3.jsonl")
    with pytest.raises(
        CatalogueError, match=r"some listing id \(without Beam it is named\) occurs"
    ):
        prepare(ListingShards, shard_folder, tmp_path / "data", beam_options=beam_inside)
