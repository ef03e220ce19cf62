"""Weights of a Hugging Face folder, straight from the mapped files to the devices."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.huggingface.names import HubTensor, canonical_name, hub_tensors
from afmrl_jax.models.huggingface.safetensors import StoredTensor, stored_tensors
from afmrl_jax.models.qwen_vl.hub_fields import REMEDY
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.types import JsonObject

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BLOCK = 1 << 26
"""Bytes of a file that are mapped into memory at a time."""
MAX_NAMES = 20
"""Names of files or tensors in an error."""

Shardings = Callable[[Mapping[str, jax.ShapeDtypeStruct]], JsonObject]
"""The sharding of every parameter, by name, of a dictionary of shapes."""


def hub_files(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder by canonical name, from one file or several with an index.

    Raises:
        RunError: no safetensors weights, a missing file, an index that names files outside the
            folder or tensors that its files lack.
    """
    single, index = folder / SINGLE, folder / INDEX
    if index.is_file():
        weight_map = _weight_map(index)
        names = sorted(set(weight_map.values()))
        outside = [
            n
            for n in names
            if Path(n).name != n or n in ("", ".", "..") or not n.isprintable() or "\\" in n
        ]
        if outside:
            raise RunError(
                f"{index} names files outside its folder: {_some(outside)}; do not trust it"
            )
        absent = [n for n in names if not (folder / n).is_file()]
        if absent:
            raise RunError(f"{folder} lacks {_some(absent)}; download the whole folder")
        files = {n: stored_tensors(folder / n) for n in names}
        lost = [f"{t} in {n}" for t, n in weight_map.items() if t not in files[n]]
        if lost:
            raise RunError(f"{index} promises tensors that are not there: {_some(lost)}")
        everything = {t: files[n][t] for t, n in weight_map.items()}
    elif single.is_file():
        everything = stored_tensors(single)
    else:
        pickles = sorted(x.name for x in folder.glob("*.bin")) if folder.is_dir() else []
        reason = f"holds pickles ({', '.join(pickles)}), which are refused" if pickles else ""
        raise RunError(
            f"{folder} {reason or f'has neither {SINGLE} nor {INDEX}'}; give a folder with "
            "safetensors weights (`save_pretrained(safe_serialization=True)` writes one)"
        )
    found: dict[str, StoredTensor] = {}
    for name, tensor in everything.items():
        if canonical_name(name) in found:
            raise RunError(f"{folder} holds {canonical_name(name)} twice, once as {name}")
        found[canonical_name(name)] = tensor
    return found


@dataclass(frozen=True)
class _Index:
    """What is read of an index of safetensors files."""

    weight_map: dict[str, str]


def _plain(name: str) -> bool:
    """Whether a name can only be that of a file in the folder."""
    plain = Path(name).name == name and name not in ("", ".", "..") and "\\" not in name
    return plain and name.isprintable()


