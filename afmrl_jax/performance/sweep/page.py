"""The page of `afmrl bench scaling`: every number of it is computed here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from afmrl_jax.config import QwenVLConfig
from afmrl_jax.performance.accelerators import CHIPS, chip
from afmrl_jax.performance.sweep.predict import Assumptions, Prediction, fits, predict, useful
from afmrl_jax.performance.sweep.programs import Case
from afmrl_jax.types import JsonObject

Program = tuple[Case, tuple[int, int], JsonObject]
"""A case, the sizes of its mesh, and what was compiled for it."""
SHOWN = ("h200", "v5e", "v6e")
PREDICTED = (
    "chips",
    "case",
    "data x model",
    "computing ms",
    "links ms",
    "starts ms",
    "step ms",
    "efficiency %",
    "rows/s",
    "memory",
)
HEAD = """# How training scales

This page is written by `afmrl bench scaling`; do not edit it by hand. Everything on it is
predicted; nothing was measured on the chips it names. Programs, bytes and assumptions are in
the JSON file that the command writes along with it.

"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(x) + " |" for x in (head, *rows)]
    lines.insert(1, "|" + "--|" * len(head))
    return "\n".join(lines) + "\n"


def page(programs: list[Program], given: Assumptions) -> str:
    """The whole page, for programs of some cases on some meshes."""
    cases = list({case.name: case for case, _, _ in programs}.values())
    parts = [
        HEAD,
        _cases(cases),
        _bytes(programs),
        _predictions(programs, given),
        _changes(programs, given),
        _assumptions(given),
    ]
    return "\n".join(parts)


def _cases(cases: list[Case]) -> str:
    rows = []
    for case in cases:
        request = case.on(1, 1)
        how = f"in {case.chunks} chunks (GradCache)" if case.chunks else "all rows at once"
        length = f"{request.visual_tokens} visual + {request.text_tokens} text"
        operations = f"{useful(request) / request.rows / 1e12:.2f}"
        what = f"{request.preset}, {request.task}, {request.trained} learns, {how}"
        rows.append([case.name, what, str(request.rows), length, operations])
    head = ("case", "step", "rows per chip", "tokens per row", "useful TFLOP per row")
    return (
        "## What is computed\n\n"
        "Rows per chip stay constant as chips are added (weak scaling). Activations are "
        "bfloat16, layers are rematerialized (`remat full`), recomputed operations do not count "
        "as useful.\n\n" + _table(head, rows)
    )


def _bytes(programs: list[Program]) -> str:
    rows = []
    for case, (data, model), program in programs:
        whole = sum(x["sent"] for x in program["axes"].values())
        kinds: dict[str, float] = {}
        for own in program["by_kind"].values():
            for kind, amount in own.items():
                kinds[kind] = kinds.get(kind, 0) + amount
        axes = ", ".join(f"{k} {v['sent'] / 1e9:.2f}" for k, v in program["axes"].items())
        by_kind = ", ".join(f"{k} {v / 1e9:.2f}" for k, v in kinds.items() if v > 5e6)
        widened = sum(sum(x.values()) for x in program["compiled_for_cpu"].values())
        rows.append(
            [
                case.name,
                f"{data} x {model}",
                f"{whole / 1e9:.2f}",
                axes,
                by_kind,
                f"{widened / 1e9:.2f}",
            ]
        )
    head = ("case", "data x model", "GB sent", "by axis", "by kind", "GB in the CPU's program")
    return (
        "## What each device sends in a step\n\n"
        "Counted in the program after XLA's partitioner, loops multiplied, by the ring algorithm "
        "(`afmrl_jax/performance/collectives.py`). In the program finished for simulated CPU "
        "devices, the last column, XLA has widened bfloat16 to float32, which no accelerator does. "
        "Compiled for as many devices as the mesh has.\n\n" + _table(head, rows)
    )


def _predicted(program: Program, name: str, given: Assumptions) -> Prediction:
    case, mesh, found = program
    return predict(found, case.on(*mesh), chip(name), given)


def _predictions(programs: list[Program], given: Assumptions) -> str:
    parts = [
        "## Predicted step time and efficiency\n",
        "`computing` is the time of the useful operations at "
        f"{100 * given.mfu_alone:.0f} % of the peak; `links` and `starts` are what the exchanges "
        "take. The step time lies between full overlap with computing and none. "
        "Efficiency is computing over the step: the share of one chip's speed. Memory is the "
        "plan's formula (`afmrl plan`).\n",
    ]
    for name in SHOWN:
        rows = []
        for program in programs:
            case, (data, model), _ = program
            found = _predicted(program, name, given)
            fast, slow = found.seconds
            worst, best = found.efficiency
            rate = case.on(data, model).rows
            rows.append(
                [
                    str(data * model),
                    case.name,
                    f"{data} x {model}",
                    f"{1000 * found.computing:.0f}",
                    f"{1000 * found.links:.0f}",
                    f"{1000 * found.starts:.0f}",
                    f"{1000 * fast:.0f} to {1000 * slow:.0f}",
                    f"{100 * worst:.0f} to {100 * best:.0f}",
                    f"{rate / slow:,.0f} to {rate / fast:,.0f}",
                    fits(case.on(data, model), name),
                ]
            )
        rows.sort(key=lambda x: (int(x[0]), x[1]))
        parts.append(f"### {name}\n\n" + _table(PREDICTED, rows))
    return "\n".join(parts)


