"""What the ladder runs, what it tests, and what was expected: one file, committed first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from afmrl_jax.config import AgclConfig, RunConfig, from_dict, to_dict
from afmrl_jax.errors import ConfigError
from afmrl_jax.evaluation.primary import PrimaryTest
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.types import JsonObject

ARM = "arm:"
"""Before the name of an arm in a list of systems."""
PLAN = Path(__file__).parent / "plan.json"


@dataclass(frozen=True)
class Expected:
    """A primary test, and the gain that was predicted, in points."""

    step: str
    before: str
    after: str
    about: str
    low: float
    high: float

    @property
    def test(self) -> PrimaryTest:
        """Without the prediction."""
        return PrimaryTest(self.step, self.before, self.after, about=self.about)


@dataclass(frozen=True)
class Point:
    """Settings under which some systems are trained and judged."""

    systems: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    """Of `RunConfig`, in place of the plan's."""
    seeds: tuple[int, ...] | None = None
    """None: the plan's."""
    axis: str | None = None
    """What is varied, for a curve; None for a table."""
    at: float = 0.0
    """Where on the axis."""


@dataclass(frozen=True)
class Plan:
    """The content of `plan.json`."""

    state: Literal["draft", "fixed"]
    """The test split is read only by a plan that is fixed."""
    about: str
    preset: Literal["demo", "fast"]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    """Of `RunConfig`, in place of the preset's."""
    arms: dict[str, dict[str, Any]]
    """Further variants of AGCL by name: settings of `AgclConfig`, in place of the plan's."""
    points: dict[str, Point]
    tests: tuple[Expected, ...]
    """The one list of primary tests; they are made at points without an axis."""

    @classmethod
    def read(cls, path: Path) -> Plan:
        """A plan from its file.

        Raises:
            RunError: it is broken.
            ConfigError: it has a setting that there is not.
        """
        plan = read_checked(path, cls, remedy="correct the plan")
        for name, point in plan.points.items():
            config = plan.config(name, 0)
            for system in point.systems:
                if system.startswith(ARM):
                    plan.arm(config, system)
        return plan

    def config(self, point: str, seed: int) -> RunConfig:
        """The settings of a run.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        base = RunConfig.fast() if self.preset == "fast" else RunConfig.demo()
        values = merged(merged(to_dict(base), self.settings), self.points[point].settings)
        return from_dict(RunConfig, values | {"seed": seed}, f"point {point} of the plan")

    def arm(self, config: RunConfig, system: str) -> AgclConfig:
        """AGCL's settings of an arm.

        Raises:
            ConfigError: the plan has no such arm, or its settings are broken.
        """
        name = system.removeprefix(ARM)
        if name not in self.arms:
            raise ConfigError(f"the plan has no arm {name!r}; it has {', '.join(self.arms)}")
        values = merged(to_dict(config.agcl), self.arms[name])
        return from_dict(AgclConfig, values, f"arm {name} of the plan")

    def seeds_of(self, point: str) -> tuple[int, ...]:
        """The seeds of a point."""
        own = self.points[point].seeds
        return self.seeds if own is None else own


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> JsonObject:
    """JSON values with those of `changes` in their place, at any depth.

    Example:
        >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    out = dict(values)
    for name, value in changes.items():
        inner = out.get(name)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = merged(inner, value)
        out[name] = value
    return out


def plan_hash(path: Path) -> str:
    """The first digits of the SHA-256 of a plan's file; every cell records it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
