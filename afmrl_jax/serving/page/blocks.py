"""The page's form and its places for answers, in gradio's components."""

from __future__ import annotations

import html
from importlib.resources import files
from typing import Any

import gradio as gr

from afmrl_jax.serving.page.answers import Answers
from afmrl_jax.serving.page.shown import fragment
from afmrl_jax.serving.schemas import MAX_TEXT
from afmrl_jax.serving.service import Service

TITLE = "afmrl: product search"
ANSWER = '<div class="answer" role="region" aria-label="{}">${{value}}</div>'
"""A template of gradio's, whose value takes the place at its end."""
RESULTS = 12
"""Listings that a search shows unless more are asked for."""


def asset(name: str) -> str:
    """A file of the page."""
    return (files("afmrl_jax.serving.page") / "assets" / name).read_text(encoding="utf-8")


def theme() -> Any:
    """Gradio's plain theme in the fonts of the system: others would be fetched."""
    plain = gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    # White on gradio's own shades is hard to read.
    shades = {"": "*primary_700", "_hover": "*primary_800"}
    buttons = {
        f"button_primary_background_fill{state}{mode}": shade
        for state, shade in shades.items()
        for mode in ("", "_dark")
    }
    return plain.set(color_accent="*primary_600", **buttons)


def page(service: Service) -> Any:
    """The page of a service."""
    answers = Answers(service)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as found:
        gr.HTML(_head(service), apply_default_css=False, js_on_load=None)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                form, button = _form(service)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("Results"):
                    results = _answer("Results", "Type some words, drop a photo, or both.")
                with gr.Tab("Compare two systems"):
                    _comparison(service, answers, form)
        asking: dict[str, Any] = {
            "fn": answers.search,
            "inputs": form,
            "outputs": results,
            # Values are checked by `Asked.of`, whose errors are words on the page.
            "preprocess": False,
            "queue": False,
            "api_name": "search",
            "api_visibility": "private",
            "show_progress": "minimal",
        }
        button.click(**asking)
        for words in (form[0], *form[3:5]):
            words.submit(**asking)
        _offer(found, answers, form)
    return found


def _head(service: Service) -> str:
    about = service.engine.about
    return (
        f"<h1>Product search</h1><p class='quiet'>System {html.escape(about.system)}, catalogue "
        f"{html.escape(about.catalogue)}. For programs: <a href='docs'>documentation</a>.</p>"
        "<div id='said' class='hidden-text' role='status'></div>"
    )


def _answer(label: str, text: str) -> Any:
    return gr.HTML(
        fragment("start", {"text": text}),
        html_template=ANSWER.format(label),
        js_on_load=None,
        apply_default_css=False,
    )


def _form(service: Service) -> tuple[list[Any], Any]:
    """The fields, in the order of `Asked.of`, and the button."""
    limit = f"const LIMIT = {service.settings.limits.body_bytes};\n"
    text = gr.Textbox(
        label="Words",
        placeholder="such as: striped dress, v-neck",
        max_length=MAX_TEXT,
        elem_id="words",
    )
    photo = gr.HTML(
        "",
        html_template=asset("photo.html"),
        js_on_load=limit + asset("photo.js"),
        apply_default_css=False,
        elem_id="photo",
    )
    button = gr.Button("Search", variant="primary", elem_id="search")
    gr.HTML('<div id="notice" role="alert" hidden></div>', js_on_load=None, elem_id="notice-box")
    with gr.Accordion("Filters and options", open=False):
        pairs = gr.Dropdown(
            [], label="Attributes that all results have", multiselect=True, allow_custom_value=True
        )
        with gr.Row():
            # Gradio's numbers cannot be empty: they become 0 once they are shown.
            low, high = (
                gr.Textbox(
                    label=f"Price {x}",
                    max_length=30,
                    min_width=110,
                    visible=False,
                    elem_id=f"price-{x}",
                )
                for x in ("from", "to")
            )
        where = gr.Textbox(
            label="Further conditions, one a line", lines=2, placeholder="brand=Acme\ntitle~oak"
        )
        most = min(48, service.settings.limits.results)
        k = gr.Slider(1, most, min(RESULTS, most), step=1, label="Results")
        wish = gr.Radio(
            [("if it is fast here", "auto"), ("always", "on"), ("never", "off")],
            value="auto",
            label="Let the generator write attributes for the query",
            visible=service.engine.has_generator,
        )
    return [text, photo, pairs, low, high, where, k, wish], button


def _comparison(service: Service, answers: Answers, form: list[Any]) -> None:
    if service.compared is None:
        hint = (
            "To compare two systems of a run on one query, embed the catalogue with the other one, "
            "as in: afmrl embed --system infonce --out other-index, and start the service with "
            "--compare other-index."
        )
        _answer("Comparison", hint)
        return
    names = [x.about.system for x in (service.engine, service.compared)]
    button = gr.Button(f"Compare {names[0]} and {names[1]}", elem_id="compare")
    told = "The same query and filters, answered by both systems."
    shown = _answer("Comparison", told)
    button.click(
        answers.compare,
        form,
        shown,
        preprocess=False,
        queue=False,
        api_name="compare",
        api_visibility="private",
        show_progress="minimal",
    )


def _offer(found: Any, answers: Answers, form: list[Any]) -> None:
    """When the page is loaded, offer what the index can be filtered by then."""

    async def offered() -> list[Any]:
        facets = await answers.facets()
        named = facets.price is not None
        return [
            gr.update(choices=facets.choices),
            *(gr.update(visible=named, label=f"{facets.price} {x}") for x in ("from", "to")),
        ]

    found.load(offered, None, form[2:5], queue=False, api_visibility="private")
