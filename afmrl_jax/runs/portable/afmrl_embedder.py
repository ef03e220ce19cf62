"""The embedder of an AFMRL run, for sentence-transformers or for transformers without it.

A copy of this file is in every folder that `afmrl export` writes. It needs torch, transformers,
tokenizers, Pillow and NumPy, and nothing of the program that trained the model. An input is

    a text, a picture (PIL), or {"text": ..., "image": ..., "attributes": "key: value; key: value"}

with any of the three left out; `image` may also be the path of a picture, or a list of as many
pictures as the model reads. A plain string is always a text. README.md shows the rows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoModel
from transformers.utils import cached_file

SETTINGS = "afmrl_embedder.json"
KEYS = ("text", "image", "attributes")
ARGUMENTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""For some of the others Pillow starts programs."""
MAX_SIDE, MAX_PIXELS, MAX_BYTES, MAX_ASPECT = 20_000, 100_000_000, 700_000_000, 200
TURNS = {x + 2: Image.Transpose(t) for x, t in enumerate((0, 3, 1, 5, 4, 6, 2))}
"""What makes a picture upright, by its EXIF orientation."""
Picture = Image.Image | str | os.PathLike[str] | IO[bytes]
"""A PIL picture, a path, or an open file."""


class Settings(NamedTuple):
    """Everything about the model's input that its weights do not contain."""

    layout: str
    """`bare`, or `chat` for the published format of Qwen2-VL."""
    system: str
    """The system's turn of the chat layout."""
    instruction: str
    """The prompt before the text in the user's turn of the chat layout."""
    max_text_tokens: int
    max_attribute_tokens: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    max_patches: int
    mean: Sequence[float]
    std: Sequence[float]
    max_pictures: int = 1  # Of a row; further ones are not read.


class Pixels(NamedTuple):
    """A picture as the vision tower takes it, with its rows and columns of patches."""

    values: np.ndarray
    """float32 [p d]; d = 3 * frames * side * side"""
    grid: tuple[int, int]


def decode(picture: Picture) -> Image.Image:
    """An upright RGB picture; transparent ones are placed on white, and unusable ones refused."""
    try:
        if isinstance(picture, Image.Image):
            return upright(picture)
        if isinstance(picture, str | os.PathLike) and not Path(picture).is_file():
            raise ValueError("there is no such file")
        with Image.open(picture, formats=FORMATS) as opened:
            return upright(opened)
    except Exception as error:  # Decoders raise anything.
        which = picture if isinstance(picture, str | os.PathLike) else "the picture"
        raise ValueError(f"{which} cannot be used: {error}") from error


