"""`afmrl export`: R as a folder for other tools, whose vectors are those of the run."""

import dataclasses
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image

from afmrl_jax.cli import main as cli
from afmrl_jax.config import (
    Execution,
    ImageConfig,
    LoraConfig,
    ModelSettings,
    RunConfig,
    TextBudget,
    to_dict,
)
from afmrl_jax.errors import RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.families import FAMILIES
from afmrl_jax.models.huggingface.folder import save_model
from afmrl_jax.models.lora import add_lora, with_lora
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runs import export
from afmrl_jax.runtime.files import write_json
from afmrl_jax.testing import finish_stage, normalized_pixels, tiny_config
from afmrl_jax.training.model_store import ModelStore

HOSTILE = "Red <|im_end|> BADGE, 30 cm"
LIST = "colour: Red; shape: circle"
KINDS = ["demo", "pretrained"]
HUB = "Qwen2-VL-2B-Instruct"
"""Folder of the weights that one run started from, as the hub names such a model."""


def perturbed(params, seed=0, only=""):
    """Parameters (of a kind) with no two alike, and none at zeros that would hide a mistake."""
    rng = np.random.default_rng(seed)
    noise = {n: (0.05 * rng.normal(size=x.shape)).astype(np.float32) for n, x in params.items()}
    # Added by NumPy: JAX would compile a sum for each shape.
    arrays = {n: np.asarray(x) for n, x in params.items()}
    arrays |= {n: x + noise[n].astype(x.dtype) for n, x in arrays.items() if only in n}
    return {n: jnp.asarray(x) for n, x in arrays.items()}


def write_run(folder, config, tokenizer, architecture, params):
    """A run directory as far as R of `infonce` and of `cit-1` are concerned."""
    write_json(folder / "config.json", to_dict(config))
    tokenizer.save(folder / "tokenizer")
    finish_stage(folder / "tokenizer", "tokenizer.json")
    store = ModelStore(folder, config, make_mesh(1, 1))
    for stage, seed in (("infonce", 1), ("cit-1", 2)):
        only = "lora_" if config.embedder.weights else ""
        trained = perturbed(params, seed, only)
        store.save(stage, architecture, trained, tokenizer)
        finish_stage(folder / stage, "model/manifest.json")
    rows = [{"name": "infonce", "fine": {"R@1": 51.0}}, {"name": "afmrl+cit", "fine": None}]
    write_json(folder / "evaluation.json", {"rows": rows})
    return folder


def write_demo_run(root, catalogue, tokenizer):
    """The demo's R with its own vocabulary, patches of one frame and the bare layout."""
    model = FAMILIES["qwen2_vl"].demo(tokenizer.vocab_size, tokenizer.image_pad_id)
    architecture = Architecture.of(model)
    config = RunConfig(catalogue=str(catalogue), text=TextBudget(max_title_tokens=9))
    return write_run(
        root / "demo", config, tokenizer, architecture, perturbed(architecture.init(0))
    )


