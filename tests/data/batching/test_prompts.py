"""Rows in both layouts; the chat layout against the reference tokenizer and chat template."""

import base64
import dataclasses
import functools
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HubTokenizer

from afmrl_jax.config import ImageConfig, InputDropout, TextBudget
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.batching.images import cut
from afmrl_jax.data.batching.prompts import completion_tokens, embedder_row, generator_prompt
from afmrl_jax.data.batching.tokenizer import SPECIALS, BpeTokenizer
from afmrl_jax.data.batching.tokenizer_file import QWEN_SPLIT
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.distill import DistillSource
from afmrl_jax.data.sources.row_builder import RowBuilder

IMAGE = ImageConfig(max_pictures=2)
CHAT = TextBudget(buckets=(256,), layout="chat", max_title_tokens=1000, max_attribute_tokens=1000)
QWEN_ADDED = (
    *SPECIALS[:3],
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
"""Behind the 151,643 tokens of text, in the order of their ids."""
CHAT_TEMPLATE = """{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Qwen2-VL's, without videos and without numbered pictures."""
DEFAULT_TURN = """{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}"""
CHAT3_TEMPLATE = CHAT_TEMPLATE.replace(DEFAULT_TURN, "")
"""Qwen3-VL-Instruct's and Qwen3-VL-Embedding's, without tools, videos and numbered pictures."""
PIECES = [
    *("Red", "chair", "ÖLGEMÄLDE", "90x60 cm", "1234", "'s", "don't", "木製", "の椅子", "收納"),
    *(
        "🪑",
        "👩‍🔧",
        "e\u0301",
        "\u0301",
        "\u00bd",
        "№5",
        "-",
        "...",
        "!!",
        "(2er-Set)",
        "مقعد",
        "стул",
    ),
    *(" ", "  ", "\t", "\n", " \n ", "\r\n", "\u00a0", "\u3000", "x", "a" * 30),
]


def qwens(model):
    """A tokenizer around a BPE, as in the hub's `tokenizer.json` of Qwen2-VL."""
    inner = HubTokenizer(model)
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def small_vocabulary():
    inner = qwens(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [CHAT_TEMPLATE, CHAT.generator_instruction, CHAT.embedder_instruction]
    texts += [f"{one} {two}" for one in PIECES for two in PIECES]
    inner.train_from_iterator(texts * 2, trainer)
    return inner


def full_vocabulary(path):
    """Qwen's own vocabulary from its tiktoken file: merges are recovered from the ranks."""
    lines = Path(path).read_text(encoding="ascii").split("\n")
    ranks = {base64.b64decode(x.split()[0]): int(x.split()[1]) for x in lines if x}
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in plain}
    letters |= {b: chr(256 + n) for n, b in enumerate(x for x in range(256) if x not in letters)}

    def name(token):
        return "".join(letters[b] for b in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda x: x[1]):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            found = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            best = min(range(len(found)), key=found.__getitem__)
            assert found[best] < rank, "no earlier tokens make up this one"
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((name(parts[0]), name(parts[1])))
    return qwens(models.BPE(vocab={name(t): r for t, r in ranks.items()}, merges=merges))


@pytest.fixture(scope="module", params=["small", "qwen"])
def folder(request, tmp_path_factory):
    """A folder with a `tokenizer.json` such as the hub has."""
    if request.param == "qwen":
        path = os.environ.get("AFMRL_QWEN_TIKTOKEN")
        if not path:
            pytest.skip("AFMRL_QWEN_TIKTOKEN names no qwen.tiktoken")
        inner = full_vocabulary(path)
    else:
        inner = small_vocabulary()
    inner.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in QWEN_ADDED])
    inner.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    out = tmp_path_factory.mktemp(request.param)
    inner.save(str(out / "tokenizer.json"))
    return out


@pytest.fixture(scope="module")
def hub(folder):
    return BpeTokenizer.load(folder)


