"""Sweep model x batch x image budget x precision x mesh x rematerialization: how fast is training.

    afmrl bench throughput                     # demo size on this machine
    afmrl bench throughput --devices 8 --mesh data=8,model=1 data=4,model=2 \
        --task agcl --batch 16 --visual 16 --dtype float32 --remat none --out throughput_mesh.json
    afmrl bench throughput --model qwen2vl_2b --task agcl --trained lora --batch 0 64 \
        --visual 256 --text 64 --dtype bfloat16 --remat full dots --out t_2b.json    # a GPU
    afmrl bench throughput --model qwen2_5vl_3b --task generate rar --trained decoder \
        --batch 0 --visual 256 --text 96 --max-new-tokens 80 --out t_3b.json    # a GPU

Writes the rows as JSON, a table and a plot next to it as .md and .png, and prints the table.

Every combination is a row. Before anything runs, the memory plan (`afmrl plan`) decides whether it
fits; one that does not is reported with what to change. `--batch 0` is the largest batch that fits.
Finished rows are kept in a JSON-lines file, keyed by settings, machine and versions: the same
command resumes where it stopped, and repeats nothing.

The steps are those of training, on batches that the input pipeline reads from a catalogue while
they run. samples are listings, both sides of a pair; tokens are those of rows without padding,
including those of pictures and generated ones; rollouts are lists that the generator writes. `rar`
samples, scores with the reference and updates; the reward, which passes through the host, is
random. MFU counts the operations that the task needs (afmrl_jax/performance/flops.py): the vision
tower per picture, the decoder per token, no padding, nothing twice. Its denominator is the vendor's
bfloat16 peak, or on a CPU the best matrix product of the same run. peak MB is what XLA planned for
the largest program of a step, on each device. On several devices, also simulated ones, the bytes
that each of them sends are read from the compiled program; XLA for CPUs widens bfloat16 to float32
there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax

from afmrl_jax.errors import ConfigError
from afmrl_jax.models.families import ROLES
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.parallel.mesh import simulate_devices
from afmrl_jax.performance.record import check_writable, is_record_of
from afmrl_jax.performance.sweep.cell import Cell, Task, changes, largest_batch, plan_of
from afmrl_jax.performance.sweep.measure import Peak, capacity, measure
from afmrl_jax.performance.sweep.tables import draw, markdown, with_one_peak
from afmrl_jax.performance.sweep.work import catalogue as read_catalogue
from afmrl_jax.runtime.compilation import compiling_anew
from afmrl_jax.runtime.files import write_json, write_text
from afmrl_jax.runtime.hardware import machine
from afmrl_jax.runtime.json_files import read_records
from afmrl_jax.runtime.outputs import first_record
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.provenance import commit, versions
from afmrl_jax.types import JsonObject


@dataclass(frozen=True)
class Sweep:
    """How fast training is, by model, batch, image budget, precision, mesh and rematerialization.

    Every option with several values multiplies the rows. Before anything runs, the memory plan
    (`afmrl plan`) decides whether a row fits. The same command resumes where it stopped.
    """

    model: tuple[str, ...] = ("demo_embedder", "demo_generator")
    """Presets. Qwen2-VL sizes run the task agcl, Qwen2.5-VL sizes the others."""
    task: tuple[Task, ...] = ("agcl", "distill", "generate", "rar")
    """Contrastive training of the embedder; distilling the generator; writing lists; RAR without
    its reward."""
    batch: tuple[int, ...] = (8, 32)
    """Of the whole mesh: pairs, rows or prompts. 0: the largest that fits by the memory plan."""
    visual: tuple[int, ...] = (4, 16)
    """Image budget: most visual tokens per picture."""
    text: int = 48
    """Tokens for title, list and markers of a row."""
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Type of activations."""
    mesh: tuple[str, ...] = ("data=1,model=1",)
    """Devices on each axis."""
    remat: tuple[Literal["none", "dots", "full"], ...] = ("none", "full")
    """What the backward pass recomputes; `generate` has no backward pass, and one row."""
    trained: Literal["all", "decoder", "lora"] = "all"
    """Which weights are trained."""
    group_size: int = 4
    """Lists per prompt."""
    max_new_tokens: int = 24
    """Tokens per list; none ends early."""
    steps: int = 8
    """Timed steps per row, after two untimed ones."""
    workers: int = 0
    """Processes that read batches; 0 reads in a thread."""
    catalogue: str = "furniture"
    """Folder with listings.jsonl, .parquet or .csv, a store, any CSV, `hf://user/set#split`,
    `furniture` or `marketplace`."""
    columns: str | None = None
    """Which columns of a table are which, as in `--columns title=name,product_id=sku`."""
    devices: int = 0
    """Simulate this many CPU devices; 0 uses the existing devices."""
    memory_gb: float | None = None
    """Memory to assume for a device, in GB (10^9 bytes); by default what the device has."""
    retry: bool = False
    """Measure previously failed rows again."""
    note: str = ""
    """Note stored with every row, such as what else was running."""
    out: Path = Path("runs/throughput.json")
    """JSON file to write; the table and the plot go next to it as .md and .png."""
    rows: Path = Path("runs/throughput_rows.jsonl")
    """File of the finished rows of all sweeps, which are not measured again."""

    def cells(self) -> Iterator[Cell]:
        """All rows, including those with batch 0; tasks that do not suit a model are left out.

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
        """Measure what is missing, and write everything."""
        own = is_record_of("throughput")
        check_writable(self.out, own)
        # The table and the plot are those of the JSON file.
        beside = self.out.is_file() and own(self.out)
        for suffix in (".md", ".png"):
            check_writable(self.out.with_suffix(suffix), lambda _: beside)
        check_writable(self.rows, lambda x: {"key", "cell"} <= first_record(x).keys())
        if self.devices:
            simulate_devices(self.devices)
        where = {"machine": machine(), "versions": versions(), "devices": len(jax.devices())}
        kept = self._kept()
        peak, rows = Peak(), []
        for asked in list(self.cells()):
            cell = self._sized(asked)
            # Rows of earlier versions were measured without columns.
            columns = {} if self.columns is None else {"columns": self.columns}
            key = cell.key(where | {"catalogue": self.catalogue} | columns)
            if key in kept and not (self.retry and kept[key]["status"] == "failed"):
                rows.append(kept[key])
                continue
            row = {"key": key, "label": cell.label, "cell": vars(cell), **where, "note": self.note}
            # A catalogue that cannot be read is no row's failure.
            read_catalogue(self.catalogue, self.columns)
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
        # Otherwise the smallest one is reported as not fitting.
        return dataclasses.replace(cell, batch_size=size or 2 * cell.request.axes[0])

    def _measured(self, cell: Cell, peak: Peak) -> JsonObject:
        plan = plan_of(cell, self._capacity(cell))
        planned = {"plan_bytes": plan.total, "plan_capacity": plan.capacity, "plan": plan.verdict}
        data, model = cell.request.axes
        if data * model > len(jax.devices()):
            why = f"The mesh needs {data * model} devices, found {len(jax.devices())}."
            return planned | {"status": "no such mesh", "why": why}
        if plan.verdict != "fits":
            why = f"It takes {plan.total / 1e9:.2f} of {plan.usable / 1e9:.2f} GB on each device. "
            return planned | {
                "status": "does not fit",
                "why": why + "Try: " + "; ".join(changes(cell)),
            }
        try:
            return (
                planned
                | {"status": "done"}
                | measure(cell, self.catalogue, peak, columns=self.columns)
            )
        except Exception as error:  # Of any kind: the other rows are worth measuring.
            name, why = type(error).__name__, str(error)[:500]
            return planned | {"status": "failed", "error": name, "why": why or name}

    def _kept(self) -> dict[str, JsonObject]:
        return {row["key"]: row for row in read_records(self.rows, repair=True)}

    def _keep(self, row: JsonObject) -> None:
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _write(self, rows: list[JsonObject], where: JsonObject) -> None:
        rows = with_one_peak(rows)
        shown = [{k: v for k, v in x.items() if k not in where} for x in rows]
        record = {
            "bench": "throughput",
            "commit": commit(),
            **where,
            "note": self.note,
            "rows": shown,
        }
        write_json(self.out, record)
        write_text(self.out.with_suffix(".md"), markdown(rows))
        if any(x["status"] == "done" for x in rows):
            found = where["machine"]
            cores = f"{found['processor']}, {found['cores']} cores"
            device = cores if found["device"].startswith("cpu") else found["device"]
            draw(rows, self.out.with_suffix(".png"), f"{device}. {self.note}".strip(" ."))
