r"""What the two models read: pictures, title and attributes of a listing as one row of tokens.

The layout `bare` is for a vocabulary learned from a catalogue, which lacks the fixed words of a
chat. Every picture is `<|vision_start|><|image_pad|>...<|vision_end|>`:

    embedder   <|im_start|>pictures title<|im_end|>
               attributes<|im_end|>
    generator  <|im_start|>pictures title<|im_end|><|im_start|>
               attributes<|im_end|>

`chat` is the published format of Qwen2-VL, the same for both models:

    <|im_start|>system\nYou are a helpful assistant.<|im_end|>\n
    <|im_start|>user\npictures instruction title<|im_end|>\n
    <|im_start|>assistant\n
    attributes<|im_end|>

`qwen3` is the published format of Qwen3-VL, which has a system turn only if it is given one. That
of Qwen3-VL-Embedding is the instruction, so the embedder's is, and its user's turn is pictures and
title alone.

The embedder's vector is the hidden state of the last token. Its row without attributes is the
beginning of the row with them (`Row.bare_length`), and the decoder is causal, so a row with
attributes yields both vectors. The generator's prompt ends where the attributes begin.
"""

from __future__ import annotations

from collections.abc import Sequence

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching.collate import Row, merged_grid
from afmrl_jax.data.batching.images import Patches
from afmrl_jax.data.batching.tokenizer import Tokenizer

SYSTEM = "system\nYou are a helpful assistant."
"""What Qwen2-VL's chat template writes if a conversation has no system turn."""


def embedder_turns(budget: TextBudget) -> tuple[str, str]:
    """The embedder's system turn, and what stands before the title in the user's."""
    if budget.layout == "qwen3":
        return f"system\n{budget.embedder_instruction.strip()}", ""
    return SYSTEM, budget.embedder_instruction


def generator_turns(budget: TextBudget) -> tuple[str, str]:
    """The generator's system turn, "" for none, and what stands before the title in the user's."""
    return SYSTEM if budget.layout == "chat" else "", budget.generator_instruction


def _pictures(tokenizer: Tokenizer, pictures: Sequence[Patches], config: ImageConfig) -> list[int]:
    out: list[int] = []
    for picture in pictures:
        rows, columns = merged_grid(picture, config)
        pads = [tokenizer.image_pad_id] * (rows * columns)
        out += [tokenizer.vision_start_id, *pads, tokenizer.vision_end_id]
    return out


def _cut_title(tokenizer: Tokenizer, before: str, title: str, budget: TextBudget) -> list[int]:
    """Tokens of `before` + `title`, the title cut to its budget.

    Both are encoded as one text: in two pieces, a word at the seam may become other tokens than
    those the model was trained on.
    """
    # A space at the end of `before` becomes part of the title's first token.
    fixed = before.rstrip(" ")
    room = budget.max_title_tokens + (len(tokenizer.encode(fixed)) if fixed else 0)
    return tokenizer.encode(before + title)[:room]


def _chat(
    tokenizer: Tokenizer,
    budget: TextBudget,
    visual: list[int],
    system: str,
    instruction: str,
    title: str | None,
) -> list[int]:
    """The system's turn, if it is not empty, the user's, and the opening of the assistant's."""
    start, end, newline = tokenizer.im_start_id, tokenizer.eos_id, tokenizer.encode("\n")
    # Without a title the instruction must not end in a space.
    text = instruction if title else instruction.rstrip()
    if visual:
        # The reference splits the text at a special token too.
        user = tokenizer.encode("user\n") + visual
        user += _cut_title(tokenizer, text, title or "", budget)
    else:
        user = _cut_title(tokenizer, f"user\n{text}", title or "", budget)
    told = [start, *tokenizer.encode(system), end, *newline] if system else []
    return [*told, start, *user, end, *newline, start, *tokenizer.encode("assistant\n")]


def embedder_row(
    tokenizer: Tokenizer,
    budget: TextBudget,
    config: ImageConfig,
    *,
    title: str | None,
    attributes: str | None,
    pictures: tuple[Patches, ...] = (),
) -> Row:
    """The embedder's input for one listing; any of the three parts may be absent."""
    visual = _pictures(tokenizer, pictures, config)
    if budget.layout != "bare":
        tokens = _chat(tokenizer, budget, visual, *embedder_turns(budget), title)
    else:
        words = _cut_title(tokenizer, "", title, budget) if title else []
        tokens = [tokenizer.im_start_id, *visual, *words, tokenizer.eos_id]
    if not attributes:
        return Row(tokens, pictures)
    told = tokenizer.encode(attributes)[: budget.max_attribute_tokens]
    return Row([*tokens, *told, tokenizer.eos_id], pictures, bare_length=len(tokens))


def generator_prompt(
    tokenizer: Tokenizer,
    budget: TextBudget,
    config: ImageConfig,
    *,
    title: str | None,
    pictures: tuple[Patches, ...] = (),
) -> Row:
    """The generator's prompt: pictures and title, either of which may be absent, then the turn in
    which it writes.
    """
    visual = _pictures(tokenizer, pictures, config)
    if budget.layout != "bare":
        told = _chat(tokenizer, budget, visual, *generator_turns(budget), title)
        return Row(told, pictures)
    start, end = tokenizer.im_start_id, tokenizer.eos_id
    words = _cut_title(tokenizer, "", title, budget) if title else []
    return Row([start, *visual, *words, end, start], pictures)


def completion_tokens(tokenizer: Tokenizer, attributes: str, budget: TextBudget) -> list[int]:
    """What the generator should write: the attribute text and the end of its turn."""
    return [*tokenizer.encode(attributes)[: budget.max_attribute_tokens - 1], tokenizer.eos_id]


def value_weights(tokenizer: Tokenizer, tokens: Sequence[int], structure: float) -> list[float]:
    """Weight of each token of an attribute list: 1 inside a value, `structure` elsewhere."""
    out, inside = [], False
    for token in tokens:
        text = tokenizer.decode([token])
        if ";" in text or token == tokenizer.eos_id:
            inside = False
        out.append(1.0 if inside else structure)
        if ":" in text:
            inside = True
    return out
