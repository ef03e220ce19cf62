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

ANNOTATIONS = {"distill": "annotate-distilled", "rar": "annotate-reinforced"}
"""The stage that holds what each generator wrote."""
TEXTS = WRITTEN["both"]
"""The output of such a stage that every run has."""
SHUFFLED = "agcl-shuffled"
"""The stage that trains the embedder of `agcl+shuffled`."""


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
        return ANNOTATIONS[self.generator] if self.generator else None


def systems_of(config: RunConfig) -> list[System]:
    """The rows of a run, in the order in which the paper adds its parts.

    The last one is the whole method; controls come after the row that they belong to.
    """
    rows = [
        System("infonce", "infonce", None),
        System("agcl", "agcl", None),
        System("agcl+distilled", "agcl-distilled", "distill"),
    ]
    if config.controls:
        told = rows[-1].name
        rows += [
            System("agcl+shuffled", SHUFFLED, "distill", told, shuffled=True),
            System("agcl+distilled-bare", "agcl-distilled", None, told),
        ]
    rows.append(System("afmrl", "agcl-distilled", "rar"))
    # The last is the method's own row, whatever the number of cycles before it.
    for cycle in range(1, config.cit.cycles + 1):
        name = "afmrl+cit" if cycle == config.cit.cycles else f"afmrl+cit-{cycle}"
        rows.append(System(name, f"cit-{cycle}", "rar"))
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
    before: Lists,
    after: Lists,
    catalogue: str,
) -> tuple[Evaluated, list[JsonObject]]:
    """Evaluate every row of a run.

    Args:
        config: the run.
        data: its test and train listings.
        encoder: gives the embedder that a stage trained.
        before: lists by the distilled generator.
        after: by the reinforced generator, for the test listings and some of the others.
        catalogue: its name.

    Returns:
        The evaluation, and the cards of the last row for `gallery.json`: queries drawn from all,
        then from those whose answer the lists changed.
    """
    # The reinforced generator may have written for only a share of the train listings.
    written = {"distill": before, "rar": before.with_newer(after, after.both)}
    subjects = (
        subject_of(s, encoder(s.embedder), written, data, config.seed) for s in systems_of(config)
    )
    found = evaluate_subjects(subjects, data, config, catalogue)
    lists = None if found.subject is None else found.subject.test_lists
    changed, about = changed_cards(data, found, None if lists is None else lists.both, config)
    keys = {"before": key_shares(before.both, data), "after": key_shares(after.both, data)}
    found.evaluation["lists"] = {"keys": keys, "changes": about}
    cards = gallery_cards(data, found.vectors, config, before.both, after.both)
    return found, cards + changed
