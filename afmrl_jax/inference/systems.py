"""The rows of the results table: which embedder and which generator make up each system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from afmrl_jax.config import RunConfig
from afmrl_jax.evaluation.evaluate import (
    Evaluated,
    EvaluationData,
    Subject,
    Texts,
    evaluate_subjects,
)
from afmrl_jax.evaluation.gallery import changed_cards, gallery_cards, key_shares
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.types import JsonObject

ANNOTATIONS = {"distill": "annotate-distilled", "rar": "annotate-reinforced"}
"""The stage that holds what each generator wrote."""
TEXTS = "attributes.jsonl"
"""The output of such a stage."""


@dataclass(frozen=True)
class System:
    """A row of the results table."""

    name: str
    embedder: str
    """Stage that trained the embedder."""
    generator: str | None
    """Stage that trained the generator whose attributes the embedder reads, or None."""

    @property
    def annotations(self) -> str | None:
        """Stage that holds the generator's attributes."""
        return ANNOTATIONS[self.generator] if self.generator else None


def systems_of(config: RunConfig) -> list[System]:
    """The rows of a run, in the order in which the paper adds its parts."""
    rows = [
        System("infonce", "infonce", None),
        System("agcl", "agcl", None),
        System("agcl+distilled", "agcl-distilled", "distill"),
        System("afmrl", "agcl-distilled", "rar"),
    ]
    # The last is the method's own row, whatever the number of cycles before it.
    for cycle in range(1, config.cit.cycles + 1):
        name = "afmrl+cit" if cycle == config.cit.cycles else f"afmrl+cit-{cycle}"
        rows.append(System(name, f"cit-{cycle}", "rar"))
    return rows


def evaluate_systems(
    config: RunConfig,
    data: EvaluationData,
    encoder: Callable[[str], Encoder],
    before: Texts,
    after: Texts,
    catalogue: str,
) -> tuple[Evaluated, list[JsonObject]]:
    """Evaluate every row of a run.

    Args:
        config: the run.
        data: its test and train listings.
        encoder: gives the embedder that a stage trained.
        before: attribute text by listing id, by the distilled generator.
        after: the same by the reinforced generator, for the test listings and some of the others.
        catalogue: its name.

    Returns:
        The evaluation, and the cards of the last row for `gallery.json`: queries drawn from all,
        then from those whose answer the lists changed.
    """
    # The reinforced generator may have written for only a share of the train listings.
    test_texts = {None: None, "distill": before, "rar": after}
    train_texts = {None: None, "distill": before, "rar": {**before, **after}}
    subjects = (
        Subject(s.name, encoder(s.embedder), test_texts[s.generator], train_texts[s.generator])
        for s in systems_of(config)
    )
    found = evaluate_subjects(subjects, data, config, catalogue)
    read = None if found.subject is None else found.subject.test_texts
    changed, about = changed_cards(data, found, read, config)
    keys = {"before": key_shares(before, data), "after": key_shares(after, data)}
    found.evaluation["lists"] = {"keys": keys, "changes": about}
    return found, gallery_cards(data, found.vectors, config, before, after) + changed
