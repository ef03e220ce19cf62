"""Studio pictures of a mesh: an off-screen OpenGL context, two lights, a background, a crop.

Needs `moderngl` and an EGL driver (Mesa's software renderer is enough).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from experiments.furniture.source import Mesh

RENDER_SIZE = 160

_VERTEX = """
#version 330
uniform mat4 camera;
in vec3 position; in vec3 normal; in vec4 colour;
out vec3 n; out vec4 c;
void main() { gl_Position = camera * vec4(position, 1.0); n = normal; c = colour; }
"""
_FRAGMENT = """
#version 330
uniform vec3 key_direction; uniform vec3 key_colour;
uniform vec3 fill_direction; uniform vec3 fill_colour; uniform vec3 ambient;
in vec3 n; in vec4 c; out vec4 result;
void main() {
  vec3 m = normalize(n);
  float facing = dot(m, key_direction);
  vec3 light = ambient + key_colour * abs(facing) * (facing > 0.0 ? 1.0 : 0.45)
             + fill_colour * max(dot(m, fill_direction), 0.0);
  result = vec4(min(c.rgb * light, vec3(1.0)), c.a);
}
"""


@dataclass(frozen=True)
class Studio:
    """How one seller takes pictures."""

    azimuth: float
    """Degrees around the object; 0 is the front."""
    azimuth_spread: float
    elevation: float
    """Degrees above the horizon."""
    light: tuple[float, float, float]
    """Color of the key light."""
    ambient: float
    background: str
    """white, grey, gradient, wall, dark"""
    background_colour: tuple[float, float, float]
    zoom: float
    """1 fits the object; more crops it."""


class Renderer:
    """One OpenGL context, used for many meshes."""

    def __init__(self, size: int = RENDER_SIZE):
        import moderngl  # Only here, so that `--help` works without it.

        self._size = size
        settings: Any = {"standalone": True, "backend": "egl"}
        self._context = moderngl.create_context(**settings)
        self._context.enable(moderngl.DEPTH_TEST)
        self._program = self._context.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT)
        shape = (size, size)
        self._target = self._context.framebuffer(
            [self._context.renderbuffer(shape, 4, samples=4)],
            self._context.depth_renderbuffer(shape, samples=4),
        )
        self._resolved = self._context.framebuffer([self._context.renderbuffer(shape, 4)])

    def picture(
        self,
        mesh: Mesh,
        colours: np.ndarray,
        studio: Studio,
        rng: np.random.Generator,
        pixels: int,
    ) -> Image.Image:
        """An RGB picture, `pixels` square.

        Args:
            mesh: what to show.
            colours: RGB of each material, [m 3], 0 to 1.
            studio: light, view and background; `rng` jitters them.
            rng: of this listing.
            pixels: side of the result.
        """
        azimuth = studio.azimuth + rng.uniform(-1, 1) * studio.azimuth_spread
        elevation = studio.elevation + rng.uniform(-5, 5)
        zoom = studio.zoom * rng.uniform(0.93, 1.07)
        shift = rng.uniform(-0.05, 0.05, 2)
        camera, view = _camera(mesh, azimuth, elevation, zoom, shift)
        exposure = rng.uniform(0.9, 1.08)
        program: Any = self._program  # Its members are uniforms, which moderngl does not type.
        program["camera"].write(camera.T.astype("f4").tobytes())
        program["key_direction"].value = tuple(_unit(view @ np.array([0.5, 0.8, 0.9])))
        program["fill_direction"].value = tuple(_unit(view @ np.array([-0.9, 0.2, 0.5])))
        light = np.array(studio.light) * exposure
        program["key_colour"].value = tuple(0.62 * light)
        program["fill_colour"].value = tuple(0.25 * light)
        program["ambient"].value = tuple(studio.ambient * light)
        colour = np.concatenate([colours, mesh.opacity[:, None]], 1)[mesh.material]
        data = np.concatenate(
            [mesh.vertices, mesh.normals, np.repeat(colour[:, None], 3, axis=1)], axis=-1
        ).astype("f4")
        buffer = self._context.buffer(data[mesh.opacity[mesh.material] > 0.2].tobytes())
        array = self._context.vertex_array(
            program, [(buffer, "3f 3f 4f", "position", "normal", "colour")]
        )
        self._target.use()
        self._target.clear(0, 0, 0, 0)
        array.render()
        self._context.copy_framebuffer(self._resolved, self._target)
        raw = self._resolved.read(components=4)
        array.release()
        buffer.release()
        shape = (self._size, self._size, 4)
        object_layer = np.frombuffer(raw, np.uint8).reshape(shape)[::-1].astype(float) / 255
        behind = _background(studio, self._size, rng)
        covered = (object_layer[..., 3:] > 0).astype(float) * np.maximum(object_layer[..., 3:], 0.5)
        mixed = object_layer[..., :3] * covered + behind * (1 - covered)
        image = Image.fromarray((mixed * 255).clip(0, 255).astype(np.uint8))
        return image.resize((pixels, pixels), Image.Resampling.LANCZOS)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _camera(
    mesh: Mesh, azimuth: float, elevation: float, zoom: float, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Orthographic projection that fits the object, and the camera's axes as columns."""
    a, e = np.radians(azimuth), np.radians(elevation)
    forward = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    right = _unit(np.cross([0.0, 1.0, 0.0], forward))
    up = np.cross(forward, right)
    view = np.stack([right, up, forward], 1)
    seen = mesh.vertices.reshape(-1, 3) @ view
    low, high = seen.min(0), seen.max(0)
    scale = 1.8 * zoom / max((high - low)[:2].max(), 1e-6)
    middle = (low + high) / 2
    depth = max(high[2] - low[2], 1e-6)
    camera = np.eye(4)
    camera[0, :3], camera[1, :3] = right * scale, up * scale
    camera[2, :3] = -forward / depth
    camera[:3, 3] = [-middle[0] * scale, -middle[1] * scale, middle[2] / depth]
    camera[:2, 3] += shift
    return camera, view


def _background(studio: Studio, size: int, rng: np.random.Generator) -> np.ndarray:
    base = np.array(studio.background_colour) * rng.uniform(0.92, 1.05)
    picture = np.ones((size, size, 3)) * base
    rows = np.linspace(0, 1, size)[:, None, None]
    if studio.background == "gradient":
        picture = picture * (1.08 - 0.35 * rows)
    elif studio.background == "wall":
        floor = rows > rng.uniform(0.6, 0.75)
        picture = np.where(floor, picture * np.array([0.72, 0.62, 0.52]), picture)
    return picture.clip(0, 1)


def jpeg(image: Image.Image, quality: int) -> bytes:
    """JPEG bytes of a picture."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()
