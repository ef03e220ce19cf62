"""Tokenizers: a byte-level BPE like Qwen's, trained on a catalogue or read from a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HubTokenizer

from afmrl_jax.data.batching.tokenizer_file import QWEN_SPLIT, library_errors, read_tokenizer
from afmrl_jax.errors import InputError, RunError
from afmrl_jax.runtime.files import atomic_path

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOKENIZER = "tokenizer.json"
"""The file of a tokenizer in its folder."""
MAX_TEXT = 1_000_000
"""Characters of a text that are looked at; no row of a model holds as many."""


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the package needs from a tokenizer."""

    pad_id: int
    eos_id: int
    im_start_id: int
    vision_start_id: int
    vision_end_id: int
    image_pad_id: int

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written in it are text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        ...

    def token_bytes(self) -> list[bytes | None]:
        """The bytes that each id stands for, None for special tokens."""
        ...


def alike(first: Path, second: Path) -> bool:
    """Whether the tokenizers of two folders give every text the same ids.

    Raises:
        RunError: one of them is missing or broken.
    """
    if first == second:
        return True
    one, other = (BpeTokenizer.load(folder).__getstate__()[0] for folder in (first, second))
    return one == other


class BpeTokenizer:
    """A `tokenizers` byte-level BPE with Qwen's special tokens."""

    def __init__(self, inner: HubTokenizer, where: str = "the tokenizer"):
        """Wrap a tokenizer.

        Args:
            inner: of the library.
            where: its name in messages, such as the path of its file.

        Raises:
            RunError: it lacks a special token.
        """
        self._inner, self._where = inner, where
        # Only this package places special tokens. Encoding them as plain text means that a title
        # that contains one cannot end a turn or open a picture. That works only for tokens marked
        # as special, and a hub's file may not mark all of them.
        added = [x.content for x in inner.get_added_tokens_decoder().values() if not x.special]
        inner.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in added])
        inner.encode_special_tokens = True
        # A hub's file may hold settings from its training; rows are cut and padded elsewhere.
        inner.no_truncation()
        inner.no_padding()
        missing = [name for name in SPECIALS[:6] if inner.token_to_id(name) is None]
        if missing:
            raise RunError(f"{where} lacks {', '.join(missing)}; use a Qwen-VL tokenizer")
        self.pad_id = self._id("<|endoftext|>")
        self.eos_id = self._id("<|im_end|>")
        self.im_start_id = self._id("<|im_start|>")
        self.vision_start_id = self._id("<|vision_start|>")
        self.vision_end_id = self._id("<|vision_end|>")
        self.image_pad_id = self._id("<|image_pad|>")

    def __getstate__(self) -> tuple[str, str]:
        return self._inner.to_str(), self._where

    def __setstate__(self, state: tuple[str, str]) -> None:
        self.__init__(HubTokenizer.from_str(state[0]), state[1])  # type: ignore[misc]

    def _id(self, token: str) -> int:
        found = self._inner.token_to_id(token)
        assert found is not None
        return int(found)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
        """Learn merges from texts; the same texts give the same tokenizer. It folds case."""
        inner = HubTokenizer(models.BPE())
        # Titles write "Sofa", attribute lists "sofa": one token for both, in any position, so that
        # the generator can copy a word and the embedder can match it.
        inner.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Lowercase(), normalizers.Prepend(" ")]
        )
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(name, special=True) for name in SPECIALS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def load(cls, folder: Path | str) -> BpeTokenizer:
        """Read `tokenizer.json` of a folder, ours or a hub's.

        Raises:
            RunError: it is missing, broken, or holds a part that is not supported.
        """
        path = Path(folder) / TOKENIZER
        if not path.is_file():
            raise RunError(f"{path} is missing; give the folder of a tokenizer")
        with library_errors(str(path)):
            return cls(read_tokenizer(path), str(path))

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json`, whole or not at all."""
        with atomic_path(Path(folder) / TOKENIZER) as temporary:
            # Of a full disk the library's own way of writing says so in no type of error.
            temporary.write_text(self._inner.to_str(pretty=True), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; a hub's embedding table may have more rows."""
        return 1 + max(self._inner.get_vocab(with_added_tokens=True).values())

    def check_model(self, rows: int, image_token_id: int) -> None:
        """See that a model can read what this tokenizer writes.

        Args:
            rows: of the model's embedding table.
            image_token_id: the id whose positions the model fills with visual tokens.

        Raises:
            RunError: an id has no row, or pictures have another id here.
        """
        remedy = "use the tokenizer that belongs to the model"
        if self.vocab_size > rows:
            raise RunError(
                f"{self._where} has ids up to {self.vocab_size - 1} and the model rows for {rows}; "
                f"{remedy}"
            )
        if self.image_pad_id != image_token_id:
            raise RunError(
                f"{self._where} gives {SPECIALS[5]} the id {self.image_pad_id} and the model's "
                f"image_token_id is {image_token_id}; {remedy}"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written in it are text.

        Only the first `MAX_TEXT` characters are looked at.

        Raises:
            InputError: the text has half of a surrogate pair, which is no character.
        """
        try:
            with library_errors(self._where):
                return list(self._inner.encode(text[:MAX_TEXT], add_special_tokens=False).ids)
        except RunError as error:
            lone = next((n for n, x in enumerate(text) if "\ud800" <= x <= "\udfff"), None)
            if lone is None:
                raise
            raise InputError(
                f"the text {text[:40]!r} has half of a surrogate pair at character {lone}; "
                "remove it"
            ) from error

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        with library_errors(self._where):
            return str(self._inner.decode(ids, skip_special_tokens=True))

    def marks(self) -> list[str]:
        """Special tokens as other programs find them in a text, by id."""
        return [x.content for _, x in sorted(self._inner.get_added_tokens_decoder().items())]

    def token_bytes(self) -> list[bytes | None]:
        """The bytes that each id stands for, None for special tokens.

        Raises:
            RunError: it is no byte-level tokenizer.
        """
        out: list[bytes | None] = [None] * self.vocab_size
        special = set(self._inner.get_added_tokens_decoder())
        for token, number in self._inner.get_vocab(with_added_tokens=False).items():
            if number in special:
                continue
            if not _BYTE_OF.keys() >= set(token):
                raise RunError(
                    f"{self._where}: the token {token[:50]!r} is not written in bytes; use a "
                    "Qwen-VL tokenizer"
                )
            out[number] = bytes(_BYTE_OF[letter] for letter in token)
        return out


def _byte_letters() -> dict[str, int]:
    """Byte by the letter that byte-level BPE writes for it.

    Printable bytes stand for themselves; the others are written as the letters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_letters()
