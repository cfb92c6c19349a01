"""Figures of a set of slices from their scores: means, counts, intervals, and paired gains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg.evaluation.bootstrap import Interval, bootstrap_interval, group_numbers, paired_interval
from kerasseg.evaluation.per_slice import SliceRow
from kerasseg.evaluation.schema import MEASURES, Figures, Mean, NetworkFigures, Stage, StageName
from kerasseg.postprocessing import MaskRule


@dataclass(frozen=True, slots=True)
class Resampling:
    """Options of intervals and sign-flip tests."""

    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0

    def of(self, values: ArrayLike, people: ArrayLike | None, highest: float | None = None) -> Mean:
        """Return the mean of values that are not NaN, with its interval cut to 0 to `highest` (None for no bounds)."""
        found = bootstrap_interval(values, people, **self._options())  # type: ignore[arg-type]
        return as_mean(found if highest is None else found.cut(0.0, highest))

    def paired(self, before: ArrayLike, after: ArrayLike, people: ArrayLike | None) -> Mean:
        """Return the mean difference of two shares, such as Dice, with its interval cut to -1 to 1."""
        return as_mean(paired_interval(before, after, people, **self._options()).cut(-1.0, 1.0))  # type: ignore[arg-type]

    def _options(self) -> dict[str, float | int]:
        return {"confidence": self.confidence, "resamples": self.resamples, "seed": self.seed}


USUAL = Resampling()
"""Default options of every report."""

SHARES = ("dice", "dice_tumour", "iou", "precision", "recall")
"""Measures between 0 and 1; the others are distances."""


def as_mean(interval: Interval) -> Mean:
    """Convert to the form of `metrics.json`: None for NaN, and no limits with fewer than five patients."""
    mean = None if math.isnan(interval.estimate) else interval.estimate
    known = not interval.few and not math.isnan(interval.low)
    return Mean(
        mean=mean,
        low=interval.low if known else None,
        high=interval.high if known else None,
        slices=interval.slices,
        patients=interval.groups,
        clear=None if math.isnan(interval.p) else interval.clear,
    )


def clusters(rows: Sequence[SliceRow]) -> NDArray[np.int64]:
    """Number slices by patient: (slices,) integers, equal for slices with the same patient id or split group.

    Both count, because a split by slice groups no patients, and a group may contain several ids of one head. A slice
    without either is a patient of its own.

    Example:
        >>> from kerasseg.evaluation.scoring import mask_scores
        >>> empty = mask_scores(np.zeros((2, 2), bool), np.zeros((2, 2), bool))
        >>> ids = [("p1", "g1"), ("p2", "g1"), ("p2", "g2"), ("", ""), ("", "")]
        >>> clusters([SliceRow("s", p, g, "", "a", 2, 2, 0, 0, 0, empty, empty, empty) for p, g in ids]).tolist()
        [0, 0, 0, 1, 2]
    """
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            name = above[name]
        return name

    for row in rows:
        if row.patient and row.group:
            above[top(f"patient {row.patient}")] = top(f"group {row.group}")
    names = []
    for row in rows:
        own = f"group {row.group}" if row.group else f"patient {row.patient}" if row.patient else ""
        names.append(top(own) if own else "")
    return group_numbers(names)


def size_groups(rows: Sequence[SliceRow]) -> dict[str, NDArray[np.bool_]]:
    """Divide the slices with tumour into thirds by tumour size: description -> (slices,) bool, the smallest first.

    The size is the diameter of a disk of the same area: in millimetres if every slice with tumour has a known spacing, in
    pixels if all slices have the same size, and otherwise in percent of the slice's longer side.
    """
    tumour = np.array([row.reference_pixels > 0 for row in rows], bool)
    if not tumour.any():
        return {}
    area = np.array([row.reference_pixels for row in rows], np.float64)
    pixel = np.array([row.spacing_rows * row.spacing_columns for row in rows], np.float64)
    sides = np.array([max(row.height, row.width) for row in rows], np.float64)
    diameter = 2 * np.sqrt(area / math.pi)
    if (pixel[tumour] > 0).all():
        diameter, unit = diameter * np.sqrt(pixel), "mm"
    elif len(set(sides[tumour].tolist())) == 1:
        unit = "pixels"
    else:
        diameter, unit = 100 * diameter / sides, "% of the width"
    # Rounded before the comparison, so that the descriptions are exact.
    low, high = (round(float(bound), 1) for bound in np.percentile(diameter[tumour], [100 / 3, 200 / 3]))
    groups = {
        f"up to {low:g} {unit}": tumour & (diameter <= low),
        f"{low:g} to {high:g} {unit}": tumour & (diameter > low) & (diameter <= high),
        f"over {high:g} {unit}": tumour & (diameter > high),
    }
    return {name: chosen for name, chosen in groups.items() if chosen.any()}


def figures_of(
    rows: Sequence[SliceRow], stage: StageName, people: NDArray[np.int64], resampling: Resampling = USUAL
) -> Figures:
    scores = [row.stage(stage) for row in rows]
    true = np.array([row.reference_pixels for row in rows], np.int64)
    found = np.array([score.predicted_pixels for score in scores], np.int64)
    overlap = np.array([score.overlap_pixels for score in scores], np.int64)
    columns = {
        name: np.array([getattr(score, name) for score in scores], np.float64)
        for name in MEASURES
        if name not in ("dice_tumour", "hd95_with_misses")
    }
    columns["dice_tumour"] = np.where((true > 0) | (found > 0), columns["dice"], np.nan)
    diagonal = np.array([math.hypot(row.height, row.width) for row in rows], np.float64)
    columns["hd95_with_misses"] = np.where((true > 0) != (found > 0), diagonal, columns["hd95"])
    return Figures(
        slices=len(rows),
        patients=len(np.unique(people)),
        with_tumour=int((true > 0).sum()),
        missed=int(((true > 0) & (found == 0)).sum()),
        untouched=int(((true > 0) & (overlap == 0)).sum()),
        empty=int((true == 0).sum()),
        false_alarms=int(((true == 0) & (found > 0)).sum()),
        measures={name: resampling.of(columns[name], people, 1.0 if name in SHARES else math.inf) for name in MEASURES},
    )


def network_figures(
    rows: Sequence[SliceRow],
    classes: Sequence[str],
    rules: Mapping[StageName, MaskRule],
    resampling: Resampling = USUAL,
) -> NetworkFigures:
    """Compute the figures of a network at every stage: all slices, each class, each range of sizes, and volumes.

    Args:
        rows: All slices.
        classes: Class names, in order; those without slices are left out.
        rules: Stage -> rule.
        resampling: Options of the intervals.
    """
    people = clusters(rows)
    labels = np.array([row.label for row in rows])
    sets = {name: labels == name for name in classes if (labels == name).any()}
    sizes = size_groups(rows)

    def part(chosen: NDArray[np.bool_], stage: StageName) -> Figures:
        return figures_of(
            [row for row, there in zip(rows, chosen, strict=True) if there], stage, people[chosen], resampling
        )

    stages = []
    for stage, rule in rules.items():
        stages.append(
            Stage(
                name=stage,
                rule=rule,
                all=figures_of(rows, stage, people, resampling),
                classes={name: part(chosen, stage) for name, chosen in sets.items()},
                sizes={name: part(chosen, stage) for name, chosen in sizes.items()},
                volumes=_volumes(rows, stage, people, resampling),
            )
        )
    return NetworkFigures(stages=tuple(stages))


def gains(rows: Sequence[SliceRow], stages: Sequence[StageName], resampling: Resampling = USUAL) -> dict[str, Mean]:
    """Return stage -> paired gain in Dice over the baseline, of all slices; rows from `with_baseline`."""
    people = clusters(rows)
    return {stage: _gain(rows, stage, people, resampling) for stage in stages}


def gain_classes(
    rows: Sequence[SliceRow], classes: Sequence[str], stage: StageName, resampling: Resampling = USUAL
) -> dict[str, Mean]:
    """Return class -> paired gain in Dice over the baseline at one stage; classes without slices are left out."""
    people = clusters(rows)
    found = {}
    for name in classes:
        chosen = [i for i, row in enumerate(rows) if row.label == name]
        if chosen:
            found[name] = _gain([rows[i] for i in chosen], stage, people[chosen], resampling)
    return found


def tuning_gain(rows: Sequence[SliceRow], final: StageName, resampling: Resampling = USUAL) -> Mean:
    """Return the paired gain in Dice of the final stage over the raw one."""
    before, after = (np.array([row.stage(stage).dice for row in rows], np.float64) for stage in ("raw", final))
    return resampling.paired(before, after, clusters(rows))


def _gain(rows: Sequence[SliceRow], stage: StageName, people: NDArray[np.int64], resampling: Resampling) -> Mean:
    before = np.array([row.stage(stage).baseline_dice for row in rows], np.float64)
    after = np.array([row.stage(stage).dice for row in rows], np.float64)
    return resampling.paired(before, after, people)


def _volumes(
    rows: Sequence[SliceRow], stage: StageName, people: NDArray[np.int64], resampling: Resampling
) -> Mean | None:
    """Return the mean over volumes of the Dice pooled within each; None without volumes."""
    members: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.volume:
            members.setdefault(row.volume, []).append(i)
    if not members:
        return None
    dice, whose = [], []
    for numbers in members.values():
        scores = [rows[i].stage(stage) for i in numbers]
        overlap = sum(score.overlap_pixels for score in scores)
        both = sum(score.predicted_pixels for score in scores) + sum(rows[i].reference_pixels for i in numbers)
        dice.append(2 * overlap / both if both else 1.0)
        whose.append(people[numbers[0]])
    return resampling.of(np.array(dice, np.float64), np.array(whose, np.int64), 1.0)
