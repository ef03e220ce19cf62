"""An exported folder's chat template, tokenizer and processor make the rows of the run."""

import dataclasses
import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from afmrl_jax.cli import main as cli
from afmrl_jax.config import ImageConfig, ModelSettings, RunConfig, TextBudget, to_dict
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.errors import RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.folder import FolderModel
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.folder import save_model
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runs.export import export
from afmrl_jax.runtime.files import write_json
from afmrl_jax.testing import finish_stage, normalized_pixels, tiny_config
from afmrl_jax.training.model_store import WEIGHTS, ModelStore

pytest.importorskip("transformers")

from jinja2 import TemplateError
from tokenizers import AddedToken
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.data.batching.test_prompts import QWEN_ADDED, small_vocabulary

SYSTEM = "agcl+distilled"
MOST = 3
TITLE = "Red BADGE, 30 cm"
LIST = "colour: red; shape: circle"
ROLES = ["embedder", "generator"]


def chat(layout):
    return TextBudget(buckets=(128, 512), layout=layout)


FAMILIES = {
    "qwen2_vl": (ImageConfig(max_pictures=MOST), TextBudget()),
    "qwen2_5_vl": (
        dataclasses.replace(ImageConfig.qwen(max_pixels=84 * 84), max_pictures=MOST),
        chat("chat"),
    ),
    "qwen3_vl": (
        dataclasses.replace(ImageConfig.qwen3(max_pixels=96 * 96), max_pictures=MOST),
        chat("qwen3"),
    ),
}
HUBS = {"qwen2_5_vl": "Qwen2.5-VL-3B-Instruct", "qwen3_vl": "Qwen3-VL-2B-Instruct"}
"""The demo's kind has no base; the others start from a folder that has files of its own."""


def write_base(folder, architecture, params, tokenizer):
    """A folder as a hub has it, with a template and settings that are not the run's."""
    save_model(folder, architecture, params, tokenizer=tokenizer)
    template = "{{ messages }} of the base"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", config | {"chat_template": template})
    write_json(folder / "chat_template.json", {"chat_template": template})
    (folder / "chat_template.jinja").write_text(template)
    write_json(folder / "processor_config.json", {"image_processor": {"patch_size": 99}})
    write_json(folder / "preprocessor_config.json", {"patch_size": 99})
    write_json(folder / "generation_config.json", {"repetition_penalty": 1.05, "do_sample": True})


@pytest.fixture(scope="module", params=list(FAMILIES))
def run(request, tmp_path_factory, badges, tokenizer):
    family, root = request.param, tmp_path_factory.mktemp(request.param)
    if family in HUBS:  # A vocabulary of Qwen's kind, for which the chat layouts are.
        inner = small_vocabulary()
        inner.add_special_tokens(
            [AddedToken(x, special=True, normalized=False) for x in QWEN_ADDED]
        )
        tokenizer = BpeTokenizer(inner)
    image, text = FAMILIES[family]
    model = tiny_config(
        family, vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id
    )
    vision = dataclasses.replace(
        model.vision,
        patch_size=image.patch_size,
        temporal_patch_size=image.temporal_patch_size,
        window_size=4 * image.patch_size,
    )
    architecture = Architecture.of(dataclasses.replace(model, vision=vision))
    params = architecture.init(0)
    settings = ModelSettings()
    if family in HUBS:
        write_base(root / HUBS[family], architecture, params, tokenizer)
        settings = ModelSettings(weights=str(root / HUBS[family]))
    config = RunConfig(
        catalogue=str(badges), image=image, text=text, embedder=settings, generator=settings
    )
    folder = root / "run"
    write_json(folder / "config.json", to_dict(config))
    tokenizer.save(folder / "tokenizer")
    finish_stage(folder / "tokenizer", "tokenizer.json")
    store = ModelStore(folder, config, make_mesh(1, 1))
    for stage in ("infonce", "agcl-distilled", "distill"):
        store.save(stage, architecture, params, tokenizer)
        finish_stage(folder / stage, WEIGHTS)
    return FinishedRun(folder)


