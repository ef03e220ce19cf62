"""The models that come with the package, as a source of models without any training."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import get_args

from afmrl_jax.config import RunConfig
from afmrl_jax.config.model import DEMO_WEIGHTS
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.errors import RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import System
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.demo_weights import HERE, weights_folder
from afmrl_jax.models.huggingface.manifest import MANIFEST, require_manifest
from afmrl_jax.runtime.files import user_cache
from afmrl_jax.training.partition import read_model
from afmrl_jax.types import Role

NAME = Path("demo-weights")
"""What stands for them where a run directory is asked for."""

BARE, WITH_LISTS = "shipped", "shipped+lists"
SYSTEMS = (System(BARE, "embedder", None), System(WITH_LISTS, "embedder", "generator"))
"""What can be made of the two models: the embedder alone, and with what the generator writes."""


class ShippedModels(FinishedRun):
    """The shipped models, wherever a finished run is taken.

    The stages are `embedder` and `generator`, the systems are `SYSTEMS`, and the settings those
    that the weights were pretrained with.
    """

    def __init__(self) -> None:
        self.folder = HERE
        self.config = RunConfig.demo()

    @cached_property
    def tokenizers(self) -> dict[Role, BpeTokenizer]:
        """One for both models."""
        return dict.fromkeys(get_args(Role), BpeTokenizer.load(_folder("embedder")))

    @property
    def evaluations(self) -> Path:
        """A folder of the user's cache, named after the weights: the package is only read."""
        weights = "".join(self.manifests).encode()
        return user_cache() / "demo-weights" / hashlib.sha256(weights).hexdigest()[:16]

    @property
    def manifests(self) -> list[str]:
        """What tells these weights from those of another release."""
        return [(self.folder / x / MANIFEST).read_text("utf-8") for x in get_args(Role)]

    @property
    def last_generator(self) -> str:
        """The only one."""
        return "generator"

    def system(self, name: str | None = None) -> System:
        """The system of this name; without a name, the last one.

        Raises:
            RunError: there is none of that name.
        """
        found = {x.name: x for x in SYSTEMS}
        if name is not None and name not in found:
            raise RunError(f"there is no shipped system {name!r}; choose from {', '.join(found)}")
        return found[name or WITH_LISTS]

    def model(self, stage: str) -> tuple[Architecture, Params]:
        """A shipped model.

        Raises:
            RunError: its files are not those that were shipped, or there is no such model.
        """
        if stage == "embedder":
            folder, settings = _folder("embedder"), self.config.embedder
        elif stage == "generator":
            folder, settings = _folder("generator"), self.config.generator
        else:
            raise RunError(f"there is no shipped {stage!r}; choose embedder or generator")
        require_manifest(folder)
        return read_model(folder, settings, self.mesh)

    def grammar(self, vocab_size: int) -> Grammar | None:
        """None: a run's grammar comes from the lists that it taught, and here none were."""
        del vocab_size
        return None


def _folder(role: Role) -> Path:
    found = weights_folder(DEMO_WEIGHTS, role)
    assert found is not None  # Only random weights have none.
    return found


def models_of(folder: Path) -> FinishedRun:
    """The models of a run directory, or those that come with the package.

    Args:
        folder: a run, or `NAME` where there is no folder of that name.

    Raises:
        RunError: it is no run directory.
    """
    return ShippedModels() if folder == NAME and not folder.exists() else FinishedRun(folder)