def _share(program: JsonObject, wanted: Callable[[JsonObject], bool]) -> float:
    """Bytes of the largest exchanges that `wanted` chooses."""
    return sum(x["sent"] for x in program["largest"] if wanted(x))


def _changes(programs: list[Program], given: Assumptions) -> str:
    """Where the layout of arrays costs most, each with the numbers that say so."""
    points = [
        *_visual_point(programs),
        *_head_point(programs),
        *_model_point(programs, given),
        *_weights_point(programs, given),
        *_nodes_point(programs, given),
    ]
    text = "\n".join(f"{n}. {x}" for n, x in enumerate(points, 1))
    return f"## Where sharding should change\n\n{text}\n"


def _visual_point(programs: list[Program]) -> list[str]:
    found = {
        (case.name, *mesh): (_share(p, lambda x: "_take" in x["source"]), p)
        for case, mesh, p in programs
        if mesh[1] == 1
    }
    grown = [(k, v) for k, v in found.items() if v[0]]
    if not grown:
        return []
    (name, data, _), (amount, program) = max(grown, key=lambda x: x[1][0])
    whole = sum(x["sent"] for x in program["axes"].values())
    beside = ""
    for case, mesh, other in programs:
        if case.chunks and mesh == (data, 1):
            total = sum(x["sent"] for x in other["axes"].values())
            verdict = "less" if total < whole else "still more"
            beside = f"; on as many devices that sends {total / 1e9:.1f} GB in total, {verdict}"
    return [
        "**Visual tokens travel to every device** when rows are encoded at once, because a row's "
        "picture may be in any bin of the batch; unlike the weights, this grows with the number "
        f"of devices. On {data} of them ({name}) it is {amount / 1e9:.1f} of {whole / 1e9:.1f} GB "
        "a step. With `chunk_tokens` each device keeps its own rows' pictures, at the cost of a "
        f"second forward pass and of gathering weights for every chunk{beside}. Better: deal bins "
        "by device without chunks too, as `data/batching/chunks.py` does."
    ]


def _is_head(config: QwenVLConfig, entry: JsonObject) -> bool:
    """Whether an exchange is of the whole token table, in bfloat16 or float32."""
    table = config.text.vocab_size * config.text.hidden_dim
    return any(abs(entry["payload"] - size * table) < 0.01 * table for size in (2, 4))


def _head_point(programs: list[Program]) -> list[str]:
    best: tuple[float, str] | None = None
    for case, (data, model), program in programs:
        config = case.on(data, model).architecture().config
        if model > 1:
            continue
        wanted = [x for x in program["largest"] if x["times"] > 1 and _is_head(config, x)]
        amount = sum(x["sent"] for x in wanted)
        if not amount or (best is not None and amount <= best[0]):
            continue
        whole = sum(x["sent"] for x in program["axes"].values())
        times = max(x["times"] for x in wanted)
        best = (
            amount,
            "**The token table is exchanged for every chunk of logits** "
            "(`distill.logits_at_once`): gathered forward, for recomputation and backward, "
            f"and its gradient summed, {times} times per step: {amount / 1e9:.1f} of "
            f"{whole / 1e9:.1f} GB ({case.name}, {data} x {model}). Gathering it once before the "
            "loop and summing the gradient "
            f"once after it leaves {amount / times / 1e9:.1f} GB, for one more table in memory; "
            "fewer, larger chunks achieve part of that today.",
        )
    return [] if best is None else [best[1]]


def _model_point(programs: list[Program], given: Assumptions) -> list[str]:
    slower = []
    for program in programs:
        case, (data, model), found = program
        plain = [p for p in programs if p[0].name == case.name and p[1] == (data * model, 1)]
        if model == 1 or not plain:
            continue
        own = sum(x["sent"] for x in found["axes"].values())
        other = sum(x["sent"] for x in plain[0][2]["axes"].values())
        speeds = ", ".join(
            f"{name} {1000 * _predicted(program, name, given).seconds[1]:.0f} against "
            f"{1000 * _predicted(plain[0], name, given).seconds[1]:.0f} ms"
            for name in SHOWN
        )
        slower.append(
            f"{case.name} on {data} x {model} sends {own / 1e9:.1f} GB, on {data * model} x 1 "
            f"{other / 1e9:.1f} GB (steps with nothing hidden: {speeds})"
        )
    if not slower:
        return []
    return [
        "**A `model` axis sends activations**, in every layer, forward, recomputed and backward, "
        "and more of them with every row; `data` sends weights, however many rows there are: "
        + "; ".join(slower)
        + ". It is for what does not fit otherwise, with few rows per chip. The "
        "generator has few, and its token table (above) is split as well."
    ]


