"""`kerasseg` without a command: the steps, your progress, and the next command."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from kerasseg_cli.console import print_json, screen, wants_unicode
from kerasseg_cli.options import Json
from kerasseg_tfrecords.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from kerasseg.workflows.status import Overview, StatusLine

_NARROW = 76
"""Columns below which time and figure share a column."""
_MARKS = {"done": "✓", "open": "·", "old": "↻", "unfinished": "…", "damaged": "✗", "any time": " "}
_ASCII = {"done": "+", "open": "-", "old": "~", "unfinished": "...", "damaged": "x", "any time": " "}
_WORDS = {"old": "outdated", "unfinished": "not finished", "damaged": "cannot be read"}


def start(as_json: Json = False) -> None:
    """List the steps, your progress in this folder, and the next command."""
    from kerasseg.workflows.status import look_around

    found = look_around()
    if as_json:
        print_json(found.to_json())
        return
    console = screen()
    title = "Fine-tune a pretrained U-Net for brain-tumour segmentation on MRI slices. Not for clinical use."
    console.print(title)
    console.print()
    _show(found, console)
    console.print()
    console.print(f"Next: {found.next}", style="bold", soft_wrap=True)
    if not any(step.when for step in found.steps):
        console.print("No data yet? kerasseg demo shows the whole job in a few minutes.")
    console.print("All commands: kerasseg --help    Check the installation: kerasseg doctor")


def _show(found: Overview, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    marks = _MARKS if wants_unicode(console) else _ASCII
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    if console.width >= _NARROW:
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for step in found.steps:
        # `Text`, so that names of folders are not interpreted as markup.
        text = Text(one_line(_figure(step)), style="" if step.when else "dim")
        when = "" if step.when is None else _when(step.when)
        name = Text(step.name, style="bold")
        if console.width >= _NARROW:
            table.add_row(marks[step.state], name, Text(when, style="dim"), text)
        else:
            table.add_row(marks[step.state], name, Text(" ".join((when, *([text.plain] if text.plain else [])))))
    console.print(table)
    if found.run is not None:
        others = f" (the latest of {found.runs})" if found.runs > 1 else ""
        console.print()
        console.print(f"Run: {found.run}{others}", soft_wrap=True)


def _figure(step: StatusLine) -> str:
    if step.when is None:
        return step.purpose
    word = _WORDS.get(step.state)
    return "; ".join(part for part in (step.figure, word) if part)


def _when(moment: datetime) -> str:
    now = datetime.now().astimezone()
    if moment.date() == now.date():
        return f"today {moment:%H:%M}"
    return f"{moment:%Y-%m-%d}"
