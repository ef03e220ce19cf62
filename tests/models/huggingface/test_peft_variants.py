"""rsLoRA, DoRA, patterns of rank and alpha, adapters of the tower: to and from `peft`."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import Execution, LoraConfig, LoraMap
from afmrl_jax.config.lora import LORA_TARGETS
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.folder import load_model, read_architecture, save_model
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, stored_tensors, write_tensors
from afmrl_jax.models.lora import add_lora, merge_lora, with_lora
from afmrl_jax.parallel.param_paths import is_adapter
from afmrl_jax.testing import TOWER_TARGETS, tiny_config

WEIGHTS = "adapter_model.safetensors"
UP = "model/layers/mlp/up_proj"


def file_of(folder):
    return {n: np.array(x.open()) for n, x in stored_tensors(folder / WEIGHTS).items()}


def edit(folder, change):
    """Change the tensors of an adapter."""
    (folder / "manifest.json").unlink(missing_ok=True)
    tensors = file_of(folder)
    change(tensors)
    kept = [TensorToWrite(n, x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()]
    write_tensors(folder / WEIGHTS, kept)


def configure(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def made(request, tmp_path_factory):
    """Folders of a model and of an adapter with everything, and the adapted model."""
    folder = tmp_path_factory.mktemp("made")
    plain = Architecture.of(tiny_config(request.param))
    params = plain.init(0)
    save_model(folder / "base", plain, params)
    towers = TOWER_TARGETS[request.param]
    lora = LoraConfig(3, 6.0, LORA_TARGETS, towers, rank_stabilized=True, dora=True)
    maps = (
        LoraMap("visual_tower/blocks/attn/qkv", (2, 3), (1.5, 6.0)),
        LoraMap(UP, (1, 4), (6.0, 2.0)),
    )
    architecture = with_lora(plain, lora, maps)
    rng = np.random.default_rng(1)
    params = {
        n: x + jnp.asarray(rng.normal(size=x.shape), jnp.float32) if is_adapter(n) else x
        for n, x in add_lora(architecture, params, 0).items()
    }
    save_model(folder / "adapter", architecture, params, like=folder / "base")
    return folder, architecture, params


@pytest.fixture
def adapter(made, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(made[0] / "adapter", tmp_path / "adapter")


def test_an_adapter_comes_back_but_for_what_no_layer_has(made, tmp_path):
    folder, architecture, params = made
    found, loaded = load_model(folder / "adapter")
    asked, given = architecture.config.lora, found.config.lora
    assert {*given.tower_targets} == {*asked.tower_targets}
    assert dataclasses.replace(given, tower_targets=asked.tower_targets) == asked
    assert {*found.config.lora_maps} == {*architecture.config.lora_maps}
    assert loaded.keys() == params.keys() == found.shapes.keys()
    assert read_architecture(folder / "adapter").config == found.config
    for name, value in params.items():
        if not name.startswith((f"{UP}/lora_", "visual_tower/blocks/attn/qkv/lora_")):
            np.testing.assert_array_equal(loaded[name], value)
    (own, b), wanted = (loaded[f"{UP}/lora_{x}"] for x in "ab"), params[f"{UP}/lora_a"]
    np.testing.assert_array_equal(own[0, :, :1], wanted[0, :, :1])
    np.testing.assert_array_equal(own[1], wanted[1])
    assert not np.any(own[0, :, 1:])
    assert not np.any(b[0, 1:])
    again = save_model(tmp_path / "again", found, loaded, like=folder / "base")
    before, after = file_of(folder / "adapter"), file_of(again)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    name = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight"
    assert before[name].shape == (1, 32)
    merged = merge_lora(found, loaded)[1]
    for name, value in merge_lora(architecture, params)[1].items():
        np.testing.assert_array_equal(merged[name], value)


@pytest.mark.parametrize("made", ["qwen3_vl"], indirect=True)
def test_what_the_settings_say_is_what_is_computed(made, adapter):
    """Of a change of adapter_config.json, the factors of the merged kernels tell."""

    def change(name, **settings):
        configure(adapter, use_dora=False, rank_pattern={}, r=4, **settings)
        architecture, params = load_model(adapter)
        merged = merge_lora(architecture, params)[1][f"{name}/kernel"] - params[f"{name}/kernel"]
        product = jnp.matmul(params[f"{name}/lora_a"], params[f"{name}/lora_b"])
        return np.sum(merged * product, axis=(1, 2)) / np.sum(product**2, axis=(1, 2))

    def plain(tensors):
        for name in [*tensors]:
            if name.endswith("lora_magnitude_vector"):
                del tensors[name]
            else:
                axis = 0 if ".lora_A" in name else 1
                widths = [(0, 0), (0, 0)]
                widths[axis] = (0, 4 - tensors[name].shape[axis])
                tensors[name] = np.pad(tensors[name], widths)

    edit(adapter, plain)
    of = partial(change, UP, lora_alpha=8, alpha_pattern={})
    np.testing.assert_allclose(of(use_rslora=False), [2, 2], rtol=1e-4)
    np.testing.assert_allclose(of(use_rslora=True), [4, 4], rtol=1e-4)
    by_layer = partial(change, UP, lora_alpha=8, use_rslora=False)
    patterns = {r"layers\.1\..*": 16, "up_proj": 4, "k_proj": 100}
    np.testing.assert_allclose(by_layer(alpha_pattern=patterns), [1, 4], rtol=1e-4)
    # One that fits nothing is no error.
    np.testing.assert_allclose(by_layer(alpha_pattern={"fc9": 16}), [2, 2], rtol=1e-4)


STEM = "base_model.model.model.language_model.layers"
QKV = "base_model.model.model.visual.blocks.1.attn.qkv"


@pytest.mark.parametrize("made", ["qwen3_vl"], indirect=True)
def test_every_tensor_that_does_not_fit_is_named(made, adapter):
    def change(tensors):
        del tensors[f"{STEM}.1.mlp.up_proj.lora_magnitude_vector"]
        tensors[f"{QKV}.lora_magnitude_vector"] = tensors[f"{QKV}.lora_magnitude_vector"][1:]
        for name in [x for x in tensors if ".merger.linear_fc1.lora_A" in x]:
            del tensors[name]

    edit(adapter, change)
    configure(adapter, rank_pattern={f"{STEM[17:]}.0.mlp.up_proj": 2})
    with pytest.raises(RunError, match=r"merge it into its model there") as error:
        load_model(adapter)
    for words in (
        f"{adapter / WEIGHTS}",
        "missing layer 1 of model/layers/mlp/up_proj/lora_magnitude",
        "missing visual_tower/merger/linear_fc1/lora_a",
        "visual.blocks.1.attn.qkv.lora_magnitude_vector has shape (95,) instead of (96,)",
        "model.layers.0.mlp.up_proj.lora_A.weight has shape (1, 32) instead of (2, 32)",
        "model.layers.1.mlp.up_proj.lora_A.weight has shape (4, 32) instead of (3, 32)",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("made", ["qwen3_vl"], indirect=True)
def test_magnitudes_of_older_files_and_of_plain_adapters(made, adapter):
    name = f"{QKV}.lora_magnitude_vector"
    edit(adapter, lambda x: x.update({f"{name}.weight": x.pop(name)}))
    loaded = load_model(adapter)[1]
    np.testing.assert_array_equal(
        loaded["visual_tower/blocks/attn/qkv/lora_magnitude"],
        made[2]["visual_tower/blocks/attn/qkv/lora_magnitude"],
    )
    edit(adapter, lambda x: x.update({name: x[f"{name}.weight"]}))
    with pytest.raises(RunError, match=r"lora_magnitude_vector.* twice"):
        load_model(adapter)
    configure(adapter, use_dora=False)
    edit(adapter, lambda x: x.pop(name))
    with pytest.raises(RunError, match=r"extra visual\.blocks\.1\.attn\.qkv\.lora_magnitude"):
        load_model(adapter)


@pytest.mark.parametrize("made", ["qwen3_vl"], indirect=True)
@pytest.mark.parametrize(
    "changes",
    [
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": {"q_proj": 10**9}},
        {"rank_pattern": {"q_proj": 1.5}},
        {"rank_pattern": [8]},
        {"alpha_pattern": {"q_proj": -1}},
        {"alpha_pattern": {"q_proj": 1e300}},
        {"alpha_pattern": {"(a+)+": 8}},
        {"alpha_pattern": {"q_proj": "8"}},
        {"use_dora": "yes"},
        {"use_rslora": 1},
    ],
    ids=str,
)
def test_odd_variants(made, adapter, changes):
    configure(adapter, **changes)
    with pytest.raises(RunError, match=r"adapter_config\.json"):
        load_model(adapter)


VARIANTS = {
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {r"layers\.0\.self_attn\.(q|k)_proj": 2, "q_proj": 6, "up_proj": 3},
        "alpha_pattern": {r".*layers\.1\..*": 5, "o_proj": 3},
    },
    "all": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "use_dora": True,
        "rank_pattern": {r"blocks\.0\.attn\.qkv": 2, r"layers\.1\.self_attn\.q_proj": 5},
        "alpha_pattern": {r"blocks\.1\.attn\.proj": 3, r"merger\..*": 2},
    },
}
"""The last adapts every linear map but the head; the others the decoder's."""


