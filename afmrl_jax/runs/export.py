"""Exports a model of a finished run as a folder for other programs.

An embedder for sentence-transformers, transformers and vLLM (pooling), a generator for
transformers and vLLM (chat).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import System
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.demo_weights import weights_folder
from afmrl_jax.models.huggingface.folder import base_folder, save_model
from afmrl_jax.models.lora import merge_lora
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runs.export_card import write_card
from afmrl_jax.runs.export_files import write_companions
from afmrl_jax.runs.listing_parts import KINDS, Parts, parts_of
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.runtime.outputs import require_own_output
from afmrl_jax.types import Role

TOLERANCE = 1e-4
"""Largest difference between the numbers of two unit vectors, both computed in float32."""
CHECKED_LISTINGS = 4


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The result of the check."""

    rows: int
    difference: float
    """Largest difference of a number between our unit vectors and torch's."""
    rounding: float | None
    """The same between the trained model and the one written in another `dtype`; None for
    float32."""

    def __str__(self) -> str:
        what = (
            f"{self.rows} vectors of titles, pictures, both, and both with attributes, computed "
            f"from this folder with torch and by the program that trained the model, differ by "
            f"{self.difference:.1e} at most"
        )
        if self.rounding is None:
            return what
        return f"{what} (in float32); rounding the weights changed them by {self.rounding:.1e}"


def export(
    run: FinishedRun,
    system_name: str | None,
    out: Path,
    *,
    role: Role = "embedder",
    dtype: Literal["float32", "bfloat16"] = "float32",
    check: bool = True,
    catalogue: str | None = None,
    columns: str | None = None,
) -> Agreement | None:
    """Write a model of a system as a folder that other programs load.

    Args:
        run: a finished run.
        system_name: row of its results table; None for the last.
        out: folder that is empty or does not exist yet.
        role: which of the system's models.
        dtype: of the weights. Adapters are merged in float32 first.
        check: embed some listings here and with torch from the folder, and compare; only of an
            embedder.
        catalogue: where those listings come from; None for the run's own.
        columns: of `catalogue`, which are which if it is a table.

    Returns:
        The result of the check; None if it was not wanted, torch is not installed, or a generator
        is written.

    Raises:
        RunError: `out` is not empty, the run has no such system, the model is not trained yet or
            the system has none, or an embedder's vectors here and in torch differ by more than
            `TOLERANCE`; then nothing is written.
    """
    require_own_output(out, "afmrl export", error=RunError)
    system = run.system(system_name)
    stage = _stage(system, role)
    checking = check and role == "embedder" and importlib.util.find_spec("torch") is not None
    # Before any weights are read: a missing catalogue should be noticed first.
    if catalogue is None:
        catalogue, columns = run.config.catalogue, run.config.columns
    listings = _some_listings(catalogue, columns, run) if checking else ()
    architecture, trained = run.model(stage)
    exact = {n: x.astype(jnp.float32) for n, x in trained.items()}
    plain, merged = merge_lora(architecture, exact)
    merged = {n: x.astype(dtype) for n, x in merged.items()}
    weights = weights_folder(run.config.model(role).weights, role)
    base = base_folder(weights) if weights is not None else None
    agreement = None
    with atomic_path(out) as folder:
        save_model(folder, plain, merged, like=base, tokenizer=run.tokenizers[role])
        write_companions(folder, run, plain, role)
        if checking:
            agreement = _compare(folder, run, (architecture, exact), (plain, merged), listings)
        write_card(folder, run, system, plain, role=role, base=base, agreement=agreement)
    return agreement


def _stage(system: System, role: Role) -> str:
    if role == "embedder":
        return system.embedder
    if system.generator is None:
        raise RunError(f"the system {system.name} has no generator; choose another --system")
    return system.generator


def _some_listings(name: str, columns: str | None, run: FinishedRun) -> Sequence[Listing]:
    catalogue = load_catalogue(name, marketplace=run.config.marketplace, columns=columns)
    return (catalogue.subset("test").listings or catalogue.listings)[:CHECKED_LISTINGS]


def _ours(
    run: FinishedRun, architecture: Architecture, params: Params, inputs: Sequence[Parts]
) -> np.ndarray:
    """Unit vectors [n d] computed here in float32."""
    execution = dataclasses.replace(architecture.execution, dtype="float32")
    exact = {n: x.astype(jnp.float32) for n, x in params.items()}
    encoder = Encoder.on(run.mesh, architecture.with_execution(execution), exact, len(inputs))
    listings = [
        Listing(str(i), str(i), x.text or "", (*x.images, b"")[0], more_images=x.images[1:])
        for i, x in enumerate(inputs)
    ]
    builder = run.rows(Catalogue("check", tuple(listings)))
    # The exported module decodes pictures in full size.
    whole = dataclasses.replace(builder.image, scaled_decoding=False)
    builder = RowBuilder.of(builder.listings, builder.tokenizer, whole, builder.text)
    rows = [
        builder.embedder(i, x.attributes, title=x.text is not None, picture=bool(x.images))
        for i, x in enumerate(inputs)
    ]
    # An accelerator's default matmul precision is too low for the comparison.
    with jax.default_matmul_precision("highest"):
        return encoder.embed_rows(builder, rows)


def _theirs(folder: Path, inputs: Sequence[Parts]) -> np.ndarray:
    """Unit vectors [n d] that torch computes in float32 from the exported folder."""
    import torch

    from afmrl_jax.runs.portable.afmrl_embedder import AfmrlEmbedder

    embedder = AfmrlEmbedder.load(str(folder), model_kwargs={"dtype": torch.float32})
    opened = [
        {
            "text": x.text,
            "image": [io.BytesIO(picture) for picture in x.images] or None,
            "attributes": x.attributes,
        }
        for x in inputs
    ]
    return np.asarray(embedder.embed(opened).numpy())


def _compare(
    folder: Path,
    run: FinishedRun,
    trained: tuple[Architecture, Params],
    written: tuple[Architecture, Params],
    listings: Sequence[Listing],
) -> Agreement:
    """Embed some listings with the model as trained, as written, and with torch from the folder.

    Raises:
        RunError: the difference exceeds `TOLERANCE`.
    """
    most = run.config.image_of("embedder").max_pictures
    inputs = [parts_of(listing, kind, most) for listing in listings for kind in KINDS]
    before = _ours(run, *trained, inputs)
    rounded = any(x.dtype != jnp.float32 for x in written[1].values())
    ours = _ours(run, *written, inputs) if rounded else before
    difference = float(np.abs(ours - _theirs(folder, inputs)).max())
    if not difference <= TOLERANCE:
        raise RunError(
            f"the vectors of the exported folder in torch and those of the trained embedder differ "
            f"by up to {difference:.2g}, more than {TOLERANCE:g}, and nothing was kept. Compare "
            "the versions of torch and transformers with those of the `reference` extra; "
            "--no-check writes the folder anyway"
        )
    return Agreement(
        len(inputs), difference, float(np.abs(ours - before).max()) if rounded else None
    )
