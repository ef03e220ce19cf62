"""Objects of the Debian package: names, translations, sizes, licences and 3-D models."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

LANGUAGES = ("de", "fr", "es", "zh_CN")
LIBRARY_TAGS = {"blend swap", "scpts", "kator legaz", "scopia", "reallusion"}
PEOPLE = "Reallusion"  # Models of persons: not furniture, and not to be recoloured.
LARGEST_MODEL = 6_000_000


@dataclass(frozen=True)
class Item:
    """One object of a furniture library."""

    library: str
    number: int
    name: str
    tags: tuple[str, ...]
    category: str
    width: float
    depth: float
    height: float
    creator: str
    icon: str
    model: str
    names: dict[str, str] = field(default_factory=dict)

    @property
    def family_id(self) -> str:
        """Stable id of the object."""
        return f"{self.library.lower()}-{self.number}"


@dataclass
class Mesh:
    """Triangles with normals, and which material each has."""

    vertices: np.ndarray
    normals: np.ndarray
    material: np.ndarray
    colours: np.ndarray
    opacity: np.ndarray

    def areas(self) -> np.ndarray:
        """Surface share of each material, [m]."""
        a, b, c = (self.vertices[:, i] for i in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        total = np.bincount(self.material, area, len(self.colours)) * (self.opacity > 0.5)
        return total / max(total.sum(), 1e-9)


def read_properties(data: bytes) -> dict[str, str]:
    """A Java properties file: Latin-1, other characters as escapes."""
    out = {}
    for line in re.sub(r"\\\r?\n\s*", "", data.decode("latin-1")).splitlines():
        line = line.strip()
        if line and line[0] not in "#!" and "=" in line:
            key, value = line.split("=", 1)
            escape = re.compile(r"\\u([0-9a-fA-F]{4})")
            out[key.strip()] = escape.sub(lambda m: chr(int(m[1], 16)), value).strip()
    return out


def read_items(folder: Path) -> Iterator[tuple[zipfile.ZipFile, Item]]:
    """All usable objects below the unpacked package, in a stable order."""
    for path in sorted(folder.rglob("*.sh3f")):
        if path.stem == PEOPLE:
            continue
        archive = zipfile.ZipFile(path)
        main = read_properties(archive.read("PluginFurnitureCatalog.properties"))
        translated = {
            language: read_properties(archive.read(f"PluginFurnitureCatalog_{language}.properties"))
            for language in LANGUAGES
            if f"PluginFurnitureCatalog_{language}.properties" in archive.namelist()
        }
        numbers = sorted(int(key.split("#")[1]) for key in main if key.startswith("model#"))
        for number in numbers:
            item = _item(path.stem, number, main, translated)
            if archive.getinfo(item.model).file_size <= LARGEST_MODEL:
                yield archive, item


def _item(
    library: str, number: int, main: dict[str, str], translated: dict[str, dict[str, str]]
) -> Item:
    def get(key: str) -> str:
        return main.get(f"{key}#{number}", "")

    tags = [tag.strip() for tag in get("tags").split(",")]
    return Item(
        library=library,
        number=number,
        name=get("name"),
        tags=tuple(t for t in tags if t and t.lower() not in LIBRARY_TAGS),
        category=get("category"),
        width=float(get("width")),
        depth=float(get("depth")),
        height=float(get("height")),
        creator=get("creator"),
        icon=get("icon").lstrip("/"),
        model=get("model").lstrip("/"),
        names={
            language: table[f"name#{number}"]
            for language, table in translated.items()
            if f"name#{number}" in table
        },
    )


def read_mesh(archive: zipfile.ZipFile, path: str) -> Mesh:
    """Read an OBJ file with its MTL colours; a texture counts as its mean colour."""
    points: list[list[str]] = []
    normals: list[list[str]] = []
    corners: list[tuple[int, int]] = []
    materials: list[int] = []
    names: dict[str, int] = {"": 0}
    library, current = "", 0
    for line in archive.read(path).decode("latin-1").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            points.append(rest.split()[:3])
        elif kind == "vn":
            normals.append(rest.split()[:3])
        elif kind == "f":
            face = [_corner(c, len(points), len(normals)) for c in rest.split()]
            for i in range(1, len(face) - 1):
                corners += (face[0], face[i], face[i + 1])
                materials.append(current)
        elif kind == "usemtl":
            current = names.setdefault(rest.strip(), len(names))
        elif kind == "mtllib":
            library = rest.strip()
    table = _materials(archive, path, library)
    default = (np.full(3, 0.7), 1.0)
    colours = np.array([table.get(name, default)[0] for name in names])
    opacity = np.array([table.get(name, default)[1] for name in names])
    if (opacity[np.unique(materials)] <= 0.2).all():
        opacity[:] = 1.0  # An object of glass alone would not show.
    index = np.array(corners).reshape(-1, 3, 2)
    vertices = np.array(points, np.float32)[index[..., 0]]
    flat = np.cross(vertices[:, 1] - vertices[:, 0], vertices[:, 2] - vertices[:, 0])
    shading = np.repeat(flat[:, None], 3, axis=1)
    if normals:
        given = np.array(normals, np.float32)[np.maximum(index[..., 1], 0)]
        shading = np.where(index[..., 1:] >= 0, given, shading)
    length = np.linalg.norm(shading, axis=-1, keepdims=True)
    shading = shading / np.maximum(length, 1e-12)
    return Mesh(vertices, shading.astype(np.float32), np.array(materials), colours, opacity)


def _corner(text: str, points: int, normals: int) -> tuple[int, int]:
    parts = text.split("/")
    vertex = int(parts[0])
    normal = int(parts[2]) if len(parts) > 2 and parts[2] else 0
    return (
        vertex - 1 if vertex > 0 else points + vertex,
        normal - 1 if normal > 0 else (normals + normal if normal < 0 else -1),
    )


def _materials(
    archive: zipfile.ZipFile, model: str, library: str
) -> dict[str, tuple[np.ndarray, float]]:
    folder = model.rsplit("/", 1)[0]
    try:
        text = archive.read(f"{folder}/{library}").decode("latin-1")
    except KeyError:
        return {}
    out: dict[str, tuple[np.ndarray, float]] = {}
    name = ""
    for line in text.splitlines():
        kind, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if kind == "newmtl":
            name = rest
            out[name] = (np.full(3, 0.7), 1.0)
        elif kind == "Kd" and name:
            out[name] = (np.array(rest.split()[:3], float), out[name][1])
        elif kind == "d" and name:
            out[name] = (out[name][0], float(rest.split()[-1]))
        elif kind == "map_Kd" and name:
            mean = _mean_colour(archive, f"{folder}/{rest.split()[-1]}")
            if mean is not None:
                out[name] = (mean, out[name][1])
    return out


def _mean_colour(archive: zipfile.ZipFile, path: str) -> np.ndarray | None:
    try:
        picture = Image.open(io.BytesIO(archive.read(path))).convert("RGBA").resize((16, 16))
    except (KeyError, OSError):
        return None
    pixels = np.asarray(picture, float) / 255
    weight = pixels[..., 3:] + 1e-6
    return (pixels[..., :3] * weight).sum((0, 1)) / weight.sum((0, 1))
