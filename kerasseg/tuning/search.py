"""Choose the rule from probabilities to masks on validation slices, and keep it only if it helps beyond noise.

1. **Threshold.** Mean over slices of Dice at 1,000 thresholds (`kerasseg.tuning.thresholds`). The threshold with the most
   certain gain over 0.5 is chosen: the highest lower confidence bound of the paired gain over patients (one-sided 95 %,
   Student's t, so that the requirement rises as patients get fewer).
2. **Post-processing**, step by step in the order of `MaskRule`. Each step is tried in one or two strengths, each at a few
   thresholds: removing false pixels allows a lower threshold. A step is kept only if its gain is beyond noise in the same
   sense, the same threshold without the step is not as good, and no class loses (as in nnU-Net: Isensee et al., Nature
   Methods 2021). A setting that is clearly worse after a third of the slices is dropped.
3. **Threshold again**, with the kept steps, as in 1.
4. On request a threshold for each class whose gain is beyond noise.

With fewer than eight patients with tumours the rule stays at 0.5. The rule that would have been used, and the rule with
`force`, come from the same search with a requirement of one standard error. The search is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.figures import Resampling
from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.evaluation.schema import Mean
from kerasseg.postprocessing import MaskRule
from kerasseg.tuning.scoring import LARGEST_CLOSING, RuleSearch, Survey, hold, survey
from kerasseg.tuning.threshold_file import Curve, StepName, Tuned, TuningStep
from kerasseg.tuning.thresholds import (
    FEWEST_PATIENTS,
    THRESHOLDS,
    ThresholdChoice,
    best_of_resamples,
    best_threshold,
    choose,
    lower_bound,
    required_errors,
)
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.text import Progress

_LEAST_GAIN = 1e-4
"""Smallest gain in mean Dice for which a step is kept."""

_SEARCHED = 2000
"""Maximum number of slices to try post-processing on; more would only take longer."""

_COARSE, _FINE = 5, 25
"""Number of thresholds that each step is tried at, and of those tried at the end."""

_WORTH_TRYING = 0.05
"""Thresholds are tried down to this much mean Dice below the best: a step may gain as much."""

_Step = Literal["min_diameter", "close_radius", "fill_holes", "keep_largest", "open_radius"]

_SETTINGS: dict[_Step, tuple[float | bool, ...]] = {
    "min_diameter": (0.02, 0.05),
    "close_radius": (LARGEST_CLOSING,),
    "fill_holes": (True,),
    "keep_largest": (True,),
    "open_radius": (0.008,),
}
"""Few, to avoid choosing the best by luck. Lengths are shares of the width: at 512 pixels of half a millimetre, objects of
5 and 12 mm and radii of 2 mm."""

_FORCED_ERRORS = 1.0
"""Standard errors that a gain must exceed with `force`."""

_WITHIN_NOISE = "within noise"


def tune(
    predictions: Predictions,
    *,
    per_class: bool = False,
    force: bool = False,
    resolution: Resolution = "native",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Choose a rule, with the evidence for it; threshold 0.5 without post-processing if no gain is beyond noise.

    Use validation slices: tuning on test slices invalidates the test figures.

    Args:
        predictions: Probabilities and references, see `kerasseg.evaluation.predictions`.
        per_class: Whether to choose a threshold for each class, which applies only if the class is known.
        force: Whether to keep a gain of one standard error, whatever the number of patients.
        resolution: Resolution at which Dice is computed.
        confidence: Confidence level of the intervals.
        resamples: Bootstrap resamples of the patients, for the interval of the threshold.
        seed: Random seed of the resamples.
        jobs: Threads; None for all processors.
        progress: Called with "sweep" or "search", the amount done and the total.

    Example:
        >>> from kerasseg.evaluation.predictions import ArrayPredictions
        >>> masks = np.zeros((8, 16, 16), bool); masks[:, 4:9, 4:9] = True
        >>> probabilities = np.where(masks, 0.4, 0.1); probabilities[:, 14, 14] = 0.45  # a stray pixel
        >>> tuned = tune(ArrayPredictions(probabilities, masks))
        >>> tuned.rule.threshold, round(tuned.raw.mean, 3), round(tuned.dice.mean, 3)
        (0.4, 0.0, 1.0)
        >>> [step.name for step in tuned.steps if step.kept]
        ['raw', 'threshold', 'keep_largest']
    """
    if not 0 < confidence < 1 or resamples < 1:
        given = f"confidence {confidence}, {resamples} resamples"
        raise UsageError("invalid options of tuning", found=given, expected="0 < confidence < 1, resamples >= 1")
    seen = survey(predictions, resolution, progress)
    numbers = _sample(seen.groups)
    required = required_errors(seen.tumour_patients)
    raw = seen.raw

    def slices(lowest: float) -> RuleSearch:
        return RuleSearch(hold(predictions, numbers, seen.groups, resolution, lowest), jobs)

    def dice_of(found: _Found) -> NDArray[np.float64]:
        if found.rule == MaskRule():
            return raw
        if found.dice is not None and len(found.dice) == len(predictions):
            return found.dice
        return _dice_of_all(predictions, seen, found.rule, resolution, jobs)

    def gain(dice: NDArray[np.float64]) -> Mean:
        return Resampling(confidence, seed=seed).paired(raw, dice, seen.groups)

    def mean(dice: NDArray[np.float64]) -> Mean:
        return Resampling(confidence, seed=seed).of(dice, seen.groups, 1.0)

    found, candidate = _search(seen, predictions, slices, required, progress, per_class=per_class, force=force)
    final = dice_of(found)
    if not force and _no_gain(final, seen, required) and found.rule != MaskRule():
        candidate, found = found, found.refused(_WITHIN_NOISE)
        final = dice_of(found)
    if candidate is not None and candidate.rule == MaskRule():
        candidate = None
    thresholds, sums, counts, choice = found.with_steps or (THRESHOLDS, *seen.by_patient(), found.choice)
    low, high = best_of_resamples(thresholds, sums, counts, confidence=confidence, resamples=resamples, seed=seed)
    return Tuned(
        rule=found.rule,
        resolution=resolution,
        slices=len(predictions),
        patients=seen.patients,
        searched=len(numbers),
        raw=mean(raw),
        dice=mean(final),
        gain=gain(final),
        confidence=confidence,
        best=float(thresholds[choice.best]),
        threshold_low=low,
        threshold_high=high,
        flat_low=float(thresholds[choice.low]),
        flat_high=float(thresholds[choice.high]),
        curve=_curve(THRESHOLDS, seen.mean()),
        curve_with_steps=_curve(thresholds, sums.sum(0) / counts.sum()) if found.with_steps else None,
        steps=found.steps,
        width=seen.width,
        spacing=seen.spacing,
        notes=seen.notes(),
        tumour_patients=seen.tumour_patients,
        forced=force,
        candidate=None if candidate is None else candidate.rule,
        candidate_gain=None if candidate is None else gain(dice_of(candidate)),
    )


