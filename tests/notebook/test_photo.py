"""A photo to search with: uploaded in Colab, by a button, or from the catalogue."""

import sys
import types

import pytest
from PIL import Image

from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.notebook import photo
from afmrl_jax.testing import write_badge_catalogue


def test_an_example_is_a_picture_of_a_test_listing(tmp_path):
    catalogue = load_catalogue(str(write_badge_catalogue(tmp_path / "shop", splits=True)))
    path, listing = photo.example(catalogue, tmp_path / "photos")
    assert listing.split == "test"
    assert path.parent == tmp_path / "photos"
    with Image.open(path) as found:
        assert found.size == (48, 48)
    assert photo.example(catalogue, tmp_path / "photos") == (path, listing)


def colab(answer):
    module = types.ModuleType("google.colab")
    module.files = types.SimpleNamespace(upload=lambda: answer)
    return module


@pytest.mark.parametrize(
    "name", ["chair.jpg", "../../my chair (1).jpg", "C:\\photos\\chair.jpg", ".x"]
)
def test_colabs_dialogue(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "google.colab", colab({name: b"picture"}))
    path = photo.Upload(tmp_path).path
    assert path.parent == tmp_path
    assert not path.name.startswith(".")
    assert path.read_bytes() == b"picture"


def test_colabs_dialogue_cancelled(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", colab({}))
    assert photo.Upload(tmp_path).path is None


def test_a_button_elsewhere_that_may_be_used_later(tmp_path, monkeypatch):
    class FileUpload:
        def __init__(self, accept, multiple):
            self.value = ()

    module = types.ModuleType("ipywidgets")
    module.FileUpload = FileUpload
    monkeypatch.setitem(sys.modules, "google.colab", None)
    monkeypatch.setitem(sys.modules, "ipywidgets", module)
    upload = photo.Upload(tmp_path)
    assert upload.path is None
    upload._button.value = ({"name": "a.png", "content": memoryview(b"picture")},)
    assert upload.path == tmp_path / "a.png"
    assert upload.path.read_bytes() == b"picture"


def test_nothing_is_asked_where_nothing_can_be(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert photo.Upload(tmp_path).path is None
