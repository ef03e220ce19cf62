"""Settings of pictures, texts, dropout, views and the lists that are read and written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from afmrl_jax.config.validation import (
    MAX_COUNT,
    MAX_FACTOR,
    MAX_TOKENS,
    TINY,
    Settings,
    require,
)
from afmrl_jax.types import Modality

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageConfig(Settings):
    """How a picture becomes patches; the defaults of the field names follow Qwen2-VL."""

    patch_size: int = 8
    """Side of a patch in pixels."""
    merge_size: int = 2
    """Patches per side that the merger joins into one visual token."""
    temporal_patch_size: int = 1
    """Frames per patch; a still picture is repeated to fill it."""
    min_pixels: int = 32 * 32
    """Smaller pictures are enlarged to this many pixels."""
    max_pixels: int = 64 * 64
    """Larger pictures are reduced to this many pixels."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Mean of the three color channels, which is subtracted."""
    std: tuple[float, float, float] = CLIP_STD
    """Standard deviation of the three color channels, which they are divided by."""
    max_pictures: int = 1
    """Pictures per row, the first ones of a listing that has more; a bin of patches has room for as
    many of full size. Rows get longer with it: `text.buckets` must hold all their visual tokens."""
    pack_shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Allowed numbers of patch bins in a batch, as fractions of its rows, ascending and ending with
    1. Small pictures share bins, and their number is rounded up to one of these, because each
    number of bins compiles a program of its own."""

    scaled_decoding: bool = False
    """Let libjpeg decode large JPEGs at a half, a quarter or an eighth of their size where the
    patches need no more. Faster, but pixels differ slightly from the reference's."""
    bad_pictures: Literal["fatal", "skip"] = "fatal"
    """What happens when a picture cannot be decoded: training stops, or the picture is left out of
    its row, counted as `bad_pictures` in the log and named once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(
            patch_size=(1, 1024),
            merge_size=(1, 64),
            temporal_patch_size=(1, 64),
            min_pixels=(1, MAX_COUNT),
            max_pixels=(1, MAX_COUNT),
            max_pictures=(1, 1024),
            mean=(-1000, 1000),
            std=(1e-3, 1000),
        )
        factor = self.patch_size * self.merge_size
        require(
            len(self.pack_shares) <= 64
            and list(self.pack_shares) == sorted(set(self.pack_shares))
            and self.pack_shares[:1] > (0,)
            and self.pack_shares[-1] == 1,
            f"pack_shares {self.pack_shares} must be positive, ascend and end with 1, 64 at most",
        )
        require(self.min_pixels <= self.max_pixels, "min_pixels must not exceed max_pixels")
        require(
            self.max_pixels >= factor * factor,
            f"max_pixels {self.max_pixels} holds no merged patch of {factor} x {factor} pixels",
        )

    @classmethod
    def qwen(cls, *, min_pixels: int = 56 * 56, max_pixels: int = 256 * 28 * 28) -> ImageConfig:
        """Patches of the published Qwen2-VL and Qwen2.5-VL, by default 256 visual tokens."""
        return cls(
            patch_size=14,
            merge_size=2,
            temporal_patch_size=2,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )

    @classmethod
    def qwen3(cls, *, min_pixels: int = 64 * 64, max_pixels: int = 256 * 32 * 32) -> ImageConfig:
        """Patches of the published Qwen3-VL, by default 256 visual tokens."""
        half = (0.5, 0.5, 0.5)
        return dataclasses.replace(
            cls.qwen(min_pixels=min_pixels, max_pixels=max_pixels),
            patch_size=16,
            mean=half,
            std=half,
        )

    @property
    def max_patches(self) -> int:
        """Patches of the largest picture."""
        unit = self.merge_size**2
        return max(unit, self.max_pixels // self.patch_size**2 // unit * unit)

    @property
    def bin_patches(self) -> int:
        """Patches a bin has room for: any row's pictures fit one bin."""
        return self.max_patches * self.max_pictures

    @property
    def patch_bytes(self) -> int:
        """Bytes of one flattened patch: one frame of three color channels."""
        return 3 * self.patch_size**2


