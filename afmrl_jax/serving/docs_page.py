"""The OpenAPI document as a page without scripts, which loads nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 50rem; margin: 0 auto; padding: 1rem; }
pre { overflow-x: auto; padding: .5rem; border: 1px solid #8888; font-size: .8rem; }
code, pre { font-family: ui-monospace, monospace; }
"""


def docs_page(document: dict[str, Any]) -> str:
    """A page of HTML from an OpenAPI document."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width">',
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info.get('description', ''))} The same as JSON: "
        "<a href=openapi.json>openapi.json</a>.</p>",
    ]
    for path, methods in document["paths"].items():
        for method, what in methods.items():
            parts.append(f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(what.get('summary', ''))}</p>")
            for parameter in what.get("parameters", []):
                parts.append(f"<p>Parameter <code>{escape(parameter['name'])}</code></p>")
            for kind, body in what.get("requestBody", {}).get("content", {}).items():
                parts.append(_details(f"Body: {kind}", body["schema"]))
            answers = what.get("responses", {})
            listed = ", ".join(f"{code} {x.get('description', '')}" for code, x in answers.items())
            parts.append(f"<p>Answers: {escape(listed)}</p>")
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        parts.append(_details(name, schema))
    return "\n".join(parts) + "</html>"


def _details(title: str, value: object) -> str:
    text = escape(json.dumps(value, indent=1))
    return f"<details><summary>{escape(title)}</summary><pre>{text}</pre></details>"
