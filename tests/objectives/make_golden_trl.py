"""Writes golden_trl.json: losses and gradients of TRL's GRPO trainer on random numbers.

    pip install trl torch
    python tests/objectives/make_golden_trl.py

TRL's own `GRPOTrainer._compute_loss` is called, with the trainer's settings in place of a trainer
and given log-probabilities in place of a model.
"""

import itertools
import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np

QUERIES, GROUP, LENGTH = 2, 4, 6
CASES = [
    {
        "loss_type": kind,
        "importance": level,
        "clip_high": high,
        "ratio_cap": cap,
        "kl_coefficient": beta,
    }
    for kind, level, high, cap, beta in itertools.product(
        ("grpo", "bnpo", "dapo", "dr_grpo"),
        ("token", "sequence"),
        (0.2, 0.28),
        (None, 1.5),
        (0.0, 0.04),
    )
]


def numbers(rng):
    shape = (QUERIES * GROUP, LENGTH)
    logprobs = -rng.exponential(1.0, shape)
    lengths = rng.integers(1, LENGTH + 1, shape[0])
    return {
        "logprobs": logprobs,
        "old": logprobs + rng.normal(0, 0.5, shape),
        "reference": logprobs + rng.normal(0, 0.5, shape),
        "advantages": rng.normal(size=shape[0]),
        "mask": np.arange(LENGTH) < lengths[:, None],
    }


def trl_loss(values, case):
    """TRL's loss and its gradient by the log-probabilities."""
    # Only here: pytest looks for examples in every file, also where neither is installed.
    import torch
    from trl.trainer.grpo_trainer import GRPOTrainer

    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items() if k != "mask"}
    mask = torch.tensor(values["mask"], dtype=torch.int64)
    logprobs = tensors["logprobs"].requires_grad_()
    accelerator = MagicMock(num_processes=1)
    accelerator.gather.side_effect = lambda x: x
    accelerator.reduce.side_effect = lambda x, reduction: x
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, -logprobs.detach(), None),
        _metrics={"train": defaultdict(list)},
        _entropy_bonus_enabled=False,
        accelerator=accelerator,
        args=SimpleNamespace(
            use_bias_correction_kl=False, delta=case["ratio_cap"], steps_per_generation=1
        ),
        aux_loss_enabled=False,
        beta=case["kl_coefficient"],
        current_gradient_accumulation_steps=1,
        epsilon_low=0.2,
        epsilon_high=case["clip_high"],
        importance_sampling_level=case["importance"],
        loss_type=case["loss_type"],
        max_completion_length=LENGTH,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
    )
    nothing = torch.zeros((len(mask), 0), dtype=torch.int64)
    loss = GRPOTrainer._compute_loss(
        trainer,
        None,
        {
            "prompt_ids": nothing,
            "prompt_mask": nothing,
            "completion_ids": torch.zeros_like(mask),
            "completion_mask": mask,
            "advantages": tensors["advantages"],
            "old_per_token_logps": tensors["old"],
            "ref_per_token_logps": tensors["reference"],
            "num_items_in_batch": mask.sum(),
        },
    )
    loss.backward()
    return float(loss.detach()), logprobs.grad.numpy()


if __name__ == "__main__":
    values = numbers(np.random.default_rng(0))
    cases = []
    for case in CASES:
        loss, gradient = trl_loss(values, case)
        cases.append(case | {"loss": loss, "gradient": np.round(gradient, 10).tolist()})
    out = {
        "trl": version("trl"),
        "values": {k: v.tolist() for k, v in values.items()},
        "cases": cases,
    }
    path = Path(__file__).with_name("golden_trl.json")
    path.write_text(json.dumps(out) + "\n")
