"""Rendering of templates, for all pages."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("afmrl_jax.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, context: Mapping[str, object]) -> str:
    """A page from a template of this package; texts are escaped, a missing value is an error."""
    return _environment().get_template(template).render(context)
