"""The gallery of RAR as the generator in training annotates it, every few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import ListsConfig
from afmrl_jax.data.attributes.lists import read_samples
from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Params, identity
from afmrl_jax.runtime.distributed import barrier, check_on_first, run_on_first
from afmrl_jax.training.annotate import annotate
from afmrl_jax.training.loop import Refresh
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.rar.environment import RarEnvironment
from afmrl_jax.training.sampled_lists import sample_lists
from afmrl_jax.training.state import TrainState

FOLDER = "galleries"
"""Folder of a stage's lists by step."""
Kind = Literal["greedy", "sampled"]
"""How the lists of a gallery are written."""


class PolicyGalleries:
    """Galleries by the steps of a stage: lists in files, the vectors of two in memory.

    The lists of a step are a function of the weights at that step. A file bears the identity of the
    weights that wrote it, so that a resumed run takes those of the same weights and writes others
    anew; of each step and kind there is one. What is judged meets greedy lists, as where the
    generator is deployed.

    Args:
        folder: of the stage.
        every: steps between two galleries.
        environment: shows one gallery at a time; now that of the generator that the stage starts
            from, which is the gallery of step 0.
        trainee: the generator.
        mesh: devices that share a batch of prompts.
        packed: whether prompts may share bins; see `RunConfig.packed`.
        met: kind of the lists that the steps meet.
        temperature: of sampled ones.
        seed: of sampled ones.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        environment: RarEnvironment,
        trainee: Partition,
        mesh: Mesh,
        *,
        packed: bool,
        met: Kind,
        temperature: float,
        seed: int,
    ):
        self._folder = folder / FOLDER
        self._every = every
        self._environment = environment
        self._trainee = trainee
        self._mesh = mesh
        self._packed = packed
        self._met = met
        self._sampling = ListsConfig(samples=1, temperature=temperature)
        self._seed = seed
        self._first = environment.gallery
        self._last: tuple[Path, jax.Array] | None = None

    def refresh(self) -> Refresh:
        """What the loop does between two segments of steps."""

        def work(state: TrainState, step: int) -> None:
            self._environment.gallery = self._of(state.params, step, self._met)

        return Refresh(self._every, work, self._reopen)

    @contextmanager
    def shown(self, params: Params, step: int) -> Iterator[None]:
        """The gallery of a step, with what learns as `params`, while something is judged."""
        before = self._environment.gallery
        self._environment.gallery = self._of(params, step, "greedy")
        try:
            yield
        finally:
            self._environment.gallery = before

    def _of(self, params: Params, step: int, kind: Kind) -> jax.Array:
        if step == 0 and kind == "greedy":
            return self._first
        # What is frozen is the same all the stage.
        weights = identity(self._trainee.architecture, params)
        path = self._folder / f"{self._stem(step, kind)}-{weights}.jsonl"
        if not check_on_first(path.is_file):
            self._write(path, params, step, kind)
            barrier(f"the gallery of step {step} is written")
            run_on_first(partial(self._forget_others, path, step, kind), "galleries")
        return self._embedded(path, kind)

    def _write(self, path: Path, params: Params, step: int, kind: Kind) -> None:
        environment = self._environment
        write: Callable[..., object] = annotate
        if kind == "sampled":
            # One of each listing, and others at every step.
            seed = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0])
            write = partial(sample_lists, lists=self._sampling, seed=seed)
        write(
            self._trainee.architecture,
            self._trainee.whole(params),
            environment.writer,
            np.arange(len(environment.writer.listings)),
            path,
            mesh=self._mesh,
            packed=self._packed,
            grammar=environment.annotation_grammar,
            label=f"{kind} gallery of step {step}",
        )

    def _forget_others(self, path: Path, step: int, kind: Kind) -> None:
        for other in self._found(step, kind):
            if other != path:
                other.unlink()

    def _embedded(self, path: Path, kind: Kind) -> jax.Array:
        # An evaluation and the segment after it may ask for the same.
        if self._last is None or self._last[0] != path:
            lists = (
                read_attributes(path)
                if kind == "greedy"
                else {name: found[0] for name, found in read_samples(path).items() if found}
            )
            self._last = path, self._environment.embedded(lists)
        return self._last[1]

    def _reopen(self, step: int) -> None:
        if step == 0 and self._met == "greedy":
            return
        found = self._found(step, self._met)
        if len(found) != 1:
            raise RunError(
                f"{self._folder} holds {len(found)} galleries of step {step}, and the steps after "
                f"it were made with one; delete {self._folder.parent} to run that stage again"
            )
        self._environment.gallery = self._embedded(found[0], self._met)

    def _stem(self, step: int, kind: Kind) -> str:
        return f"step-{step:06d}" if kind == "greedy" else f"{kind}-{step:06d}"

    def _found(self, step: int, kind: Kind) -> list[Path]:
        return sorted(self._folder.glob(f"{self._stem(step, kind)}-*.jsonl"))
