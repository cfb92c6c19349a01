"""Output: rich on a terminal, plain lines in a pipe, one JSON document with `--json`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kerasseg_cli.options import output_options
from kerasseg_tfrecords.errors import one_line

Report = Callable[[str, int, int], None]

STAGES = {
    "fetch": "Downloading files",
    "read": "Reading slices",
    "compare": "Comparing slices",
    "write": "Writing shards",
    "verify": "Verifying records",
    "check": "Checking slices",
    "int8": "Measuring the cost of 8 bits",
    "overlap": "Comparing with the training data",
    "predict": "Predicting",
    "baseline": "Predicting (before training)",
    "score": "Scoring",
    "robustness": "Corrupting and predicting",
    "speed": "Timing",
    "predict model": "Network: predicting",
    "sweep model": "Network: thresholds",
    "search model": "Network: rules",
    "predict baseline": "Baseline: predicting",
    "sweep baseline": "Baseline: thresholds",
    "search baseline": "Baseline: rules",
}


class _PlainConsole(Console):
    """A console that interprets nothing in the texts of lines and tables, which may hold names from untrusted files."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text, with control and invisible characters escaped."""
        return super().render_str("\n".join(map(one_line, text.split("\n"))), **options)


def screen() -> Console:
    """Standard output, or a console that prints nothing with `--json`."""
    asked = output_options()
    quiet = asked.silent or asked.as_json
    return _PlainConsole(highlight=False, markup=False, emoji=False, soft_wrap=False, quiet=quiet)


def errors() -> Console:
    return _PlainConsole(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def wants_unicode(console: Console) -> bool:
    """Whether the console can show characters beyond ASCII."""
    return console.encoding.lower().startswith("utf") and not console.legacy_windows


def print_json(document: Any) -> None:
    """Print a document on standard output, without styles or wrapping."""
    import sys

    if sys.stdout is None:  # closed
        return
    text = json.dumps(document, indent=1, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal without the characters, or a file name that is not UTF-8
        text = json.dumps(document, indent=1)
    sys.stdout.write(text + "\n")


def figures_table(first: str, headings: Iterable[str], *, gap: int = 1) -> Table:
    """Return a table of figures: names in the first column, then numbers; intervals ("95 % ...") are left-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 2 - gap))
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="left" if "%" in heading else "right", no_wrap=True)
    return table


def figure(value: float | None, form: str = ".4f") -> str:
    """Return a number as text; "-" if it is unknown or NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:{form}}"


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """Format the rate, such as `312/s`."""
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Report | None]:
    """Show a bar per stage with count, rate and remaining time; yield None if standard error is not a terminal."""
    console = errors()
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        known: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in known:
                known[stage] = bars.add_task(STAGES.get(stage, stage), total=total or None)
            bars.update(known[stage], completed=done, total=total or None)

        yield report


def copy_shards(shards: str, *, quiet: bool) -> None:
    """Check the manifest of shards for training. If they are at a URL, copy them into the cache and show the progress."""
    from kerasseg_tfrecords.records.manifest import load_manifest, local_shards
    from kerasseg_tfrecords.storage import absolute

    load_manifest(absolute(shards))
    with progress_bar(quiet=quiet) as progress:
        local_shards(shards, ("train", "val"), progress=progress)
