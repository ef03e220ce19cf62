"""The rows of the results table: which embedder and which generator make up each system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from afmrl_jax.config import RunConfig
from afmrl_jax.data.attributes.lists import WRITTEN, Lists
from afmrl_jax.data.attributes.shuffled import shuffled_lists
from afmrl_jax.evaluation.evaluate import (
    Evaluated,
    EvaluationData,
    Subject,
    evaluate_subjects,
)
from afmrl_jax.evaluation.gallery import changed_cards, gallery_cards, key_shares
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.types import JsonObject

DISTILL, RAR = "distill", "rar"
"""Stages that train the generator; a further RAR before cycle n is `rar-n`."""
DISTILLED, REINFORCED = "annotate-distilled", "annotate-reinforced"
"""Stages that hold what they wrote; of a further RAR with its number."""
TEXTS = WRITTEN["both"]
"""The output of such a stage that every run has."""
SHUFFLED = "agcl-shuffled"
"""The stage that trains the embedder of `agcl+shuffled`."""
OLD_LISTS = "afmrl+cit-old-lists"
"""The row of CIT's control."""


def annotations_of(generator: str) -> str:
    """The stage that holds what a generator wrote.

    Example:
        >>> [annotations_of(x) for x in ("distill", "rar", "rar-2")]
        ['annotate-distilled', 'annotate-reinforced', 'annotate-reinforced-2']
    """
    return DISTILLED if generator == DISTILL else REINFORCED + generator.removeprefix(RAR)


def generator_of(config: RunConfig, cycle: int) -> str:
    """The stage of the generator whose lists a cycle takes, counted from 1."""
    return f"{RAR}-{cycle}" if config.cit.rar_between and cycle > 1 else RAR


def generators_of(config: RunConfig) -> list[str]:
    """The generators of a run, in the order in which they are trained."""
    cycles = range(1, config.cit.cycles + 1)
    return list(dict.fromkeys([DISTILL, RAR, *(generator_of(config, x) for x in cycles)]))


@dataclass(frozen=True)
class System:
    """A row of the results table."""

    name: str
    embedder: str
    """Stage that trained the embedder."""
    generator: str | None
    """Stage that trained the generator whose attributes the embedder reads, or None."""
    control_of: str | None = None
    """For a control, the row that it is compared with; it is no step of the method."""
    shuffled: bool = False
    """Whether listings have the lists of other products."""

    @property
    def annotations(self) -> str | None:
        """Stage that holds the generator's attributes."""
        return annotations_of(self.generator) if self.generator else None


def systems_of(config: RunConfig) -> list[System]:
    """The rows of a run, in the order in which the paper adds its parts.

    The last one is the whole method; controls come after the row that they belong to, that of the
    last one before it.
    """
    rows = [
        System("infonce", "infonce", None),
        System("agcl", "agcl", None),
        System("agcl+distilled", "agcl-distilled", DISTILL),
    ]
    if config.controls:
        told = rows[-1].name
        rows += [
            System("agcl+shuffled", SHUFFLED, DISTILL, told, shuffled=True),
            System("agcl+distilled-bare", "agcl-distilled", None, told),
        ]
    rows.append(System("afmrl", "agcl-distilled", RAR))
    # The last is the method's own row, whatever the number of cycles before it.
    for cycle in range(1, config.cit.cycles + 1):
        whole, generator = cycle == config.cit.cycles, generator_of(config, cycle)
        name = "afmrl+cit" if whole else f"afmrl+cit-{cycle}"
        if whole and config.controls:
            rows.append(System(OLD_LISTS, f"cit-control-{cycle}", generator, name))
        rows.append(System(name, f"cit-{cycle}", generator))
    return rows


def subject_of(
    system: System,
    encoder: Encoder,
    written: Mapping[str, Lists],
    data: EvaluationData,
    seed: int,
) -> Subject:
    """What is evaluated as a row.

    Args:
        system: the row.
        encoder: its embedder.
        written: by generator, its lists of the test and train listings.
        data: those listings.
        seed: of the lists of other products.
    """
    test = train = None
    if system.generator is not None:
        test = train = written[system.generator]
        if system.shuffled:
            test, train = (
                shuffled_lists(test, x.listings, seed) if x.listings else None
                for x in (data.test, data.train)
            )
    return Subject(system.name, encoder, test, train, system.control_of)


def evaluate_systems(
    config: RunConfig,
    data: EvaluationData,
    encoder: Callable[[str], Encoder],
    lists: Mapping[str, Lists],
    catalogue: str,
) -> tuple[Evaluated, list[JsonObject]]:
    """Evaluate every row of a run.

    Args:
        config: the run.
        data: its test and train listings.
        encoder: gives the embedder that a stage trained.
        lists: by generator, what it wrote; reinforced ones for the test listings and some others.
        catalogue: its name.

    Returns:
        The evaluation, and the cards of the last row for `gallery.json`: queries drawn from all,
        then from those whose answer the lists changed.
    """
    before, after = lists[DISTILL], lists[generators_of(config)[-1]]
    # A reinforced generator may have written for only a share of the train listings.
    written = {name: before.with_newer(x, x.both) for name, x in lists.items()}
    subjects = (
        subject_of(s, encoder(s.embedder), written, data, config.seed) for s in systems_of(config)
    )
    found = evaluate_subjects(subjects, data, config, catalogue)
    read = None if found.subject is None else found.subject.test_lists
    changed, about = changed_cards(data, found, None if read is None else read.both, config)
    keys = {"before": key_shares(before.both, data), "after": key_shares(after.both, data)}
    found.evaluation["lists"] = {"keys": keys, "changes": about}
    cards = gallery_cards(data, found.vectors, config, before.both, after.both)
    return found, cards + changed
