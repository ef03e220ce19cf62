"""Two systems side by side, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from afmrl_jax.errors import ConfigError
from afmrl_jax.reporting.tables import aligned
from afmrl_jax.types import JsonObject


def comparison_table(found: JsonObject, tasks: Sequence[str] = ()) -> str:
    """The result of `evaluation.compare`, at most 90 columns wide, in plain ASCII.

    Args:
        found: its result.
        tasks: those to show; by default all.

    Raises:
        ConfigError: a task was not measured.
    """
    present = list(dict.fromkeys(key.split(".", 1)[0] for key in found["metrics"]))
    unknown = [x for x in tasks if x not in present]
    if unknown:
        raise ConfigError(f"no task {unknown[0]!r} was measured; choose from {', '.join(present)}")
    one, other = found["a"], found["b"]
    out = [
        f"A: {one['system']} of {one['run']}",
        f"B: {other['system']} of {other['run']}",
        f"{found['n_listings']} listings of {found['catalogue']} ({found['split']}), "
        f"{found['n_families']} families; in points of percent",
    ]
    for task in tasks or present:
        lines = [["", "A", "B", "B - A", "95 % interval", "p", "queries"]]
        for key, x in found["metrics"].items():
            name, metric = key.split(".", 1)
            if name != task:
                continue
            lines.append(
                [
                    metric,
                    f"{x['before']:.2f}",
                    f"{x['after']:.2f}",
                    f"{x['difference']:+.2f}",
                    f"[{x['low']:+.2f}, {x['high']:+.2f}]",
                    f"{x['p']:.4f}",
                    str(x["n_queries"]),
                ]
            )
        out += ["", task, *("  " + line for line in aligned(lines))]
    return "\n".join(out)
