"""How one model of a run reads listings, where that is not as the run's settings say."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from afmrl_jax.config.data import ImageConfig, TextBudget
from afmrl_jax.config.validation import Settings


@dataclass(frozen=True)
class Reads(Settings):
    """What a model's backbone needs otherwise than the other model's; None takes the setting of the
    run's `image` or `text`. `--preset pretrained` fills it in where the two are of families that
    read differently, such as Qwen3-VL and Qwen2.5-VL.
    """

    patch_size: int | None = None
    """Side of a patch in pixels."""
    merge_size: int | None = None
    """Patches per side that the merger joins into one visual token."""
    temporal_patch_size: int | None = None
    """Frames per patch."""
    min_pixels: int | None = None
    """Smaller pictures are enlarged to this many pixels."""
    max_pixels: int | None = None
    """Larger pictures are reduced to this many pixels."""
    mean: tuple[float, float, float] | None = None
    """Mean of the three color channels, which is subtracted."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of the three color channels, which they are divided by."""
    layout: Literal["bare", "chat", "qwen3"] | None = None
    """Of its rows, see `text.layout`."""

    @classmethod
    def between(
        cls, own: tuple[ImageConfig, TextBudget], run: tuple[ImageConfig, TextBudget]
    ) -> Reads:
        """What makes the settings `own` of those of a run, as far as these fields tell them."""
        found: dict[str, Any] = {}
        for mine, others in zip(own, run, strict=True):
            for name in (x.name for x in dataclasses.fields(cls) if hasattr(mine, x.name)):
                if getattr(mine, name) != getattr(others, name):
                    found[name] = getattr(mine, name)
        return cls(**found)

    def image(self, run: ImageConfig) -> ImageConfig:
        """The run's settings of pictures, as this model needs them."""
        return dataclasses.replace(run, **self._given(run))

    def text(self, run: TextBudget) -> TextBudget:
        """The run's settings of texts, as this model needs them."""
        return dataclasses.replace(run, **self._given(run))

    def _given(self, run: ImageConfig | TextBudget) -> dict[str, Any]:
        return {n: x for n, x in vars(self).items() if x is not None and hasattr(run, n)}
