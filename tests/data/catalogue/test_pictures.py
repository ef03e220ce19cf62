"""Pictures from strangers: which are opened, how they are seen, and what they may cost."""

import dataclasses
import io
import json
import os
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.collate import PatchStore
from afmrl_jax.data.batching.images import patchify, undecoded
from afmrl_jax.data.catalogue import pictures, records
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.pictures import decode, open_picture, to_png
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.memory_budget import MemoryBudget
from afmrl_jax.testing import normalized_pixels, write_badge_catalogue
from experiments.reliability.fuzz.good import png_of


def encode(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


RAMP = np.linspace(0, 255, 48 * 40).reshape(40, 48).astype(np.uint8)


# S4
def test_a_format_that_starts_a_program_is_not_opened(tmp_path, monkeypatch):
    started = tmp_path / "started"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {started}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    data = encode(noise(20, 20), "EPS")
    with pytest.raises(CatalogueError, match=r"not a JPEG, PNG, .* replace the file"):
        decode(data)
    folder = write_badge_catalogue(tmp_path / "shop", listings_per_product=2)
    (
        folder / json.loads((folder / "listings.jsonl").read_text().splitlines()[5])["image"]
    ).write_bytes(data)
    found = []
    check_catalogue(folder, found.append)
    assert ["cannot be read" in x.what for x in found if x.severity == "error"] == [True]
    assert not started.exists()


@pytest.mark.parametrize("kind", ["PPM", "PCX", "TGA", "ICO", "JPEG2000", "SGI", "DDS", "AVIF"])
def test_other_formats_are_not_opened(kind):
    with pytest.raises(CatalogueError, match="not a JPEG, PNG, WebP, GIF, BMP or TIFF"):
        decode(encode(noise(32, 32), kind))


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_known_formats_are_opened(kind):
    assert decode(encode(noise(32, 20), kind)).size == (32, 20)


def upright_variants():
    """A picture under all eight orientations, in each format that can say so."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            yield pytest.param(
                orientation, encode(noise(60, 40), kind, exif=exif), id=f"{kind}{orientation}"
            )


# W2
@pytest.mark.parametrize(("orientation", "data"), list(upright_variants()))
def test_pictures_are_turned_upright(orientation, data):
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert expected.size == ((40, 60) if orientation > 4 else (60, 40))
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(expected))
    config = ImageConfig()
    lazy, whole = undecoded(data, config, lambda: None), patchify(data, config)
    assert lazy.grid == whole.grid
    np.testing.assert_array_equal(whole.pixels, patchify(encode(expected), config).pixels)
    # The same picture that a user has opened already.
    np.testing.assert_array_equal(
        np.asarray(decode(to_png(Image.open(io.BytesIO(data))))), np.asarray(expected)
    )


# W2
def test_a_png_may_name_its_orientation_behind_its_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, tagged = encode(noise(60, 40)), encode(noise(60, 40), exif=exif)
    at = tagged.index(b"eXIf") - 4
    chunk = tagged[at : at + 12 + int.from_bytes(tagged[at : at + 4], "big")]
    end = plain.index(b"IEND") - 4
    assert decode(plain[:end] + chunk + plain[end:]).size == (40, 60)


# W2
def test_scaled_decoding_turns_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = noise(12, 9).resize((640, 320), Image.Resampling.BICUBIC)
    config = ImageConfig.qwen(max_pixels=8 * 28 * 28)
    scaled = dataclasses.replace(config, scaled_decoding=True)
    data = encode(smooth, "JPEG", exif=exif)
    found, whole = patchify(data, scaled), patchify(data, config)
    assert found.grid == whole.grid
    assert found.grid[0] > found.grid[1]
    apart = normalized_pixels(found, config) - normalized_pixels(whole, config)
    assert 0 < np.abs(apart).mean() < 0.05


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"rubbish"])
def test_broken_exif_says_nothing(exif):
    plain = encode(noise(60, 40), "JPEG")
    np.testing.assert_array_equal(
        np.asarray(decode(encode(noise(60, 40), "JPEG", exif=exif))), np.asarray(decode(plain))
    )


def deep_pictures():
    """A grey ramp with more than 8 bits, and what of it is lost."""
    ramp = RAMP.astype(np.int64)
    for name, values, kind in [
        ("16-bit PNG", (ramp * 257).astype(np.uint16), "PNG"),
        ("16-bit TIFF", (ramp * 256 + 77).astype(np.uint16), "TIFF"),
        ("32-bit TIFF", (ramp << 23).astype(np.int32), "TIFF"),
        ("32-bit TIFF of 16 bits", (ramp * 257).astype(np.int32), "TIFF"),
        ("32-bit TIFF of 8 bits", ramp.astype(np.int32), "TIFF"),
    ]:
        yield pytest.param(encode(Image.fromarray(values), kind), id=name)
    unsigned = encode(Image.fromarray((ramp << 24).astype(np.uint32).view(np.int32)), "TIFF")
    # SampleFormat, short, one value: signed becomes unsigned.
    tag = (339).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    assert unsigned.count(tag + b"\2") == 1
    yield pytest.param(unsigned.replace(tag + b"\2", tag + b"\1"), id="32-bit unsigned TIFF")
    big = Image.new("I;16B", RAMP.shape[::-1])
    big.frombytes((ramp * 257).astype(">u2").tobytes())
    yield pytest.param(encode(big, "TIFF"), id="big-endian 16-bit TIFF")


# W1
@pytest.mark.parametrize("data", list(deep_pictures()))
def test_more_than_eight_bits_are_scaled(data, monkeypatch):
    expected = np.repeat(RAMP[..., None], 3, -1)
    np.testing.assert_array_equal(np.asarray(decode(data)), expected)
    np.testing.assert_array_equal(
        np.asarray(decode(to_png(Image.open(io.BytesIO(data))))), expected
    )
    monkeypatch.setattr(pictures, "_BAND", 100)
    np.testing.assert_array_equal(np.asarray(decode(data)), expected)


# W1
def test_the_transparent_grey_of_a_16_bit_png_is_white():
    values = np.array([[5, 6], [0x4000, 0xFFFF]], np.uint16)
    found = np.asarray(decode(encode(Image.fromarray(values), transparency=6)))
    assert found[..., 0].tolist() == [[0, 255], [64, 255]]


# W1
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.float32) / 255, "floating-point pixels.*save it with 8 or 16 bits"),
        (np.full((8, 8), np.nan, np.float32), "floating-point pixels.*save it with 8 or 16 bits"),
        (RAMP.astype(np.int32) - 9, "negative pixels; save it with 8 or 16 bits"),
    ],
)
def test_pixels_without_a_known_range_are_refused(values, message):
    picture = Image.fromarray(values)
    with pytest.raises(CatalogueError, match=message):
        decode(encode(picture, "TIFF"))
    with pytest.raises(CatalogueError, match=message):
        to_png(picture)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_a_conversion_in_bands_is_that_of_the_whole(mode, monkeypatch):
    picture = noise(70, 90).convert(mode)
    options = {} if mode in ("RGBA", "LA") else {"transparency": 0}
    if mode == "RGBA":
        picture.putalpha(noise(70, 90, 1).convert("L"))
    data = encode(picture, **options)
    layer = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    for band in (pictures._BAND, 1000, 10):
        monkeypatch.setattr(pictures, "_BAND", band)
        np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(expected))


# W3
@pytest.mark.parametrize("size", [(1, 201), (201, 1), (10, 2001)])
def test_the_check_refuses_what_training_would(size, tmp_path):
    folder = write_badge_catalogue(tmp_path / "shop", listings_per_product=2)
    row = json.loads((folder / "listings.jsonl").read_text().splitlines()[5])
    noise(*size).save(folder / row["image"])
    with pytest.raises(CatalogueError) as training:
        patchify((folder / row["image"]).read_bytes(), ImageConfig())
    found = []
    check_catalogue(folder, found.append)
    (problem,) = [x for x in found if x.severity == "error"]
    assert row["listing_id"] in problem.record
    assert f"{problem.what}; {problem.remedy}" == str(training.value)
    assert "200 to 1; crop it" in str(training.value)


SURPRISES = [RuntimeError, MemoryError, KeyError, EOFError, Image.DecompressionBombError]


# F8
@pytest.mark.parametrize("surprise", SURPRISES)
@pytest.mark.parametrize("place", ["_open", "load"])
def test_whatever_a_decoder_raises_is_named(place, surprise, tmp_path, monkeypatch):
    folder = write_badge_catalogue(tmp_path / "shop", listings_per_product=2)
    row = json.loads((folder / "listings.jsonl").read_text().splitlines()[5])
    noise(30, 30).save(folder / row["image"], "JPEG")
    data = (folder / row["image"]).read_bytes()

    def fail(self, *args):
        raise surprise("decoder")

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, place, fail)
    with pytest.raises(CatalogueError, match="the picture "):
        decode(data)
    kept = load_catalogue(folder, skip_bad=True)
    assert [row["listing_id"] in x.record for x in kept.skipped] == [True]
    listings = [Listing("a", "p", "t", data)]
    store = PatchStore(listings, ImageConfig(bad_pictures="skip"))
    assert store.at(0, 0) is None
    assert store.bad([0]) == 1
    with pytest.raises(CatalogueError, match="'a'"):
        PatchStore(listings, ImageConfig()).at(0, 0)


# F8
@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_damaged_pictures_raise_nothing_else(kind):
    rng = np.random.default_rng(0)
    whole, refused = encode(noise(40, 30), kind), []
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, min(len(data), 400), 3):
            data[at] = rng.integers(256)
        try:
            decode(bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data))
        except CatalogueError as error:
            refused.append(str(error))
    assert refused
    assert all(";" in x for x in refused)


# F17
@pytest.mark.parametrize("kind", ["pipe", "device", "link", "folder", "large"])
def test_what_is_no_ordinary_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "a.png"
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "link": lambda: path.symlink_to(path),
        "folder": path.mkdir,
        "large": lambda: (path.touch(), os.truncate(path, 1 << 40)),
    }[kind]()
    with pytest.raises(CatalogueError, match=r"listing 'a': picture .*a\.png"):
        Listing("a", "p", "t", str(path)).read_image_bytes()


BOMB = """
import io, sys, resource
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from PIL import Image
from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.images import patchify
Image.init()

def used(name):
    return int(next(x for x in open("/proc/self/status") if x.startswith(name)).split()[1]) // 1024

data = sys.stdin.buffer.read()
before = used("VmRSS")
with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    for found in pool.map(lambda _: patchify(data, ImageConfig()), range(int(sys.argv[1]))):
        assert len(found.pixels)
print(used("VmHWM") - before)
"""


# S5
@pytest.mark.slow
def test_a_bomb_takes_bounded_memory_in_many_threads():
    file = io.BytesIO()
    Image.new("P", (9999, 10000)).save(file, "PNG", transparency=b"\0\1")
    data = file.getvalue()
    assert len(data) < 110_000
    found = subprocess.run(
        [sys.executable, "-c", BOMB, "4"], input=data, capture_output=True, check=True
    )
    assert int(found.stdout) < 1000


# S5
def test_a_bomb_that_takes_too_much_is_refused():
    with pytest.raises(CatalogueError, match=r"takes \d+ MB to decode, more than 700 MB; scale"):
        open_picture(encode(Image.new("RGBA", (8000, 8000)), "WEBP", lossless=True, method=0))


# S5
@pytest.mark.parametrize(("colour", "taken"), [(2, True), (6, False)])
def test_a_deep_png_just_below_the_pixels_is_refused_if_it_is_transparent(colour, taken):
    data = png_of(9999, 10_000, depth=16, colour=colour, empty=True)
    if taken:
        assert open_picture(data).size == (9999, 10_000)
    else:
        with pytest.raises(CatalogueError, match="takes 799 MB to decode, more than 700 MB; scale"):
            open_picture(data)


# S5
def test_a_tile_that_is_larger_than_its_picture_counts():
    tags = {256: 32, 257: 32, 258: 8, 259: 8, 262: 1, 277: 1, 322: 0, 323: 0, 324: 200, 325: 9}
    for side in (32, 60_000):
        entries = [struct.pack("<HHII", k, 4, 1, v or side) for k, v in tags.items()]
        data = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(90)
        if side == 32:
            assert open_picture(data).size == (32, 32)
        else:
            with pytest.raises(CatalogueError, match="megapixels; scale it down"):
                open_picture(data)


# S5
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photograph_of_50_megapixels_is_opened(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (8700, 5800), "red"), kind, exif=exif)
    assert open_picture(data).size == (5800, 8700)


def test_threads_that_read_wait_for_each_others_files(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_ENCODED", MemoryBudget(25))
    (tmp_path / "a.png").write_bytes(b"0123456789")
    listings = [Listing(str(n), "p", "t", str(tmp_path / "a.png")) for n in range(8)]
    gate, lock, running, most = threading.Event(), threading.Lock(), 0, 0

    def read(listing):
        nonlocal running, most
        with listing.encoded() as data:
            with lock:
                running += 1
                most = max(most, running)
            gate.wait(0.05)
            with lock:
                running -= 1
            return data

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, listings)) == {b"0123456789"}
    assert most == 2
    # One that fails gives its room back.
    for _ in range(5):
        with pytest.raises(CatalogueError), listings[0].encoded() as data:
            decode(data)
    with Listing("c", "p", "t", b"x" * 100).encoded() as data:
        assert len(data) == 100, "what is in memory waits for nobody"


# S5
def test_threads_wait_for_each_others_memory(monkeypatch):
    data = encode(noise(100, 100))
    cost = open_picture(data).cost
    assert 40_000 <= cost < 100_000
    monkeypatch.setattr(pictures, "_BUDGET", MemoryBudget(2 * cost))
    running, most, lock = 0, 0, threading.Lock()
    plain = pictures.as_rgb

    def slow(picture):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        found = plain(picture)
        gate.wait(0.05)
        with lock:
            running -= 1
        return found

    gate = threading.Event()
    monkeypatch.setattr(pictures, "as_rgb", slow)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(decode, [data] * 8))) == 8
    assert most == 2
    # A picture that fails gives its memory back.
    broken = data[: len(data) // 2]
    for _ in range(5):
        with pytest.raises(CatalogueError, match="broken or cut off"):
            decode(broken)
