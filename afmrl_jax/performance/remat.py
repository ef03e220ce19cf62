"""What the backward pass recomputes where a run leaves that open: the fastest that fits."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import get_args

import jax

from afmrl_jax.config import LoraConfig, ModelSettings, Remat, RunConfig
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.demo_weights import weights_folder
from afmrl_jax.models.families import ROLES, family
from afmrl_jax.models.huggingface.folder import read_architecture
from afmrl_jax.models.lora import with_lora
from afmrl_jax.performance.memory import SPARE, Line, abstract_mesh, bytes_here, shard_bytes
from afmrl_jax.performance.plan import divide, estimated, exact_lines
from afmrl_jax.performance.request import Request
from afmrl_jax.runtime.distributed import run_on_first
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.types import Role

RECORD = "remat.json"
"""File of a run directory with what was chosen when the run began, by role."""
ORDER: tuple[Remat, ...] = get_args(Remat)


def with_remat(config: RunConfig, folder: Path) -> RunConfig:
    """A run's config with a choice in place of every `remat` that is `auto`.

    The choice is made once and kept in the run's folder, so that a run that goes on on another
    device computes as it began.

    Args:
        config: of the run.
        folder: of the run.

    Raises:
        RunError: the record in the folder is broken.
    """
    asked: dict[Role, ModelSettings] = {
        "embedder": config.embedder,
        "generator": config.generator,
    }
    roles = [n for n, x in asked.items() if x.execution.remat == "auto"]
    if not roles:
        return config
    path = folder / RECORD

    def choose() -> None:
        if not path.is_file():
            write_json(path, {role: _chosen(config, role) for role in roles})

    run_on_first(choose, f"choosing what {folder} recomputes")
    found = read_checked(path, dict[str, Remat], remedy=f"delete {path} to choose again")
    for role in roles:
        # One that was not open when the run began.
        remat = found.get(role, ORDER[-1])
        log_info(
            f"{role}: remat {remat}, the first of {', '.join(ORDER)} that fits the memory plan"
        )
        execution = dataclasses.replace(asked[role].execution, remat=remat)
        asked[role] = dataclasses.replace(asked[role], execution=execution)
    return dataclasses.replace(config, embedder=asked["embedder"], generator=asked["generator"])


def _chosen(config: RunConfig, role: Role) -> Remat:
    settings = config.model(role)
    architecture = _architecture(config, role, settings)
    steps = requests(config, role)
    data, model = steps[0].axes
    return cheapest(architecture, steps, bytes_here(data * model))


def _architecture(config: RunConfig, role: Role, settings: ModelSettings) -> Architecture:
    folder = weights_folder(settings.weights, role)
    if folder is None:
        found = family(settings.family or ROLES[role]).demo(config.vocab_size, 0)
        return Architecture.of(found, settings.execution)
    architecture = read_architecture(folder, settings.execution)
    lora: LoraConfig | None = settings.lora if settings.trained == "lora" else None
    if lora is not None and architecture.config.lora is None:
        return with_lora(architecture, lora)
    return architecture


def requests(config: RunConfig, role: Role) -> list[Request]:
    """What the stages of a role hold at once, in the order of the stages."""
    settings = config.model(role)
    image = config.image_of(role)
    visual = image.bin_patches // image.merge_size**2
    text = max(1, config.text.buckets[-1] - visual)
    model = config.mesh.model
    devices = config.mesh.data if config.mesh.data > 0 else max(1, len(jax.devices()) // model)
    asked = partial(
        Request,
        mesh=f"data={devices},model={model}",
        visual_tokens=visual,
        trained=settings.trained,
        dtype=settings.execution.dtype,
    )

    def within(wanted: int, tokens: int, budget: int | None) -> int:
        return wanted if budget is None else max(devices, min(wanted, budget // tokens))

    if role == "embedder":
        agcl = config.agcl
        rows = within(2 * agcl.batch_size, visual + text, agcl.chunk_tokens)
        return [asked(task="agcl", batch_size=max(1, rows // 2), text_tokens=text)]
    rar, distill = config.rar, config.distill
    lists = text + rar.group_size * config.text.max_attribute_tokens
    prompts = within(rar.queries, visual + lists, rar.chunk_tokens)
    return [
        asked(task="distill", batch_size=distill.batch_size, text_tokens=text),
        asked(task="distill", batch_size=prompts, text_tokens=lists),
    ]


def planned_bytes(architecture: Architecture, request: Request) -> int:
    """What a step takes on each device, by the formula of the memory plan."""
    lines: list[Line] = [
        *exact_lines(request, architecture),
        estimated(request, architecture.config),
    ]
    reference = 0
    if request.task == "distill":
        # Reinforcement keeps the policy that it began from.
        learning, _ = divide(request, architecture)
        reference = shard_bytes(learning, abstract_mesh(*request.axes))
    return sum(x.bytes for x in lines) + reference


def cheapest(architecture: Architecture, steps: list[Request], capacity: int) -> Remat:
    """The fastest way of recomputing with which all steps fit; the smallest if none does.

    Args:
        architecture: of the model.
        steps: what it is trained by.
        capacity: bytes of a device that JAX may use.
    """
    for remat in ORDER[:-1]:
        asked = [dataclasses.replace(x, remat=remat) for x in steps]
        if max(planned_bytes(architecture, x) for x in asked) <= capacity * (1 - SPARE):
            return remat
    return ORDER[-1]
