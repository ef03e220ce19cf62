"""The command that answers requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from afmrl_jax.errors import ConfigError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.shipped import ShippedModels, models_of
from afmrl_jax.serving.settings import ServiceSettings


@dataclass(frozen=True)
class Serve:
    """Answer searches, embed, write attributes and change listings over HTTP, with a page at `/`.

    Needs `pip install 'afmrl-jax[serve]'`. Ready once every program is compiled; SIGTERM or Ctrl-C
    ends it when what was begun is answered.
    """

    run: Path | None = None
    """Run directory that embedded the index, or `demo-weights`."""
    index: Path | None = None
    """What `afmrl embed` wrote."""
    compare: Path | None = None
    """What `afmrl embed --system` wrote of the same catalogue with another system of the run: the
    page shows both side by side. It is only read."""
    demo: bool = False
    """Serve a small shop of drawn garments with the models that come with the package, instead of
    --run and --index; embedded once, into the user's cache."""
    settings: Annotated[ServiceSettings, tyro.conf.arg(name="")] = field(
        default_factory=ServiceSettings
    )

    def execute(self) -> None:
        """Run the command."""
        try:
            from afmrl_jax.serving.server import serve
        except ImportError as error:
            raise ConfigError(
                f"serving needs {error.name}; `pip install 'afmrl-jax[serve]'` installs it"
            ) from error
        serve(*self._sources(), self.settings)

    def _sources(self) -> tuple[FinishedRun, Path, Path | None]:
        """The models, the index, and the one that it is compared with."""
        if self.demo:
            if (self.run, self.index, self.compare) != (None, None, None):
                raise ConfigError("--demo has an index of its own: leave --run and --index out")
            # Few need it, and it imports the drawing.
            from afmrl_jax.runs.demo_shop import demo_indexes

            models = ShippedModels()
            return models, *demo_indexes(models)
        if self.run is None or self.index is None:
            raise ConfigError("give --run and --index, or --demo to look at a shop without a run")
        return models_of(self.run), self.index, self.compare
