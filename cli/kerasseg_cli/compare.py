"""`kerasseg compare`: compare two runs on the same slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kerasseg_cli.completion import runs
from kerasseg_cli.console import errors, figure, figures_table, print_json, screen
from kerasseg_cli.options import Json, Quiet, option
from kerasseg_tfrecords.errors import KerassegError, one_line

if TYPE_CHECKING:
    from kerasseg.evaluation.compare import Comparison, Difference, Evaluated
    from kerasseg.evaluation.joined import NetworkPictures

_ROOM = 100
"""Columns from which counts share a table with Dice."""

_COUNTS = ("B better / worse / same", "missed, A / B")


def compare(
    first: Annotated[
        str, typer.Argument(metavar="RUN_A", help="Run A, the reference: folder or name.", autocompletion=runs)
    ],
    second: Annotated[
        str, typer.Argument(metavar="RUN_B", help="Run B, compared with A: folder or name.", autocompletion=runs)
    ],
    split: Annotated[
        str, option("Split that both runs were evaluated on.", values=("test", "validation", "train", "all"))
    ] = "test",
    most: Annotated[int, option("Maximum number of changed slices to show.", min=0)] = 8,
    pictures: Annotated[bool, option("Show pictures of these slices on the page.", "--pictures/--no-pictures")] = True,
    out: Annotated[
        Path | None, option("HTML page. [default: compare-RUN_A-RUN_B.html next to RUN_B]", "--out", "-o")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare two evaluated runs on the same slices: paired differences, wins and losses, and pictures."""
    from kerasseg.evaluation.compare import compare as run
    from kerasseg.evaluation.compare import evaluated
    from kerasseg.report.comparison import write_comparison
    from kerasseg.runs.directory import RunDirectory

    one, other = (evaluated(RunDirectory.find(name), split) for name in (first, second))
    found = run(one, other, most=most)
    shown = None
    if pictures and found.changed:
        try:
            shown = _pictures(one), _pictures(other)
        except KerassegError as error:
            # Runs may have been copied from another machine without their shards.
            errors().print(f"Warning: the page has no pictures: {error}", style="yellow")
    page = out or other.run.parent / f"compare-{found.first}-{found.second}.html"
    write_comparison(found, shown, page)
    if as_json:
        print_json({**json.loads(found.model_dump_json()), "verdict": found.verdict, "page": str(page)})
    elif not quiet:
        _show(found, page)


def _pictures(run: Evaluated) -> NetworkPictures:
    from kerasseg.checkpoints.open import open_checkpoint
    from kerasseg.evaluation.joined import NetworkPictures
    from kerasseg.runs.directory import RunDirectory

    model = open_checkpoint(RunDirectory(run.run).model_file)
    return NetworkPictures(model, run.figures.final_stage().rule, run.shards(), run.figures.split)


def _show(found: Comparison, page: Path) -> None:
    console = screen()
    for letter, name in (("A", found.first), ("B", found.second)):
        console.print(f"{letter}: {one_line(name)}", soft_wrap=True)
    console.print()
    sets = {"all slices": found.all, **found.classes}
    wide = console.width >= _ROOM
    dice = figures_table(
        "Dice", ("A", "B", "B - A", f"{100 * found.confidence:g} % interval", *(_COUNTS if wide else ()))
    )
    counts = figures_table("slices", _COUNTS)
    for name, difference in sets.items():
        cells = _cells(difference)
        dice.add_row(name, *(cells if wide else cells[:-2]))
        counts.add_row(name, *cells[-2:])
    console.print(dice)
    if not wide:
        console.print()
        console.print(counts)
    console.print()
    console.print(found.verdict)
    for text in found.remarks:
        console.print(text)
    if found.changed:
        changed = figures_table("changed most", ("A", "B", "B - A", "class"))
        for change in found.changed:
            scores = f"{change.first:.3f}", f"{change.second:.3f}", f"{change.dice:+.3f}"
            changed.add_row(change.slice_id, *scores, change.label)
        console.print()
        console.print(changed)
    console.print()
    console.print(f"Page: {page}", soft_wrap=True)


def _cells(difference: Difference) -> tuple[str, ...]:
    gain = difference.dice
    limits = "too few patients" if gain.low is None else f"{gain.low:+.4f} to {gain.high:+.4f}"
    return (
        figure(difference.first.mean),
        figure(difference.second.mean),
        figure(gain.mean, "+.4f"),
        limits,
        f"{difference.wins:,} / {difference.losses:,} / {difference.ties:,}",
        f"{difference.missed_first:,} / {difference.missed_second:,}",
    )
