"""Reads a catalogue and annotates it with a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.data.catalogue.load import load_catalogue, say_skipped
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.errors import CatalogueError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.runtime.files import is_writer
from afmrl_jax.runtime.outputs import only_writer
from afmrl_jax.training.annotate import annotate, require_attributes_file
from afmrl_jax.types import Modality


def read(
    name: str,
    split: str,
    *,
    skip_bad: bool = False,
    marketplace: MarketplaceSettings | None = None,
    columns: str | None = None,
) -> Catalogue:
    """The listings of a split, or of `all`; records that were left out are logged.

    Args:
        name: of the catalogue.
        split: or `all`.
        skip_bad: leave unusable records out.
        marketplace: settings of the drawn marketplace, if that is the catalogue.
        columns: which columns of a table are which.
    """
    catalogue = load_catalogue(name, skip_bad=skip_bad, marketplace=marketplace, columns=columns)
    say_skipped(catalogue)
    return select(catalogue, split)


def select(catalogue: Catalogue, split: str) -> Catalogue:
    """The listings of a split, or of `all`; an empty split is an error."""
    chosen = catalogue if split == "all" else catalogue.subset(split)
    if not chosen.listings:
        raise CatalogueError(
            f"catalogue {catalogue.name} has no listings in split {split!r}; choose another split"
        )
    return chosen


def annotate_catalogue(
    run: FinishedRun,
    generator: str,
    catalogue: Catalogue,
    out: Path,
    *,
    model: tuple[Architecture, Params] | None = None,
    known: Mapping[str, str] | None = None,
    key: str = "",
    shown: Modality = "both",
) -> dict[str, str]:
    """Attributes by listing id, written to `out`; if killed, the next call resumes.

    Args:
        run: has the generator.
        generator: the stage that trained it.
        catalogue: the listings.
        out: JSON lines.
        model: the generator, if it was loaded before.
        known: see `annotate`.
        key: see `annotate`.
        shown: what of each listing the generator sees.

    Raises:
        ConfigError: `out` is not a file of attributes.
        RunError: another process is writing it.
    """
    require_attributes_file(out)
    architecture, params = model or run.model(generator)
    everything = np.arange(len(catalogue.listings))
    # Of the processes of one job only the first writes.
    alone = only_writer(out, "afmrl annotate") if is_writer() else nullcontext()
    with alone:
        return annotate(
            architecture,
            params,
            run.rows(catalogue, "generator").showing(shown),
            everything,
            out,
            mesh=run.mesh,
            packed=run.config.packed,
            grammar=run.grammar(architecture.config.text.vocab_size),
            label="annotate",
            known=known,
            key=key if shown == "both" else f"{key}-{shown}",
        )