@dataclass(frozen=True)
class TextBudget(Settings):
    """Fixed sequence shapes: a batch takes the smallest bucket its longest row fits."""

    buckets: tuple[int, ...] = (24, 48, 64, 80, 112)
    """Sequence lengths, visual tokens included, ascending."""
    max_title_tokens: int = 40
    """Titles are cut to this many tokens."""
    max_attribute_tokens: int = 48
    """Attribute text is cut to this many tokens, and the generator writes no more."""
    max_terms: int = 32
    """BM25 terms kept per attribute text."""
    layout: Literal["bare", "chat", "qwen3"] = "bare"
    """`bare`: picture, title and attributes with nothing around them, for a vocabulary learned from
    a catalogue. `chat`: the published chat format of Qwen2-VL and Qwen2.5-VL, for a pretrained
    model. `qwen3`: that of Qwen3-VL, whose generator has no system turn, and whose embedder has its
    instruction there, as Qwen3-VL-Embedding has."""
    generator_instruction: str = (
        "Write the key attributes of this product in the form `key: value; key: value`.\nTitle: "
    )
    """Text before the title in the generator's prompt, in the chat layout."""
    embedder_instruction: str = "Represent this product for retrieval: "
    """Text before the title in the embedder's prompt, in the chat layout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # An attribute text holds a token and the end.
        self._within(
            buckets=(1, MAX_TOKENS),
            max_title_tokens=(1, MAX_TOKENS),
            max_attribute_tokens=(2, MAX_TOKENS),
            max_terms=(1, MAX_TOKENS),
        )
        require(
            0 < len(self.buckets) <= 64 and list(self.buckets) == sorted(set(self.buckets)),
            f"buckets {self.buckets} must ascend, and be 64 at most",
        )


@dataclass(frozen=True)
class InputDropout(Settings):
    """Which parts of a listing are hidden from the embedder, drawn afresh for each training row.

    This keeps the embedder from memorizing the few training products and prepares it for the
    inputs it will see: short lists, no list, text or picture alone.
    """

    attributes: float = 0.2
    """Probability that an attribute is left out; RAR's lists are short."""
    whole_list: float = 0.1
    """Probability that a row has no attributes at all."""
    title: float = 0.05
    """Probability that a row has no title, so that a picture alone can be embedded."""
    picture: float = 0.05
    """Probability that a row has no picture, so that text alone can be embedded."""
    words: float = 0.2
    """Probability that a word of a title is left out; one word always remains."""
    patches: float = 0.3
    """Probability that the pixels of a visual token are erased."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self).items():
            require(0 <= value < 1, f"{name} must lie in [0, 1)")
        require(self.title + self.picture < 1, "title and picture dropout leave nothing")


@dataclass(frozen=True)
class ListsConfig(Settings):
    """Attribute lists that the generators write besides the greedy ones from picture and title."""

    lone: bool = False
    """Also write one from each listing's picture alone and one from its title alone. They are what
    the embedder reads with a lone picture or title: in training views and in the tasks text to
    image, image to multimodal and image to image. Of one from a title alone, what the title does
    not say is left out. A generator distilled from random weights needs distill.title_dropout and
    distill.picture_dropout for them."""
    samples: int = 0
    """Sampled lists of each training listing. The embedder then reads, in each step, one of them or
    the greedy one, and so learns what the generator may come to write. 0 trains on the greedy
    lists alone; evaluation always reads those."""
    temperature: float = 1.0
    """Sampling temperature of those lists."""
    grammar: bool = False
    """Write only whole lists, with keys that the generator was taught and each at most once: tokens
    that would leave the form are never chosen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(samples=(0, 1024), temperature=(TINY, MAX_FACTOR))


@dataclass(frozen=True)
class ViewShares(Settings):
    """What the two sides of the pairs show, query side first, as fractions of the steps.

    All pairs of a step show the same, so that on neither side picture or title tells a negative
    from the positive. A side that shows picture or title alone reads, if any, the list that was
    written from that alone. In the rest of the steps both sides show picture and title. If any
    share is above 0, `dropout.title` and `dropout.picture` are not applied.
    """

    image_both: float = 0.0
    """A picture looks for whole listings."""
    text_image: float = 0.0
    """A title looks for pictures."""
    image_text: float = 0.0
    """A picture looks for titles."""
    text_both: float = 0.0
    """A title looks for whole listings."""
    image_image: float = 0.0
    """A picture looks for pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = vars(self)
        for name, share in shares.items():
            require(0 <= share <= 1, f"views.{name} must lie in [0, 1]")
        require(
            sum(shares.values()) <= 1 + 1e-9,
            f"the shares of views divide the steps, but add up to {sum(shares.values()):.2f}; "
            "lower one",
        )

    @classmethod
    def mixed(cls) -> ViewShares:
        """Every view: a third of the steps with both sides whole, and more words to pictures than
        pictures to pictures.
        """
        return cls(0.2, 0.2, 0.1, 0.1, 0.05)

    @property
    def by_sides(self) -> dict[tuple[Modality, Modality], float]:
        """Share of each (query side, candidate side); they add up to 1."""
        own: dict[tuple[Modality, Modality], float] = {
            ("image", "both"): self.image_both,
            ("text", "image"): self.text_image,
            ("image", "text"): self.image_text,
            ("text", "both"): self.text_both,
            ("image", "image"): self.image_image,
        }
        return {("both", "both"): max(0.0, 1 - sum(own.values())), **own}

    @property
    def used(self) -> bool:
        """Whether any step shows less than everything."""
        return any(vars(self).values())


@dataclass(frozen=True)
class OracleConfig(Settings):
    """The oracle that the generator is distilled from: how often it departs from the true
    attributes, or a file that another oracle wrote.
    """

    synonym_rate: float = 0.3
    """Probability that a value is written as a synonym."""
    omit_rate: float = 0.25
    """Probability that a key is left out."""
    generic_rate: float = 0.25
    """Probability that a listing gets a filler such as `style: beautiful`."""
    wrong_rate: float = 0.05
    """Probability that a value is another product's."""
    guess_rate: float = 0.1
    """Probability that a numeric value (a dimension) is written although the title has no number;
    a captioner sees only picture and title."""
    shuffle_rate: float = 0.3
    """Probability that a listing's keys are shuffled."""
    file: str | None = None
    """JSON lines with `listing_id` and `attributes`, as `afmrl oracle` writes them. The generator
    learns from those of the `distill` split, and the rates above are ignored. None takes the
    catalogue's attributes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self).items():
            require(name == "file" or 0 <= value <= 1, f"{name} must lie in [0, 1]")
