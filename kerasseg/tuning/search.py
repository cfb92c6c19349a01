"""The best rule from probabilities to masks on a set of slices: threshold first, then post-processing together with it.

1. **Threshold.** Mean over slices of Dice at 1,000 thresholds (`kerasseg.tuning.thresholds`). Of the thresholds around the
   best one that are as good within noise (one standard error of the paired difference, over patients, and never more than
   half a point of Dice), the one nearest to 0.5 is taken.
2. **Post-processing**, step by step in the order of `MaskRule`. Each step is tried in a few strengths, each at several
   thresholds: what removes false pixels allows a lower threshold. A step is kept only if the mean rises, against the rule
   so far and against the same threshold without the step, and no class loses (the rule of nnU-Net: Isensee et al., Nature
   Methods 2021). A setting that is clearly behind after a third of the slices is given up.
3. **Threshold once more**, with the steps that were kept, by the same rule as in 1.
4. On request a threshold for each class that gains by it.

Nothing is drawn at random but the resamples of the intervals, whose seed is fixed: the same slices give the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.bootstrap import Interval, bootstrap_interval
from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.evaluation.schema import Mean
from kerasseg.postprocessing import MaskRule
from kerasseg.tuning.curves import Survey, survey
from kerasseg.tuning.result import Curve, StepName, Tuned, TuningStep
from kerasseg.tuning.scoring import RuleSearch, hold
from kerasseg.tuning.thresholds import (
    MOST_NOISE,
    THRESHOLDS,
    ThresholdChoice,
    best_of_resamples,
    best_threshold,
    choose,
)
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.text import Progress

__all__ = ["tune"]

_LEAST_GAIN = 1e-4
"""Mean Dice that a step must bring to be worth having: a hundredth of a point."""

_SEARCHED = 2000
"""Slices that post-processing is tried on at most: beyond that more of them change nothing but the time."""

_COARSE, _FINE = 7, 25
"""Thresholds that each step is tried at, and those that are tried in the end."""

_WORTH_TRYING = 0.05
"""Mean Dice below the best where thresholds are still tried: a step may bring that much."""

_Step = Literal["min_diameter", "close_radius", "fill_holes", "keep_largest", "open_radius"]

_SETTINGS: dict[_Step, tuple[float | bool, ...]] = {
    "min_diameter": (0.01, 0.02, 0.04, 0.06, 0.1),
    "close_radius": (0.004, 0.008, 0.016),
    "fill_holes": (True,),
    "keep_largest": (True,),
    "open_radius": (0.004, 0.008, 0.016),
}
"""Lengths as shares of the width: at 512 pixels of half a millimetre, objects of 2.5 to 25 mm and radii of 1 to 4 mm."""


def tune(
    predictions: Predictions,
    *,
    per_class: bool = False,
    resolution: Resolution = "native",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """The rule with the highest mean over slices of Dice, with the evidence for it.

    Give it validation slices: a rule that was tuned on test slices makes their figures worthless.

    Args:
        predictions: Probabilities and references, see `kerasseg.evaluation.predictions`.
        per_class: Also look for a threshold for each class. It can be applied only where the class is known.
        resolution: Where Dice is taken.
        confidence: Of the intervals.
        resamples: Of the patients, for the interval of the threshold; ten times as many for those of Dice.
        seed: Of the resamples.
        jobs: Threads; None for all processors.
        progress: Told a stage ("sweep", "search"), what is done, and how much there is.

    Raises:
        UsageError: No slices, or options that cannot be used.
        DataError: No slice has a tumour: the emptiest mask would be the best.

    Example:
        >>> from kerasseg.evaluation.predictions import ArrayPredictions
        >>> masks = np.zeros((4, 16, 16), bool); masks[:, 4:9, 4:9] = True
        >>> probabilities = np.where(masks, 0.4, 0.1); probabilities[:, 14, 14] = 0.45  # a stray pixel
        >>> tuned = tune(ArrayPredictions(probabilities, masks))
        >>> tuned.rule.threshold, round(tuned.raw.mean, 3), round(tuned.dice.mean, 3)
        (0.4, 0.0, 1.0)
        >>> [step.name for step in tuned.steps if step.kept]
        ['raw', 'threshold', 'min_diameter']
    """
    if not 0 < confidence < 1 or resamples < 1:
        found = f"confidence {confidence}, {resamples} resamples"
        raise UsageError("tuning cannot be done so", found=found, expected="0 < confidence < 1, resamples >= 1")
    seen = survey(predictions, resolution, progress)
    numbers = _sample(seen.groups)
    choice = choose(THRESHOLDS, *seen.by_patient())
    grid = _grid(seen.mean())
    ranges = {name: _grid(seen.mean(name)) for name in seen.classes} if per_class and not seen.constant else {}
    lowest = min(map(min, [grid, *ranges.values()]))
    with RuleSearch(hold(predictions, numbers, seen.groups, resolution, lowest), jobs) as search:
        tuner = _Tuner(seen, search, predictions, progress)
        tuner.threshold(choice)
        if not seen.constant:
            tuner.postprocessing(grid)
        with_steps = tuner.settle(grid) if tuner.rule.postprocesses else None
        if ranges:
            tuner.per_class(ranges)
    rule = tuner.rule
    final = _dice_of_all(predictions, seen, rule, resolution, jobs)

    thresholds, sums, counts, choice = with_steps or (THRESHOLDS, *seen.by_patient(), choice)
    low, high = best_of_resamples(thresholds, sums, counts, confidence=confidence, resamples=resamples, seed=seed)

    def interval(values: NDArray[np.float64]) -> Mean:
        return _as_mean(
            bootstrap_interval(values, seen.groups, confidence=confidence, resamples=10 * resamples, seed=seed)
        )

    return Tuned(
        rule=rule,
        resolution=resolution,
        slices=len(predictions),
        patients=seen.patients,
        searched=len(numbers),
        raw=interval(seen.raw),
        dice=interval(final),
        gain=interval(final - seen.raw),
        confidence=confidence,
        best=float(thresholds[choice.best]),
        threshold_low=low,
        threshold_high=high,
        flat_low=float(thresholds[choice.low]),
        flat_high=float(thresholds[choice.high]),
        curve=_curve(THRESHOLDS, seen.mean()),
        curve_with_steps=_curve(thresholds, sums.sum(0) / counts.sum()) if with_steps else None,
        steps=tuple(tuner.steps),
        width=seen.width,
        spacing=seen.spacing,
        notes=seen.notes(),
    )


class _Tuner:
    """The rule so far, and the table of how it came about.

    Attributes:
        rule: What was kept.
        steps: What was tried.
    """

    def __init__(self, seen: Survey, search: RuleSearch, predictions: Predictions, progress: Progress | None) -> None:
        self.rule = MaskRule()
        self.steps: list[TuningStep] = []
        self._seen, self._search, self._progress = seen, search, progress
        self._names = predictions.classes
        self._labels, self._groups = search.held.labels, search.held.groups
        self._plain = self.rule
        self._tried = 0

    # --- threshold -------------------------------------------------------------------------------------------------------

    def threshold(self, choice: ThresholdChoice) -> None:
        """The threshold alone, from the curve over all slices."""
        mean, half = self._seen.mean(), int(np.abs(THRESHOLDS - 0.5).argmin())
        self._note("raw", self.rule, float(mean[half]), self._seen.class_means(half), kept=True)
        chosen = half if self._seen.constant or mean[half] >= mean[choice.chosen] else choice.chosen
        rule = MaskRule(threshold=float(THRESHOLDS[chosen]))
        flat = "all are the same" if self._seen.constant else "0.5 is as good as the best within noise"
        reason = "" if chosen != half else flat
        found, classes = float(mean[chosen]), self._seen.class_means(chosen)
        self._note("threshold", rule, found, classes, found - float(mean[half]), kept=not reason, reason=reason)
        self._plain = self.rule

    # --- post-processing -------------------------------------------------------------------------------------------------

    def postprocessing(self, grid: list[float]) -> None:
        """Each step in turn, in a few strengths and at a few thresholds."""
        grid = sorted({*grid, self.rule.threshold})
        planned = sum(map(len, _SETTINGS.values())) * len(grid)
        for name, settings in _SETTINGS.items():
            found = []
            standing = self._search.dice(self.rule)
            for setting in settings:
                for threshold in grid:
                    rule = self.rule.model_copy(update={name: setting, "threshold": threshold})
                    dice = self._search.race(rule, standing)
                    if dice is not None:
                        found.append((rule, dice))
                    self._tried += 1
                    if self._progress is not None:
                        self._progress("search", self._tried, planned)
            self._keep_the_best(name, found, standing)

    def _keep_the_best(
        self, name: _Step, found: list[tuple[MaskRule, NDArray[np.float64]]], standing: NDArray[np.float64]
    ) -> None:
        """Of the settings of one step that gain without loss for any class, the one with the highest mean."""
        if not found:
            reason = "every setting is clearly worse"
            self._note(
                name, self.rule.model_copy(update={name: _SETTINGS[name][0]}), None, {}, kept=False, reason=reason
            )
            return
        # Of equal means the nearest threshold, and of these the first, the gentlest.
        found.sort(key=lambda one: (-round(float(one[1].mean()), 12), abs(one[0].threshold - self.rule.threshold)))
        for rule, dice in found:
            if not self._objection(rule, dice, name, standing):
                self._add(name, rule, dice, standing)
                return
        rule, dice = found[0]
        self._add(name, rule, dice, standing, self._objection(rule, dice, name, standing))

    def _objection(self, rule: MaskRule, dice: NDArray[np.float64], name: _Step, standing: NDArray[np.float64]) -> str:
        """Why a rule is not to be kept; "" where it is."""
        gain = float(dice.mean() - standing.mean())
        if gain < _LEAST_GAIN:
            return "changes nothing" if np.array_equal(dice, standing) else "no gain"
        before, after = self._classes(standing), self._classes(dice)
        worst = min(after, key=lambda one: after[one] - before[one])
        if after[worst] < before[worst] - 1e-9:
            return f"{worst} loses {before[worst] - after[worst]:.4f}"
        without = self._search.dice(rule.model_copy(update={name: getattr(self.rule, name)}))
        return "" if dice.mean() - without.mean() >= _LEAST_GAIN else "the threshold alone brings as much"

    # --- the threshold once more -----------------------------------------------------------------------------------------

    def settle(
        self, grid: list[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], ThresholdChoice]:
        """Looks for the threshold again with the post-processing that was kept.

        Returns:
            Thresholds, sums of Dice by patient, slices by patient, and the choice among them.
        """
        thresholds = self._fine(grid)
        table = self._table(thresholds)
        sums, counts = _by_group(table, self._groups)
        plain = self._search.dice(self._plain)
        before = self._classes(plain)
        # What no class lost by post-processing, none is to lose by its threshold.
        allowed = np.array(
            [
                table[:, k].mean() >= plain.mean()
                and all(value >= before[name] - 1e-9 for name, value in self._classes(table[:, k]).items())
                for k in range(len(thresholds))
            ]
        )
        choice = choose(thresholds, sums, counts, allowed)
        standing = self._search.dice(self.rule)
        dice = table[:, choice.chosen]
        if allowed[choice.chosen] and dice.mean() >= standing.mean() - MOST_NOISE:
            rule = self.rule.model_copy(update={"threshold": float(thresholds[choice.chosen])})
            if rule != self.rule:
                self._add("settled", rule, dice, standing)
        return thresholds, sums, counts, choice

    def per_class(self, ranges: Mapping[str, list[float]]) -> None:
        """A threshold for each class whose slices gain by it.

        Args:
            ranges: Class -> thresholds, of which the first and the last are the ends of what is tried.
        """
        standing = self._search.dice(self.rule)
        own: dict[str, float] = {}
        for name, grid in ranges.items():
            members = np.flatnonzero(self._labels == self._names.index(name))
            if not members.size:
                continue
            thresholds, sums, counts = THRESHOLDS, *self._seen.by_patient(name)
            if self.rule.postprocesses:
                thresholds = self._fine(grid)
                sums, counts = _by_group(self._table(thresholds, members), self._groups[members])
            chosen = thresholds[[choose(thresholds, sums, counts).chosen]]
            if (self._table(chosen, members).mean() - standing[members].mean()) >= _LEAST_GAIN:
                own[name] = float(chosen[0])
        rule = self.rule.model_copy(update={"class_thresholds": own})
        dice = self._search.dice(rule, self._names)
        reason = "" if own else "no class gains by a threshold of its own"
        self._add("class_thresholds", rule, dice, standing, reason)

    # --- helpers ---------------------------------------------------------------------------------------------------------

    def _fine(self, grid: list[float]) -> NDArray[np.float64]:
        spread = np.linspace(min(grid), max(grid), _FINE).round(3)
        return np.unique([*spread, self.rule.threshold])

    def _table(self, thresholds: NDArray[np.float64], members: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """(slices, thresholds) Dice with the steps that were kept, of some slices or all."""
        rules = [self.rule.model_copy(update={"threshold": float(t)}) for t in thresholds]
        if members is not None:
            return np.stack([self._search.dice_of(members, rule) for rule in rules], axis=1)
        return np.stack([self._search.dice(rule) for rule in rules], axis=1)

    def _classes(self, dice: NDArray[np.float64]) -> dict[str, float]:
        sums = np.bincount(self._labels, dice, minlength=len(self._names))
        counts = np.bincount(self._labels, minlength=len(self._names))
        return {name: float(sums[i] / counts[i]) for i, name in enumerate(self._names) if counts[i]}

    def _add(
        self,
        name: StepName,
        rule: MaskRule,
        dice: NDArray[np.float64],
        standing: NDArray[np.float64],
        reason: str = "",
    ) -> None:
        mean = float(dice.mean())
        self._note(name, rule, mean, self._classes(dice), mean - float(standing.mean()), kept=not reason, reason=reason)

    def _note(
        self,
        name: StepName,
        rule: MaskRule,
        dice: float | None,
        classes: Mapping[str, float],
        gain: float | None = None,
        *,
        kept: bool,
        reason: str = "",
    ) -> None:
        """Another line of the table; a rule that is kept becomes the rule so far."""
        step = TuningStep(name=name, rule=rule, dice=dice, gain=gain, classes=dict(classes), kept=kept, reason=reason)
        self.steps.append(step)
        if kept:
            self.rule = rule


def _grid(mean: NDArray[np.float64]) -> list[float]:
    """Thresholds that post-processing is tried at: the unbroken range around the best where the curve is still high."""
    best = best_threshold(THRESHOLDS, mean)
    good = mean >= mean[best] - _WORTH_TRYING
    below, above = np.flatnonzero(~good[:best]), np.flatnonzero(~good[best:])
    low = int(below[-1]) + 1 if below.size else 0
    high = best + int(above[0]) - 1 if above.size else len(good) - 1
    spread = THRESHOLDS[np.linspace(low, high, _COARSE).round().astype(int)]
    return sorted({0.5, *spread.tolist()})


def _sample(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Slices to try post-processing on: all, or of very many those of every n-th patient."""
    every = math.ceil(len(groups) / _SEARCHED)
    found = np.flatnonzero(groups % every == 0)
    return found if found.size <= 2 * _SEARCHED else found[:: math.ceil(found.size / _SEARCHED)]


