"""The exported module sees pictures as the package does."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from afmrl_jax.data.catalogue.pictures import FORMATS, decode
from afmrl_jax.errors import CatalogueError

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def portable():
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="the exported module needs torch and transformers")
    from afmrl_jax.runs.portable import afmrl_embedder

    return afmrl_embedder


def encode(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8))
RAMP = np.arange(2400).reshape(40, 60)


def usable():
    for kind in FORMATS:
        yield kind, encode(NOISE.convert("RGB"), kind)
    for mode in ("RGBA", "LA", "L", "P", "1"):
        yield mode, encode(NOISE.convert(mode), transparency=3 if mode in "LP1" else None)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            yield f"{kind} {orientation}", encode(NOISE.convert("RGB"), kind, exif=exif)
    for scale, dtype in ((27, np.uint16), (1 << 19, np.int32), (27, np.int32)):
        picture = Image.fromarray((RAMP * scale).astype(dtype))
        yield f"{dtype.__name__} * {scale}", encode(picture, "TIFF")
    yield "16-bit PNG", encode(Image.fromarray((RAMP * 27).astype(np.uint16)), transparency=54)
    yield "8 bits in 32", encode(Image.fromarray((RAMP % 256).astype(np.int32)), "TIFF")
    yield "bands", encode(NOISE.resize((1200, 1100)))


# W1, W2
@pytest.mark.parametrize(("name", "data"), [pytest.param(*x, id=x[0]) for x in usable()])
def test_the_same_pixels(portable, name, data):
    expected = np.asarray(decode(data))
    for given in (io.BytesIO(data), Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(np.asarray(portable.decode(given)), expected, err_msg=name)


REFUSED = {
    "EPS": encode(NOISE.convert("RGB"), "EPS"),
    "AVIF": encode(NOISE.convert("RGB"), "AVIF"),
    "float": encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "negative": encode(Image.fromarray((RAMP - 9).astype(np.int32)), "TIFF"),
    "wide": encode(Image.new("1", (20_001, 200))),
    "cut off": encode(NOISE)[:900],
    "rubbish": b"rubbish",
}


# S4, S5, F8
@pytest.mark.parametrize("name", REFUSED)
def test_the_same_refusals(portable, name):
    with pytest.raises(CatalogueError):
        decode(REFUSED[name])
    with pytest.raises(ValueError, match="the picture cannot be used: "):
        portable.decode(io.BytesIO(REFUSED[name]))


# F17
def test_a_pipe_is_refused_at_once(portable, tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be used: there is no such file"):
        portable.decode(str(tmp_path / "a.png"))
