"""The generator for your own pictures: attribute lists of anything, not only of a catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.errors import InputError, RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.folder import FolderModel, is_model_folder
from afmrl_jax.inference.inputs import Input, Item, named, read_inputs, rows_of
from afmrl_jax.inference.shipped import models_of
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.training.annotate import write_attributes
from afmrl_jax.training.model_store import role_of

SIZES = (1, 8, 64)
"""Batch sizes that programs are compiled for."""


@dataclass(frozen=True)
class Generator:
    """The attribute generator, with everything that turns items into its prompts.

    Example:
        ```python
        generator = Generator.load("runs/demo")
        generator.write([{"image": "photo.jpg", "text": "chair"}])  # ["type: chair; color: oak"]
        ```
    """

    architecture: Architecture
    params: Params
    tokenizer: BpeTokenizer
    image: ImageConfig
    text: TextBudget
    mesh: Mesh
    lone: bool = False
    """Whether it also writes for a title without a picture, and its embedder reads what it writes
    for either alone; see `ListsConfig`."""
    grammar: Grammar | None = None
    """What its lists keep to; None where it writes freely."""

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        stage: str | None = None,
        image: ImageConfig | None = None,
        text: TextBudget | None = None,
    ) -> Generator:
        """The generator of a run, or a Qwen-VL from a Hugging Face or PEFT folder.

        Args:
            folder: a run directory, a folder with a model, or `demo-weights` for the models that
                come with the package.
            stage: for a run, the stage that trained it: `distill`, `rar`, or `rar-2` and further
                ones where cycles reinforce again; None for the last of them.
            image: for a model's folder, how pictures become patches; None for the model's own
                patches and at most 256 visual tokens.
            text: for a model's folder, lengths and layout; None for Qwen's chat layout.

        Raises:
            RunError: there is no such model, or the run has not trained it yet.
        """
        if not is_model_folder(folder):
            run = models_of(Path(folder))
            return cls.of(run, stage or run.last_generator)
        if stage is not None:
            raise RunError(f"{folder} is a model and has no stage {stage!r}; leave stage out")
        model = FolderModel.read(folder, image, text)
        return cls(
            model.architecture, model.params, model.tokenizer, model.image, model.text, model.mesh
        )

    @classmethod
    def of(cls, run: FinishedRun, stage: str) -> Generator:
        """The generator that a stage of a run trained."""
        config, role = run.config, role_of(stage)
        architecture, params = run.model(stage)
        return cls(
            architecture,
            params,
            run.tokenizers[role],
            config.image_of(role),
            config.text_of(role),
            run.mesh,
            config.lists.lone,
            run.grammar(architecture.config.text.vocab_size),
        )

    def write(self, items: Sequence[Item], *, label: str | None = "write") -> list[str]:
        """The attribute list of each item, by greedy decoding.

        Args:
            items: each with a picture, and the title under `text` if there is one, or of a run with
                `lists.lone` with a title alone; attributes that an item already has are ignored.
            label: name of a progress bar, shown for more than one batch; None for no bar.

        Returns:
            Texts such as `type: chair; color: oak`, in the order of the items. Of a malformed list
            only the readable pairs are kept, and of one from a title alone only what the title
            says; possibly none.

        Raises:
            InputError: an item, named by its number, has no picture, or one that cannot be used.
        """
        return self.write_for(list(enumerate(read_inputs(items))), label=label)

    def write_for(
        self, inputs: Sequence[tuple[int, Input]], *, label: str | None = None
    ) -> list[str]:
        """`write` for numbered inputs that have already been read."""
        for number, x in inputs:
            if x.picture is None and not self.lone:
                raise InputError(f"items[{number}] has no picture, but the generator needs one")
        pictured = [place for place, (_, x) in enumerate(inputs) if x.picture is not None]
        words = [place for place, (_, x) in enumerate(inputs) if x.picture is None]
        texts: dict[int, str] = {}
        size = next((n for n in SIZES if n >= len(inputs)), SIZES[-1])
        with Progress(label if len(inputs) > size else None, len(inputs)) as progress:
            for places in (pictured, words):
                for begin in range(0, len(places), size):
                    chosen = places[begin : begin + size]
                    found = self._batch([inputs[n] for n in chosen], size)
                    texts |= zip(chosen, found, strict=True)
                    progress.update(len(texts))
        return [texts[place] for place in range(len(inputs))]

    def _batch(self, inputs: Sequence[tuple[int, Input]], size: int) -> list[str]:
        """The lists of inputs that all have a picture, or all have none."""
        builder = rows_of([x for _, x in inputs], self.tokenizer, self.image, self.text)
        if inputs[0][1].picture is None:
            builder = builder.showing("text")
        else:
            for place, (number, _) in enumerate(inputs):
                with named(number):
                    builder.picture(place)
        batches = write_attributes(
            self.architecture,
            self.params,
            builder,
            range(len(inputs)),
            mesh=self.mesh,
            batch_size=size,
            grammar=self.grammar,
        )
        return [x.attributes for batch in batches for x in batch]