def _some(names: list[str]) -> str:
    """The first names of what may be a long list."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(repr(x) if not x.isprintable() else x for x in names[:MAX_NAMES]) + more


def _weight_map(index: Path) -> dict[str, str]:
    """The file of every tensor."""
    return read_checked(index, _Index, remedy=REMEDY).weight_map


def check_fit(architecture: Architecture, stored: Mapping[str, StoredTensor], where: str) -> None:
    """See that a folder's tensors are those of the architecture.

    Raises:
        RunError: lists every missing, extra and misshapen tensor.
    """
    wanted = {t.name: t for t in hub_tensors(architecture)}
    problems = [f"missing {name}" for name in wanted if name not in stored]
    for name, tensor in stored.items():
        if name not in wanted:
            if not _known_surplus(architecture, stored, name):
                problems.append(f"extra {name}")
        elif tensor.shape != wanted[name].shape:
            problems.append(f"{name} has shape {tensor.shape} instead of {wanted[name].shape}")
    if problems:
        raise RunError(f"{where} does not fit its config.json: " + "; ".join(problems))


def _known_surplus(
    architecture: Architecture, stored: Mapping[str, StoredTensor], name: str
) -> bool:
    """Whether an extra tensor says nothing new: a tied head stored twice, computed frequencies."""
    if name.endswith(".inv_freq"):
        return True
    table = stored.get("model.embed_tokens.weight")
    if name != "lm_head.weight" or not architecture.config.text.tie_embeddings or table is None:
        return False
    # Some tools store the tied head too. It must be what it is tied to.
    return stored[name].shape == table.shape and np.array_equal(stored[name].open(), table.open())


def load_params(
    architecture: Architecture,
    stored: Mapping[str, StoredTensor],
    shardings: Shardings | None = None,
    dtype: str | None = None,
) -> Params:
    """Parameters on the devices; adapters that the architecture has are left out.

    One tensor at a time passes through host memory, so that its peak is that of the largest one.

    Args:
        architecture: what `check_fit` has checked.
        stored: from `hub_files`.
        shardings: where the parameters go; None for JAX's first device.
        dtype: of the parameters; None keeps the files' own.

    Raises:
        RunError: layers of one stack are of several types, and no `dtype` is given.
    """
    parts: dict[str, list[HubTensor]] = {}
    for tensor in hub_tensors(architecture):
        parts.setdefault(tensor.ours, []).append(tensor)
    if dtype is None:
        odd = [
            f"{x.name} is {stored[x.name].dtype}, {own[0].name} {stored[own[0].name].dtype}"
            for own in parts.values()
            for x in own
            if stored[x.name].dtype != stored[own[0].name].dtype
        ]
        if odd:
            raise RunError("layers are stored in several types: " + "; ".join(odd))
    kinds = {name: np.dtype(dtype or stored[own[0].name].dtype) for name, own in parts.items()}
    shapes = {n: jax.ShapeDtypeStruct(architecture.shapes[n].shape, kinds[n]) for n in parts}
    if shardings is not None:
        wanted = shardings(shapes)
    else:
        wanted = dict.fromkeys(shapes, SingleDeviceSharding(jax.local_devices()[0]))
    return {name: _load(own, stored, shapes[name], wanted[name]) for name, own in parts.items()}


def _load(
    parts: list[HubTensor],
    stored: Mapping[str, StoredTensor],
    shape: jax.ShapeDtypeStruct,
    sharding: Sharding,
) -> jax.Array:
    first = parts[0]
    if first.layer is None:
        convert = _converter(first.kind, shape.dtype, sharding)
        return convert(_read(stored[first.name], first, sharding))
    # Layers are written into the stack on the device, where donation makes it happen in place.
    stack = jnp.zeros(shape.shape, shape.dtype, device=sharding)
    put = _putter(first.kind, shape.dtype, sharding)
    for part in parts:
        stack = put(stack, _read(stored[part.name], part, sharding), np.int32(part.layer or 0))
    # Without the wait the host would read ahead of the devices and hold many tensors.
    return stack.block_until_ready()


# Kept, so that maps of equal shape are compiled once.
@lru_cache(maxsize=256)
def _converter(kind: str, dtype: DTypeLike, sharding: Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(partial(_ours, kind=kind, dtype=dtype), out_shardings=sharding)


@lru_cache(maxsize=256)
def _putter(kind: str, dtype: DTypeLike, sharding: Sharding) -> Callable[..., jax.Array]:
    @partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def put(stack: jax.Array, piece: jax.Array, layer: jax.Array) -> jax.Array:
        piece = _ours(piece, kind, dtype)[None]
        return jax.lax.dynamic_update_slice_in_dim(stack, piece, layer, axis=0)

    return put


def _ours(value: jax.Array, kind: str, dtype: DTypeLike) -> jax.Array:
    if kind == "patches":
        value = value.reshape(value.shape[0], -1)
    return (value if kind == "plain" else value.T).astype(dtype)


def _read(stored: StoredTensor, tensor: HubTensor, sharding: Sharding) -> jax.Array:
    """A tensor on the devices in the file's layout, each device reading its own part."""
    if isinstance(sharding, NamedSharding):
        spec = list(sharding.spec)
        spec += [None] * (len(tensor.shape) + (tensor.layer is not None) - len(spec))
        spec = spec[1:] if tensor.layer is not None else spec
        if tensor.kind == "matrix":
            spec = spec[::-1]
        elif tensor.kind == "patches":
            spec = [spec[1]] + [None] * (len(tensor.shape) - 1)
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    value = jax.make_array_from_callback(
        tensor.shape, sharding, lambda index: _copy(stored, index), dtype=stored.dtype
    )
    return value.block_until_ready()


def _copy(stored: StoredTensor, index: tuple[slice, ...] | None) -> np.ndarray:
    """A part of a tensor, read block by block so that little of the file stays mapped."""
    mapped = stored.open()
    view = mapped if index is None else mapped[index]
    if not isinstance(mapped, np.memmap) or view.ndim == 0:
        return np.array(view)
    out = np.empty(view.shape, stored.dtype)
    row = stored.nbytes // mapped.shape[0]
    step = max(1, BLOCK // max(row, 1))
    for begin in range(0, len(view), step):
        out[begin : begin + step] = view[begin : begin + step]
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    return out