def _weights_point(programs: list[Program], given: Assumptions) -> list[str]:
    chosen = [p for p in programs if p[0].request.trained == "lora" and p[1][1] == 1]
    chosen = [p for p in chosen if not p[0].chunks]
    if not chosen:
        return []
    case, (data, _), found = max(chosen, key=lambda p: p[1][0])
    request = case.on(data, 1)
    frozen = 2 * sum(
        _size(x.shape) for n, x in request.architecture().shapes.items() if "lora" not in n
    )
    gathered = sum(x.get("all-gather", 0) for x in found["by_kind"].values())
    gathered -= _share(found, lambda x: "_take" in x["source"])
    rooms = ", ".join(f"{name} {fits(request, name)}" for name in SHOWN)
    return [
        "**Frozen weights need not be split.** With adapters, the embedder's weights are split "
        "over `data` only for storage, and each layer is gathered forward, for recomputation and "
        f"backward: {gathered / 1e9:.1f} GB per step on {data} devices, for {frozen / 1e9:.1f} GB "
        f"of weights. Whole on every device they would send nothing. There is room (now: {rooms}); "
        "they only need a separate sharding table. When weights are trained, `remat dots` should "
        "save one of three gathers, at the cost of memory."
    ]


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for x in shape:
        size *= x
    return size


def _nodes_point(programs: list[Program], given: Assumptions) -> list[str]:
    links = CHIPS["h200"].links
    wide = [p for p in programs if p[1][1] == 1 and p[1][0] > links.node]
    if not wide:
        return []
    case, mesh, found = max(wide, key=lambda p: _predicted(p, "h200", given).links)
    own = _predicted((case, mesh, found), "h200", given)
    apart = own.links * links.node * links.outside / links.inside
    return [
        "**GPUs: split weights inside a node, repeat them across nodes.** A ring over all GPUs "
        f"leaves each node through {links.node} adapters, and starts slowly: {case.name} on "
        f"{mesh[0]} H200 spends {1000 * own.links:.0f} ms on links and {1000 * own.starts:.0f} ms "
        f"on starts. Gathers that stay on NVLink would take {1000 * apart:.0f} ms and start "
        f"{given.fabric_seconds / given.node_seconds:.0f} times faster; across nodes "
        "only gradients would travel, once per step. That takes a third mesh axis. On a torus the "
        "whole slice is one ring, and little is gained."
    ]


def _assumptions(given: Assumptions) -> str:
    flags = [
        [f"`--given.{x.name.replace('_', '-')}`", f"{getattr(given, x.name):g}"]
        for x in dataclasses.fields(given)
    ]
    chips = [
        [
            name,
            f"{own.peak / 1e12:.0f}",
            f"{own.links.inside / 1e9:.0f}",
            f"{own.links.outside / 1e9:.0f}" if own.links.outside else "torus",
            own.source,
        ]
        for name, own in ((x, chip(x)) for x in SHOWN)
    ]
    return (
        "## Assumptions\n\n"
        + _table(("flag", "value"), flags)
        + "\n"
        + _table(
            ("chip", "bfloat16 TFLOP/s", "GB/s a link, one way", "GB/s to other nodes", "source"),
            chips,
        )
        + "\n"
        + "\n".join(
            f"* {x}"
            for x in (
                "H200: 8 to a node, NVLink 900 GB/s both ways, a 400 Gb/s adapter for each GPU; "
                "a ring across nodes is as fast as the adapters of its members in a node.",
                "TPU: 2 x 4, 8 x 8 and 16 x 16 chips; links of a side of 16 close to a ring, "
                "shorter sides are lines with half the speed. An axis over all chips has both "
                "sides of the torus, any other one.",
                "A sum of which each device takes a slice is sent as a reduce-scatter, which XLA "
                "makes of it on GPUs and TPUs; counted above as the all-reduce that the "
                "partitioner writes.",
                "Exchanges below 1 MiB are combined and start for nothing.",
                "The partitioner is XLA's for simulated CPU devices; those of the chips have "
                "further passes, which may combine or move exchanges. Fused attention and "
                "collective matrix products are not modelled.",
                "Rows have full length and no padding, and the input pipeline keeps up.",
                "Every program was compiled for the number of devices that its line names; "
                "nothing is extrapolated.",
            )
        )
        + "\n"
    )