@pytest.fixture(scope="module")
def theirs(request, tmp_path_factory):
    """A folder of a base and an adapter, and the adapted model in torch."""
    family, variant = request.param
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from tests.models.reference import hub_class, reference_model

    folder = tmp_path_factory.mktemp(f"{family}-{variant}")
    reference_model(family, True).save_pretrained(folder / "base")
    reference = hub_class(family).from_pretrained(folder / "base")
    targets = rf".*language_model\..*\.({'|'.join(LORA_TARGETS)})"
    targets = "all-linear" if variant == "all" else targets
    settings = peft.LoraConfig(target_modules=targets, **VARIANTS[variant])
    found = peft.get_peft_model(reference, settings).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in found.named_parameters():
            if "lora_magnitude" in name:
                value.mul_(1 + 0.1 * torch.randn_like(value))
            elif "lora_" in name:
                value.copy_(0.1 * torch.randn_like(value))
    found.save_pretrained(folder / "adapter")
    return family, variant, folder, found


EVERY = [(f, v) for f in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") for v in VARIANTS]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("theirs", EVERY, ids="-".join, indirect=True)
def test_a_variant_goes_from_peft_through_ours_to_peft(theirs, tmp_path):
    import peft

    from tests.models.reference import assert_same_logits, hub_class

    family, variant, folder, found = theirs
    architecture, params = load_model(
        folder / "adapter", base=folder / "base", execution=Execution(scan=True)
    )
    lora, settings = architecture.config.lora, VARIANTS[variant]
    assert lora.rank_stabilized == settings.get("use_rslora", False)
    assert lora.dora == settings.get("use_dora", False)
    assert {*lora.tower_targets} == ({*TOWER_TARGETS[family]} if variant == "all" else set())
    assert bool(architecture.config.lora_maps) == ("rank_pattern" in settings)
    assert_same_logits(architecture, params, found)
    assert_same_logits(*merge_lora(architecture, params), found)
    if variant in ("patterns", "all"):  # Whose layers differ.
        unlooped = architecture.with_execution(Execution(scan=False))
        assert_same_logits(unlooped, params, found)
    ours = save_model(tmp_path / "ours", architecture, params, like=folder / "base")
    before, after = file_of(folder / "adapter"), file_of(ours)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(after[name], value)
    base = hub_class(family).from_pretrained(folder / "base").eval()
    again = peft.PeftModel.from_pretrained(base, ours).eval()
    assert_same_logits(architecture, params, again)
    own, other = (dict(x.named_parameters()) for x in (again, found))
    assert own.keys() == other.keys()
    assert all((value == other[name]).all() for name, value in own.items())
    scales = [
        {n: x.scaling["default"] for n, x in y.named_modules() if hasattr(x, "lora_A")}
        for y in (again, found)
    ]
    assert scales[0] == scales[1]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "theirs", [("qwen2_vl", "all"), ("qwen3_vl", "all")], ids="-".join, indirect=True
)
def test_gradients_are_those_of_peft(theirs):
    """DoRA's, through both factors and the magnitudes, in tower and decoder."""
    import torch

    from tests.models.reference import rows_with_pictures

    _, _, folder, found = theirs
    architecture, params = load_model(folder / "adapter", base=folder / "base")
    batch, arguments = rows_with_pictures()
    seen = np.asarray(batch.token_mask)
    shape = (*seen.shape, architecture.config.text.vocab_size)
    weight = (np.random.default_rng(0).normal(size=shape) * seen[..., None]).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient(own):
        model = architecture.bind({**params, **own})
        return jnp.sum(model.logits(model(batch)) * weight)

    ours = gradient({n: x for n, x in params.items() if is_adapter(n)})
    for parameter in found.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    (found(**arguments).logits.float() * torch.tensor(weight)).sum().backward()
    grads = {n: x.grad.numpy() for n, x in found.named_parameters() if "lora_" in n}

    def expected(name, layer):
        path, _, half = name.rpartition("/")
        path = path.replace("visual_tower", "model/visual").replace("mlp_", "mlp/")
        path = path.replace("model/layers", "model/language_model/layers")
        path = path.replace("layers/", f"layers/{layer}/").replace("blocks/", f"blocks/{layer}/")
        path = path.replace("merger_list/", f"merger_list/{layer}/")
        end = {"lora_a": "lora_A", "lora_b": "lora_B", "lora_magnitude": "lora_magnitude_vector"}
        return grads[f"base_model.model.{path}/{end[half]}/default/weight".replace("/", ".")].T

    compared = 0
    for name, value in ours.items():
        stacked = any(x in name for x in ("layers/", "blocks/", "merger_list/"))
        for layer, own in enumerate(value if stacked else value[None]):
            wanted = expected(name, layer)
            place = tuple(slice(size) for size in wanted.shape)
            scale = np.abs(wanted).max()
            np.testing.assert_allclose(own[place], wanted, atol=1e-3 * scale + 1e-5, err_msg=name)
            assert np.count_nonzero(own) == np.count_nonzero(own[place]), name
            compared += 1
    assert compared == len(grads) > 40