def _dice_of_all(
    predictions: Predictions, seen: Survey, rule: MaskRule, resolution: Resolution, jobs: int | None
) -> NDArray[np.float64]:
    """(slices,) Dice of the rule, some slices at a time."""
    lowest = min(rule.threshold, *rule.class_thresholds.values()) if rule.class_thresholds else rule.threshold
    parts = []
    for start in range(0, len(predictions), _SEARCHED):
        numbers = np.arange(start, min(start + _SEARCHED, len(predictions)))
        with RuleSearch(hold(predictions, numbers, seen.groups, resolution, lowest), jobs) as search:
            parts.append(search.dice(rule, predictions.classes))
    return np.concatenate(parts)


def _by_group(table: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(patients, k) sums and (patients,) counts."""
    _, members = np.unique(groups, return_inverse=True)
    sums = np.zeros((int(members.max()) + 1, table.shape[1]))
    np.add.at(sums, members, table)
    return sums, np.bincount(members).astype(np.float64)


def _curve(thresholds: NDArray[np.float64], mean: NDArray[np.float64]) -> Curve:
    return Curve(thresholds=tuple(thresholds.tolist()), dice=tuple(mean.round(6).tolist()))


def _as_mean(found: Interval) -> Mean:
    low, high = (None if math.isnan(limit) else limit for limit in (found.low, found.high))
    return Mean(mean=found.estimate, low=low, high=high, slices=found.slices, patients=found.groups)
