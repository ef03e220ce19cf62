"""Targets: pictures of every kind, in a catalogue and in the exported module."""

from __future__ import annotations

import io
import json
import shutil
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.images import patchify
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.pictures import decode
from experiments.reliability.fuzz.case import AcceptedWrongError, Case, Room, target
from experiments.reliability.fuzz.catalogues import use_catalogue
from experiments.reliability.fuzz.mutate import Rng, pick, spoil_bytes

ORIENTATION = 0x0112
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n%%EndComments\n"
    b"(x) print\nshowpage\n%%EOF\n"
)


@dataclass(frozen=True)
class Picture:
    """The bytes of a picture, and what must become of it."""

    what: str
    data: bytes
    wanted: np.ndarray | None = None
    """RGB that it must look like, uint8 [y x 3]."""
    refused: bool = False
    good: bool = False


def drawing() -> Image.Image:
    """A picture without any symmetry, so that turning shows."""
    y, x = np.mgrid[:36, :48]
    channels = [x * 5, y * 7, (x + y) * 3 % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _ordinary(rng: Rng) -> Picture:
    kind = pick(rng, ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"))
    mode = pick(rng, ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"))
    try:
        data = encoded(drawing().convert(mode), kind)
    except (OSError, ValueError):
        mode = "RGB"
        data = encoded(drawing(), kind)
    wanted = np.asarray(drawing()) if mode == "RGB" and kind != "GIF" else None
    return Picture(f"{mode} as {kind}", data, wanted, good=True)


def _turned(rng: Rng) -> Picture:
    kind, turn = pick(rng, ("JPEG", "PNG", "WEBP", "TIFF")), int(rng.integers(2, 9))
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    from PIL import ImageOps

    data = encoded(drawing(), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    with Image.open(io.BytesIO(data)) as opened:
        wanted = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    return Picture(f"EXIF orientation {turn} in {kind}", data, wanted, good=True)


def _odd_exif(rng: Rng) -> Picture:
    exif = Image.Exif()
    exif[ORIENTATION] = int(pick(rng, (0, 9, 255, 65535)))
    exif[0x010E] = "x" * 1000
    data, spoiled = spoil_bytes(exif.tobytes(), rng)
    return Picture(f"EXIF: {spoiled.what}", encoded(drawing(), "JPEG", exif=data[:60_000]))


def _deep(rng: Rng) -> Picture:
    kind = pick(rng, ("PNG", "TIFF"))
    ramp = np.linspace(0, 65535, 36 * 48).reshape(36, 48)
    wanted = np.repeat((ramp / 257).round().astype(np.uint8)[..., None], 3, -1)
    data = encoded(Image.fromarray(ramp.astype(np.uint16)), kind)
    return Picture(f"16-bit grey {kind}", data, wanted, good=True)


def _of_numbers(rng: Rng) -> Picture:
    scale = pick(rng, (1.0, 255.0, np.nan, np.inf, 1e30))
    values = (np.linspace(0, 1, 36 * 48).reshape(36, 48) * scale).astype(np.float32)
    if rng.random() < 0.3:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = np.nan_to_num(values, posinf=1).clip(-1e9, 1e9).astype(np.int32)
        # Whether 32 bits of whole numbers are refused or scaled is left open.
        return Picture("32-bit whole numbers", encoded(Image.fromarray(whole), "TIFF"))
    return Picture(f"float TIFF to {scale}", encoded(Image.fromarray(values), "TIFF"), refused=True)


def _foreign(rng: Rng) -> Picture:
    kinds = ("EPS", "PPM", "TGA", "PCX", "ICO", "ICNS", "DDS", "SGI", "IM", "JPEG2000", "AVIF")
    kind = pick(rng, (*kinds, "script", "FITS", "PSD", "WMF", "SVG", "PDF"))
    made = {
        "script": EPS,
        "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(60),
        "WMF": b"\xd7\xcd\xc6\x9a" + struct.pack("<HhhhhH", 0, 0, 0, 9, 9, 96) + bytes(60),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    }
    if kind in made:
        return Picture(kind, made[kind], refused=True)
    try:
        data = encoded(drawing().resize((32, 32)), kind)
    except (OSError, KeyError, ValueError):
        return Picture("EPS", EPS, refused=True)
    if rng.random() < 0.3:
        data, spoiled = spoil_bytes(data, rng)
        # Broken bytes may by chance be a picture of another kind.
        return Picture(f"{kind}, {spoiled.what}", data)
    return Picture(kind, data, refused=True)


def _shaped(rng: Rng) -> Picture:
    size = pick(rng, ((1, 201), (201, 1), (1, 1), (1, 200), (3, 700), (2, 2)))
    return Picture(f"{size[0]} x {size[1]}", encoded(drawing().resize(size), "PNG"))


def _broken(rng: Rng) -> Picture:
    found = pick(rng, (_ordinary, _ordinary, _turned, _deep))(rng)
    data, spoiled = spoil_bytes(found.data, rng)
    return Picture(f"{found.what}, {spoiled.what}", data)


MAKERS: tuple[Callable[[Rng], Picture], ...] = (
    _ordinary,
    _turned,
    _odd_exif,
    _deep,
    _of_numbers,
    _foreign,
    _foreign,
    _shaped,
    _broken,
    _broken,
    _broken,
)


def check_look(found: np.ndarray, wanted: np.ndarray) -> None:
    """Refuse a picture that is turned, clipped or otherwise another."""
    if found.shape != wanted.shape:
        raise AcceptedWrongError(f"decoded as {found.shape}, not {wanted.shape}")
    apart = float(np.abs(found.astype(float) - wanted).mean())
    if apart > 12:
        raise AcceptedWrongError(f"decoded with a mean error of {apart:.0f} of 255")


@target("picture")
def picture(room: Room) -> Case:
    """A catalogue with one odd picture."""
    rng, folder = room.rng, room.folder / "shop"
    shutil.copytree(room.good / "shop", folder)
    if rng.random() < 0.06:
        return _bomb(room, folder)
    found = pick(rng, MAKERS)(rng)
    line = json.loads((folder / "listings.jsonl").read_text().splitlines()[0])
    name = pick(rng, ("png", "jpg", "eps", "gif", "tif", "x"))
    line |= {"listing_id": "odd", "image": f"images/odd.{name}"}
    (folder / line["image"]).write_bytes(found.data)
    with (folder / "listings.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")

    def act() -> None:
        catalogue = use_catalogue(folder)
        # The file that was put there, whatever else may be in the catalogue.
        odd = [x for x in catalogue.listings if x.listing_id == "odd"]
        if found.wanted is not None:
            check_look(np.asarray(decode(odd[0].read_image_bytes())), found.wanted)

    return Case(found.what, act, wrong=found.refused, good=found.good)


def _bomb(room: Room, folder: Path) -> Case:
    bomb = pick(room.rng, sorted((room.good / "pictures").iterdir()))
    images = sorted((folder / "images").iterdir())
    if room.rng.random() < 0.5:
        shutil.copy(bomb, images[0])
        return Case(f"{bomb.name} in a catalogue", lambda: use_catalogue(folder))
    for path in images[:4]:
        shutil.copy(bomb, path)

    def at_once() -> None:
        listings = load_catalogue(folder).listings[:4]
        with ThreadPoolExecutor(4) as pool:
            # As embedding and training do; nothing keeps several pictures at their full size.
            list(pool.map(lambda x: patchify(x.read_image_bytes(), ImageConfig()), listings))

    return Case(f"{bomb.name} four times at once", at_once)


if find_spec("torch") is not None:

    @target("portable")
    def portable(room: Room) -> Case:
        """A picture given to the module that an exported folder carries."""
        from afmrl_jax.runs.portable import afmrl_embedder as module

        found = pick(room.rng, MAKERS)(room.rng)
        path = room.folder / "odd.png"
        path.write_bytes(found.data)

        def act() -> None:
            try:
                decoded = np.asarray(module.decode(str(path)))
            except ValueError as error:
                # The module has no errors of its own; ValueError is what it promises.
                from afmrl_jax.errors import InputError

                raise InputError(str(error)) from error
            if found.wanted is not None:
                check_look(decoded, found.wanted)

        return Case(found.what, act, wrong=found.refused, good=found.good)
