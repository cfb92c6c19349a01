"""`kerasseg evaluate`: evaluate a run's network and the checkpoint that training started from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kerasseg_cli.console import errors, figures_table, print_json, progress_bar, screen
from kerasseg_cli.options import FLIP_AVERAGE, Json, Quiet, RunArgument, one_of, panel
from kerasseg_tfrecords.errors import UsageError, one_line
from kerasseg_tfrecords.text import count as _count

if TYPE_CHECKING:
    from kerasseg.evaluation.predictions import Resolution
    from kerasseg.evaluation.schema import Evaluation, Figures, Mean, Stage


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
    flip_average: Annotated[bool, WHAT(FLIP_AVERAGE, "--flip-average")] = False,
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

    for warning in evaluation.warnings:
        errors().print(f"Warning: {warning}", style="yellow")
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
        errors().print(f"{why} (--fail-under).")
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


_SPLITS = {"test": "Test", "val": "Validation", "train": "Training", "all": "External"}
_SHARES = {"IoU": "iou", "precision": "precision", "recall": "recall"}
_ROOM = 112
"""Columns from which all figures have their intervals; otherwise only those of the verdict have."""


def summary(evaluation: Evaluation, folder: Path | None = None, console: Console | None = None) -> None:
    """Print the summary."""
    out = console or screen()
    final = evaluation.final_stage()
    dice = final.all.measures["dice"]
    out.print(
        f"{_SPLITS[evaluation.split]} Dice {_share(dice.mean, 4)}{_within(dice, evaluation.confidence)}, "
        f"{_count(final.all.slices, 'slice')} of {_count(final.all.patients, 'patient')}",
        style="bold",
    )
    for line in _verdict(evaluation):
        out.print(line)
    out.print()
    out.print(_stages(evaluation, out.width))
    out.print()
    out.print(_groups(evaluation, final, out.width))
    out.print()
    for line in _lines(evaluation, final):
        out.print(line)
    if folder is not None:
        # Not wrapped, so that paths can be copied.
        if evaluation.earlier is not None:
            place = folder.parent / evaluation.earlier
            out.print(f"The previous evaluation, with other options, is kept: {place}", soft_wrap=True)
        out.print(f"Report: {folder / 'report.html'}", soft_wrap=True)


def _verdict(evaluation: Evaluation) -> list[str]:
    """Return the gain over the checkpoint, the goals, and why the tuned rule was not kept."""
    if not evaluation.final_stage().all.with_tumour:
        return ["No evaluated slice has a tumour: no verdict."]
    from kerasseg.report.wording import gain_sentence

    gain = evaluation.gain.get(evaluation.final)
    said = [gain_sentence(gain, "before training", evaluation.confidence)]
    goals: dict[str, list[str]] = {}
    for target in evaluation.targets:
        name = target.name.removeprefix("Dice of ").replace("Dice (stated baseline)", "stated baseline")
        few = "open (too few patients)" if target.value.low is None else target.verdict
        goals.setdefault(few, []).append(f"{name} {target.goal:.4g}{' (stretch)' if target.stretch else ''}")
    if goals:
        said.append("Goals: " + "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in goals.items()) + ".")
    said.append(evaluation.rule_decision)
    return [line for line in said if line]


def _stages(evaluation: Evaluation, width: int) -> Table:
    from kerasseg.report.wording import stage_of, stages_with_effect

    baseline = evaluation.baseline
    headings = ["network"] + (["before training", "gain, paired"] if baseline else [])
    table = figures_table("Dice by stage", headings, gap=2)
    roomy = width >= _ROOM
    for stage in stages_with_effect(evaluation):
        before = stage_of(baseline, stage.name)
        cells = [_stage_name(stage), _cell(stage.all.measures["dice"], roomy)]
        if before is not None:
            cells.append(_cell(before.all.measures["dice"], roomy))
            cells.append(_cell(evaluation.gain.get(stage.name), width >= 75, sign=True))
        table.add_row(*cells)
    return table


def _groups(evaluation: Evaluation, final: Stage, width: int) -> Table:
    roomy = width >= _ROOM
    gain = bool(evaluation.gain)
    unit = _unit(final.all)
    headings = ["slices", "Dice", *(["gain"] if gain else []), f"HD95, {'mm' if unit == 'mm' else 'px'}", "missed"]
    if width >= 75:
        headings.insert(1, "patients")
    title = f"Final masks ({evaluation.precision})" if evaluation.precision else "Final masks"
    table = figures_table(title, headings, gap=2)

    def row(name: str, figures: Figures, over: Mean | None) -> None:
        cells: list[str | Text] = [Text(one_line(name)), str(figures.slices)]  # names are not markup
        if width >= 75:
            cells.append(str(figures.patients))
        cells.append(_cell(figures.measures["dice"], roomy or (width >= 75 and not gain)))
        if gain:
            cells.append(_cell(over, roomy, sign=True))
        cells += [_distance(figures, unit), f"{figures.missed} of {figures.with_tumour}"]
        table.add_row(*cells)

    row("all slices", final.all, evaluation.gain.get(evaluation.final))
    if len(final.classes) > 1:
        for name, figures in final.classes.items():
            row(name, figures, evaluation.gain_classes.get(name))
    for name, figures in final.sizes.items():
        row(name, figures, None)
    return table


def _lines(evaluation: Evaluation, final: Stage) -> list[str]:
    everything = final.all
    shares = ", ".join(f"{name} {_value(everything, key)}" for name, key in _SHARES.items())
    alarms = f"; {everything.false_alarms} of {_count(everything.empty, 'empty slice')} with a false alarm"
    missed = f"{everything.missed} of {_count(everything.with_tumour, 'tumour')}"
    lines = ["The last rows are thirds of the tumours by diameter."] if final.sizes else []
    lines += [
        f"Tumour slices: Dice {_value(everything, 'dice_tumour')}. Over all slices: {shares}.",
        f"Missed {missed}{alarms if everything.empty else ''}. Average surface distance: {_surface(everything)}.",
    ]
    if final.volumes is not None:
        lines.append(f"Pooled within {_count(final.volumes.slices, 'volume')}: Dice {_share(final.volumes.mean)}.")
    beside = []
    if evaluation.calibration is not None:
        beside.append(f"calibration error {_share(evaluation.calibration.error)}")
    if evaluation.robustness is not None:
        kept = evaluation.robustness.kept
        beside.append(f"under corruption {'-' if kept is None else f'{100 * kept:.0f} %'} of Dice is kept")
    if beside:
        text = "; ".join(beside)
        lines.append(f"{text[0].upper()}{text[1:]}.")
    if evaluation.second_reader is not None:
        second = evaluation.second_reader
        lines.append(
            f"Two annotators agree at Dice {_share(second.agreement.mean)} on {_count(second.slices, 'slice')}; there the "
            f"network has {_share(second.network.mean)} against the first and {_share(second.network_second.mean)} against "
            "the second."
        )
    if evaluation.speed is not None:
        lines.append(_speed(evaluation))
    if everything.measures["dice"].low is None:
        lines.append(f"{_count(everything.patients, 'patient')}: too few for intervals.")
    times = "once" if evaluation.test_looks == 1 else f"{evaluation.test_looks} times"
    if evaluation.split == "all":
        lines.append(f"This data set has been evaluated {times}, including now.")
    elif evaluation.split == "test":
        lines.append(f"The test split has been evaluated {times}, including now.")
    return lines


def _speed(evaluation: Evaluation) -> str:
    speed = evaluation.speed
    assert speed is not None  # noqa: S101 - checked by the caller
    parts = []
    for batch, milliseconds in speed.milliseconds_a_slice.items():
        before = speed.baseline_milliseconds_a_slice.get(batch)
        than = "" if before is None else f" (before training {before:.3g})"
        parts.append(f"{milliseconds:.3g} ms per slice at batch size {batch}{than}")
    return f"Speed: {', '.join(parts)}."


def _stage_name(stage: Stage) -> str:
    if stage.name == "raw":
        return "threshold 0.5"
    if stage.name == "postprocessing":
        return "+ post-processing" if stage.rule.postprocesses else "no post-processing"
    return "by class" if stage.rule.class_thresholds else f"threshold {stage.rule.threshold:g}"


def _cell(mean: Mean | None, interval: bool, *, sign: bool = False) -> str:
    if mean is None or mean.mean is None:
        return "-"
    form = "+.3f" if sign else ".3f"
    text = f"{mean.mean:{form}}"
    if interval and mean.low is not None and mean.high is not None:
        text += f" ({mean.low:{form}} to {mean.high:{form}})"
    return text


def _within(mean: Mean, confidence: float) -> str:
    if mean.low is None or mean.high is None:
        return ""
    return f" ({100 * confidence:g} %: {mean.low:.3f} to {mean.high:.3f})"


def _unit(figures: Figures) -> str:
    metric = figures.measures.get("hd95_mm")
    return "pixels" if metric is None or metric.mean is None else "mm"


def _distance(figures: Figures, unit: str) -> str:
    return _value(figures, "hd95_mm" if unit == "mm" else "hd95", 1)


def _surface(figures: Figures) -> str:
    unit = _unit(figures)
    return f"{_value(figures, 'asd_mm' if unit == 'mm' else 'asd', 1)} {unit}"


def _value(figures: Figures, name: str, digits: int = 3) -> str:
    mean = figures.measures.get(name)
    return _share(None if mean is None else mean.mean, digits)


def _share(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
