"""Our side of the comparison: computes one part at a time and times it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from afmrl_jax.config import AgclConfig, Execution, ModelSettings
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.sources.batches import ContrastiveBatch
from afmrl_jax.models.architecture import Params
from afmrl_jax.models.embedder import embed_batch
from afmrl_jax.models.generation import generate
from afmrl_jax.models.huggingface.folder import load_model
from afmrl_jax.models.lora import add_lora, with_lora
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.performance.benchmarks.limits import Limits, least_seconds, measure_limits
from afmrl_jax.performance.benchmarks.profiles import profile_jax
from afmrl_jax.performance.benchmarks.workload import Size, make_rows
from afmrl_jax.training.agcl import make_agcl_step
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.state import initial_state, make_optimizer


def settings(steps: int) -> AgclConfig:
    """InfoNCE in both directions, like the other side."""
    return dataclasses.replace(AgclConfig().infonce(), steps=steps, prefix_weight=0.0)


class JaxSide:
    """Holds the weights, compiled programs and batches of our side."""

    def __init__(self, folder: Path, size: Size, execution: Execution):
        self._size = size
        self._architecture, self._params = load_model(folder, execution=execution)
        self._calls: dict[str, Callable[[], object]] = {}
        self._limits: Limits | None = None

    def prepare(self, part: str) -> list[float]:
        """Compile a part and run it once.

        Returns:
            Numbers that the other side's must match.
        """
        kind, _, count = part.partition("_b")
        self._calls[part] = getattr(self, f"_{kind}")(int(count or 2 * self._size.pairs))
        return np.asarray(self._calls[part](), np.float64).ravel().tolist()

    def seconds(self, part: str) -> float:
        """Time of one call."""
        began = time.perf_counter()
        jax.block_until_ready(self._calls[part]())
        return time.perf_counter() - began

    def least(self, part: str) -> float:
        """Seconds of one call at what the machine allows; see `limits`."""
        if self._limits is None:
            self._limits = measure_limits(self._size)
        return least_seconds(part, self._size, self._limits)

    def profile(self, part: str) -> dict[str, float]:
        """Breakdown of the time of one call."""
        return profile_jax(self._calls[part])

    def _forward(self, count: int) -> Callable[[], object]:
        batch = jax.device_put(make_rows(self._size, count))

        @jax.jit
        def vectors(params: Params, batch: VLBatch) -> jax.Array:
            return embed_batch(self._architecture.bind(params), batch)

        return lambda: vectors(self._params, batch)

    def _train(self, count: int) -> Callable[[], object]:
        architecture = with_lora(self._architecture, self._size.lora)
        params = add_lora(architecture, self._params, 0)
        model = ModelSettings(trained="lora", frozen_dtype="float32")
        trainee = Partition.of(architecture, params, model, make_mesh(1, 1))
        configured = settings(1000)
        optimizer = make_optimizer(configured.optimizer, configured.steps)
        step = partial(make_agcl_step(architecture, configured, None, optimizer), trainee.frozen)
        products = np.arange(count // 2, dtype=np.int32)
        batch = jax.device_put(ContrastiveBatch(make_rows(self._size, count), products))
        key = jax.random.key(0)
        holder = [initial_state(trainee.trainable, optimizer)]

        def call() -> jax.Array:
            holder[0], metrics = step(holder[0], batch, key)
            # A training loop waits for the state.
            jax.block_until_ready(holder[0])
            return metrics["loss"]

        return call

    def _decode(self, count: int) -> Callable[[], object]:
        batch = jax.device_put(make_rows(self._size, count))

        @jax.jit
        def write(params: Params, batch: VLBatch) -> jax.Array:
            return generate(
                self._architecture.bind(params),
                batch,
                group_size=1,
                max_new_tokens=self._size.new_tokens,
                temperature=0.0,
                key=jax.random.key(0),
                eos_id=-1,  # Not a token: every row generates all its tokens.
                pad_id=0,
            ).tokens

        return lambda: write(self._params, batch)
