"""Embedder, Generator and Index on a trained run and on models' folders."""

import io

import numpy as np
import pytest
from PIL import Image

from afmrl_jax import Embedder, FinishedRun, Generator, ImageConfig, Index, TextBudget
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.errors import ConfigError, InputError, RunError
from afmrl_jax.inference.index import IndexSettings
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.folder import save_model
from afmrl_jax.testing import draw_badge, tiny_config
from afmrl_jax.training.annotate import annotate

pytestmark = pytest.mark.usefixtures("tiny_models")


@pytest.fixture(scope="module")
def embedder(trained):
    return Embedder.load(trained)


@pytest.fixture(scope="module")
def catalogue(tiny_run):
    return load_catalogue(tiny_run.catalogue).subset("test")


@pytest.fixture(scope="module")
def picture():
    return draw_badge("circle", "red", "a", np.random.default_rng(3))


def item(listing, attributes=None):
    given = {"text": listing.title, "image": listing.image}
    return given if attributes is None else {**given, "attributes": attributes}


@pytest.mark.parametrize("system", [None, "infonce"])
def test_vectors_are_those_of_the_evaluation(trained, catalogue, system):
    run = FinishedRun(trained)
    row = run.system(system)
    texts = None
    if row.generator is not None:
        texts = {x.listing_id: f"shape: {x.category}; finish: gloss" for x in catalogue.listings}
    everything = np.arange(len(catalogue))
    wanted = run.encoder(row).embed(run.rows(catalogue), everything, texts)
    items = [item(x, texts and texts[x.listing_id]) for x in catalogue.listings]
    found = Embedder.load(trained, system=system).encode(items)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_generator_writes_what_the_run_annotates(trained, embedder, catalogue, tmp_path):
    run = FinishedRun(trained)
    everything = np.arange(len(catalogue))
    wanted = annotate(
        *run.model("rar"), run.rows(catalogue), everything, tmp_path / "a.jsonl", mesh=run.mesh
    )
    items = [item(x) for x in catalogue.listings]
    written = Generator.load(trained).write(items)
    assert written == [wanted[x.listing_id] for x in catalogue.listings]
    assert embedder.identity == run.encoder(run.system()).identity
    given = [item(x, wanted[x.listing_id]) for x in catalogue.listings]
    read = embedder.encode(items, write_attributes=True)
    np.testing.assert_allclose(read, embedder.encode(given), atol=1e-5)


def test_the_same_picture_in_every_form(embedder, picture, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(picture)
    opened = decode(picture)
    clear = Image.new("RGBA", opened.size, (0, 0, 0, 0))
    clear.paste(opened)
    forms = [path, picture, opened, np.asarray(opened), clear, {"image": str(path)}]
    forms += [{"image": x} for x in forms[:5]]
    vectors = embedder.encode(forms)
    np.testing.assert_allclose(vectors, np.repeat(vectors[:1], len(forms), 0), atol=1e-5)


def test_texts_and_attributes(embedder):
    same = embedder.encode(
        [
            "red badge",
            {"text": "red badge"},
            {"text": "red badge", "image": None, "attributes": {}},
        ]
    )
    np.testing.assert_allclose(same, np.repeat(same[:1], 3, 0), atol=1e-5)
    both = embedder.encode(
        [
            {"text": "red badge", "attributes": {"shape": "circle", "letter": "a"}},
            {"text": "red badge", "attributes": "shape: circle; letter: a"},
        ]
    )
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)
    assert np.abs(both[0] - same[0]).max() > 1e-4


def test_none_and_many(embedder):
    assert embedder.encode([]).shape == (0, embedder.dim)
    assert Generator.write(embedder.generator, []) == []
    words = [f"badge {n}" for n in range(70)]
    many = embedder.encode(words)
    assert len(many) == 70, "more than a chunk of batches of 16"
    np.testing.assert_allclose(many[[3, 69]], embedder.encode([words[3], words[69]]), atol=1e-5)


def float_array():
    return np.zeros((4, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text": "a", "picture": "x.png"}, r"items\[1\] has the unknown key 'picture'; the keys"),
        ({"image": "nowhere.png"}, r"items\[1\]: there is no picture nowhere.png"),
        ({"image": b"broken"}, r"items\[1\]: the picture cannot be read"),
        ({"image": 3}, r"items\[1\]: an image must be a path.*not int"),
        ({"text": 3}, r"items\[1\]: text must be a string, not int"),
        ({"text": "a", "attributes": {"Size": "2; 3"}}, r"items\[1\]: these attributes cannot"),
        ({"text": "a", "attributes": 3}, r"items\[1\]: attributes must be a text"),
        ({}, r"items\[1\] is empty; give text, image"),
        ("  ", r"items\[1\] is empty"),
        (float_array(), r"items\[1\]: an array must be.*float32 \[4, 4, 3\]"),
    ],
    ids=str,
)
def test_an_item_that_cannot_be_used_is_named(embedder, wrong, message):
    with pytest.raises(InputError, match=message):
        embedder.encode(["fine", wrong])


