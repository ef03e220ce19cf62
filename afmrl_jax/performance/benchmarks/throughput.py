"""Sweep model x batch x image budget x precision x mesh x rematerialisation: how fast is training.

    afmrl bench throughput                     # demo size on this machine
    afmrl bench throughput --devices 8 --mesh data=8,model=1 data=4,model=2 \
        --task agcl --batch 16 --visual 16 --dtype float32 --remat none --out throughput_mesh.json
    afmrl bench throughput --model qwen2vl_2b --task agcl --trained lora --batch 0 64 \
        --visual 256 --text 64 --dtype bfloat16 --remat full dots --out t_2b.json    # a GPU
    afmrl bench throughput --model qwen2_5vl_3b --task generate rar --trained decoder \
        --batch 0 --visual 256 --text 96 --max-new-tokens 80 --out t_3b.json    # a GPU

Writes the rows as JSON, a table and a plot beside it as .md and .png, and prints the table.

Every combination is a row. Before anything runs, the memory plan (`afmrl plan`) decides whether it
fits; one that does not is reported with what to change. `--batch 0` is the largest batch that fits.
Finished rows lie in a JSON-lines file, keyed by settings, machine and versions: the same command
goes on where it was stopped, and repeats nothing.

The steps are those of training, on batches that the input pipeline reads from a catalogue while
they run. samples are listings, both sides of a pair; tokens are those of rows without padding, of
their pictures too, and written ones; rollouts are lists that G writes. `rar` samples, scores with
the reference and updates; the reward, which passes through the host, is drawn. MFU counts the
operations that the task needs (afmrl_jax/performance/flops.py): the vision tower per picture,
the decoder per token, no padding, nothing twice. Its denominator is the maker's bfloat16 peak, or
on a processor the best matrix product of the same run. peak MB is what XLA planned for the largest
program of a step, on each device. On several devices, simulated ones too, the bytes that each of
them sends are read from the compiled program; XLA for processors widens bfloat16 to float32 there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from afmrl_jax.errors import AfmrlError, ConfigError
from afmrl_jax.models.families import ROLES
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.parallel.mesh import simulate_devices
from afmrl_jax.performance.record import check_writable, versions
from afmrl_jax.performance.sweep.cell import Cell, Task, changes, largest_batch, plan_of
from afmrl_jax.performance.sweep.measure import Peak, capacity, compiling_anew, measure
from afmrl_jax.performance.sweep.tables import draw, markdown, with_one_peak
from afmrl_jax.runtime.files import read_lines, write_json, write_text
from afmrl_jax.runtime.hardware import machine
from afmrl_jax.runtime.progress import log_info


@dataclass(frozen=True)
class Sweep:
    """How fast training is, by model, batch, image budget, precision, mesh and rematerialisation.

    Every option with several values multiplies the rows. Before anything runs, the memory plan
    (`afmrl plan`) decides whether a row fits. The same command goes on where it was stopped.
    """

    model: tuple[str, ...] = ("demo_embedder", "demo_generator")
    """Presets. Qwen2-VL sizes take the task agcl, Qwen2.5-VL sizes the others."""
    task: tuple[Task, ...] = ("agcl", "distill", "generate", "rar")
    """Contrastive training of R; distilling G; writing lists; RAR without its reward."""
    batch: tuple[int, ...] = (8, 32)
    """Of the whole mesh: pairs, rows or prompts. 0: the largest that the memory plan fits."""
    visual: tuple[int, ...] = (4, 16)
    """Image budget: visual tokens that a picture may take."""
    text: int = 48
    """Places for title, list and marks of a row."""
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Type of activations."""
    mesh: tuple[str, ...] = ("data=1,model=1",)
    """Devices on each axis."""
    remat: tuple[Literal["none", "dots", "full"], ...] = ("none", "full")
    """What the backward pass computes anew; writing alone has none, and one row."""
    trained: Literal["all", "decoder", "lora"] = "all"
    """What learns."""
    group_size: int = 4
    """Lists for each prompt."""
    max_new_tokens: int = 24
    """Tokens of each list; none ends early."""
    steps: int = 8
    """Timed steps of a row, behind two that are not."""
    workers: int = 0
    """Processes that read; 0 reads in a thread."""
    catalogue: str = "furniture"
    """`furniture`, or a folder in the catalogue format."""
    devices: int = 0
    """Simulate so many CPU devices; 0: use those there are."""
    memory_gb: float | None = None
    """Memory of a device in GB (10^9 bytes), where the one that is found is not to be filled."""
    retry: bool = False
    """Measure rows again that failed before."""
    note: str = ""
    """Kept with every row, such as what else ran."""
    out: Path = Path("throughput.json")
    """JSON file to write; the table and the plot lie beside it, with the endings .md and .png."""
    rows: Path = Path("throughput_rows.jsonl")
    """Finished rows of all sweeps, which are not measured again."""

    def cells(self) -> Iterator[Cell]:
        """All rows, batch 0 among them; tasks that a model is not for are left out.

        Raises:
            ConfigError: no model suits any task.
        """
        found = False
        for model, task, visual, dtype, mesh, remat, batch in itertools.product(
            self.model, self.task, self.visual, self.dtype, self.mesh, self.remat, self.batch
        ):
            embeds = preset(model).family == ROLES["embedder"]
            if embeds != (task == "agcl") or (task == "generate" and remat != self.remat[0]):
                continue
            found = True
            writes = task in ("generate", "rar")
            yield Cell(
                model=model,
                task=task,
                batch_size=batch,
                visual_tokens=visual,
                text_tokens=self.text,
                dtype=dtype,
                mesh=mesh,
                remat="none" if task == "generate" else remat,
                trained=self.trained,
                group_size=self.group_size if writes else 1,
                max_new_tokens=self.max_new_tokens if writes else 1,
                workers=self.workers,
                steps=self.steps,
            )
        if not found:
            raise ConfigError("agcl is for qwen2_vl models, the other tasks for qwen2_5_vl ones")

    def execute(self) -> None:
        """Measure what is not there yet, and write everything."""
        check_writable(self.out)
        if self.devices:
            simulate_devices(self.devices)
        where = {"machine": machine(), "versions": versions(), "devices": len(jax.devices())}
        kept = self._kept()
        peak, rows = Peak(), []
        for asked in list(self.cells()):
            cell = self._sized(asked)
            key = cell.key(where | {"catalogue": self.catalogue})
            if key in kept and not (self.retry and kept[key]["status"] == "failed"):
                rows.append(kept[key])
                continue
            row = {"key": key, "label": cell.label, "cell": vars(cell), **where, "note": self.note}
            log_info(f"{len(rows) + 1}: {cell.label}")
            with compiling_anew():
                row |= self._measured(cell, peak)
            self._keep(row)
            rows.append(row)
            self._write(rows, where)
        self._write(rows, where)
        print(markdown(with_one_peak(rows)))

    def _capacity(self, cell: Cell) -> int:
        return capacity(cell) if self.memory_gb is None else int(self.memory_gb * 1e9)

    def _sized(self, cell: Cell) -> Cell:
        if cell.batch_size:
            return cell
        size = largest_batch(cell, self._capacity)
        if size:
            log_info(f"the largest batch that fits is {size}: {cell.label}")
        # The smallest one is then reported as one that does not fit.
        return dataclasses.replace(cell, batch_size=size or 2 * cell.request.axes[0])

    def _measured(self, cell: Cell, peak: Peak) -> dict[str, Any]:
        plan = plan_of(cell, self._capacity(cell))
        told = {"plan_bytes": plan.total, "plan_capacity": plan.capacity, "plan": plan.verdict}
        data, model = cell.request.axes
        if data * model > len(jax.devices()):
            why = f"The mesh needs {data * model} devices, found {len(jax.devices())}."
            return told | {"status": "no such mesh", "why": why}
        if plan.verdict != "fits":
            why = f"It takes {plan.total / 1e9:.2f} of {plan.usable / 1e9:.2f} GB on each device. "
            return told | {
                "status": "does not fit",
                "why": why + "Try: " + "; ".join(changes(cell)),
            }
        try:
            return told | {"status": "done"} | measure(cell, self.catalogue, peak)
        except (AfmrlError, jax.errors.JaxRuntimeError) as error:
            return told | {"status": "failed", "why": str(error)[:500]}

    def _kept(self) -> dict[str, dict[str, Any]]:
        lines = read_lines(self.rows, repair=True)
        return {row["key"]: row for row in map(json.loads, lines)}

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _write(self, rows: list[dict[str, Any]], where: dict[str, Any]) -> None:
        rows = with_one_peak(rows)
        shown = [{k: v for k, v in x.items() if k not in where} for x in rows]
        record = {"bench": "throughput", **where, "note": self.note, "rows": shown}
        write_json(self.out, record)
        write_text(self.out.with_suffix(".md"), markdown(rows))
        if any(x["status"] == "done" for x in rows):
            found = where["machine"]
            cores = f"{found['processor']}, {found['cores']} cores"
            device = cores if found["device"].startswith("cpu") else found["device"]
            draw(rows, self.out.with_suffix(".png"), f"{device}. {self.note}".strip(" ."))
