"""Render self-contained pages from templates."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.errors import one_line
from kerasseg_tfrecords.files import write_atomically


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("kerasseg.report"),
        # Names of slices, classes and files are untrusted and must appear as text.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, context: dict[str, Any]) -> str:
    """Render a page.

    Args:
        template: Name of a file in `templates`.
        context: Values for the template; text is escaped, `markupsafe.Markup` is not. If "script" is true, the page
            gets the script of the threshold sliders, and its policy allows no other.
    """
    script = _script() if context.get("script") else ""
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    given = {
        **context,
        "version": __version__,
        "script": Markup(script),  # noqa: S704 - a file of this package
        "script_policy": Markup("; script-src 'sha256-{}'").format(allowed) if script else "",
    }
    page = _environment().get_template(template).render(**given)
    # Names, which are also inside charts, may hold characters that reorder the text after them.
    for character in set(page) - {"\n"}:
        page = page.replace(character, one_line(character))
    return page


@cache
def _script() -> str:
    loader = _environment().loader
    if loader is None:
        msg = "there are no templates"
        raise AssertionError(msg)
    return loader.get_source(_environment(), "threshold.js")[0]


def write_page(path: Path, template: str, context: dict[str, Any]) -> None:
    """Write a page atomically."""
    write_atomically(path, render(template, context))