_Curves = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], ThresholdChoice]
"""Thresholds, sums of Dice by patient, slices by patient, and the choice among them."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Result of one search; `dice` of the slices that were searched, None if they were cut for higher thresholds."""

    rule: MaskRule
    steps: tuple[TuningStep, ...]
    choice: ThresholdChoice
    with_steps: _Curves | None
    dice: NDArray[np.float64] | None

    def refused(self, reason: str) -> _Found:
        """Return the same search with 0.5 kept instead of the rule."""
        steps = [
            step if step.name == "raw" else step.model_copy(update={"kept": False, "reason": step.reason or reason})
            for step in self.steps
        ]
        return _Found(MaskRule(), tuple(steps), self.choice, None, None)


def _search(
    seen: Survey,
    predictions: Predictions,
    slices: Callable[[float], RuleSearch],
    required: float,
    progress: Progress | None,
    *,
    per_class: bool,
    force: bool,
) -> tuple[_Found, _Found | None]:
    """Return the result, and the one with a lower requirement where the result is to keep 0.5."""
    grid = _grid(seen.mean())
    ranges = {name: _grid(seen.mean(name)) for name in seen.classes} if per_class and not seen.constant else {}
    with slices(min(map(min, [grid, *ranges.values()]))) as search:

        def searched(errors: float) -> _Found:
            return _Tuner(seen, search, predictions, errors, progress).found(grid, ranges)

        if force:
            return searched(_FORCED_ERRORS), None
        if seen.tumour_patients < FEWEST_PATIENTS:
            candidate = searched(_FORCED_ERRORS)
            return candidate.refused(f"fewer than {FEWEST_PATIENTS} patients"), candidate
        found = searched(required)
        return found, searched(_FORCED_ERRORS) if found.rule == MaskRule() else None


def _no_gain(final: NDArray[np.float64], seen: Survey, errors: float) -> bool:
    """Return whether the gain of a whole rule over 0.5 is within noise."""
    sums, counts = _by_group(np.stack([seen.raw, final], axis=1), seen.groups)
    return float(lower_bound(sums[:, 1:], sums[:, 0], counts, errors)[0]) <= 0