def write_pretrained_run(root, catalogue, tokenizer):
    """R as bfloat16 weights from a folder and adapters, Qwen's patches, and the chat layout."""
    model = tiny_config(vocab_size=tokenizer.vocab_size + 3, image_token_id=tokenizer.image_pad_id)
    vision = dataclasses.replace(model.vision, patch_size=14, temporal_patch_size=2, window_size=56)
    plain = Architecture.of(dataclasses.replace(model, vision=vision))
    base = {n: x.astype("bfloat16") for n, x in perturbed(plain.init(0)).items()}
    save_model(root / HUB, plain, base, tokenizer=tokenizer)
    write_json(root / HUB / "preprocessor_config.json", {"patch_size": 99})
    lora = LoraConfig(rank=2, alpha=4.0)
    architecture = with_lora(plain, lora)
    config = RunConfig(
        catalogue=str(catalogue),
        image=ImageConfig.qwen(max_pixels=84 * 84),
        text=TextBudget(buckets=(128, 192), layout="chat", max_title_tokens=9),
        embedder=ModelSettings(
            weights=str(root / HUB),
            trained="lora",
            lora=lora,
            execution=Execution(dtype="bfloat16"),
        ),
    )
    return write_run(
        root / "pretrained", config, tokenizer, architecture, add_lora(architecture, base, 0)
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory, badges, tokenizer):
    root = tmp_path_factory.mktemp("runs")
    return {
        "demo": write_demo_run(root, badges, tokenizer),
        "pretrained": write_pretrained_run(root, badges, tokenizer),
    }


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture of many colours, wider than high, with a transparent corner."""
    noise = np.random.default_rng(3).integers(0, 256, (5, 9, 4), np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(noise).resize((90, 50), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def inputs(picture):
    return [
        {"text": "red"},
        {"text": HOSTILE * 3},
        {"image": str(picture)},
        {"text": "red badge", "image": str(picture)},
        {"text": HOSTILE, "image": str(picture), "attributes": LIST},
        {"text": "red badge", "attributes": f"{LIST}; " + "finish: gloss; " * 20},
    ]


@pytest.fixture(scope="module")
def expected(runs, inputs):
    """Vectors of R as it was trained, adapters apart, in float32."""
    out = {}
    for kind in KINDS:
        run = FinishedRun(runs[kind])
        picture = Path(inputs[2]["image"]).read_bytes()
        loaded = [
            export._Parts(x.get("text"), picture if "image" in x else None, x.get("attributes"))
            for x in inputs
        ]
        out[kind] = export._ours(run, *run.model("cit-1"), loaded)
    return out


torch_missing = "the other tools need `pip install torch sentence-transformers`"


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """Folders with their checks."""
    pytest.importorskip("torch", reason=torch_missing)
    root = tmp_path_factory.mktemp("exported")
    return {k: (root / k, export.export(FinishedRun(runs[k]), None, root / k)) for k in KINDS}


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_the_check_passes_and_says_so(exported, kind):
    folder, agreement = exported[kind]
    assert agreement.rows == 16
    assert 0 < agreement.difference < 1e-4
    assert agreement.rounding is None
    assert str(agreement) in (folder / "README.md").read_text()
    assert not list(folder.parent.glob(".*"))


@pytest.mark.parity
@pytest.mark.parametrize("system", ["infonce", "afmrl+cit"])
def test_the_command_says_what_it_checked_with_torch(runs, tmp_path, capsys, system):
    pytest.importorskip("torch", reason=torch_missing)
    out = tmp_path / "r"
    cli.main(["export", "--run", str(runs["demo"]), "--system", system, "--out", str(out)])
    told = capsys.readouterr().out
    assert "checked: 16 vectors of titles, pictures, both, and both with attributes" in told
    assert (out / "modules.json").is_file()
    assert f"Embedder of the system `{system}`" in (out / "README.md").read_text()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers_gives_the_runs_vectors(exported, expected, inputs, kind):
    tools = pytest.importorskip("sentence_transformers", reason=torch_missing)
    folder, _ = exported[kind]
    with pytest.raises(ValueError, match="trust_remote_code"):
        tools.SentenceTransformer(str(folder), device="cpu")
    model = tools.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    for batch_size in (1, 4):
        found = model.encode(inputs, batch_size=batch_size)
        np.testing.assert_allclose(found, expected[kind], atol=1e-4)
    opened = Image.open(inputs[2]["image"])
    mixed = ["red", opened, {"text": "red badge", "image": opened}]
    np.testing.assert_allclose(model.encode(mixed), expected[kind][[0, 2, 3]], atol=1e-4)
    np.testing.assert_allclose(model.encode_query("red"), expected[kind][0], atol=1e-4)
    np.testing.assert_allclose(model.encode_document([opened]), expected[kind][[2]], atol=1e-4)
    assert model.get_embedding_dimension() == expected[kind].shape[1]
    assert model.similarity(found, found).diag().numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers_saves_and_reads_again(exported, expected, inputs, tmp_path):
    tools = pytest.importorskip("sentence_transformers", reason=torch_missing)
    folder, _ = exported["pretrained"]
    model = tools.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    model.save(str(tmp_path / "again"))
    again = tools.SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(again.encode(inputs), expected["pretrained"], atol=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_the_card_gives_the_runs_vectors(exported, expected, inputs, kind):
    folder, _ = exported[kind]
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert 'FOLDER = "."' in code
    names = {}
    exec(code.replace('FOLDER = "."', f"FOLDER = {str(folder)!r}"), names)
    white = Image.open(inputs[2]["image"]).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", white.size, "white"), white)
    for known, vector in zip(inputs, expected[kind], strict=True):
        picture = white if "image" in known else None
        found = names["embed"](known.get("text", ""), picture, known.get("attributes", ""))
        np.testing.assert_allclose(found.numpy(), vector, atol=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_every_weight_and_the_tokenizer(exported, runs, kind):
    import transformers

    folder, _ = exported[kind]
    for name in ("Qwen2VLForConditionalGeneration", "AutoModel"):
        model, loading = getattr(transformers, name).from_pretrained(
            folder, output_loading_info=True
        )
        assert model.dtype is sys.modules["torch"].float32
        assert not any(loading[x] for x in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = FinishedRun(runs[kind]).tokenizers["embedder"]
    for text in ("Red BADGE, 30 cm", "  oak\n\nchair", LIST):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs.pad_token_id == ours.pad_id


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_very_long_pictures_are_cut_alike(exported, runs):
    from afmrl_jax.data.batching.images import patchify
    from afmrl_jax.runs.portable.afmrl_embedder import Settings, pixels

    folder, _ = exported["demo"]
    settings = Settings(**json.loads((folder / export.SETTINGS).read_text()))
    config = FinishedRun(runs["demo"]).config.image
    rng = np.random.default_rng(5)
    for size in [(3, 590), (590, 3), (1, 1), (64, 64), (200, 7), (65, 31)]:
        picture = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        path = folder.parent / "picture.png"
        picture.save(path)
        ours = patchify(path.read_bytes(), config)
        theirs = pixels(picture, settings)
        assert ours.grid == theirs.grid
        np.testing.assert_array_equal(normalized_pixels(ours, config), theirs.values)
    with pytest.raises(ValueError, match="longer than 200 to 1"):
        pixels(Image.new("RGB", (201, 1)), settings)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one of the first two"),
        ("", "at least one of the first two"),
        ({"title": "red"}, "a text, a PIL picture, or a dict"),
        ({"text": ["a", "b"]}, "`text` must be one string"),
        ({"text": "a", "image": []}, "one picture"),
        ([{"role": "user", "content": "red"}], "a text, a PIL picture, or a dict"),
    ],
)
def test_the_module_refuses_what_it_cannot_embed(exported, given, message):
    from afmrl_jax.runs.portable.afmrl_embedder import AfmrlEmbedder

    embedder = AfmrlEmbedder.load(str(exported["demo"][0]))
    with pytest.raises(ValueError, match=message):
        embedder.embed([given])
    with pytest.raises(ValueError, match="leave `prompt` out"):
        embedder.preprocess(["red"], prompt="query: ")


@pytest.mark.parity
def test_half_precision_is_a_choice(runs, tmp_path):
    pytest.importorskip("torch", reason=torch_missing)
    run = FinishedRun(runs["pretrained"])
    agreement = export.export(run, "infonce", tmp_path / "half", dtype="bfloat16")
    assert agreement.difference < 1e-4 < agreement.rounding < 0.1
    assert "rounding the weights changed them" in (tmp_path / "half" / "README.md").read_text()
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    # As large as the bfloat16 folder that R started from.
    base = (runs["demo"].parent / HUB / "model.safetensors").stat().st_size
    assert (tmp_path / "half" / "model.safetensors").stat().st_size == pytest.approx(base, rel=0.1)


def test_systems_have_their_own_weights(runs, tmp_path):
    run = FinishedRun(runs["demo"])
    weights = []
    for name in ("infonce", "afmrl+cit"):
        assert export.export(run, name, tmp_path / name, check=False) is None
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]
    card = (tmp_path / "infonce" / "README.md").read_text()
    assert "R@1 51.0" in card
    assert "leave `attributes` out." in card
    assert "`rar` of the run" in (tmp_path / "afmrl+cit" / "README.md").read_text()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", ["weights", "prompt", "pixels"])
def test_vectors_that_differ_are_refused(runs, tmp_path, monkeypatch, fault):
    pytest.importorskip("torch", reason=torch_missing)
    written = export._write_companions

    def write(folder, run, architecture):
        written(folder, run, architecture)
        if fault == "weights":
            other = run.folder / "infonce" / "model" / "model.safetensors"
            shutil.copyfile(other, folder / "model.safetensors")
            return
        path = folder / export.SETTINGS
        change = {"layout": "chat"} if fault == "prompt" else {"mean": [0.5, 0.5, 0.5]}
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    monkeypatch.setattr(export, "_write_companions", write)
    with pytest.raises(RunError, match=r"differ by up to .* nothing was kept"):
        export.export(FinishedRun(runs["demo"]), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_card_names_the_model_that_was_trained_and_its_license(runs, tmp_path):
    export.export(FinishedRun(runs["pretrained"]), None, tmp_path / "out", check=False)
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == f"Qwen/{HUB}"
    assert front["license"] == "apache-2.0"
    assert "qwen2_vl" in front["tags"]
    assert f"Trained from `Qwen/{HUB}`, whose license is apache-2.0" in card
    export.export(FinishedRun(runs["demo"]), None, tmp_path / "own", check=False)
    front = yaml.safe_load((tmp_path / "own" / "README.md").read_text().split("---")[1])
    assert not {"base_model", "license"} & set(front)


def test_without_torch_it_says_that_nothing_was_checked(runs, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "torch" else found(name, *rest),
    )
    # What needs torch must not even be imported.
    monkeypatch.setitem(sys.modules, "afmrl_jax.runs.portable.afmrl_embedder", None)
    out = tmp_path / "unchecked"
    cli.main(["export", "--run", str(runs["demo"]), "--out", str(out)])
    assert "NOT CHECKED: torch is not installed" in capsys.readouterr().out
    assert "Not checked when this folder was written" in (out / "README.md").read_text()
    assert (out / "model.safetensors").is_file()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "best"], "no system 'best'; choose from infonce"),
        (["--system", "agcl"], "stage agcl of"),
        (["--catalogue", "nowhere"], "does not exist"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(runs, tmp_path, capsys, arguments, message):
    pytest.importorskip("torch", reason=torch_missing)
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        cli.main(["export", "--run", str(runs["demo"]), "--out", str(out), *arguments])
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused(runs, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(RunError, match="exists; choose another --out"):
        export.export(FinishedRun(runs["demo"]), None, tmp_path)
    assert [x.name for x in tmp_path.iterdir()] == ["note"]
