"""Dice at every threshold at once, from cumulative histograms of the probabilities of each slice.

A pixel is tumour if its probability, as float32, is at least the threshold, as float32, as in NumPy, Keras and
`kerasseg.apply_rule`. The thresholds are k / 1000 for k = 1 to 1000. Bin k counts probabilities from k / 1000 up to the
next threshold, so that the sum of the bins from k upwards is the number of pixels at threshold k, and Dice is exact.

| mask | prediction | Dice |
| --- | --- | --- |
| empty | empty | 1 |
| empty | something | 0 |
| tumour | empty | 0 |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from kerasseg.evaluation.bootstrap import FEWEST_PATIENTS as FEWEST_FOR_INTERVALS
from kerasseg_tfrecords.errors import UsageError

if TYPE_CHECKING:
    from kerasseg.evaluation.predictions import Predictions, Resolution

_STEPS = 1000

THRESHOLDS: NDArray[np.float64] = np.arange(1, _STEPS + 1) / _STEPS
"""0.001, 0.002, ..., 1."""
THRESHOLDS.flags.writeable = False

_EDGES = np.concatenate([[0.0], THRESHOLDS]).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ThresholdSweep:
    """Dice at every threshold.

    Attributes:
        thresholds: (1000,) 0.001 to 1.
        mean: (1000,) mean over slices of Dice at each threshold.
        dice: (slices, 1000) float32 Dice of each slice; None without `keep_slices`.
        slices: Number of slices.
        best: Threshold with the highest mean; of several, the nearest to 0.5.
        best_dice: Mean Dice at `best`.

    Example:
        >>> masks = np.zeros((2, 8, 8), bool); masks[:, 2:5, 2:5] = True
        >>> sweep = sweep_thresholds(0.4 * masks + 0.2, masks)  # 0.6 inside the tumour, 0.2 outside
        >>> sweep.best, sweep.best_dice, round(sweep.at(0.1), 3)
        (0.5, 1.0, 0.247)
    """

    thresholds: NDArray[np.float64]
    mean: NDArray[np.float64]
    dice: NDArray[np.float32] | None
    slices: int
    best: float
    best_dice: float

    def at(self, threshold: float) -> float:
        """Return the mean Dice at the nearest threshold.

        >>> sweep = sweep_thresholds(np.full((1, 4, 4), 0.3), np.ones((1, 4, 4)))
        >>> sweep.at(0.3), sweep.at(0.301)
        (1.0, 0.0)
        """
        return float(self.mean[np.abs(self.thresholds - threshold).argmin()])


def sweep_thresholds(
    probabilities: ArrayLike | Sequence[ArrayLike] | Predictions,
    masks: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    resolution: Resolution = "native",
    keep_slices: bool = True,
) -> ThresholdSweep:
    """Compute the mean over slices of Dice at all thresholds k / 1000; see the module for edge cases.

    Args:
        probabilities: (slices, height, width) or (slices, height, width, 1), in [0, 1]; slices of several sizes as a list;
            or predictions, as from `predict_split`.
        masks: The same shapes, bool, or numbers of which those above 0.5 are tumour; None with predictions.
        resolution: Resolution of predictions: the slice's own size, or the network's.
        keep_slices: Whether to keep the Dice of each slice (4 kB per slice) or only the mean.

    Raises:
        UsageError: There are no slices, shapes do not fit, or values are not probabilities.

    Example:
        >>> masks = np.zeros((2, 4, 4), bool); masks[:, :2] = True
        >>> probabilities = np.where(masks, 0.4, 0.1); probabilities[1, 3] = 0.35
        >>> sweep = sweep_thresholds(probabilities, masks)
        >>> sweep.best, sweep.best_dice, sweep.at(0.2)
        (0.4, 1.0, 0.9)
    """
    total = np.zeros(_STEPS)
    kept: list[NDArray[np.float32]] = []
    count = 0
    for probability, mask in _pairs(probabilities, masks, resolution):
        dice = dice_at_all(probability, mask)
        total += dice
        count += 1
        if keep_slices:
            kept.append(dice.astype(np.float32))
    if not count:
        raise UsageError("no slices to choose a threshold on", found="0 slices", expected="at least one")
    mean = total / count
    best = best_threshold(THRESHOLDS, mean)
    return ThresholdSweep(
        THRESHOLDS, mean, np.stack(kept) if keep_slices else None, count, float(THRESHOLDS[best]), float(mean[best])
    )


def dice_at_all(probability: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compute the (1000,) Dice of one slice at each of `THRESHOLDS`.

    Args:
        probability: float32 in [0, 1], any shape.
        mask: The same shape, bool.
    """
    flat = probability.ravel()
    there = flat >= _EDGES[1]
    # Most pixels are below the lowest threshold and never count.
    found = _from_above(flat if 2 * np.count_nonzero(there) > flat.size else flat[there])
    tumour = np.flatnonzero(mask)
    overlap = _from_above(flat.take(tumour))
    sizes = found + tumour.size
    return np.divide(2 * overlap, sizes, out=np.ones(_STEPS), where=sizes > 0)


