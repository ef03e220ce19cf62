"""Exports the embedder of a finished run as a folder for sentence-transformers and transformers."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from afmrl_jax.data.attributes.text_format import format_attributes
from afmrl_jax.data.batching.prompts import embedder_turns
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import System
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.demo_weights import weights_folder
from afmrl_jax.models.families import family
from afmrl_jax.models.huggingface.folder import base_folder, save_model
from afmrl_jax.models.licenses import origin
from afmrl_jax.models.lora import merge_lora
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.files import atomic_path, write_json, write_text
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.outputs import require_own_output

PORTABLE = Path(__file__).parent / "portable"
MODULE = "afmrl_embedder.py"
SETTINGS = "afmrl_embedder.json"
TOLERANCE = 1e-4
"""Largest difference between the numbers of two unit vectors, both computed in float32."""
CHECKED_LISTINGS = 4
KINDS = (("text",), ("image",), ("text", "image"), ("text", "image", "attributes"))
"""Parts of a listing that the check embeds together."""


class _Parts(NamedTuple):
    """Some parts of a listing, as the exported module takes them."""

    text: str | None
    image: bytes | None
    """Encoded."""
    attributes: str | None


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
    dtype: Literal["float32", "bfloat16"] = "float32",
    check: bool = True,
    catalogue: str | None = None,
    columns: str | None = None,
) -> Agreement | None:
    """Write the embedder of a system as a folder that other tools load.

    Args:
        run: a finished run.
        system_name: row of its results table; None for the last.
        out: folder that is empty or does not exist yet.
        dtype: of the weights. Adapters are merged in float32 first.
        check: embed some listings here and with torch from the folder, and compare.
        catalogue: where those listings come from; None for the run's own.
        columns: of `catalogue`, which are which if it is a table.

    Returns:
        The result of the check; None if it was not wanted, or torch is not installed.

    Raises:
        RunError: `out` is not empty, the run has no such system, the embedder is not trained yet,
            or its vectors here and in torch differ by more than `TOLERANCE`; then nothing is
            written.
    """
    require_own_output(out, "afmrl export", error=RunError)
    system = run.system(system_name)
    checking = check and importlib.util.find_spec("torch") is not None
    # Before any weights are read: a missing catalogue should be noticed first.
    if catalogue is None:
        catalogue, columns = run.config.catalogue, run.config.columns
    listings = _some_listings(catalogue, columns, run) if checking else ()
    architecture, trained = run.model(system.embedder)
    exact = {n: x.astype(jnp.float32) for n, x in trained.items()}
    plain, merged = merge_lora(architecture, exact)
    merged = {n: x.astype(dtype) for n, x in merged.items()}
    weights = weights_folder(run.config.embedder.weights, "embedder")
    base = base_folder(weights) if weights is not None else None
    agreement = None
    with atomic_path(out) as folder:
        save_model(folder, plain, merged, like=base, tokenizer=run.tokenizers["embedder"])
        _write_companions(folder, run, plain)
        if checking:
            agreement = _compare(folder, run, (architecture, exact), (plain, merged), listings)
        _write_card(folder, run, system, plain, base, agreement)
    return agreement


def _some_listings(name: str, columns: str | None, run: FinishedRun) -> Sequence[Listing]:
    catalogue = load_catalogue(name, marketplace=run.config.marketplace, columns=columns)
    return (catalogue.subset("test").listings or catalogue.listings)[:CHECKED_LISTINGS]


def _write_companions(folder: Path, run: FinishedRun, architecture: Architecture) -> None:
    """Everything except weights and model card."""
    image, text = run.config.image_of("embedder"), run.config.text_of("embedder")
    # The run's own file, because with a hub's some tokens of a title stay special.
    run.tokenizers["embedder"].save(folder)
    if not (folder / "tokenizer_config.json").is_file():
        # Without a class AutoTokenizer uses Qwen's, which normalizes differently.
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>"}
        write_json(folder / "tokenizer_config.json", config | {"eos_token": "<|im_end|>"})
    shared = {
        "patch_size": image.patch_size,
        "merge_size": image.merge_size,
        "temporal_patch_size": image.temporal_patch_size,
        "min_pixels": image.min_pixels,
        "max_pixels": image.max_pixels,
    }
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": list(image.mean),
            "image_std": list(image.std),
            "size": {"shortest_edge": image.min_pixels, "longest_edge": image.max_pixels},
            **shared,
        },
    )
    system, instruction = embedder_turns(text)
    settings = {
        # Chats differ in what is said, and that is written here.
        "layout": "bare" if text.layout == "bare" else "chat",
        "system": system,
        "instruction": instruction,
        "max_text_tokens": text.max_title_tokens,
        "max_attribute_tokens": text.max_attribute_tokens,
        "max_patches": image.max_patches,
        "mean": list(image.mean),
        "std": list(image.std),
        **shared,
    }
    write_json(folder / SETTINGS, settings)
    _write_modules(folder, architecture.config.text.hidden_dim)


def _write_modules(folder: Path, size: int) -> None:
    """What sentence-transformers reads beside them, for vectors of this size."""
    shutil.copyfile(PORTABLE / MODULE, folder / MODULE)
    stock = "sentence_transformers.models"
    kinds = {
        "": f"{MODULE.removesuffix('.py')}.AfmrlEmbedder",
        "1_Pooling": f"{stock}.Pooling",
        "2_Normalize": f"{stock}.Normalize",
    }
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": size, "pooling_mode_lasttoken": True}
    write_json(
        folder / "1_Pooling" / "config.json",
        pooling | {"pooling_mode_mean_tokens": False, "include_prompt": True},
    )
    write_json(folder / "2_Normalize" / "config.json", {})
    write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}},
    )


def _parts(listing: Listing, kind: Sequence[str]) -> _Parts:
    known = listing.attributes or {"title": listing.title}
    attributes = listing.oracle or format_attributes(known.items())
    return _Parts(
        listing.title if "text" in kind else None,
        listing.read_image_bytes() if "image" in kind else None,
        attributes if "attributes" in kind else None,
    )


def _ours(
    run: FinishedRun, architecture: Architecture, params: Params, inputs: Sequence[_Parts]
) -> np.ndarray:
    """Unit vectors [n d] computed here in float32."""
    execution = dataclasses.replace(architecture.execution, dtype="float32")
    exact = {n: x.astype(jnp.float32) for n, x in params.items()}
    encoder = Encoder.on(run.mesh, architecture.with_execution(execution), exact, len(inputs))
    listings = [Listing(str(i), str(i), x.text or "", x.image or b"") for i, x in enumerate(inputs)]
    builder = run.rows(Catalogue("check", tuple(listings)))
    # The exported module decodes pictures in full size.
    whole = dataclasses.replace(builder.image, scaled_decoding=False)
    builder = RowBuilder.of(builder.listings, builder.tokenizer, whole, builder.text)
    rows = [
        builder.embedder(i, x.attributes, title=x.text is not None, picture=x.image is not None)
        for i, x in enumerate(inputs)
    ]
    # An accelerator's default matmul precision is too low for the comparison.
    with jax.default_matmul_precision("highest"):
        return encoder.embed_rows(builder, rows)


def _theirs(folder: Path, inputs: Sequence[_Parts]) -> np.ndarray:
    """Unit vectors [n d] that torch computes in float32 from the exported folder."""
    import torch

    from afmrl_jax.runs.portable.afmrl_embedder import AfmrlEmbedder

    embedder = AfmrlEmbedder.load(str(folder), model_kwargs={"dtype": torch.float32})
    opened = [
        {
            name: io.BytesIO(value) if isinstance(value, bytes) else value
            for name, value in x._asdict().items()
            if value is not None
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
    inputs = [_parts(listing, kind) for listing in listings for kind in KINDS]
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


def _write_card(
    folder: Path,
    run: FinishedRun,
    system: System,
    architecture: Architecture,
    base: Path | None,
    agreement: Agreement | None,
) -> None:
    """README.md: what the model is, and how to compute a vector with and without the module."""
    config, text = run.config, run.config.text_of("embedder")
    evaluation = run.folder / "evaluation.json"
    rows = read_json(evaluation, nan=True)["rows"] if evaluation.is_file() else []
    fine = next((x.get("fine") for x in rows if x["name"] == system.name), None)
    environment = Environment(
        loader=FileSystemLoader(PORTABLE), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["string_literal"] = repr
    card = environment.get_template("README.md.j2").render(
        system=system.name,
        catalogue=Path(config.catalogue).name,
        generator=system.generator,
        fine=fine,
        dim=architecture.config.text.hidden_dim,
        image=config.image_of("embedder"),
        text=text,
        system_turn=embedder_turns(text)[0],
        instruction=embedder_turns(text)[1],
        agreement=agreement,
        own_tokenizer=base is None,
        family=architecture.config.family,
        model_class=family(architecture.config.family).write_config(architecture.config)[
            "architectures"
        ][0],
        origin=origin(base) if base is not None else None,
    )
    write_text(folder / "README.md", card)
