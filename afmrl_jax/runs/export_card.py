"""The README.md of an exported folder: what the model is, and how other programs use it."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from afmrl_jax.data.batching.prompts import embedder_turns
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import System
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.families import family
from afmrl_jax.models.licenses import origin
from afmrl_jax.runs.export_files import PORTABLE
from afmrl_jax.runtime.files import write_text
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.types import Role

CARDS: dict[Role, str] = {"embedder": "README.md.j2", "generator": "generator.md.j2"}


def write_card(
    folder: Path,
    run: FinishedRun,
    system: System,
    architecture: Architecture,
    *,
    role: Role,
    base: Path | None,
    agreement: object | None,
) -> None:
    """Write README.md.

    Args:
        folder: of the exported model.
        run: where it was trained.
        system: which row of its table.
        architecture: as written.
        role: which model it is.
        base: folder of the weights it started from.
        agreement: the result of the check, as a sentence by its `str`; None for no check.
    """
    config = run.config
    image, text = config.image_of(role), config.text_of(role)
    evaluation = run.folder / "evaluation.json"
    rows = read_json(evaluation, nan=True)["rows"] if evaluation.is_file() else []
    fine = next((x.get("fine") for x in rows if x["name"] == system.name), None)
    environment = Environment(
        loader=FileSystemLoader(PORTABLE), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["string_literal"] = repr
    card = environment.get_template(CARDS[role]).render(
        system=system.name,
        catalogue=Path(config.catalogue).name,
        generator=system.generator,
        fine=fine,
        dim=architecture.config.text.hidden_dim,
        image=image,
        text=text,
        grammar=config.lists.grammar,
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
