"""Tables and charts of the evaluation's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from kerasseg.evaluation.per_slice import SliceRow
from kerasseg.evaluation.schema import (
    Calibration,
    Evaluation,
    Figures,
    Mean,
    Robustness,
    SecondReader,
    Speed,
    StageName,
)
from kerasseg.postprocessing import rule_in_words
from kerasseg.report.charts import Line, Span, interval_chart, line_chart, strip_chart
from kerasseg.report.wording import (
    Cell,
    Table,
    cell,
    gain_cell,
    is_number,
    share,
    stage_in_words,
    stage_of,
    stages_with_effect,
)
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.text import count

NETWORK, BASELINE = "network", "checkpoint before training"

_NAMES = {
    "dice": "Dice, all slices",
    "dice_tumour": "Dice, slices with tumour",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "hd95_mm": "HD95, mm",
    "asd_mm": "Average surface distance, mm",
    "hd95": "HD95, pixels",
    "asd": "Average surface distance, pixels",
    "hd95_with_misses": "HD95, a miss counts as the diagonal, pixels",
}

_CORRUPTIONS = {
    "rician_noise": "Rician noise",
    "bias_field": "bias field",
    "motion_blur": "motion blur",
    "low_resolution": "low resolution",
}


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """Dice on the validation split at every threshold, as stored in `threshold.json`.

    Attributes:
        thresholds: (n,) ascending, in (0, 1].
        dice: (n,) mean Dice over validation slices.
        chosen: The chosen threshold.
        low, high: (n,) limits of the interval over patients; None for none.
        baseline: (n,) the same for the checkpoint before training; None for none.
        baseline_chosen: Its threshold.

    Example:
        >>> ThresholdCurve([0.25, 0.5, 0.75], [0.71, 0.74, 0.7], chosen=0.5).dice.tolist()
        [0.71, 0.74, 0.7]
    """

    thresholds: ArrayLike
    dice: ArrayLike
    chosen: float
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    baseline: ArrayLike | None = None
    baseline_chosen: float | None = None

    def __post_init__(self) -> None:
        """Convert to arrays and check their shapes."""
        for name in ("thresholds", "dice", "low", "high", "baseline"):
            given = getattr(self, name)
            if given is None:
                continue
            values = np.asarray(given, np.float64)
            if values.shape != np.shape(self.thresholds) or values.ndim != 1:
                raise UsageError(
                    f"a threshold curve needs one {name} per threshold",
                    found=f"shape {values.shape}",
                    expected=f"shape {np.shape(self.thresholds)}",
                )
            object.__setattr__(self, name, values)


# --- tables --------------------------------------------------------------------------------------------------------------


def stage_table(evaluation: Evaluation) -> Table:
    """Return Dice at each stage: network, baseline, and the paired gain."""
    rows = []
    for stage in stages_with_effect(evaluation):
        before = stage_of(evaluation.baseline, stage.name)
        row = [Cell(stage_in_words(stage)), cell(stage.all.measures.get("dice"))]
        if evaluation.baseline is not None:
            beside = cell(None if before is None else before.all.measures.get("dice"))
            row += [beside, gain_cell(evaluation.gain.get(stage.name))]
        rows.append(tuple(row))
    columns = ("Stage", "Network") + (("Checkpoint before training", "Gain, paired") if evaluation.baseline else ())
    note = f"Small figures: {100 * evaluation.confidence:g} % interval over patients."
    if evaluation.baseline is not None:
        note += " The gain is paired: both networks on the same slices."
        own, its = evaluation.final_stage().rule, stage_of(evaluation.baseline, evaluation.final)
        if its is not None and its.rule != own:
            note += f" The checkpoint has its own final rule: {rule_in_words(its.rule)}."
    return Table("Mean Dice over all slices, stage by stage", columns, tuple(rows), note)


def measure_table(evaluation: Evaluation) -> Table:
    """Return every measure at the final stage."""
    final, before = evaluation.final_stage(), stage_of(evaluation.baseline, evaluation.final)
    rows = []
    for name, text in _NAMES.items():
        mean = final.all.measures.get(name)
        if mean is None or not is_number(mean.mean):
            continue
        digits = 3 if name in ("dice", "dice_tumour", "iou", "precision", "recall") else 1
        row = [Cell(text, count(mean.slices, "slice")), cell(mean, digits)]
        if before is not None:
            row.append(cell(before.all.measures.get(name), digits))
        rows.append(tuple(row))
    for text, figure in (("Tumours missed", _missed), ("Empty slices with a false alarm", _alarms)):
        row = [Cell(text), Cell(figure(final.all))]
        rows.append((*row, Cell(figure(before.all))) if before is not None else tuple(row))
    if final.volumes is not None:
        row = [Cell("Dice, pooled within volumes", count(final.volumes.slices, "volume")), cell(final.volumes)]
        rows.append((*row, cell(before.volumes)) if before is not None else tuple(row))
    columns = ("Measure", "Network") + (("Checkpoint before training",) if before is not None else ())
    note = "A missed tumour counts as Dice 0; distances are averaged over slices with tumour in both masks."
    return Table("All measures, final stage", columns, tuple(rows), note)


def group_table(evaluation: Evaluation, kind: str) -> Table | None:
    """Return Dice, misses and distance by class or by size; None without classes or sizes."""
    final, before = evaluation.final_stage(), stage_of(evaluation.baseline, evaluation.final)
    groups: Mapping[str, Figures] = getattr(final, kind)
    if not groups:
        return None
    gains = evaluation.gain_classes if kind == "classes" else {}
    known = final.all.measures.get("hd95_mm")
    distance, unit = ("hd95", "pixels") if known is None or known.mean is None else ("hd95_mm", "mm")
    rows = []
    for name, figures in groups.items():
        row = [Cell(name, f"{count(figures.slices, 'slice')}, {count(figures.patients, 'patient')}")]
        row.append(cell(figures.measures.get("dice")))
        if before is not None:
            beside = getattr(before, kind).get(name)
            row.append(cell(None if beside is None else beside.measures.get("dice")))
            if gains:
                row.append(gain_cell(gains.get(name)))
        row += [Cell(_missed(figures)), cell(figures.measures.get(distance), 1)]
        rows.append(tuple(row))
    columns = ["Class" if kind == "classes" else "Diameter", "Dice"]
    if before is not None:
        columns += ["Dice before training", *(["Gain, paired"] if gains else [])]
    columns += ["Missed", f"HD95, {unit}"]
    caption = "By class, final stage" if kind == "classes" else "By size of the tumour, final stage"
    return Table(caption, tuple(columns), tuple(rows))


def speed_table(speed: Speed) -> Table:
    """Return the time of the networks alone."""
    batches = sorted(speed.slices_per_second, key=lambda text: (len(text), text))
    columns = ["Slices at once", "Slices per second", "Milliseconds per slice"]
    if speed.baseline_slices_per_second:
        columns += ["Before training: slices per second", "milliseconds per slice"]
    rows = []
    for size in batches:
        row = [Cell(size), Cell(_plain(speed.slices_per_second[size]))]
        row.append(Cell(_plain(speed.milliseconds_a_slice.get(size))))
        if speed.baseline_slices_per_second:
            row.append(Cell(_plain(speed.baseline_slices_per_second.get(size))))
            row.append(Cell(_plain(speed.baseline_milliseconds_a_slice.get(size))))
        rows.append(tuple(row))
    return Table(f"The network alone, after warm-up, on {speed.device}", tuple(columns), tuple(rows))


def reader_table(second: SecondReader) -> Table:
    """Return the agreement of the two annotators and the network."""
    kinds = [
        ("All", second.agreement, second.network, second.network_second, second.difference),
        *(
            (
                name,
                mean,
                second.network_classes.get(name),
                second.network_second_classes.get(name),
                second.difference_classes.get(name),
            )
            for name, mean in second.agreement_classes.items()
        ),
    ]
    rows = [(Cell(name), *map(cell, means), gain_cell(difference)) for name, *means, difference in kinds]
    left = f"; {second.without:,} slices have no second mask and are left out" if second.without else ""
    note = (
        f"Over {second.slices:,} slices{left}. The agreement of the two annotators is the ceiling for any network. Last "
        "column: the network's Dice minus the second annotator's, both against the first annotator, on the same slices."
    )
    columns = (
        "Class",
        "The two annotators",
        "Network and first",
        "Network and second",
        "Network minus second annotator",
    )
    return Table("Agreement, Dice", columns, tuple(rows), note)


def robustness_table(robustness: Robustness) -> Table:
    """Return Dice at every grade."""
    grades = max((len(curve.grades) for curve in robustness.curves), default=0)
    columns = ("Corruption", "None", *(f"Grade {i + 1}" for i in range(grades)), "Kept")
    rows = [
        (
            Cell(corruption(curve.name)),
            Cell(share(robustness.clean)),
            *(Cell(share(value)) for value in curve.dice),
            *(Cell("-") for _ in range(grades - len(curve.dice))),
            Cell(percent(curve.kept)),
        )
        for curve in robustness.curves
    ]
    return Table("Dice under corruption", columns, tuple(rows), "Kept: mean over the grades, as a share of clean Dice.")


# --- charts --------------------------------------------------------------------------------------------------------------


def slice_chart(rows: Sequence[SliceRow], classes: Sequence[str], stage: StageName) -> Markup | None:
    found = [(name, [row.stage(stage).dice for row in rows if row.label == name]) for name in classes]
    found = [(name, values) for name, values in found if values]
    if not found:
        return None
    said = "; ".join(
        f"{name}: {count(len(values), 'slice')}, median {share(float(np.median(values)))}" for name, values in found
    )
    return strip_chart(found, describe=f"Dice of each slice by class. {said}", x_label="Dice")


def group_chart(evaluation: Evaluation, kind: str) -> Markup | None:
    """Draw Dice with its interval by class or by size, network above baseline."""
    final, before = evaluation.final_stage(), stage_of(evaluation.baseline, evaluation.final)
    groups: Mapping[str, Figures] = getattr(final, kind)
    rows = []
    for name, figures in groups.items():
        spans = [_span(figures.measures.get("dice"))]
        if before is not None:
            beside = getattr(before, kind).get(name)
            spans.append(_span(None if beside is None else beside.measures.get("dice")))
        rows.append((name, spans))
    if not any(is_number(span.value) for _, spans in rows for span in spans):
        return None
    what = "class" if kind == "classes" else "size of the tumour"
    said = "; ".join(f"{name}: {share(spans[0].value)}" for name, spans in rows)
    names = (NETWORK, BASELINE)[: 1 if before is None else 2]
    return interval_chart(rows, names, describe=f"Dice by {what}. {said}.", x_label="mean Dice, 95 % interval")


def threshold_chart(curve: ThresholdCurve) -> Markup:
    """Draw mean validation Dice by threshold."""
    xs = _floats(curve.thresholds)
    lines = [Line(NETWORK, xs, _floats(curve.dice), _floats(curve.low), _floats(curve.high), marks=False)]
    if curve.baseline is not None:
        lines.append(Line(BASELINE, xs, _floats(curve.baseline), marks=False))
    values = np.asarray(curve.dice, np.float64)
    best = f" The highest value is {np.nanmax(values):.3f}." if np.isfinite(values).any() else ""
    return line_chart(
        lines,
        describe=f"Mean Dice on validation over the threshold; {curve.chosen:g} was chosen.{best}",
        x_label="threshold",
        y_label="mean Dice, validation",
        x=(0.0, 1.0),
        places=((curve.chosen, f"chosen: {curve.chosen:g}"),),
    )


def robustness_charts(robustness: Robustness) -> tuple[tuple[str, Markup], ...]:
    """Draw a small chart for each corruption, all with the same scale: (title, chart)."""
    values = [v for curve in robustness.curves for v in (*curve.dice, robustness.clean) if v is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    air = max(0.06 * (high - low), 0.01)
    limits = max(low - air, 0.0), min(high + air, 1.0)
    found = []
    for curve in robustness.curves:
        places = range(len(curve.grades) + 1)
        said = ", ".join(share(value) for value in curve.dice)
        chart = line_chart(
            [Line(curve.name, places, (robustness.clean, *curve.dice))],
            describe=f"Dice under {corruption(curve.name)}: {share(robustness.clean)} without, then {said}.",
            x_label="grade",
            y_label="",
            x=(-0.1, len(curve.grades) + 0.1),
            y=limits,
            height=250,
        )
        found.append((f"{corruption(curve.name).capitalize()}: {percent(curve.kept)} kept", chart))
    return tuple(found)


def calibration_chart(calibration: Calibration) -> Markup:
    """Draw the observed share of tumour by predicted probability."""
    pairs = [
        (p, o)
        for p, o in zip(calibration.predicted, calibration.observed, strict=True)
        if p is not None and o is not None
    ]
    return line_chart(
        [Line(NETWORK, [p for p, _ in pairs], [o for _, o in pairs])],
        describe="Share of tumour among pixels over their predicted probability; a calibrated network lies on the "
        f"diagonal. Expected calibration error: {share(calibration.error)}.",
        x_label="predicted probability",
        y_label="share of tumour",
        x=(0.0, 1.0),
        y=(0.0, 1.0),
        height=360,
        diagonal=True,
    )


def reader_chart(second: SecondReader) -> Markup:
    """Draw the agreement of the annotators and that of the network."""
    rows = [
        ("The two annotators: the ceiling", [_span(second.agreement)]),
        ("Network and first annotator", [_span(second.network)]),
        ("Network and second annotator", [_span(second.network_second)]),
    ]
    said = "; ".join(f"{name}: {share(spans[0].value)}" for name, spans in rows)
    return interval_chart(rows, ("Dice",), describe=f"{said}.", x_label="mean Dice, 95 % interval")


# --- helpers -------------------------------------------------------------------------------------------------------------


def corruption(name: str) -> str:
    return _CORRUPTIONS.get(name, name.replace("_", " "))


def percent(value: float | None) -> str:
    """Format a share as a percentage.

    >>> percent(0.934), percent(None)
    ('93 %', '-')
    """
    return f"{100 * value:.0f} %" if value is not None and is_number(value) else "-"


def _missed(figures: Figures) -> str:
    return f"{figures.missed:,} of {figures.with_tumour:,}"


def _alarms(figures: Figures) -> str:
    return f"{figures.false_alarms:,} of {figures.empty:,}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _span(mean: Mean | None) -> Span:
    return Span(None, None, None) if mean is None else Span(mean.mean, mean.low, mean.high)


def _floats(values: ArrayLike | None) -> list[float]:
    return [] if values is None else np.asarray(values, np.float64).tolist()
