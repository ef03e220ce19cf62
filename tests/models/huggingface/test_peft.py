"""Adapters to and from the `peft` library, and those that are refused."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import LoraConfig
from afmrl_jax.config.lora import LORA_TARGETS
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.folder import load_model, save_model
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, stored_tensors, write_tensors
from afmrl_jax.models.lora import add_lora, merge_lora, with_lora
from afmrl_jax.parallel.param_paths import is_adapter
from afmrl_jax.testing import tiny_config

WEIGHTS = "adapter_model.safetensors"


def randomised(params, seed=1):
    rng = np.random.default_rng(seed)
    return {
        n: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32) if is_adapter(n) else x
        for n, x in params.items()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of a tiny model and of an adapter of it, and the adapted model."""
    tmp_path = tmp_path_factory.mktemp("made")
    architecture = Architecture.of(tiny_config())
    params = architecture.init(0)
    base = save_model(tmp_path / "base", architecture, params)
    architecture = with_lora(architecture, LoraConfig(rank=2, alpha=3.5))
    params = randomised(add_lora(architecture, params, 0))
    return base, save_model(tmp_path / "adapter", architecture, params, like=base), params


@pytest.fixture
def adapter(made, tmp_path):
    """The same, in copies that may be changed."""
    base, folder = (Path(shutil.copytree(x, tmp_path / x.name)) for x in made[:2])
    configure(folder, base_model_name_or_path=str(base))
    return base, folder, made[2]


def configure(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit(folder, change):
    path = folder / WEIGHTS
    (folder / "manifest.json").unlink(missing_ok=True)
    tensors = {n: np.array(x.open()) for n, x in stored_tensors(path).items()}
    change(tensors)
    write_tensors(
        path, [TensorToWrite(n, x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()]
    )


def test_saved_adapter_comes_back_bit_for_bit(adapter):
    base, folder, params = adapter
    assert sorted(x.name for x in folder.iterdir()) == [
        "adapter_config.json",
        WEIGHTS,
        "manifest.json",
    ]
    for given in (None, base):
        architecture, loaded = load_model(folder, base=given)
        assert architecture.config.lora == LoraConfig(rank=2, alpha=3.5)
        assert loaded.keys() == params.keys() == architecture.shapes.keys()
        for name, value in params.items():
            np.testing.assert_array_equal(loaded[name], value)


def test_an_adapter_is_not_saved_without_its_base(adapter, tmp_path):
    architecture, params = load_model(adapter[1])
    with pytest.raises(RunError, match="base model"):
        save_model(tmp_path / "x", architecture, params)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "init_lora_weights olora"),
        ({"use_bdlora": {"blocks": 2}}, "use_bdlora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias all"),
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"use_qalora": True}, "use_qalora"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"layers_to_transform": [0]}, "layers_to_transform; merge it with peft"),
        ({"layers_to_transform": 0}, "layers_to_transform; merge it with peft"),
        ({"layers_pattern": "layers"}, "layers_pattern"),
    ],
)
def test_variants_that_are_not_read(adapter, change, message):
    path = adapter[1] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=message):
        load_model(adapter[1])


@pytest.mark.parametrize("text", ["{", "[]", '{"peft_type": "LORA"}'])
def test_a_broken_adapter_config_is_an_error_that_names_it(adapter, text):
    (adapter[1] / "adapter_config.json").write_text(text)
    with pytest.raises(RunError, match=r"adapter_config\.json"):
        load_model(adapter[1])


def test_pickled_adapters_are_not_read(adapter):
    (adapter[1] / WEIGHTS).rename(adapter[1] / "adapter_model.bin")
    with pytest.raises(RunError, match=r"adapter_model\.bin is not read"):
        load_model(adapter[1])


@pytest.mark.parametrize(
    "name",
    [
        "model.visual.blocks.0.mlp.down_proj.lora_A.weight",
        "model.visual.patch_embed.proj.lora_A.weight",
        "lm_head.lora_A.weight",
        "model.language_model.embed_tokens.lora_embedding_A",
        "model.language_model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "model.language_model.norm.weight",
    ],
)
def test_what_adapts_no_linear_map_is_not_read(adapter, name):
    value = np.zeros((2, 48), np.float32)
    edit(adapter[1], lambda x: x.update({f"base_model.model.{name}": value}))
    with pytest.raises(RunError, match=rf"extra .*{name.split('.')[-2]}.*merge_and_unload"):
        load_model(adapter[1])


def test_a_missing_base_is_named(adapter, tmp_path):
    adapter[0].rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="give its base model"):
        load_model(adapter[1])
    load_model(adapter[1], base=tmp_path / "elsewhere")


