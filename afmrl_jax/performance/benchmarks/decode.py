"""Rollouts: tokens per second of groups that share a prompt, and requests to the host."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax

from afmrl_jax.config import Execution
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.generation import Generation, generate
from afmrl_jax.performance.benchmarks.workload import TOKEN, Size, make_rows
from afmrl_jax.performance.record import check_writable, is_record_of, spread, write_record
from afmrl_jax.runtime.progress import Progress

HOST = re.compile(r"callback|infeed|outfeed|\bsend\(|\brecv\(")
"""Signs in a compiled program that it calls the host while it runs."""


@dataclass(frozen=True)
class Settings:
    """Sizes, and how often they are measured."""

    size: Size = field(default_factory=Size)
    prompts: int = 4
    group_size: int = 8
    temperature: float = 1.0
    repeats: int = 7
    seed: int = 0


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Measure, and write `out` at the end.

    Raises:
        ConfigError: `out` cannot be written.
    """
    check_writable(out, is_record_of("decode"))
    size = settings.size
    architecture = Architecture.of(size.config, Execution())
    params, prompts = architecture.init(settings.seed), make_rows(size, settings.prompts)
    sample = jax.jit(partial(_sample, architecture, settings))
    key = jax.random.key(settings.seed)
    program = sample.lower(params, prompts, key).compile()
    found = jax.block_until_ready(program(params, prompts, key))
    seconds, tokens = [], []
    with Progress("decode", settings.repeats) as progress:
        for done in range(1, settings.repeats + 1):
            start = time.perf_counter()
            found = jax.block_until_ready(program(params, prompts, jax.random.fold_in(key, done)))
            seconds.append(time.perf_counter() - start)
            tokens.append(int(found.mask.sum()))
            progress.update(done)
    text = program.as_text() or ""
    requests = len(HOST.findall(text))
    speed = spread([n / s for n, s in zip(tokens, seconds, strict=True)])
    figures = {
        "decode_tokens_per_second": speed["median"],
        # The program is started once and calls the host only if the text shows a request.
        "host_syncs_per_token": float(requests),
    }
    details = [
        {
            "part": "decode",
            "tokens_per_second": speed,
            "seconds": spread(seconds),
            "requests_to_the_host_in_the_program": requests,
            "loops_in_the_program": text.count(" while("),
            "shape": size.describe()
            | {"prompts": settings.prompts, "group_size": settings.group_size},
        }
    ]
    write_record(out, "decode", figures, details)
    return figures


def _sample(
    architecture: Architecture, settings: Settings, params: Params, prompts: VLBatch, key: jax.Array
) -> Generation:
    return generate(
        architecture.bind(params),
        prompts,
        group_size=settings.group_size,
        max_new_tokens=settings.size.new_tokens,
        temperature=settings.temperature,
        key=key,
        # No token ends a text, so every sample has its full length.
        eos_id=settings.size.vocab_size,
        pad_id=TOKEN.pad_id,
    )