class _Tuner:
    """One search: the rule so far, and its steps.

    Args:
        seen: Dice of the slices at every threshold.
        search: Slices that rules are tried on.
        predictions: All slices.
        errors: Standard errors that a gain must exceed.
        progress: As in `tune`.
    """

    def __init__(
        self, seen: Survey, search: RuleSearch, predictions: Predictions, errors: float, progress: Progress | None
    ) -> None:
        self.rule = MaskRule()
        self.steps: list[TuningStep] = []
        self._seen, self._search, self._errors, self._progress = seen, search, errors, progress
        self._names = predictions.classes
        self._labels, self._groups = search.held.labels, search.held.groups
        self._plain = self.rule
        self._tried = 0

    def found(self, grid: list[float], ranges: Mapping[str, list[float]]) -> _Found:
        choice = choose(THRESHOLDS, *self._seen.by_patient(), errors=self._errors)
        self._threshold(choice)
        if not self._seen.constant:
            self._postprocessing(grid)
        with_steps = self._settle(grid) if self.rule.postprocesses else None
        if ranges:
            self._per_class(ranges)
        whole = self.rule.lowest_threshold >= self._search.held.lowest
        dice = self._search.dice(self.rule, self._names) if whole else None
        return _Found(self.rule, tuple(self.steps), choice, with_steps, dice)

    # --- threshold -------------------------------------------------------------------------------------------------------

    def _threshold(self, choice: ThresholdChoice) -> None:
        """Choose the threshold from the curve over all slices."""
        mean, half = self._seen.mean(), int(np.abs(THRESHOLDS - 0.5).argmin())
        self._note("raw", self.rule, float(mean[half]), self._seen.class_means(half), kept=True)
        constant = self._seen.constant
        kept = choice.chosen != half and not constant
        # If 0.5 is kept, the table shows the best threshold.
        shown = choice.chosen if kept else half if constant else choice.best
        gain = float(mean[shown] - mean[half])
        reason = (
            "" if kept else "all are the same" if constant else "0.5 is the best" if shown == half else _WITHIN_NOISE
        )
        rule = MaskRule(threshold=float(THRESHOLDS[shown]))
        self._note("threshold", rule, float(mean[shown]), self._seen.class_means(shown), gain, kept=kept, reason=reason)
        self._plain = self.rule

    # --- post-processing -------------------------------------------------------------------------------------------------

    def _postprocessing(self, grid: list[float]) -> None:
        """Try each step in turn, at a few thresholds."""
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
        """Keep the setting of one step with the most certain gain, if it is beyond noise without loss for a class."""
        if not found:
            reason = "every setting is clearly worse"
            self._note(
                name, self.rule.model_copy(update={name: _SETTINGS[name][0]}), None, {}, kept=False, reason=reason
            )
            return
        # Of equal bounds, the nearest threshold, then the gentlest setting.
        found.sort(
            key=lambda one: (-round(self._bound(one[1], standing), 12), abs(one[0].threshold - self.rule.threshold))
        )
        for rule, dice in found:
            if not self._objection(rule, dice, name, standing):
                self._add(name, rule, dice, standing)
                return
        rule, dice = found[0]
        self._add(name, rule, dice, standing, self._objection(rule, dice, name, standing))

    def _objection(self, rule: MaskRule, dice: NDArray[np.float64], name: _Step, standing: NDArray[np.float64]) -> str:
        gain = float(dice.mean() - standing.mean())
        if gain < _LEAST_GAIN:
            return "changes nothing" if np.array_equal(dice, standing) else "no gain"
        if self._bound(dice, standing) <= 0:
            return _WITHIN_NOISE
        before, after = self._classes(standing), self._classes(dice)
        worst = min(after, key=lambda one: after[one] - before[one])
        if after[worst] < before[worst] - 1e-9:
            return f"{worst} loses {before[worst] - after[worst]:.4f}"
        without = self._search.dice(rule.model_copy(update={name: getattr(self.rule, name)}))
        return "" if dice.mean() - without.mean() >= _LEAST_GAIN else "the threshold alone brings as much"

    # --- the threshold once more -----------------------------------------------------------------------------------------

    def _settle(self, grid: list[float]) -> _Curves:
        """Choose the threshold again with the kept post-processing."""
        thresholds = self._fine(grid)
        table = self._table(thresholds)
        sums, counts = _by_group(table, self._groups)
        plain = self._search.dice(self._plain)
        before = self._classes(plain)
        # The new threshold must not cost any class what post-processing did not.
        allowed = np.array(
            [
                table[:, k].mean() >= plain.mean()
                and all(value >= before[name] - 1e-9 for name, value in self._classes(table[:, k]).items())
                for k in range(len(thresholds))
            ]
        )
        standing = int(np.abs(thresholds - self.rule.threshold).argmin())
        choice = choose(thresholds, sums, counts, errors=self._errors, standing=standing, allowed=allowed)
        if choice.chosen != standing:
            rule = self.rule.model_copy(update={"threshold": float(thresholds[choice.chosen])})
            self._add("settled", rule, table[:, choice.chosen], table[:, standing])
        return thresholds, sums, counts, choice

    def _per_class(self, ranges: Mapping[str, list[float]]) -> None:
        """Choose a threshold for each class whose gain by it is beyond noise."""
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
            nearest = int(np.abs(thresholds - self.rule.threshold).argmin())
            found = choose(thresholds, sums, counts, errors=self._class_errors(len(counts)), standing=nearest).chosen
            if found != nearest:
                own[name] = float(thresholds[found])
        rule = self.rule.model_copy(update={"class_thresholds": own})
        dice = self._search.dice(rule, self._names)
        reason = "" if own else "no class gains beyond noise"
        self._add("class_thresholds", rule, dice, standing, reason)

    def _class_errors(self, patients: int) -> float:
        """Return the required standard errors for one class, which has fewer patients."""
        if self._errors == _FORCED_ERRORS:
            return self._errors
        return required_errors(patients) if patients >= FEWEST_PATIENTS else math.inf

    # --- helpers ---------------------------------------------------------------------------------------------------------

    def _bound(self, dice: NDArray[np.float64], standing: NDArray[np.float64]) -> float:
        """Return the lower bound of the gain over the standing rule."""
        sums, counts = _by_group(np.stack([standing, dice], axis=1), self._groups)
        return float(lower_bound(sums[:, 1:], sums[:, 0], counts, self._errors)[0])

    def _fine(self, grid: list[float]) -> NDArray[np.float64]:
        spread = np.linspace(min(grid), max(grid), _FINE).round(3)
        return np.unique([*spread, self.rule.threshold])

    def _table(self, thresholds: NDArray[np.float64], members: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return (slices, thresholds) Dice with the kept steps, of some slices or all."""
        rules = [self.rule.model_copy(update={"threshold": float(t)}) for t in thresholds]
        if members is not None:
            return np.stack([self._search.fresh(rule)[members] for rule in rules], axis=1)
        return np.stack([self._search.dice(rule) for rule in rules], axis=1)

    def _classes(self, dice: NDArray[np.float64]) -> dict[str, float]:
        sums = np.bincount(self._labels, dice, minlength=len(self._names))
        counts = np.bincount(self._labels, minlength=len(self._names))
        return {name: float(sums[i] / counts[i]) for i, name in enumerate(self._names) if counts[i]}

    def _add(
        self, name: StepName, rule: MaskRule, dice: NDArray[np.float64], standing: NDArray[np.float64], reason: str = ""
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
        """Add a step; the rule of a kept step becomes the current one."""
        step = TuningStep(name=name, rule=rule, dice=dice, gain=gain, classes=dict(classes), kept=kept, reason=reason)
        self.steps.append(step)
        if kept:
            self.rule = rule


def _grid(mean: NDArray[np.float64]) -> list[float]:
    """Return thresholds to try post-processing at, within the range around the best where the curve is still high."""
    best = best_threshold(THRESHOLDS, mean)
    good = mean >= mean[best] - _WORTH_TRYING
    below, above = np.flatnonzero(~good[:best]), np.flatnonzero(~good[best:])
    low = int(below[-1]) + 1 if below.size else 0
    high = best + int(above[0]) - 1 if above.size else len(good) - 1
    spread = THRESHOLDS[np.linspace(low, high, _COARSE).round().astype(int)]
    return sorted({0.5, *spread.tolist()})


def _sample(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return slices to try post-processing on: all, or of very many those of every n-th patient."""
    every = math.ceil(len(groups) / _SEARCHED)
    found = np.flatnonzero(groups % every == 0)
    return found if found.size <= 2 * _SEARCHED else found[:: math.ceil(found.size / _SEARCHED)]


def _dice_of_all(
    predictions: Predictions, seen: Survey, rule: MaskRule, resolution: Resolution, jobs: int | None
) -> NDArray[np.float64]:
    """Return (slices,) Dice of the rule, holding a limited number of slices at a time."""
    parts = []
    for start in range(0, len(predictions), _SEARCHED):
        numbers = np.arange(start, min(start + _SEARCHED, len(predictions)))
        with RuleSearch(hold(predictions, numbers, seen.groups, resolution, rule.lowest_threshold), jobs) as search:
            parts.append(search.dice(rule, predictions.classes))
    return np.concatenate(parts)


def _by_group(table: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (patients, k) sums and (patients,) counts."""
    _, members = np.unique(groups, return_inverse=True)
    sums = np.zeros((int(members.max()) + 1, table.shape[1]))
    np.add.at(sums, members, table)
    return sums, np.bincount(members).astype(np.float64)


def _curve(thresholds: NDArray[np.float64], mean: NDArray[np.float64]) -> Curve:
    return Curve(thresholds=tuple(thresholds.tolist()), dice=tuple(mean.round(6).tolist()))