def upright(picture: Image.Image) -> Image.Image:
    """See `decode`."""
    (width, height), per_pixel = picture.size, 21 if picture.format == "WEBP" else 8
    if picture.mode == "RGB" and not {"progressive", "transparency"} & picture.info.keys():
        per_pixel -= 4  # It is not converted.
    if max(width, height) > MAX_SIDE or width * height > min(MAX_PIXELS, MAX_BYTES // per_pixel):
        raise ValueError(f"it is too large, {width} x {height} pixels; scale it down")
    picture.load()
    found = to_rgb(picture)
    try:
        turn = TURNS.get(picture.getexif().get(0x0112, 1))
    except Exception:  # A broken tag says nothing.
        turn = None
    return found if turn is None else found.transpose(turn)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Converted in bands of rows, so that little memory is needed."""
    clear = picture.info.get("transparency")
    if picture.mode == "RGB" and clear is None:
        return picture
    (width, height), shift = picture.size, bits(picture) - 8
    out, step = Image.new("RGB", picture.size), max(1, 2**20 // width)
    for top in range(0, height, step):
        band = picture.crop((0, top, width, min(top + step, height)))
        if picture.mode.startswith("I"):
            values = np.asarray(band)
            values = values.view(np.uint32) if values.dtype == np.int32 else values
            grey = (values >> shift).astype(np.uint8)
            band = Image.fromarray(np.where(values == clear, np.uint8(255), grey))
        elif clear is not None or picture.mode in ("RGBA", "RGBa", "LA", "PA"):
            layer = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        out.paste(band.convert("RGB"), (0, top))
    return out


def bits(picture: Image.Image) -> int:
    """Bits of a channel; of 32-bit numbers the fewest of 8, 16 and 32 that hold the brightest."""
    tags = getattr(picture, "tag_v2", {})
    depth, signed = tags.get(258, (32,))[0], tags.get(339, (1,))[0] == 2 or not tags
    low, high = (0, 0) if picture.mode != "I" else cast(tuple[int, int], picture.getextrema())
    if picture.mode == "F" or (signed and low < 0):
        raise ValueError("its pixels are floating-point or negative; save it with 8 or 16 bits")
    if picture.mode != "I":
        return (max(8, depth) if tags else 16) if picture.mode.startswith("I") else 8
    if depth < 32 or low < 0:
        return depth - signed
    return next(x for x in (8, 16, 32 - signed) if high < 1 << x)


def target_size(height: int, width: int, settings: Settings) -> tuple[int, int]:
    """Rows and columns of pixels after resizing: whole merged patches, an area within bounds."""
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"it is {width} x {height} pixels, longer than {MAX_ASPECT} to 1; crop it")
    factor = settings.patch_size * settings.merge_size
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > settings.max_pixels:
        shrink = math.sqrt(height * width / settings.max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    limit = settings.max_patches * settings.patch_size**2
    if rows * columns > limit:
        # A very long picture keeps one merged row; its length is cut to the patch budget.
        longest = limit // factor // factor * factor
        rows, columns = min(rows, longest), min(columns, longest)
    return rows, columns


def pixels(picture: Picture, settings: Settings) -> Pixels:
    """Decode, resize (bicubic), normalize and cut into patches, merge-block by merge-block."""
    image = decode(picture)
    height, width = target_size(image.height, image.width, settings)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    # Scaled before the conversion to float32, as in training, so that floats agree to the last bit.
    values: np.ndarray = (resized * (1 / 255)).astype(np.float32)
    values = (values - np.array(settings.mean, np.float32)) / np.array(settings.std, np.float32)
    side, merge = settings.patch_size, settings.merge_size
    rows, columns = height // side, width // side
    cut = values.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
    cut = cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, side, side)
    cut = np.repeat(cut, settings.temporal_patch_size, axis=2).reshape(rows * columns, -1)
    return Pixels(np.ascontiguousarray(cut), (rows, columns))


class Rows:
    """Turns inputs into rows of tokens, and rows into the model's arguments."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings):
        self.tokenizer = tokenizer
        self.settings = settings

    def _special(self, name: str) -> int:
        found = self.tokenizer.token_to_id(f"<|{name}|>")
        if found is None:
            raise ValueError(f"the tokenizer has no <|{name}|>")
        return int(found)

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        # A title that contains "<|im_end|>" must not end the turn. Set here because it is not part
        # of tokenizer.json and would be lost on the way to another process.
        self.tokenizer.encode_special_tokens = True
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _cut(self, before: str, text: str) -> list[int]:
        """Tokens of both as one text; the part after `before` is cut to its budget."""
        room = len(self._encode(before.rstrip(" "))) + self.settings.max_text_tokens
        return self._encode(before + text)[:room]

    def _chat(self, visual: list[int], text: str) -> list[int]:
        start, end = self._special("im_start"), self._special("im_end")
        newline = self._encode("\n")
        before = self.settings.instruction if text else self.settings.instruction.rstrip()
        if visual:
            user = self._encode("user\n") + visual + self._cut(before, text)
        else:
            user = self._cut("user\n" + before, text)
        row = [start, *self._encode(self.settings.system), end, *newline]
        return [*row, start, *user, end, *newline, start, *self._encode("assistant\n")]

    def tokens(self, text: str, attributes: str, grids: Sequence[tuple[int, int]]) -> list[int]:
        """The row of one input; a grid is a picture's rows and columns of patches."""
        visual: list[int] = []
        for rows, columns in grids:
            pads = [self._special("image_pad")] * (rows * columns // self.settings.merge_size**2)
            visual += [self._special("vision_start"), *pads, self._special("vision_end")]
        if self.settings.layout == "chat":
            row = self._chat(visual, text)
        else:
            words = self._cut("", text)
            row = [self._special("im_start"), *visual, *words, self._special("im_end")]
        if attributes:
            words = self._encode(attributes)[: self.settings.max_attribute_tokens]
            row = [*row, *words, self._special("im_end")]
        return row

    def arguments(self, inputs: Sequence[object]) -> dict[str, torch.Tensor]:
        """The arguments of `Qwen2VLModel`: rows padded on the right, pictures one by one."""
        rows, pictures = [], []
        for x in inputs:
            known = as_mapping(x)
            given = known.get("image")
            several = given if isinstance(given, list | tuple) else [] if given is None else [given]
            cut = [pixels(x, self.settings) for x in several[: self.settings.max_pictures]]
            text, told = known.get("text") or "", known.get("attributes") or ""
            rows.append(self.tokens(text, told, [x.grid for x in cut]))
            pictures += cut
        longest = max(len(row) for row in rows)
        pad = self._special("endoftext")
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        out = {"input_ids": ids, "attention_mask": mask}
        if pictures:
            # Without token types a Qwen-VL ignores the rows and columns of the picture.
            out["mm_token_type_ids"] = (ids == self._special("image_pad")).int()
            out["pixel_values"] = torch.from_numpy(np.concatenate([x.values for x in pictures]))
            out["image_grid_thw"] = torch.tensor([[1, *x.grid] for x in pictures])
        return out


def as_mapping(given: Any) -> Mapping[str, Any]:
    """An input as a mapping with some of the keys `text`, `image` and `attributes`."""
    if isinstance(given, str):
        given = {"text": given}
    elif isinstance(given, Image.Image):
        given = {"image": given}
    known = isinstance(given, Mapping) and not set(given) - set(KEYS)
    if not known or not any(given.get(key) for key in ("text", "image")):
        raise ValueError(
            "an input is a text, a PIL picture, or a dict of `text`, `image` and `attributes` with "
            f"at least one of the first two; found {given!r:.200}"
        )
    for key in ("text", "attributes"):
        if not isinstance(given.get(key) or "", str):
            raise ValueError(f"`{key}` must be one string, found {given[key]!r:.200}")
    return given


class AfmrlEmbedder(torch.nn.Module):
    """The model up to its hidden states, as the first module of a `SentenceTransformer`.

    There, a stock `Pooling` (last token) and `Normalize` follow; `embed` does the same without
    sentence-transformers.
    """

    save_in_root = True
    modalities = ("text", "image", ("image", "text"), "message")
    """The last of them is what sentence-transformers calls a batch of mixed kinds."""

    def __init__(self, model: torch.nn.Module, tokenizer: Tokenizer, settings: Settings):
        super().__init__()
        self.model: Any = model
        self.rows = Rows(tokenizer, settings)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the folder."""
        return self.rows.tokenizer

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        **kwargs: object,
    ) -> AfmrlEmbedder:
        """Read an exported folder, local or on a hub.

        The arguments are those of `from_pretrained`; `model_kwargs` are for the model's, such as
        `dtype`, and others, which sentence-transformers passes to all modules, are ignored.
        """
        where = {"subfolder": subfolder, "token": token, "cache_dir": cache_folder}
        where |= {"revision": revision, "local_files_only": local_files_only}
        files = [
            cached_file(model_name_or_path, name, **where) for name in (SETTINGS, "tokenizer.json")
        ]
        settings = Settings(**json.loads(Path(str(files[0])).read_text(encoding="utf-8")))
        model: Any = AutoModel.from_pretrained(model_name_or_path, **where, **(model_kwargs or {}))
        return cls(model.eval(), Tokenizer.from_file(str(files[1])), settings)

    def save(self, output_path: str, *args: object, **kwargs: object) -> None:
        """Write weights, tokenizer and settings; sentence-transformers adds this file."""
        folder = Path(output_path)
        self.model.save_pretrained(folder)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        settings = json.dumps(self.rows.settings._asdict(), indent=1, ensure_ascii=False)
        (folder / SETTINGS).write_text(settings + "\n", encoding="utf-8")

    def preprocess(
        self, inputs: Sequence[object], prompt: str | None = None, **kwargs: object
    ) -> dict[str, torch.Tensor]:
        """The model's arguments for some inputs."""
        if prompt:
            raise ValueError("the model's prompt is built in; leave `prompt` out")
        return self.rows.arguments(inputs)

    def forward(self, features: dict[str, object], **kwargs: object) -> dict[str, object]:
        """Hidden states after the final norm, [b t d], as `token_embeddings`."""
        # Positions of an earlier call must not affect this one.
        self.model.rope_deltas = None
        given = {name: features[name] for name in ARGUMENTS if name in features}
        output = self.model(**given, use_cache=False)
        return {**features, "token_embeddings": output.last_hidden_state}

    @torch.inference_mode()
    def embed(self, inputs: Sequence[object], batch_size: int = 16) -> torch.Tensor:
        """Unit vectors of some inputs, float32 [n d] on the CPU."""
        out = []
        for begin in range(0, len(inputs), batch_size):
            features = self.preprocess(inputs[begin : begin + batch_size])
            device = next(self.model.parameters()).device
            hidden = self({k: v.to(device) for k, v in features.items()})["token_embeddings"]
            last = features["attention_mask"].sum(1) - 1
            vectors = hidden[torch.arange(len(hidden)), last.to(device)].float()
            out.append(torch.nn.functional.normalize(vectors, dim=-1).cpu())
        return torch.cat(out) if out else torch.zeros(0, self.model.config.text_config.hidden_size)
