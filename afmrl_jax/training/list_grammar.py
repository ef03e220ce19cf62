"""The grammar of a run's attribute lists: of the keys that its generator was taught."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from afmrl_jax.data.attributes.text_format import parse_attributes
from afmrl_jax.data.attributes.token_grammar import Grammar, attribute_grammar
from afmrl_jax.data.batching.tokenizer import Tokenizer
from afmrl_jax.runtime.distributed import to_devices
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import read_checked

KEYS = "keys.json"
"""What the stage that teaches the generator leaves: the keys, sorted."""


def keys_of(texts: Iterable[str | None]) -> list[str]:
    """The keys of attribute lists, sorted."""
    return sorted({key for text in texts if text for key, _ in parse_attributes(text)})


def write_keys(folder: Path, texts: Iterable[str | None]) -> None:
    """Write the keys of lists into a stage's folder."""
    write_json(folder / KEYS, keys_of(texts))


def read_keys(folder: Path) -> list[str]:
    """What `write_keys` wrote.

    Raises:
        RunError: the file is missing or broken.
    """
    remedy = f"delete {folder} and start its command again"
    return read_checked(folder / KEYS, list[str], remedy=remedy)


def grammar_on(
    mesh: Mesh, keys: Iterable[str], tokenizer: Tokenizer, budget: int, vocab_size: int | None
) -> Grammar:
    """The tables, on all devices.

    Args:
        mesh: the devices.
        keys: that may be written.
        tokenizer: of the lists.
        budget: most tokens of a list.
        vocab_size: rows of the generator's token table; None: as many as there are tokens.

    Raises:
        ConfigError: there are no keys, or no list fits the budget.
    """
    grammar = attribute_grammar(tokenizer.token_bytes(), sorted(keys), vocab_size=vocab_size)
    grammar.check(budget)
    return to_devices(grammar, NamedSharding(mesh, PartitionSpec()))