@pytest.fixture(scope="module")
def reference(folder):
    """Ids of a conversation by transformers alone, with as many pads as the pictures have."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    def ids(pictures, text, answer=None, *, template=CHAT_TEMPLATE, system=None):
        content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        written = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=answer is None,
            tokenize=False,
        )
        for picture in pictures:
            pads = "<|hold|>" * (len(picture.pixels) // IMAGE.merge_size**2)
            written = written.replace("<|image_pad|>", pads, 1)
        written = written.replace("<|hold|>", "<|image_pad|>")
        # The template ends every turn with a newline; a model stops at the end token.
        return tokenizer(written.removesuffix("\n") if answer else written)["input_ids"]

    return ids


def picture(rng, rows, columns):
    factor = IMAGE.patch_size * IMAGE.merge_size
    return cut(rng.integers(0, 256, (rows * factor, columns * factor, 3), np.uint8), IMAGE)


def title_of(rng):
    """Words, digits, scripts, emoji and spaces in any order; often a space in front."""
    chosen = rng.choice(PIECES, int(rng.integers(1, 9))).tolist()
    return str(rng.choice(["", " ", "  ", "\n"])) + str(rng.choice(["", " "])).join(chosen)


INSTRUCTIONS = [CHAT.embedder_instruction, CHAT.generator_instruction, "Title:", "Describe.\n", ""]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_chat_rows_are_the_references(hub, reference, rng, instruction, count):
    budget = TextBudget(
        buckets=(256,),
        layout="chat",
        max_title_tokens=1000,
        max_attribute_tokens=1000,
        embedder_instruction=instruction,
        generator_instruction=instruction,
    )
    for _ in range(60):
        pictures = tuple(picture(rng, *rng.integers(1, 5, 2)) for _ in range(count))
        title = title_of(rng)
        told = "type: chair; color: " + "".join(rng.choice(PIECES, 3)).strip() + "."
        bare = embedder_row(
            hub, budget, IMAGE, title=title, attributes=None, pictures=pictures
        ).tokens
        assert bare == reference(pictures, instruction + title), repr(title)
        row = embedder_row(hub, budget, IMAGE, title=title, attributes=told, pictures=pictures)
        assert row.tokens == reference(pictures, instruction + title, told), repr((title, told))
        assert row.tokens[: row.bare_length] == bare
        prompt = generator_prompt(hub, budget, IMAGE, title=title, pictures=pictures)
        assert prompt.tokens == bare
        assert prompt.tokens + completion_tokens(hub, told, budget) == row.tokens


@pytest.mark.parametrize("count", [0, 1, 2])
def test_rows_of_qwen3_are_the_references(hub, reference, rng, count):
    """Twenty conversations: an embedder's with its instruction as the system, a generator's."""
    told = CHAT.embedder_instruction
    budget = dataclasses.replace(CHAT, layout="qwen3", embedder_instruction=told)
    for _ in range(20):
        pictures = tuple(picture(rng, *rng.integers(1, 5, 2)) for _ in range(count))
        title = title_of(rng)
        ids = functools.partial(reference, pictures, template=CHAT3_TEMPLATE)
        options = {"title": title, "pictures": pictures}
        bare = embedder_row(hub, budget, IMAGE, attributes=None, **options)
        assert bare.tokens == ids(title, system=told.strip()), repr(title)
        row = embedder_row(hub, budget, IMAGE, attributes="type: chair", **options)
        assert row.tokens == ids(title, "type: chair", system=told.strip()), repr(title)
        assert row.tokens[: row.bare_length] == bare.tokens
        prompt = generator_prompt(hub, budget, IMAGE, **options)
        assert prompt.tokens == ids(CHAT.generator_instruction + title), repr(title)


def test_a_row_of_a_picture_alone_has_no_dangling_space(hub, reference, rng):
    pictures = (picture(rng, 2, 3),)
    row = embedder_row(hub, CHAT, IMAGE, title=None, attributes=None, pictures=pictures)
    assert row.tokens == reference(pictures, "Represent this product for retrieval:")


def test_a_long_title_is_cut_and_nothing_else(hub, rng):
    pictures, title = (picture(rng, 2, 2),), "stool 12 " * 30
    for room in (1, 7):
        short = TextBudget(buckets=(256,), layout="chat", max_title_tokens=room)
        for images in (pictures, ()):
            full = embedder_row(hub, CHAT, IMAGE, title=title, attributes=None, pictures=images)
            none = embedder_row(hub, CHAT, IMAGE, title=None, attributes=None, pictures=images)
            cut = embedder_row(hub, short, IMAGE, title=title, attributes=None, pictures=images)
            assert len(cut.tokens) == len(none.tokens) + room
            ending = none.tokens[::-1].index(hub.eos_id) + 1
            assert cut.tokens[-ending:] == none.tokens[-ending:]
            assert cut.tokens[:-ending] == full.tokens[: len(cut.tokens) - ending]


@pytest.mark.parametrize("layout", ["bare", "chat"])
def test_titles_cannot_inject_special_tokens(hub, rng, layout):
    budget = TextBudget(buckets=(256,), layout=layout, max_title_tokens=200)
    specials = [hub._inner.token_to_id(x) for x in (*QWEN_ADDED, "<tool_call>")]

    def counts(title):
        args = {"title": title, "pictures": (picture(rng, 1, 1),)}
        rows = embedder_row(hub, budget, IMAGE, attributes=title, **args).tokens
        rows += generator_prompt(hub, budget, IMAGE, **args).tokens
        return [rows.count(x) for x in specials]

    assert counts("".join(QWEN_ADDED) + "<tool_call>") == counts("chair")


def test_a_hubs_settings_of_training_do_not_reach_our_rows(folder, hub, tmp_path):
    inner = HubTokenizer.from_file(str(folder / "tokenizer.json"))
    inner.enable_truncation(4)
    inner.enable_padding(length=12)
    inner.save(str(tmp_path / "tokenizer.json"))
    text = "a chair of many words, and of no padding"
    assert BpeTokenizer.load(tmp_path).encode(text) == hub.encode(text)


def test_qwens_vocabulary_has_its_published_ids(folder, hub):
    if folder.name.startswith("small"):
        pytest.skip("Only for the full vocabulary.")
    row = embedder_row(hub, CHAT, IMAGE, title=None, attributes=None).tokens
    assert row[:14] == [
        151644,
        8948,
        198,
        2610,
        525,
        264,
        10950,
        17847,
        13,
        151645,
        198,
        151644,
        872,
        198,
    ]
    assert row[-5:] == [151645, 198, 151644, 77091, 198]
    ids = (hub.pad_id, hub.eos_id, hub.vision_start_id, hub.vision_end_id, hub.image_pad_id)
    assert ids == (151643, 151645, 151652, 151653, 151655)


@pytest.fixture(params=["bare", "chat"])
def builder(request, badge_listings, tokenizer):
    text = TextBudget(buckets=(48, 112, 256, 400), layout=request.param)
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), text)


def test_the_row_without_attributes_begins_the_row_with_them(builder):
    for place in (0, 7):
        bare, told = builder.embedder(place, None), builder.embedder(place, "shape: round")
        assert told.tokens[: len(bare.tokens)] == bare.tokens
        assert len(told.tokens) > len(bare.tokens)
        assert told.bare_last == bare.bare_last == len(bare.tokens) - 1
        assert told.tokens[-1] == builder.tokenizer.eos_id


def test_contrastive_batches_say_where_attributes_begin(builder):
    texts = {x.listing_id: "shape: round; finish: matt" for x in builder.listings}
    keep_all = InputDropout(attributes=0, whole_list=0.3, title=0, picture=0, words=0, patches=0)
    source = ContrastiveSource(
        builder,
        steps=1,
        batch_size=8,
        sibling_share=0.5,
        seed=0,
        attributes_in_input=Lists(texts),
        attributes_for_terms=None,
        vocabulary=None,
        dropout=keep_all,
    )
    batch = source[0]
    ends = batch.rows.token_mask.sum(1) - 1
    assert (batch.prompt_last <= ends).all()
    assert 0 < (batch.prompt_last < ends).sum() < len(ends)
    for tokens, last, end in zip(batch.rows.tokens, batch.prompt_last, ends, strict=True):
        told = builder.tokenizer.decode(tokens[last + 1 : end].tolist())
        assert told == ("" if last == end else "shape: round; finish: matt")


def test_distillation_begins_where_the_prompt_ends(builder):
    texts = [f"shape: {x.product_id}" for x in builder.listings]
    batch = DistillSource(builder, texts, steps=1, batch_size=4, seed=0)[0]
    for tokens, last, weight, target in zip(
        batch.rows.tokens, batch.prompt_last, batch.weights, batch.targets, strict=True
    ):
        assert np.flatnonzero(weight)[0] == last
        wanted = target[weight > 0].tolist()
        assert wanted == tokens[last + 1 : last + 1 + len(wanted)].tolist()
        assert wanted[-1] == builder.tokenizer.eos_id
        assert builder.tokenizer.decode(wanted) in texts
