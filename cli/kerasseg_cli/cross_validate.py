"""`kerasseg cross-validate`: `train` once for each fold, with the same options."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kerasseg_cli.console import copy_shards, errors, figure, figures_table, print_json, screen
from kerasseg_cli.options import COMMON, Cluster
from kerasseg_cli.train import RUN, given, refuse_others, settings_of, train
from kerasseg_tfrecords.errors import DataError, one_line
from kerasseg_tfrecords.text import count

if TYPE_CHECKING:
    from kerasseg.evaluation.schema import Mean
    from kerasseg.runs.settings import TrainSettings
    from kerasseg.workflows.cross_validate import CrossValidation

_ROOM = 96
"""Columns from which headings are long and counts are shown."""

_Folds = Annotated[int, RUN("Number of folds; the slices of a patient stay together.", min=2)]
_Out = Annotated[Path | None, RUN("Folder. [default: runs/<date-time-cv-strategy>]", "--out", "-o", metavar="FOLDER")]
_Resume = Annotated[bool, RUN("Resume the cross-validation in --out, or the latest one.", "--resume")]


def cross_validate(context: typer.Context, folds: int = 5, **options: Any) -> None:
    """Train once for each fold of the training and validation slices; the test split is not read.

    The options are those of kerasseg train, whose help explains the strategies.
    """
    out: Path | None = options["out"]
    settings: TrainSettings
    if options["resume"]:
        refuse_others(given(context) - {"resume", "out", "cluster", *COMMON})
        out, settings, folds = _begun(out)
    else:
        settings = settings_of(context, options)
    copy_shards(settings.shards, quiet=options["quiet"] or options["as_json"])

    from kerasseg.workflows.cross_validate import cross_validate as run
    from kerasseg_cli.train_display import watching
    from kerasseg_tfrecords.cluster import connect

    as_json, quiet = options["as_json"], options["quiet"]
    with connect(options["cluster"]) as client, watching(as_json=as_json, quiet=quiet) as observer:
        found, root = run(settings, folds, out, [observer], cluster=client)
    if found.out_of_fold is None:
        text = f"Stopped and saved. Resume with: kerasseg cross-validate --resume --out {root}"
        errors().print(text, soft_wrap=True)
        raise typer.Exit(130)
    if as_json:
        print_json({**json.loads(found.model_dump_json()), "folder": str(root)})
    elif not quiet:
        _show(found, root)


def _with_options_of_train() -> inspect.Signature:
    """Return the signature for typer: folds, then the options of `train`, with other help for --out and --resume."""
    own = {"out": _Out, "resume": _Resume}
    parameters = [
        parameter.replace(annotation=own.get(name, parameter.annotation))
        for name, parameter in inspect.signature(train, eval_str=True, locals={"Any": Any}).parameters.items()
        if name != "track"  # folds are compared here, not in a tracker
    ]
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    folds = inspect.Parameter("folds", keyword, default=5, annotation=_Folds)
    cluster = inspect.Parameter("cluster", keyword, default=None, annotation=Cluster)
    return inspect.Signature([parameters[0], folds, *parameters[1:], cluster], return_annotation=None)


cross_validate.__signature__ = _with_options_of_train()  # type: ignore[attr-defined]


def _begun(out: Path | None) -> tuple[Path, TrainSettings, int]:
    from kerasseg.runs.directory import RUNS
    from kerasseg.workflows.cross_validate import FILE, read_cross_validation

    if out is None:
        known = sorted(RUNS.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime)
        if not known:
            remedy = "Start one: kerasseg cross-validate --folds 5 --checkpoint FILE"
            raise DataError("no cross-validation found", path=RUNS, remedy=remedy)
        out = known[-1].parent
    found = read_cross_validation(out)
    return out, found.settings, found.folds


def _show(found: CrossValidation, root: Path) -> None:
    from rich.text import Text

    figures = found.out_of_fold
    if figures is None:
        return
    console = screen()
    roomy = console.width >= _ROOM
    sets = {"all slices": figures.all, "tumour slices": figures.tumour, **figures.classes}
    if figures.tumour == figures.all:
        del sets["tumour slices"]
    for epoch in ("best", "last") if figures.all.last is not None else ("best",):
        headings = ["slices", "epoch 0", f"{epoch} epochs", "gain", "95 % interval of the gain, over patients"]
        table = figures_table("out-of-fold Dice", headings if roomy else ["epoch 0", epoch, "gain", "95 % interval"])
        for name, scores in sets.items():
            after, gain = (scores.after, scores.gain) if epoch == "best" else (scores.last, scores.last_gain)
            table.add_row(Text(one_line(name)), *_cells(scores.before, after, gain)[0 if roomy else 1 :])
        console.print()
        console.print(table)
    console.print()
    for fold in figures.folds:
        last = "" if fold.last is None else f", {fold.last:.4f} after the last"
        console.print(
            f"{fold.name}: {fold.after:.4f} over {fold.slices:,} slices, best epoch {fold.best_epoch} of "
            f"{fold.epochs}{last}",
        )
    dice = figures.all.after
    known = (
        "too few patients for an interval" if dice.low is None else f"95 % interval {dice.low:.4f} to {dice.high:.4f}"
    )
    data = f"{count(dice.slices, 'slice')} of {count(dice.patients, 'patient')}"
    console.print(f"Dice {dice.mean:.4f} ({known}) over {data}.")
    console.print(f"Standard deviation over folds: {figures.spread:.4f}.")
    console.print(
        "Each fold's best epoch, possibly epoch 0, was chosen on its held-out slices: its Dice is slightly optimistic and "
        "its gain cannot be negative. The last epoch was not chosen: its gain may be negative.",
    )
    console.print("The test split was not read.")
    for label, path in (("Ensemble of the folds", root / "ensemble"), ("Every slice", root / "out-of-fold.csv")):
        console.print(f"{label}: {path}", soft_wrap=True)
    console.print(f"Next: kerasseg tune-threshold {shlex.quote(str(root / 'ensemble'))}", soft_wrap=True)


def _cells(before: Mean, after: Mean | None, gain: Mean | None) -> tuple[str, ...]:
    if after is None or gain is None:
        return f"{before.slices:,}", figure(before.mean), "-", "-", "-"
    interval = "-" if gain.low is None else f"{gain.low:+.4f} to {figure(gain.high, '+.4f')}"
    return f"{gain.slices:,}", figure(before.mean), figure(after.mean), figure(gain.mean, "+.4f"), interval
