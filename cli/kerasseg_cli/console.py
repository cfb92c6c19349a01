"""The screen: rich where it is a terminal, plain lines where it is a pipe, one JSON document where a machine asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from kerasseg_cli.options import output_options

__all__ = ["RateColumn", "Report", "errors", "print_json", "progress_bar", "screen", "wants_unicode"]

Report = Callable[[str, int, int], None]

STAGES = {
    "read": "Reading slices",
    "compare": "Comparing slices",
    "write": "Writing shards",
    "verify": "Verifying records",
    "check": "Checking slices",
    "int8": "What 8 bits cost",
    "overlap": "Comparing with the training data",
    "predict": "Predicting",
    "baseline": "Predicting, before training",
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


def screen() -> Console:
    """Standard output, or nothing where one JSON document is all that may stand there.

    rich itself honours NO_COLOR, and leaves colour out where the output is no terminal.
    """
    asked = output_options()
    return Console(highlight=False, soft_wrap=False, quiet=asked.silent or asked.as_json)


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def wants_unicode(console: Console) -> bool:
    """Whether marks and drawings beyond ASCII can be shown."""
    return console.encoding.lower().startswith("utf") and not console.legacy_windows


def print_json(document: Any) -> None:
    """One document on standard output, unstyled, whatever the width."""
    import sys

    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


class RateColumn(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """For instance `312/s`."""
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Report | None]:
    """A bar for each stage with count, rate and remaining time; None where nobody watches."""
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
                known[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
            bars.update(known[stage], completed=done, total=total)

        yield report