def test_every_tensor_that_does_not_fit_is_named_at_once(adapter):
    stem = "base_model.model.model.language_model.layers"

    def change(tensors):
        tensors.pop(f"{stem}.1.self_attn.q_proj.lora_A.weight")
        value = tensors.pop(f"{stem}.0.mlp.down_proj.lora_B.weight")
        tensors[f"{stem}.0.mlp.down_proj.lora_B.weight"] = value[1:]
        tensors[f"{stem}.2.mlp.down_proj.lora_B.weight"] = value

    edit(adapter[1], change)
    with pytest.raises(RunError) as error:
        load_model(adapter[1])
    for words in (
        "missing layer 1 of model/layers/self_attn/q_proj/lora_a",
        "extra model.layers.2.mlp.down_proj.lora_B.weight",
        "model.layers.0.mlp.down_proj.lora_B.weight has shape (31, 2) instead of (32, 2)",
    ):
        assert words in str(error.value)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_peft_reads_what_we_write(family, tmp_path):
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from tests.models.reference import assert_same_logits, hub_class, reference_model

    reference_model(family, False).save_pretrained(tmp_path / "base")
    architecture, params = load_model(tmp_path / "base")
    architecture = with_lora(architecture, LoraConfig(rank=4, alpha=8.0, targets=LORA_TARGETS))
    params = randomised(add_lora(architecture, params, 0))
    save_model(tmp_path / "adapter", architecture, params, like=tmp_path / "base")
    reference = hub_class(family).from_pretrained(tmp_path / "base").eval()
    found = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    adapted = [n for n, _ in found.named_modules() if n.endswith("lora_A")]
    assert len(adapted) == 14
    assert not any("visual" in n for n in adapted)
    assert_same_logits(architecture, params, found)
    merged = merge_lora(architecture, params)
    assert_same_logits(*merged, found)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_we_read_what_peft_writes(family, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from tests.models.reference import assert_same_logits, hub_class, reference_model

    reference_model(family, True).save_pretrained(tmp_path / "base")
    reference = hub_class(family).from_pretrained(tmp_path / "base")
    # A bare `down_proj` would also match the vision tower of Qwen2.5-VL.
    targets = ["q_proj", "v_proj", "o_proj", "up_proj"]
    if family == "qwen2_vl":
        targets.append("down_proj")
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    if family == "qwen2_5_vl":
        settings.exclude_modules = r".*visual.*"
    found = peft.get_peft_model(reference, settings).eval()
    with torch.no_grad():
        for name, value in found.named_parameters():
            if "lora_" in name:
                value.copy_(0.1 * torch.randn_like(value))
    found.save_pretrained(tmp_path / "adapter")
    architecture, params = load_model(tmp_path / "adapter", base=tmp_path / "base")
    assert architecture.config.lora == LoraConfig(
        4, 8.0, tuple(x for x in LORA_TARGETS if x in targets)
    )
    assert_same_logits(architecture, params, found)
    assert_same_logits(*merge_lora(architecture, params), found)


# F10
@pytest.mark.parametrize("value", [0, -1, "2", None, [1], 1.5, 10**9])
def test_odd_ranks(adapter, value):
    configure(adapter[1], r=value)
    with pytest.raises(RunError, match=r"adapter_config\.json.*\br\b.*copy the adapter again"):
        load_model(adapter[1])


# F10
@pytest.mark.parametrize("value", [0, -1, "2", None, [1], 1e300])
def test_odd_scales(adapter, value):
    configure(adapter[1], lora_alpha=value)
    with pytest.raises(RunError, match=r"adapter_config\.json.*lora_alpha.*copy the adapter again"):
        load_model(adapter[1])


# F10
@pytest.mark.parametrize("base", [7, ["x"], "", None, "x" * 5000, "a\0b", "/dev/null"])
def test_odd_bases(adapter, base):
    configure(adapter[1], base_model_name_or_path=base)
    with pytest.raises(RunError, match="adapter"):
        load_model(adapter[1])


# F10
def test_an_adapter_of_itself_or_of_an_adapter(adapter, tmp_path):
    folder = adapter[1]
    configure(folder, base_model_name_or_path=str(folder))
    for base in (None, folder):
        with pytest.raises(RunError, match="which is an adapter itself"):
            load_model(folder, base=base)
    shutil.copytree(folder, tmp_path / "second")
    configure(folder, base_model_name_or_path=str(tmp_path / "second"))
    with pytest.raises(RunError, match="which is an adapter itself"):
        load_model(folder)


def test_a_factor_under_two_names(adapter):
    def change(tensors):
        name = next(iter(tensors))
        tensors[name.replace("language_model.", "")] = tensors[name]

    edit(adapter[1], change)
    with pytest.raises(RunError, match=r"adapter_model\.safetensors holds .* twice"):
        load_model(adapter[1])


# S8
def test_any_changed_bit_of_an_adapter_is_found(adapter, rng):
    path = adapter[1] / WEIGHTS
    good = path.read_bytes()
    for place in rng.integers(8, len(good), 4):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        with pytest.raises(RunError, match="adapter"):
            load_model(adapter[1])
