"""`kerasseg evaluate`: evaluate a run's network and the checkpoint that training started from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from kerasseg_cli.console import errors, print_json, progress_bar
from kerasseg_cli.options import Json, Quiet, RunArgument, one_of, panel
from kerasseg_tfrecords.errors import UsageError

if TYPE_CHECKING:
    from kerasseg.evaluation.predictions import Resolution
    from kerasseg.evaluation.schema import Evaluation

WHAT, JUDGE, BESIDES = map(panel, ("What to evaluate", "Verdict", "Optional measurements"))


def evaluate(
    run: RunArgument = "latest",
    threshold: Annotated[
        str,
        WHAT(
            "Probability threshold without post-processing, or auto for the tuned rule (tuned first if needed).",
            metavar="NUMBER|auto",
        ),
    ] = "auto",
    split: Annotated[
        str | None,
        WHAT(
            "Split to evaluate; each evaluation of the test split is counted. [default: test]",
            values=("test", "validation", "train"),
        ),
    ] = None,
    shards: Annotated[
        Path | None, WHAT("Shard directory of another data set, evaluated as a whole, or of the run if it was moved.")
    ] = None,
    resolution: Annotated[
        str,
        WHAT("Resolution of the compared masks: each slice's own size, or the network's.", values=("native", "model")),
    ] = "native",
    flip_average: Annotated[
        bool, WHAT("Average the predictions of the image and its mirror image (doubles the time).", "--flip-average")
    ] = False,
    batch_size: Annotated[int, WHAT("Slices per batch.")] = 8,
    goals: Annotated[
        str | None,
        JUDGE("Goals to judge. [default: recipe if the run started from the recipe's checkpoint]", values=("recipe",)),
    ] = None,
    target: Annotated[
        list[str] | None,
        JUDGE("Mean Dice to reach, such as 0.92 or glioma=0.9; may be repeated.", metavar="[CLASS=]DICE"),
    ] = None,
    fail_under: Annotated[
        float | None,
        JUDGE("Exit with code 4 if mean Dice is lower or no evaluated slice has a tumour.", metavar="DICE"),
    ] = None,
    robustness: Annotated[
        bool, BESIDES("Measure Dice under image corruption (40 more passes over the slices).", "--robustness")
    ] = False,
    reference_2: Annotated[
        Path | None,
        BESIDES(
            "Masks of a second annotator: a folder of PNG or TIFF files named like the slices, or shards.",
            "--reference-2",
        ),
    ] = None,
    speed: Annotated[bool, BESIDES("Measure the speed of network and baseline.", "--speed/--no-speed")] = True,
    seed: Annotated[int, BESIDES("Random seed of the corruptions.", min=0)] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate the best weights of a run, compared with the checkpoint that training started from."""
    one_of("--resolution", resolution, ("native", "model"))
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise UsageError(f"invalid --fail-under {fail_under:g}", expected="a Dice in [0, 1]")
    if goals is not None:
        one_of("--goals", goals, ("recipe",))
        if target:
            raise UsageError("--goals and --target exclude each other", remedy="Use only one of them.")
    if split not in (None, "val"):
        one_of("--split", str(split), ("test", "validation", "train"))
    asked = threshold_of(threshold)

    from kerasseg.evaluation.targets import parse_goal
    from kerasseg.runs.config import shards_of
    from kerasseg.runs.directory import RunDirectory

    # Wrong paths are reported before TensorFlow is loaded.
    directory = RunDirectory.find(run)
    shards_of(directory.config(), shards)
    directory.require_network()
    from kerasseg.workflows.evaluate import Extras, evaluate_run

    wanted = tuple(parse_goal(text) for text in target) if target else cast("Literal['recipe'] | None", goals)
    with progress_bar(quiet=quiet or as_json) as progress:
        evaluation = evaluate_run(
            directory,
            split,
            shards,
            asked,
            resolution=cast("Resolution", resolution),
            goals=wanted,
            extras=Extras(speed=speed, robustness=robustness, reference_2=reference_2, seed=seed),
            flip_average=flip_average,
            batch_size=batch_size,
            progress=progress,
        )
    _show(evaluation, directory.root, as_json=as_json, quiet=quiet)
    _fail_under(evaluation, fail_under, as_json=as_json)


def _show(evaluation: Evaluation, run: Path, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json(evaluation.model_dump(mode="json"))
        return
    from kerasseg.workflows.evaluate import evaluation_folder
    from kerasseg_cli.evaluate_display import summary

    for warning in evaluation.warnings:
        errors().print(f"Warning: {warning}", markup=False, style="yellow")
    if not quiet:
        summary(evaluation, evaluation_folder(run, evaluation))


def _fail_under(evaluation: Evaluation, least: float | None, *, as_json: bool) -> None:
    if least is None:
        return
    figures = evaluation.final_stage().all
    dice = figures.measures["dice"].mean
    if figures.with_tumour and dice is not None and dice >= least:
        return
    why = f"Dice {dice or 0:.4f} is below {least:g}" if figures.with_tumour else "No evaluated slice has a tumour"
    if not as_json:
        errors().print(f"{why} (--fail-under).", markup=False)
    raise typer.Exit(4)


def threshold_of(text: str) -> Literal["auto"] | float:
    """Parse `--threshold`.

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
        raise UsageError(f"invalid --threshold {text!r}", expected="auto, or a probability in (0, 1] such as 0.5")
    return value
