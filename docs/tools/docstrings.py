"""For mkdocstrings: our docstrings say `Example:` or begin with `>>>`, and Griffe knows `Examples:` alone."""

from __future__ import annotations

import re
from typing import Any

import griffe


def readable(text: str) -> str:
    """The docstring as Griffe takes it: examples in a section, or in a fence where they stand between paragraphs."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = re.sub(r"^Call arguments:$", "Other args: Call arguments:", text, flags=re.MULTILINE)
    return re.sub(r"^>>> .*(?:\n(?!\n).+)*", lambda found: f"```pycon\n{found[0]}\n```", text, flags=re.MULTILINE)


class Examples(griffe.Extension):
    """Rewrites every docstring once it has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls this for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
