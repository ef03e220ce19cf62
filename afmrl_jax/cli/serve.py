"""The command that answers requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from afmrl_jax.errors import ConfigError
from afmrl_jax.inference.shipped import models_of
from afmrl_jax.serving.settings import ServiceSettings


@dataclass(frozen=True)
class Serve:
    """Answer searches, embed, write attributes and change listings over HTTP.

    Needs `pip install 'afmrl-jax[serve]'`. Ready once every program is compiled; SIGTERM or Ctrl-C
    ends it when what was begun is answered.
    """

    run: Path
    """Run directory that embedded the index, or `demo-weights`."""
    index: Path
    """What `afmrl embed` wrote."""
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
        serve(models_of(self.run), self.index, self.settings)
