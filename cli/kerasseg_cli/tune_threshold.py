"""`kerasseg tune-threshold`: choose threshold and post-processing of a run on validation slices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from kerasseg_cli.console import figures_table, print_json, progress_bar, screen
from kerasseg_cli.options import FlipAverage, Json, MovedShards, Quiet, RunArgument, option
from kerasseg_tfrecords.text import count

if TYPE_CHECKING:
    from rich.table import Table

    from kerasseg.evaluation.schema import Mean
    from kerasseg.tuning.threshold_file import ThresholdFile, Tuned, TuningStep


def tune_threshold(
    run: RunArgument = "latest",
    per_class: Annotated[
        bool,
        option(
            "Also choose a threshold for each class, which applies only if the class is known before prediction.",
            "--per-class",
        ),
    ] = False,
    cross_validation: Annotated[
        Path | None,
        option(
            "Cross-validation of the run's shards whose out-of-fold predictions are used (more patients).",
            "--from",
            metavar="CROSS_VALIDATION",
        ),
    ] = None,
    force: Annotated[
        bool, option("Keep the rule even if its gain may be chance or there are few patients.", "--force")
    ] = False,
    flip_average: FlipAverage = False,
    shards: MovedShards = None,
    batch_size: Annotated[int, option("Slices per batch.", min=1)] = 8,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Choose threshold and post-processing on validation slices, for a run's network and its baseline.

    They replace threshold 0.5 without post-processing only if the gain over patients is beyond noise.
    """
    from kerasseg.runs.config import shards_of
    from kerasseg.runs.directory import RunDirectory

    # Wrong paths are reported before TensorFlow is loaded.
    directory = RunDirectory.find(run)
    shards_of(directory.config(), shards)
    from kerasseg.workflows.tune import tune_run

    with progress_bar(quiet=quiet or as_json) as progress:
        found = tune_run(
            directory,
            per_class=per_class,
            force=force,
            cross_validation=cross_validation,
            shards=shards,
            batch_size=batch_size,
            flip_average=flip_average,
            progress=progress,
        )
    if as_json:
        print_json({"file": str(directory.threshold_file), **found.model_dump(mode="json")})
    elif not quiet:
        named = "" if run == "latest" else f" {run}"
        show(found, directory.threshold_file, f"kerasseg evaluate{named} --threshold auto")


def show(found: ThresholdFile, path: Path, following: str) -> None:
    """Print the summary: each step with its gain, the rule, the baseline, and the next command."""
    from kerasseg.postprocessing import MaskRule, rule_in_words

    console = screen()
    tuned, before = found.model, found.baseline
    console.print(_table(tuned, console.width))
    console.print()
    for line in (
        _gain("Network", tuned),
        tuned.decision,
        "" if tuned.rule == MaskRule() and tuned.decision else f"Rule: {rule_in_words(tuned.rule, tuned.length)}.",
        _certainty(tuned),
        _curve(tuned),
        before and _gain("Baseline", before) + f" Rule: {rule_in_words(before.rule, before.length)}.",
    ):
        if line:
            console.print(line)
    if tuned.rule.class_thresholds:
        console.print("Class thresholds apply only if the class is known at prediction time.")
    others = before.notes if before else ()
    for note in dict.fromkeys([*tuned.notes, *(f"Baseline: {note}" for note in others if note not in tuned.notes)]):
        console.print(f"Note: {note}")
    console.print(f"Written: {path}", soft_wrap=True)
    console.print(f"Next: {following}", soft_wrap=True)


def _table(tuned: Tuned, width: int) -> Table:
    """Return the table of steps, without classes on a narrow screen."""
    classes = list(tuned.steps[0].classes) if width >= 76 and len(tuned.steps[0].classes) > 1 else []
    short = [name if width >= 100 or len(name) <= 8 else f"{name[:7]}." for name in classes]
    table = figures_table("step", ["Dice", "change", *short])
    table.add_column("")
    last: TuningStep | None = None
    for step in tuned.steps:
        dice = "" if step.dice is None else f"{step.dice:.4f}"
        gain = "" if step.gain is None else _signed(step.gain)
        changes = [_change(step, last, name) for name in classes]
        label = _label(step, partial(tuned.length, brief=width < 100))
        table.add_row(label, dice, gain, *changes, _verdict(step), style=None if step.kept else "dim")
        last = step if step.kept else last
    return table


def _verdict(step: TuningStep) -> str:
    if step.name == "raw":
        return ""
    return "kept" if step.kept else step.reason


def _change(step: TuningStep, last: TuningStep | None, name: str) -> str:
    if name not in step.classes:
        return ""
    return f"{step.classes[name]:.4f}" if last is None else _signed(step.classes[name] - last.classes[name])


def _signed(change: float) -> str:
    text = f"{change:+.4f}"
    return "0" if text in ("+0.0000", "-0.0000") else text


def _label(step: TuningStep, length: Callable[[float], str]) -> str:
    rule = step.rule
    labels = {
        "raw": "at 0.5",
        "threshold": f"threshold {rule.threshold:g}",
        "min_diameter": f"remove < {length(rule.min_diameter)}",
        "close_radius": f"close {length(rule.close_radius)}",
        "fill_holes": "fill holes",
        "keep_largest": "keep the largest",
        "open_radius": f"open {length(rule.open_radius)}",
        "settled": f"threshold -> {rule.threshold:g}",
        "class_thresholds": "threshold per class",
    }
    return labels[step.name]


def _gain(name: str, tuned: Tuned) -> str:
    from kerasseg.postprocessing import MaskRule

    data = f"{count(tuned.slices, 'slice')}, {count(tuned.patients, 'patient')}"
    if tuned.rule == MaskRule():
        return f"{name}: validation Dice {tuned.raw.mean:.4f} at 0.5; {data}."
    change = f"{tuned.raw.mean:.4f} -> {tuned.dice.mean:.4f}, {_interval(tuned.gain, tuned)}"
    return f"{name}: validation Dice {change}; {data}."


def _interval(gain: Mean, tuned: Tuned) -> str:
    if gain.mean is None or gain.low is None or gain.high is None:
        return f"gain {gain.mean:+.4f}"
    return f"gain {gain.mean:+.4f} ({100 * tuned.confidence:g} % {gain.low:+.4f} to {gain.high:+.4f})"


def _certainty(tuned: Tuned) -> str:
    text = f"Best threshold {tuned.best:g}"
    if tuned.flat_low < tuned.flat_high:
        text += f"; {tuned.flat_low:g} to {tuned.flat_high:g} are as good within noise"
    if tuned.threshold_low is None or tuned.threshold_high is None:
        return f"{text}."
    share = f"{100 * tuned.confidence:g} %"
    return f"{text} ({share} range over patients: {tuned.threshold_low:g} to {tuned.threshold_high:g})."


def _curve(tuned: Tuned) -> str:
    curve = tuned.curve_with_steps or tuned.curve
    low, high = (0.1, 0.9) if tuned.curve_with_steps is None else (curve.thresholds[0], curve.thresholds[-1])
    points = {}
    for k in range(5):
        place = low + (high - low) * k / 4
        threshold, dice = min(zip(curve.thresholds, curve.dice, strict=True), key=lambda one: abs(one[0] - place))
        points[threshold] = dice
    listed = ", ".join(f"{threshold:g}: {dice:.3f}" for threshold, dice in points.items())
    return f"Dice by threshold: {listed}."
