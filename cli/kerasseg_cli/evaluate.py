"""`kerasseg evaluate`: figures that hold up, of a run's network beside the checkpoint that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from kerasseg_cli.completion import runs
from kerasseg_cli.console import errors, print_json, progress_bar
from kerasseg_cli.options import Json, Quiet, one_of
from kerasseg_tfrecords.errors import UsageError

if TYPE_CHECKING:
    from kerasseg.evaluation.predictions import Resolution
    from kerasseg.evaluation.schema import Evaluation

__all__ = ["evaluate", "threshold_of"]

WHAT, JUDGE, BESIDES = "What is evaluated", "Verdict", "Besides"


def evaluate(
    run: Annotated[
        str | None, typer.Argument(help="The run's folder or name; the latest one.", autocompletion=runs)
    ] = None,
    threshold: Annotated[
        str,
        typer.Option(
            help="auto (what tune-threshold found; it is run if missing), or a threshold such as 0.5 without "
            "post-processing.",
            rich_help_panel=WHAT,
        ),
    ] = "auto",
    split: Annotated[
        str | None,
        typer.Option(help="test (the default), validation or train; a look at test is counted.", rich_help_panel=WHAT),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(
            help="Another shard directory, an external data set: all of it. Or where the run's own lie now.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    resolution: Annotated[
        str, typer.Option(help="native (each slice's own size) or model.", rich_help_panel=WHAT)
    ] = "native",
    batch_size: Annotated[int, typer.Option(help="Slices at once.", rich_help_panel=WHAT)] = 8,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="A goal instead of the recipe's, such as 0.92 or glioma=0.9; several times.", rich_help_panel=JUDGE
        ),
    ] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(help="Exit with code 4 where mean Dice is lower: for CI.", rich_help_panel=JUDGE),
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option("--robustness", help="Dice under corruption as well: 40 more passes.", rich_help_panel=BESIDES),
    ] = False,
    reference_2: Annotated[
        Path | None,
        typer.Option(
            "--reference-2",
            help="A second annotator's masks of the same slices: PNG or TIFF named like them, or shards.",
            rich_help_panel=BESIDES,
        ),
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Time network and baseline.", rich_help_panel=BESIDES)
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the corruptions.", rich_help_panel=BESIDES)] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate the best weights of a run beside the checkpoint they came from: tables, pictures, and a verdict."""
    one_of("--resolution", resolution, ("native", "model"))
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise UsageError(f"--fail-under cannot be {fail_under:g}", expected="a Dice in [0, 1]")
    if split not in (None, "val"):
        one_of("--split", str(split), ("test", "validation", "train"))
    asked = threshold_of(threshold)

    from kerasseg.evaluation.targets import parse_goal
    from kerasseg.workflows.evaluate import Extras, evaluate_run

    goals = None if not target else tuple(parse_goal(text) for text in target)
    with progress_bar(quiet=quiet or as_json) as progress:
        evaluation = evaluate_run(
            run,
            split,
            shards,
            asked,
            resolution=cast("Resolution", resolution),
            goals=goals,
            extras=Extras(speed=speed, robustness=robustness, reference_2=reference_2, seed=seed),
            batch_size=batch_size,
            progress=progress,
        )
    _show(evaluation, as_json=as_json, quiet=quiet)
    _fail_under(evaluation, fail_under, as_json=as_json)


def _show(evaluation: Evaluation, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json(evaluation.model_dump(mode="json"))
        return
    from kerasseg.workflows.evaluate import evaluation_folder
    from kerasseg_cli.evaluate_display import summary

    for warning in evaluation.warnings:
        errors().print(f"Warning: {warning}", markup=False, style="yellow")
    if not quiet:
        summary(evaluation, evaluation_folder(evaluation))


def _fail_under(evaluation: Evaluation, least: float | None, *, as_json: bool) -> None:
    if least is None:
        return
    dice = evaluation.final_stage().all.measures["dice"].mean
    if dice is not None and dice >= least:
        return
    if not as_json:
        errors().print(f"Dice {dice or 0:.4f} is under {least:g} (--fail-under).", markup=False)
    raise typer.Exit(4)


def threshold_of(text: str) -> Literal["auto"] | float:
    """What `--threshold` says.

    Raises:
        UsageError: It is neither "auto" nor a probability in (0, 1].
    """
    if text == "auto":
        return "auto"
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise UsageError(f"--threshold cannot be {text!r}", expected="auto, or a probability in (0, 1] such as 0.5")
    return value
