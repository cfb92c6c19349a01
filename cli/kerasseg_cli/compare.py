"""`kerasseg compare`: two runs on the same slices, paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kerasseg_cli.completion import runs
from kerasseg_cli.console import errors, print_json, screen
from kerasseg_cli.options import Json, Quiet
from kerasseg_tfrecords.errors import KerassegError, one_line

if TYPE_CHECKING:
    from kerasseg.evaluation.compare import Comparison, Difference, Evaluated
    from kerasseg.evaluation.joined import NetworkPictures
    from kerasseg.evaluation.schema import Mean

__all__ = ["compare"]

_ROOM, _NARROW = 100, 84
"""Columns below which runs are called A and B, and below which counts are left out."""
_LONG = 16
"""Letters of a run's name that stand as a heading."""
_LIMITS = len("+0.1000 to +0.2000")


def compare(
    first: Annotated[
        str, typer.Argument(metavar="RUN_A", help="What is compared with: a run's folder or name.", autocompletion=runs)
    ],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="What is compared.", autocompletion=runs)],
    split: Annotated[
        str, typer.Option(help="Slices that both were evaluated on: test, validation, train, or all.")
    ] = "test",
    most: Annotated[int, typer.Option(min=0, help="Slices to show, those that changed most.")] = 8,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Predict the slices that changed most, and show them.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; compare-RUN_A-RUN_B.html beside RUN_B.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare two evaluated runs slice by slice: differences with intervals, wins, losses, and pictures."""
    from kerasseg.evaluation.compare import compare as run
    from kerasseg.evaluation.compare import evaluated
    from kerasseg.report import write_comparison
    from kerasseg.runs import RunDirectory

    one, other = (evaluated(RunDirectory.find(name), split) for name in (first, second))
    found = run(one, other, most=most)
    shown = None
    if pictures and found.changed:
        try:
            shown = _pictures(one), _pictures(other)
        except KerassegError as error:
            # Runs may have come from another machine without their shards: the figures are still worth showing.
            errors().print(f"Warning: the page has no pictures: {error}", markup=False, style="yellow")
    page = out or other.run.parent / f"compare-{found.first}-{found.second}.html"
    write_comparison(found, shown, page)
    if as_json:
        print_json({**json.loads(found.model_dump_json()), "verdict": found.verdict, "page": str(page)})
    elif not quiet:
        _show(found, page)


def _pictures(run: Evaluated) -> NetworkPictures:
    from kerasseg.checkpoints import open_checkpoint
    from kerasseg.evaluation.joined import NetworkPictures
    from kerasseg.runs import RunDirectory

    model = open_checkpoint(RunDirectory(run.run).model_file)
    return NetworkPictures(model, run.figures.final_stage().rule, run.figures.shards, run.figures.split)


def _show(found: Comparison, page: Path) -> None:
    from rich.table import Table

    console = screen()
    names = {"A": found.first, "B": found.second}
    # Long names leave no room for figures.
    short = console.width < _ROOM or max(map(len, names.values())) > _LONG
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Dice", overflow="fold")
    for letter, name in names.items():
        table.add_column(letter if short else _plain(name), justify="right", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    # The heading may wrap, the limits may not.
    table.add_column(f"{100 * found.confidence:g} % interval, over patients", min_width=_LIMITS)
    if console.width >= _NARROW:
        table.add_column("better / worse / same", justify="right", min_width=len("9,999 / 9,999 / 9,999"))
        table.add_column("missed", justify="right", no_wrap=True)
    for name, difference in {"all slices": found.all, **found.classes}.items():
        table.add_row(_plain(name), *_cells(difference)[: len(table.columns) - 1])
    if short:
        for letter, name in names.items():
            console.print(f"{letter}: {one_line(name)}", markup=False, soft_wrap=True)
        console.print()
    console.print(table)
    console.print()
    console.print(found.verdict, markup=False)
    for text in found.remarks:
        console.print(text, markup=False)
    if found.changed:
        changed = Table(box=None, pad_edge=False, header_style="bold")
        changed.add_column("changed most", overflow="fold")
        changed.add_column("class", overflow="fold")
        for heading in ("before", "now", "change"):
            changed.add_column(heading, justify="right", no_wrap=True)
        for change in found.changed:
            scores = f"{change.first:.3f}", f"{change.second:.3f}", f"{change.dice:+.3f}"
            changed.add_row(_plain(change.slice_id), _plain(change.label), *scores)
        console.print()
        console.print(changed)
    console.print()
    console.print(f"Page: {page}", markup=False, soft_wrap=True)


def _cells(difference: Difference) -> tuple[str, ...]:
    gain = difference.dice
    limits = "none: one patient" if gain.low is None else f"{gain.low:+.4f} to {gain.high:+.4f}"
    return (
        _number(difference.first),
        _number(difference.second),
        "-" if gain.mean is None else f"{gain.mean:+.4f}",
        limits,
        f"{difference.wins} / {difference.losses} / {difference.ties}",
        f"{difference.missed_first} / {difference.missed_second}",
    )


def _number(mean: Mean) -> str:
    return "-" if mean.mean is None else f"{mean.mean:.4f}"


def _plain(text: str) -> str:
    """As rich is to print it: brackets of a name are no markup."""
    from rich.markup import escape

    return escape(one_line(text))
