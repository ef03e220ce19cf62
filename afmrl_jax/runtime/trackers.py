"""Trackers of experiments: where a stage's metrics go besides its own files.

A tracker is someone else's program, often behind a network: what goes wrong in it is told once, and
training goes on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.progress import log_info

PROJECT = "afmrl-jax"
BOARD = "tensorboard"


class Client(Protocol):
    """An open run of a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the metrics of a step."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class _Wandb:
    """Weights & Biases; `WANDB_MODE=offline` writes to `wandb/` in the stage's folder."""

    def __init__(self, folder: Path, run: str, stage: str):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=f"{run}/{stage}",
            group=run,
            job_type=stage,
            dir=str(folder),
            # A stage that goes on after it was killed is the same run.
            id=_identity(folder),
            resume="allow",
            # A process has one run a stage, one after the other.
            reinit="create_new",
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Trackio, which keeps runs on this machine (`TRACKIO_DIR`), or in a space of the hub."""

    def __init__(self, folder: Path, run: str, stage: str):
        import trackio

        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=f"{run}-{stage}-{_identity(folder)[:6]}",
            group=run,
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            resume="allow",
            embed=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


CLIENTS: dict[str, Callable[[Path, str, str], Client]] = {"trackio": _Trackio, "wandb": _Wandb}
"""By the name of their package; called with a stage's folder, the run's name and the stage's."""


def _identity(folder: Path) -> str:
    """A short name of a stage's folder, the same for each process that works on it."""
    return hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]


def parse_trackers(text: str) -> tuple[str, ...]:
    """The names in a text such as `tensorboard,wandb`; `none` for none.

    Raises:
        ConfigError: there is no such tracker.

    Example:
        >>> parse_trackers("tensorboard, wandb"), parse_trackers("none")
        (('tensorboard', 'wandb'), ())
    """
    names = tuple(dict.fromkeys(x.strip() for x in text.split(",") if x.strip()))
    known = (BOARD, *CLIENTS)
    unknown = [x for x in names if x not in known and names != ("none",)]
    if unknown or not names:
        named = repr(unknown[0]) if unknown else "nothing"
        raise ConfigError(f"log {text!r} names {named}; choose from {', '.join(known)}, or none")
    return () if names == ("none",) else names


def require_trackers(names: tuple[str, ...]) -> None:
    """Check that the packages of some trackers are installed.

    Raises:
        ConfigError: names the first that is not.
    """
    for name in names:
        if name in CLIENTS and importlib.util.find_spec(name) is None:
            raise ConfigError(f"--log {name} needs its package: pip install 'afmrl-jax[{name}]'")


class Tracker:
    """A client that must not end what it watches.

    Args:
        name: in `CLIENTS`.
        folder: of the stage, whose name is its own and whose parent's is the run's.
    """

    def __init__(self, name: str, folder: Path):
        self._name = name
        place = folder.absolute()
        self._client: Client | None = self._tried(
            lambda: CLIENTS[name](folder, place.parent.name, place.name)
        )

    def _tried(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # Of the tracker, or of the network.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            log_info(f"{self._name}: {reason}; training goes on without it")
            self._client = None
            return None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the metrics of a step, unless the tracker has failed before."""
        client = self._client
        if client is not None:
            self._tried(lambda: client.log(values, step))

    def close(self) -> None:
        """Send what is left."""
        client = self._client
        if client is not None:
            self._tried(client.close)
            self._client = None
