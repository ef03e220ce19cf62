"""A run with every model of a system, written instead of trained."""

import pytest

from afmrl_jax.config import EvaluationConfig, RunConfig, TextBudget, to_dict
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runtime.files import write_json
from afmrl_jax.testing import finish_stage, tiny_config
from afmrl_jax.training.model_store import WEIGHTS, ModelStore


@pytest.fixture(scope="module")
def written_run(tmp_path_factory, badges, tokenizer):
    """Folder of a run whose systems `infonce` and `agcl+distilled` can be used."""
    folder = tmp_path_factory.mktemp("run") / "written"
    config = RunConfig(
        catalogue=str(badges),
        text=TextBudget(max_title_tokens=9, max_attribute_tokens=6),
        evaluation=EvaluationConfig(batch_size=8),
    )
    write_json(folder / "config.json", to_dict(config))
    tokenizer.save(folder / "tokenizer")
    finish_stage(folder / "tokenizer", "tokenizer.json")
    store = ModelStore(folder, config, make_mesh(1, 1))
    for seed, (stage, family) in enumerate(
        [("infonce", "qwen2_vl"), ("agcl-distilled", "qwen2_vl"), ("distill", "qwen2_5_vl")]
    ):
        model = tiny_config(
            family, vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id
        )
        architecture = Architecture.of(model)
        store.save(stage, architecture, architecture.init(seed), tokenizer)
        finish_stage(folder / stage, WEIGHTS)
    return folder
