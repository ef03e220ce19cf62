"""Measure how fast this package is: `afmrl bench agcl`.

`models`: embedding, a training step of the embedder on adapters and greedy decoding, against
transformers on the same weights and cores; compilation, looped, unrolled and from a warm cache.
`accelerator`: everything that matters about a GPU or TPU, at real sizes with random weights, within
a time limit. `agcl`: memory and time of the loss's value and
gradient, against the literal formula, leaner dense forms and row chunks, and a training step in
chunks against one at once; about ten minutes on two cores.
`bm25`: scores of all pairs of a batch, against rank_bm25, bm25s and SciPy. `grpo`: RAR's update
with a shared prompt against one row per sample, and the reward's counting against sorting.
`decode`: sampled tokens per second. `input`: pictures to patches, against Pillow and Hugging Face's
processor. `evaluate`: all retrieval metrics of 100,000 queries against 100,000 listings, in bounded
memory. `search`: exact and approximate search among a million vectors. Run nothing else meanwhile.
Figures are medians of ratios of interleaved measurements; the JSON has every spread.
`compiled`: programs of real sizes, compiled for a GPU or TPU that need not be here.
`throughput`: a sweep of training speed over models, batches, meshes and more. `scaling`: predicted
step times on 8, 64 and 256 chips.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar

import tyro

from afmrl_jax.cli.command import Command
from afmrl_jax.performance.benchmarks import (
    agcl,
    bm25,
    compiled,
    decode,
    evaluate,
    grpo,
    models,
    pictures,
    scaling,
    search,
    throughput,
)
from afmrl_jax.performance.benchmarks.accelerator import run as accelerator
from afmrl_jax.performance.record import FOLDER
from afmrl_jax.runtime.compilation import compile_quickly
from afmrl_jax.runtime.setup import reported

FLAT = tyro.conf.arg(name="")
"""The flags of the settings have no prefix."""


@dataclass(frozen=True)
class Bench:
    """Common options of all benchmarks."""

    out: Path
    """JSON file to write."""
    settings: object
    module: ClassVar[ModuleType]

    def execute(self) -> None:
        """Run the benchmark, and print its figures."""
        print(json.dumps(self.module.run(self.settings, self.out), indent=1))


@dataclass(frozen=True)
class Models(Bench):
    """Speed of the models: against torch, and of compilation."""

    out: Path = FOLDER / "bench_models.json"
    settings: Annotated[models.Settings, FLAT] = field(default_factory=models.Settings)
    module: ClassVar[ModuleType] = models


@dataclass(frozen=True)
class Accelerator(Bench):
    """Real sizes with random weights on one GPU or TPU, what matters most first, within a limit.

    Peaks of products and memory; agreement of fused attention and AGCL's tiles with their dense
    forms; decoding of Qwen2.5-VL-3B; the training step of Qwen2-VL-2B; RAR end to end, with the
    embedder and its gallery; the reward, AGCL, BM25 and exact search by themselves; and pictures to
    patches. The record is written after each part, with a table beside it; a part that fails or
    for which no time is left is named there, and the same command measures what is missing.
    """

    out: Path = FOLDER / "accelerator"
    """Folder for accelerator.json and accelerator.md."""
    settings: Annotated[accelerator.Settings, FLAT] = field(default_factory=accelerator.Settings)
    module: ClassVar[ModuleType] = accelerator


@dataclass(frozen=True)
class Agcl(Bench):
    """Memory and time of the AGCL loss, against dense forms and row chunks, and of GradCache.

    Memory is what compiled programs need besides inputs and outputs (nothing is run, so the large
    batch needs no memory here). Time is measured in rounds of all forms. Memory ratios are the
    others' over ours, time ratios ours over the best of the others; the figure is the less
    favorable ratio of the symmetric and the one-directional loss, and the JSON has both.
    """

    out: Path = FOLDER / "bench_agcl.json"
    settings: Annotated[agcl.Settings, FLAT] = field(default_factory=agcl.Settings)
    module: ClassVar[ModuleType] = agcl


@dataclass(frozen=True)
class Bm25(Bench):
    """BM25 of all pairs of a batch, against rank_bm25, bm25s and a sparse product of SciPy.

    Our time includes everything from term ids on: numbering the batch's terms, transfer and scores.
    The others' indexes, query ids and matrices are built before the clock starts.
    """

    out: Path = FOLDER / "bench_bm25.json"
    settings: Annotated[bm25.Settings, FLAT] = field(default_factory=bm25.Settings)
    module: ClassVar[ModuleType] = bm25


@dataclass(frozen=True)
class Compiled(Bench):
    """Programs of real sizes, compiled for an accelerator on a machine that need not have one.

    Prints memory, bytes and operations a token or step, and what eight devices exchange. Fails
    where a program copies weights for every token, multiplies in exact float32, makes masks over
    pairs of tokens, asks the host, or multiplies over the vocabulary of BM25. See docs/compiled.md.
    """

    out: Path = FOLDER / "bench_compiled.json"
    settings: Annotated[compiled.Settings, FLAT] = field(default_factory=compiled.Settings)
    module: ClassVar[ModuleType] = compiled


@dataclass(frozen=True)
class Grpo(Bench):
    """RAR's update with shared prompts and rows against plainer forms; the reward against sorting.

    The gradients of both forms must agree to 1e-5. Floating-point operations are XLA's count of
    both programs for the 3 B model, which is not run. The reward is compared with the bare product
    of queries and gallery and with sorting; sorting is timed on some queries and scaled up.
    """

    out: Path = FOLDER / "bench_grpo.json"
    settings: Annotated[grpo.Settings, FLAT] = field(default_factory=grpo.Settings)
    module: ClassVar[ModuleType] = grpo


@dataclass(frozen=True)
class Decode(Bench):
    """Sampled tokens per second of groups that share a prompt; all samples have full length.

    Requests to the host are counted in the compiled program.
    """

    out: Path = FOLDER / "bench_decode.json"
    settings: Annotated[decode.Settings, FLAT] = field(default_factory=decode.Settings)
    module: ClassVar[ModuleType] = decode


@dataclass(frozen=True)
class Input(Bench):
    """Pictures to patches, per core against a loop of Pillow and Hugging Face's processor.

    At equal decoding, patches must match the processor's bit for bit; the effect of scaled decoding
    is reported in units of a byte. Time is the CPU time of one process. Batches from 0, 2 and 4
    loader processes must be the same.
    """

    out: Path = FOLDER / "bench_input.json"
    settings: Annotated[pictures.Settings, FLAT] = field(default_factory=pictures.Settings)
    module: ClassVar[ModuleType] = pictures


@dataclass(frozen=True)
class Search(Bench):
    """Exact search against the bare product of the same vectors, and ScaNN against exact search.

    ScaNN is tuned to the recall on separate queries. Both indexes are saved, loaded from another
    place, and changed. A million vectors take about a quarter of an hour on two cores, and 6 GB.
    """

    out: Path = FOLDER / "bench_search.json"
    settings: Annotated[search.Settings, FLAT] = field(default_factory=search.Settings)
    module: ClassVar[ModuleType] = search


@dataclass(frozen=True)
class Evaluate(Bench):
    """Queries per second for all retrieval metrics, by product and by category at once.

    Memory is the largest resident size of a child process, minus its size once the inputs are
    created and everything is compiled. Some queries are also ranked with plain NumPy, and must
    agree.
    """

    out: Path = FOLDER / "bench_evaluate.json"
    settings: Annotated[evaluate.Settings, FLAT] = field(default_factory=evaluate.Settings)
    module: ClassVar[ModuleType] = evaluate


BENCHMARKS: dict[str, Callable[..., Command]] = {
    "models": Models,
    "accelerator": Accelerator,
    "agcl": Agcl,
    "bm25": Bm25,
    "compiled": Compiled,
    "grpo": Grpo,
    "decode": Decode,
    "input": Input,
    "search": Search,
    "evaluate": Evaluate,
    "throughput": throughput.Sweep,
    "scaling": scaling.Scaling,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark that the arguments name; by default those of this process."""
    with reported():
        compile_quickly()  # As in all other commands.
        tyro.extras.subcommand_cli_from_dict(
            BENCHMARKS, prog="afmrl bench", description=__doc__, args=arguments
        ).execute()


if __name__ == "__main__":
    main()