def best_threshold(thresholds: NDArray[np.float64], mean: NDArray[np.float64]) -> int:
    """Return the index of the highest mean; of several, the nearest to 0.5, and of two as near, the lower.

    >>> int(best_threshold(np.array([0.2, 0.4, 0.9]), np.array([0.7, 0.7, 0.7])))
    1
    """
    # Means that differ only by rounding are equal.
    top = np.flatnonzero(mean >= mean.max() - 1e-12)
    return int(top[np.abs(thresholds[top] - 0.5).argmin()])


def _from_above(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (1000,) the number of values that reach each threshold."""
    scaled = values * np.float32(_STEPS)
    bins = scaled.astype(np.intp)
    # float32 arithmetic errs by up to 0.0002 of a bin here, so values near an edge are compared with the edge itself.
    nearest = np.rint(scaled)
    close = np.flatnonzero(np.abs(np.subtract(scaled, nearest, out=scaled), out=scaled) < 0.001)
    if close.size:
        edges = nearest.take(close).astype(np.intp)
        bins[close] = edges - (values.take(close) < _EDGES.take(edges))
    counts = np.bincount(bins, minlength=_STEPS + 1)
    return np.asarray(counts[:0:-1].cumsum()[::-1], np.int64)


def _pairs(
    probabilities: Any, masks: Any, resolution: Resolution
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    if hasattr(probabilities, "probability"):
        for number in range(len(probabilities)):
            yield probabilities.probability(number, resolution), probabilities.case(number, resolution).mask
        return
    if masks is None or len(probabilities) != len(masks):
        found = "no masks" if masks is None else f"{len(probabilities)} and {len(masks)} slices"
        raise UsageError("probabilities and masks do not fit", found=found, expected="the same shapes")
    for number, (values, reference) in enumerate(zip(probabilities, masks, strict=True)):
        probability, mask = _plane(np.asarray(values, np.float32)), _plane(np.asarray(reference))
        if probability.shape != mask.shape:
            raise UsageError(
                f"probabilities and masks of slice {number} do not fit",
                found=f"{probability.shape} and {mask.shape}",
                expected="the same shapes",
            )
        # NaN fails both comparisons.
        if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
            raise UsageError(
                "these are not probabilities",
                found=f"{probability.min():g} to {probability.max():g} in slice {number}",
                expected="values in [0, 1]",
                remedy="If the network returns logits, apply a sigmoid first.",
            )
        yield probability, mask if mask.dtype == np.bool_ else mask > 0.5


def _plane(array: NDArray[Any]) -> NDArray[Any]:
    plane = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if plane.ndim != 2:
        raise UsageError("a slice has two dimensions", found=f"shape {array.shape}", expected="(height, width)")
    return plane


FEWEST_PATIENTS = 8
"""Validation patients with tumours below which the rule stays at 0.5."""

_LEVEL = 0.95
"""One-sided confidence that a gain must have."""

_MOST_NOISE = 0.005
"""Mean Dice below the best that still counts as equally good; with few patients, noise would allow any threshold."""

_CHUNK = 1 << 24
"""Numbers per chunk: 128 MB."""


def required_errors(patients: int) -> float:
    """Return how many standard errors a gain must exceed to be kept: Student's t, which rises as patients get fewer.

    >>> [round(required_errors(patients), 2) for patients in (3, 8, 30)]
    [2.92, 1.89, 1.7]
    """
    return float(stdtrit(patients - 1, _LEVEL)) if patients > 1 else math.inf


def lower_bound(
    sums: NDArray[np.float64], standing: NDArray[np.float64], counts: NDArray[np.float64], errors: float
) -> NDArray[np.float64]:
    """Return the paired gain minus a number of standard errors over patients.

    The standard error is that of a ratio of sums over clusters (Cochran, "Sampling Techniques", 1977, section 6.4).

    Args:
        sums: (patients, k) sums of Dice over each patient's slices, for k rules.
        standing: (patients,) the same for the rule that they are compared with.
        counts: (patients,) slices of each patient.
        errors: Standard errors, from `required_errors`.

    Returns:
        (k,) bounds; the gain itself with `errors` 0.
    """
    change = sums - standing[:, None]
    gain = change.sum(0) / counts.sum()
    patients = len(counts)
    if math.isinf(errors):  # infinity times no noise would be NaN
        return np.full_like(gain, -np.inf)
    if patients < 2:
        return gain
    residual = change - counts[:, None] * gain
    noise = np.sqrt(patients / (patients - 1) * (residual**2).sum(0)) / counts.sum()
    return np.asarray(gain - errors * noise)


@dataclass(frozen=True, slots=True)
class ThresholdChoice:
    """Indices of thresholds.

    Attributes:
        chosen: Threshold to use.
        best: Threshold with the highest mean.
        low, high: First and last of the range around the best that is as good within noise.
    """

    chosen: int
    best: int
    low: int
    high: int


def choose(
    thresholds: NDArray[np.float64],
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    *,
    errors: float,
    standing: int | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> ThresholdChoice:
    """Choose the threshold whose gain is the most certain.

    This is the threshold with the highest lower bound of the paired gain over the standing one; of equal bounds, the
    nearest to 0.5. The standing threshold is kept if no bound is above 0. Gains of nearby thresholds have little noise, so
    that a distant one is chosen only if it clearly gains more.

    Args:
        thresholds: (k,) thresholds, rising.
        sums: (patients, k) sums of Dice over each patient's slices.
        counts: (patients,) slices of each patient.
        errors: Standard errors that a gain must exceed.
        standing: Index of the standing threshold; None for the one nearest to 0.5.
        allowed: (k,) thresholds that may be chosen; None for all.

    Example:
        >>> thresholds = np.array([0.2, 0.3, 0.4, 0.5])
        >>> sums = np.array([[0.8, 0.85, 0.84, 0.3], [0.8, 0.87, 0.88, 0.4], [0.7, 0.78, 0.78, 0.5]])
        >>> choose(thresholds, sums, np.ones(3), errors=1)
        ThresholdChoice(chosen=2, best=2, low=1, high=2)
    """
    if standing is None:
        standing = int(np.abs(thresholds - 0.5).argmin())
    mean = sums.sum(0) / counts.sum()
    best = best_threshold(thresholds, mean)
    # Half the width of an interval of one standard error below the best.
    noise = mean[best] - mean + lower_bound(sums, sums[:, best], counts, -1.0 if len(counts) > 1 else 0.0)
    good = mean[best] - mean <= np.minimum(noise, _MOST_NOISE) + 1e-12
    below, above = np.flatnonzero(~good[:best]), np.flatnonzero(~good[best:])
    low = int(below[-1]) + 1 if below.size else 0
    high = best + int(above[0]) - 1 if above.size else len(thresholds) - 1
    bound = lower_bound(sums, sums[:, standing], counts, errors)
    if allowed is not None:
        bound = np.where(allowed, bound, -np.inf)
    chosen = best_threshold(thresholds, bound) if bound.max() > 1e-12 else standing
    return ThresholdChoice(chosen, best, low, high)


def best_of_resamples(
    thresholds: NDArray[np.float64],
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float | None, float | None]:
    """Compute the range of the best threshold over other patients: percentiles of a bootstrap over patients.

    Args:
        thresholds: (k,) thresholds, rising.
        sums: (patients, k) sums of Dice over each patient's slices.
        counts: (patients,) slices of each patient.
        confidence: Confidence level.
        resamples: Bootstrap resamples.
        seed: Random seed of the resamples.

    Returns:
        Limits of the range; None with fewer than five patients.
    """
    patients = len(counts)
    if patients < FEWEST_FOR_INTERVALS:
        return None, None
    # The first maximum is the nearest to 0.5, as in `best_threshold`.
    order = np.argsort(np.abs(thresholds - 0.5), kind="stable")
    ordered = sums[:, order]
    rng = np.random.default_rng(seed)
    found = []
    at_once = max(1, _CHUNK // max(patients, len(thresholds)))
    for start in range(0, resamples, at_once):
        draws = rng.multinomial(patients, np.full(patients, 1 / patients), min(at_once, resamples - start))
        means = (draws @ ordered) / (draws @ counts)[:, None]
        found.append(thresholds[order[np.round(means, 12).argmax(1)]])
    tail = 100 * (1 - confidence) / 2
    # Limits are thresholds themselves, rounded outwards.
    low = np.percentile(np.concatenate(found), tail, method="lower")
    high = np.percentile(np.concatenate(found), 100 - tail, method="higher")
    return float(low), float(high)
