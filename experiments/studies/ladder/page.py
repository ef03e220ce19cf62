"""The ladder's page: one file, readable without a network."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from afmrl_jax.reporting.curves import Curve, Plot
from afmrl_jax.reporting.plots import Drawn, draw
from afmrl_jax.runtime.files import write_text
from afmrl_jax.types import JsonObject

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>The ladder</title>
<style>
:root { --ink: #1d2433; --soft: #5b6475; --line: #d9dde5; --series-1: #2457c5; --series-2: #b3401e;
 --series-3: #2b7a4b; --series-4: #7a3b9c; --series-5: #8a6d00; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 62rem; margin: 2rem auto;
 padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .7rem;
 border-bottom: 1px solid var(--line); text-align: right; } th:first-child, td.words {
 text-align: left; } .soft { color: var(--soft); } figure { margin: 1rem 0; max-width: 34rem; }
</style></head><body>
<h1>The ladder</h1>
<p class="soft">{{ about }}</p>
<p>Plan: <b>{{ state }}</b>, {{ plan }}; judged on <b>{{ split }}</b>; {{ done }} of {{ all }} cells
are finished.</p>
{% for name, point in points.items() if not point.axis %}
<h2>{{ name }}</h2>
{% if point.systems %}
<table><thead><tr><th>system</th><th>R@1</th><th>MRR</th><th>seeds</th></tr></thead><tbody>
{% for system, x in point.systems.items() %}
<tr><th>{{ system }}</th>{% for m in ("R@1", "MRR") %}<td>{{ "%.2f"|format(x[m].mean) }}
{% if "low" in x[m] %}<span class="soft">{{ "%.2f"|format(x[m].low) }} to
{{ "%.2f"|format(x[m].high) }}</span>{% endif %}</td>{% endfor %}<td>{{ x.seeds|length }}</td></tr>
{% endfor %}</tbody></table>
{% else %}<p class="soft">Nothing is finished.</p>{% endif %}
{% if point.tests %}
<table><thead><tr><th>step</th><th>from</th><th>to</th><th>metric</th><th>difference</th>
<th>95 % interval</th><th>p (Holm)</th><th>predicted</th><th>says</th></tr></thead><tbody>
{% for x in point.tests %}
<tr><th>{{ x.step }}</th><td class="words">{{ x["from"] }}</td><td class="words">{{ x.to }}</td>
<td>{{ x.metric }}</td><td>{{ "%+.2f"|format(x.difference) }}</td>
<td>{{ "%+.2f"|format(x.low) }} to {{ "%+.2f"|format(x.high) }}</td>
<td>{{ "%.4f"|format(x.p_holm) }}</td>
<td>{% if x.metric == "R@1" %}{{ "%+.1f"|format(x.predicted[0]) }} to
{{ "%+.1f"|format(x.predicted[1]) }}{% endif %}</td><td class="words">{{ x.verdict }}</td></tr>
{% endfor %}</tbody></table>
<p class="soft">Over {{ point.tests[0].runs }} seeds whose systems are all finished, and over
families.{% if point.tests[0].runs == 1 %} One seed says nothing of others.{% endif %}</p>
{% endif %}
{% endfor %}
{% for plot, svg in plots %}
<figure><figcaption><h2>{{ plot.title }}</h2></figcaption>
<div role="img" aria-label="{{ plot.summary }}">{{ svg }}</div></figure>
{% endfor %}
</body></html>
"""


def write_page(summary: JsonObject, path: Path) -> Path:
    """Write the page of a summary.

    Args:
        summary: of `summarise`, with `plan`, `split`, `done` and `all`.
        path: of the page.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    plots = [(x, Markup(x.svg)) for x in curves(summary)]
    return write_text(path, environment.from_string(TEMPLATE).render(**summary, plots=plots))


def curves(summary: JsonObject) -> list[Drawn]:
    """R@1 of every system along each axis, with the spread over seeds."""
    axes: dict[str, list[JsonObject]] = {}
    for point in summary["points"].values():
        if point["axis"]:
            axes.setdefault(point["axis"], []).append(point)
    drawn = []
    for number, (axis, points) in enumerate(axes.items()):
        names = dict.fromkeys(x for point in points for x in point["systems"])
        own = [Curve(name, _line(points, name), "R@1", 1.0, points=True) for name in names]
        found = draw(Plot(f"R@1 by {axis}", "percent", own, axis=axis), number)
        drawn += [] if found is None else [found]
    return drawn


def _line(points: list[JsonObject], name: str) -> list[JsonObject]:
    lines = []
    for point in points:
        if name in point["systems"]:
            found = point["systems"][name]["R@1"]
            width = (found["high"] - found["low"]) / 2 if "low" in found else 0.0
            lines.append({"step": point["at"], "R@1": found["mean"], "R@1_error": width})
    return lines