@pytest.fixture(scope="module")
def folders(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    for role in ROLES:
        assert export(run, SYSTEM, root / role, role=role, check=False) is None
    return {role: root / role for role in ROLES}


def encoded(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = [encoded(90, 50, 1), encoded(40, 130, 2), encoded(64, 64, 3)]


def messages_of(title, pictures, attributes=None):
    content = [{"type": "image"} for _ in pictures]
    # Where the title stands does not matter.
    content[len(content) // 2 : len(content) // 2] = [{"type": "text", "text": title}] * bool(title)
    said = [{"role": "user", "content": content}]
    return [*said, {"role": "assistant", "content": attributes}] if attributes else said


def theirs(folder, title, pictures, attributes=None, *, generate=False):
    """Tokens and patches by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        messages_of(title, pictures, attributes), tokenize=False, add_generation_prompt=generate
    )
    patches = None
    if pictures:
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        opened = [Image.open(io.BytesIO(x)) for x in pictures]
        found = processor(opened, return_tensors="np")
        patches = found["pixel_values"]
        for grid in found["image_grid_thw"]:
            places = "<|hold|>" * (int(grid.prod()) // processor.merge_size**2)
            text = text.replace("<|image_pad|>", places, 1)
    text = text.replace("<|hold|>", "<|image_pad|>")
    return tokenizer(text, add_special_tokens=False)["input_ids"], patches


def rows_of(run, title, pictures):
    image = (*pictures, b"")[0]
    listing = Listing("1", "1", title or "", image, more_images=tuple(pictures[1:]))
    return run.rows(Catalogue("one", (listing,)))


@pytest.mark.parametrize("count", [0, 1, MOST])
@pytest.mark.parametrize("title", [TITLE, " oak\n chair", None])
def test_rows_and_patches_are_those_of_the_run(run, folders, title, count):
    pictures = PICTURES[:count]
    if not pictures and not title:
        pytest.skip("there is nothing to read")
    builder = rows_of(run, title, pictures)
    shown = {"title": title is not None, "picture": bool(pictures)}
    for attributes in (None, LIST):
        row = builder.embedder(0, attributes, **shown)
        for generate in (False, True):  # What a client asks for does not change a vector.
            ids, patches = theirs(
                folders["embedder"], title, pictures, attributes, generate=generate
            )
            assert ids == row.tokens
    for n, picture in enumerate(row.pictures):
        sizes = [len(x.pixels) for x in row.pictures]
        begin = sum(sizes[:n])
        found = patches[begin : begin + sizes[n]]
        np.testing.assert_array_equal(normalized_pixels(picture, run.config.image), found)
    assert len(row.pictures) == count
    prompt = builder.showing("both" if title and pictures else "image" if pictures else "text")
    ids, _ = theirs(folders["generator"], title, pictures, generate=True)
    assert ids == prompt.prompt(0).tokens


def test_our_own_reader_makes_the_same_rows(run, folders):
    for role in ROLES:
        model = FolderModel.read(folders[role])
        read, own = model.text, run.config.text
        names = ["layout", "max_title_tokens", "max_attribute_tokens", f"{role}_instruction"]
        told = [
            (getattr(read, x), getattr(own, x).strip() if x.endswith("instruction") else own)
            for x in names[3:]
        ]
        assert [getattr(read, x) for x in names[:3]] == [getattr(own, x) for x in names[:3]]
        assert own.layout == "bare" or all(a.strip() == b for a, b in told)
        assert model.image.max_pictures == MOST
        side = model.image.patch_size * model.image.merge_size
        assert read.buckets[-1] > MOST * model.image.max_pixels // side**2


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (messages_of("Red <|im_end|> badge", []), "holds the mark"),
        (messages_of("Red", [], "a: b<|im_end|>"), "holds the mark"),
        (messages_of("Red", [1] * (MOST + 1)), "at most 3 pictures; found 4"),
        ([{"role": "system", "content": "Be kind."}, *messages_of("Red", [])], "built in"),
        (messages_of("Red", []) * 2, "built in"),
        (messages_of(" ", []), "a picture, a title, or both"),
        ([{"role": "user", "content": [{"type": "video"}]}], "made of texts and"),
    ],
)
def test_other_conversations_are_refused(folders, role, messages, why):
    tokenizer = AutoTokenizer.from_pretrained(folders[role])
    with pytest.raises(TemplateError, match=why):
        tokenizer.apply_chat_template(messages, tokenize=False)


def test_servers_see_that_messages_come_in_parts(folders):
    """They look for a loop over `message["content"]` inside of one over `messages`."""
    from jinja2 import Environment, nodes

    for folder in folders.values():
        tree = Environment().parse((folder / "chat_template.jinja").read_text())
        (outer,) = [
            x
            for x in tree.find_all(nodes.For)
            if isinstance(x.iter, nodes.Name) and x.iter.name == "messages"
        ]
        inner = [x.iter for x in outer.find_all(nodes.For) if isinstance(x.iter, nodes.Getitem)]
        found = {(x.node.name, x.arg.value) for x in inner}
        assert (outer.target.name, "content") in found


def test_nothing_of_the_base_is_read_in_place_of_the_runs(run, folders):
    for role, folder in folders.items():
        assert not (folder / "processor_config.json").exists()
        assert not (folder / "chat_template.json").exists()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert "chat_template" not in config
        processor = json.loads((folder / "preprocessor_config.json").read_text())
        assert processor["patch_size"] == run.config.image.patch_size
        assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float32"
        settings = json.loads((folder / f"afmrl_{role}.json").read_text())
        assert settings["max_pictures"] == MOST
    greedy = json.loads((folders["generator"] / "generation_config.json").read_text())
    assert greedy["do_sample"] is False
    assert "repetition_penalty" not in greedy
    assert not (folders["generator"] / "modules.json").exists()


def test_cards_say_license_and_how_to_serve(run, folders):
    for role, folder in folders.items():
        card = (folder / "README.md").read_text()
        front = yaml.safe_load(card.split("---")[1])
        hub = HUBS.get(run.config.embedder.weights and run.folder.parent.name[:-1])
        assert front.get("base_model") == (f"Qwen/{hub}" if hub else None)
        assert ("license" in front) == bool(hub)
        assert "vllm serve FOLDER" in card
        assert ("--runner pooling" in card) == (role == "embedder")
        assert '--limit-mm-per-prompt \'{"image": 3, "video": 0}\'' in card


def test_the_command_writes_a_generator(run, tmp_path, capsys):
    arguments = ["export", "--run", str(run.folder), "--system", SYSTEM]
    cli.main([*arguments, "--model", "generator", "--out", str(tmp_path / "g")])
    assert "check-endpoint" in capsys.readouterr().out
    assert (tmp_path / "g" / "model.safetensors").is_file()
    with pytest.raises(RunError, match="infonce has no generator"):
        export(run, "infonce", tmp_path / "none", role="generator")
    assert not (tmp_path / "none").exists()
