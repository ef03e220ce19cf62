"""Rendering of templates, for all pages."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, context: Mapping[str, object]) -> str:
    """A page from a template of this package; texts are escaped, a missing value is an error."""
    environment = Environment(
        loader=PackageLoader("afmrl_jax.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)
