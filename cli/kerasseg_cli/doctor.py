"""`kerasseg doctor`: check the installation, the machine, and the shards and runs in this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from kerasseg_cli.console import print_json, screen, wants_unicode
from kerasseg_cli.errors import FAILED
from kerasseg_cli.options import Json, Quiet
from kerasseg_tfrecords.errors import DataError, one_line
from kerasseg_tfrecords.text import count

if TYPE_CHECKING:
    from rich.text import Text

    from kerasseg.workflows.doctor import Diagnosis, Finding

_MARKS = {"ok": "✓", "note": "·", "warning": "!", "bad": "✗"}
_NAME = 30
_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "bad": "red"}


def doctor(as_json: Json = False, quiet: Quiet = False) -> None:
    """Check versions, devices, memory, and the shards and runs in this folder, with advice for each problem."""
    from kerasseg.workflows.doctor import examine

    found = examine()
    if as_json:
        print_json(found.to_json())
    else:
        _show(found, quiet=quiet)
    if found.data_bad:
        raise typer.Exit(DataError.exit_code)
    if found.installation_bad:
        raise typer.Exit(FAILED)


def _show(found: Diagnosis, *, quiet: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    console = screen()
    shown = [f for f in found.findings if not quiet or f.verdict == "bad"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    # Names of runs (date, time, strategy) stay on one line; very long ones are folded.
    whole = max((len(f.name) for f in shown), default=0) <= _NAME
    table.add_column(overflow="fold", no_wrap=whole, max_width=_NAME)
    table.add_column(overflow="fold")
    marks = _MARKS if wants_unicode(console) else {**_MARKS, "ok": "+", "note": "-", "bad": "x"}
    topic = None
    for finding in shown:
        if finding.topic != topic:
            if topic is not None:
                table.add_row("", "", "")
            topic = finding.topic
        # `Text`, so that names of files and folders are not interpreted as markup.
        mark = Text(marks[finding.verdict], style=_STYLES[finding.verdict])
        table.add_row(mark, Text(one_line(finding.name), style="bold"), _text(finding))
    if shown:
        console.print(table)
    if quiet:
        return
    console.print()
    console.print(_verdict(found), style="bold")


def _text(finding: Finding) -> Text:
    from rich.text import Text

    text = Text(one_line(finding.value))
    return text if not finding.advice else text.append(f"\n{one_line(finding.advice)}", style="dim")


def _verdict(found: Diagnosis) -> str:
    counts = {verdict: sum(f.verdict == verdict for f in found.findings) for verdict in ("bad", "warning")}
    if counts["bad"]:
        return f"{count(counts['bad'], 'problem')} found."
    if counts["warning"]:
        return f"No problems, {count(counts['warning'], 'warning')}."
    return "No problems found."
