"""Whether reinforcement goes well: the best generator so far, when to stop, and what to warn of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from afmrl_jax.runtime.files import atomic_path, write_json
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.types import JsonObject

REWARD_FALL = 2.0
"""Standard errors of the paired difference."""
ENTROPY_SHARE = 0.2
KL_LIMIT = 0.5
"""Nats a token; a useful generator of this method stays below a tenth of it."""
FIRST = 5
"""Steps whose mean entropy is the start."""
EVALUATED = "held_out/reward"
"""Metric of a step that was evaluated."""

REMEDY = "delete the stage's folder to run it again"


@dataclass(frozen=True)
class Best:
    """`best.json`: the evaluation with the highest value of what chooses (`choose_by`)."""

    step: int
    reward: float
    """Its value, whatever chooses."""


@dataclass(frozen=True)
class RarWarning:
    """Something that goes wrong, and what to change."""

    name: str
    message: str


def find_warnings(lines: list[JsonObject]) -> list[RarWarning]:
    """What the last line of a stage's metrics gives reason to warn of.

    * `reward_collapse`: the held-out reward lies below the start by more than two standard errors
      of the paired difference.
    * `entropy_collapse`: the entropy of the samples is less than a fifth of what it was.
    * `kl_runaway`: the generator is more than half a nat a token away from the distilled one.

    Args:
        lines: of metrics.jsonl, in the order of steps.
    """
    if not lines:
        return []
    found, last = [], lines[-1]
    gain, error = last.get("held_out/gain"), last.get("held_out/gain_error")
    if gain is not None and error is not None and gain < -REWARD_FALL * error:
        found.append(
            RarWarning(
                "reward_collapse",
                f"the held-out reward fell {-gain:.3f} below its start (standard error "
                f"{error:.3f}): lower rar.optimizer.learning_rate, raise rar.kl_coefficient, and "
                "take more queries a step",
            )
        )
    entropies = [x["entropy"] for x in lines if "entropy" in x]
    start = sum(entropies[:FIRST]) / max(len(entropies[:FIRST]), 1)
    if len(entropies) > FIRST and last.get("entropy", start) < ENTROPY_SHARE * start:
        found.append(
            RarWarning(
                "entropy_collapse",
                f"entropy is {last['entropy']:.4f} nats a token and began at {start:.4f}: the "
                "samples of a group are all alike and teach nothing; raise rar.kl_coefficient or "
                "rar.temperature, or set rar.clip_high above rar.clip_low",
            )
        )
    if last.get("kl", 0.0) > KL_LIMIT:
        found.append(
            RarWarning(
                "kl_runaway",
                f"the generator is {last['kl']:.2f} nats a token from the distilled one: raise "
                "rar.kl_coefficient or lower rar.optimizer.learning_rate",
            )
        )
    return found


def remembered(lines: list[JsonObject]) -> list[JsonObject]:
    """What must be known of earlier steps, however many: how a stage began, and its evaluations.

    Example:
        >>> remembered([{"step": n, "entropy": 0.5, "loss": 0.1} for n in range(1, 1000)])[-1]
        {'step': 5, 'entropy': 0.5, 'loss': 0.1}
    """
    kept: list[JsonObject] = []
    for line in lines:
        if "entropy" in line and len([x for x in kept if "entropy" in x]) < FIRST:
            kept.append(line)
        elif EVALUATED in line:
            kept.append({name: line[name] for name in ("step", EVALUATED)})
    return kept


class RarMonitor:
    """Follows a RAR stage; everything it must remember lies in the stage's folder."""

    def __init__(self, folder: Path, patience: int | None):
        self._folder = folder
        self._patience = patience
        self._known: set[str] = set()
        path = folder / "best" / "best.json"
        self._best = read_checked(path, Best, remedy=REMEDY) if path.is_file() else None

    @property
    def best(self) -> Best | None:
        """The best evaluation so far; None before the first."""
        return self._best

    @property
    def best_folder(self) -> Path | None:
        """Where the parameters with the highest held-out reward are; None before the first."""
        return None if self._best is None else self._folder / "best"

    def evaluated(self, step: int, reward: float, save: Callable[[Path], None]) -> None:
        """Keep the parameters if no earlier evaluation found a higher held-out reward.

        Args:
            step: steps done.
            reward: held-out.
            save: writes the parameters into a folder.
        """
        best = self._best
        # A resumed stage evaluates again what it evaluated before it was killed.
        if best is not None and best.step != step and best.reward >= reward:
            return
        with atomic_path(self._folder / "best") as temporary:
            temporary.mkdir()
            save(temporary)
            write_json(temporary / "best.json", {"step": step, "reward": reward})
        self._best = Best(step, reward)

    def should_stop(self, lines: list[JsonObject]) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        if self._patience is None or self._best is None:
            return False
        seen = [x["step"] for x in lines if EVALUATED in x]
        return sum(step > self._best.step for step in seen) >= self._patience

    def watch(self, lines: list[JsonObject]) -> Mapping[str, float]:
        """Alarms as metrics, `alarm/NAME`: 1; each is also said, the first time."""
        raised = find_warnings(lines)
        for alarm in raised:
            if alarm.name not in self._known:
                self._known.add(alarm.name)
                log_info(f"rar: warning: {alarm.message}")
        return {f"alarm/{alarm.name}": 1.0 for alarm in raised}


def raised(lines: list[JsonObject]) -> list[tuple[int, RarWarning]]:
    """The alarms in the metrics of a stage, each with the first step that gave it."""
    found: dict[str, tuple[int, RarWarning]] = {}
    for number, line in enumerate(lines):
        new = {x.removeprefix("alarm/") for x in line if x.startswith("alarm/")} - found.keys()
        for alarm in find_warnings(lines[: number + 1]) if new else []:
            found.setdefault(alarm.name, (line["step"], alarm))
    return list(found.values())