def test_mistakes_say_what_to_do(trained, embedder, picture):
    with pytest.raises(InputError, match="give a list of items, not one str"):
        embedder.encode("oak chair")
    with pytest.raises(RunError, match="no generator to write attributes"):
        Embedder.load(trained, system="infonce").encode(["a"], write_attributes=True)
    with pytest.raises(InputError, match=r"items\[1\] has no picture, but the generator"):
        embedder.generator.write([picture, "a badge"])
    with pytest.raises(InputError, match=r"items\[0\]: the picture cannot be read"):
        embedder.generator.write([b"broken"])
    with pytest.raises(RunError, match="choose from infonce"):
        Embedder.load(trained, system="best")


def test_an_index_of_own_vectors(embedder, tmp_path):
    words = ["red circle", "blue square", "green triangle", "black badge"]
    vectors = embedder.encode(words)
    index = Index.build(vectors, words, embedder=embedder.identity)
    hits = index.search(embedder.encode(["blue square"]), k=2)
    assert hits.ids[0][0] == "blue square"
    assert hits.scores[0, 0] == pytest.approx(1, abs=1e-5)
    index.delete(["blue square"])
    index.add(["again"], vectors[1:2])
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", embedder=embedder.identity)
    assert len(loaded) == 4
    assert loaded.search(vectors[1:2], k=9).ids[0][0] == "again"
    with pytest.raises(RunError, match="was built by embedder"):
        Index.load(tmp_path / "index", embedder="another")


def test_an_index_refuses_what_it_cannot_hold(tmp_path):
    unit = np.eye(4, dtype=np.float32)
    with pytest.raises(RunError, match=r"vector 2 has length 3.*divide each by its length"):
        Index.build(unit * np.array([[1], [1], [3], [1]]), "abcd")
    index = Index.build(unit, "abcd", settings=IndexSettings(dtype="bfloat16"))
    with pytest.raises(RunError, match="has length 2"):
        index.add(["e"], 2 * unit[:1])
    with pytest.raises(ConfigError, match="one result or more"):
        index.search(unit, k=0)
    with pytest.raises(ConfigError, match=r"must be \[q d\]"):
        index.search(unit[0])
    with pytest.raises(RunError, match="contains no index"):
        Index.load(tmp_path)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_hugging_face_folder(tokenizer, picture, tmp_path, family):
    config = tiny_config(
        family, vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id
    )
    architecture = Architecture.of(config)
    save_model(tmp_path / "r", architecture, architecture.init(0), tokenizer=tokenizer)
    image, text = ImageConfig(), TextBudget(buckets=(128, 192), layout="chat")
    embedder = Embedder.load(tmp_path / "r", image=image, text=text)
    vectors = embedder.encode(["a badge", {"text": "a badge", "image": picture}, picture])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
    assert Embedder.load(tmp_path / "r").image.patch_size == config.vision.patch_size
    layout = "qwen3" if family == "qwen3_vl" else "chat"
    assert Embedder.load(tmp_path / "r").text.layout == layout
    text = TextBudget(buckets=(128, 192), max_attribute_tokens=4, layout="chat")
    (written,) = Generator.load(tmp_path / "r", image=image, text=text).write([picture])
    assert isinstance(written, str)
    with pytest.raises(RunError, match="leave system out"):
        Embedder.load(tmp_path / "r", system="afmrl")
    with pytest.raises(RunError, match="leave stage out"):
        Generator.load(tmp_path / "r", stage="rar")


def test_a_stage_of_a_run_is_a_folder_too(trained, tiny_run, picture):
    """The stage's folder has no picture and text settings, so they are given."""
    stage = trained / "cit-1" / "model"
    by_folder = Embedder.load(stage, image=tiny_run.image, text=tiny_run.text)
    items = [{"text": "red badge", "image": Image.open(io.BytesIO(picture))}]
    np.testing.assert_allclose(
        by_folder.encode(items), Embedder.load(trained).encode(items), atol=1e-5
    )
    with pytest.raises(RunError, match="no generator"):
        by_folder.encode(items, write_attributes=True)
