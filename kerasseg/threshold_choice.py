"""Which threshold a curve speaks for: the nearest to 0.5 that is as good as the best within noise, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerasseg.thresholds import best_threshold

__all__ = ["MOST_NOISE", "Choice", "best_of_resamples", "choose"]

MOST_NOISE = 0.005
"""Mean Dice that is given up for a threshold nearer to 0.5, at most: with few patients the noise alone would allow any."""

_CHUNK = 1 << 24
"""Numbers at once: 128 MB."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Indices of thresholds.

    Attributes:
        chosen: The one nearest to 0.5 among those as good as the best.
        best: The highest mean.
        low, high: First and last of the unbroken range around the best that is as good within noise.
    """

    chosen: int
    best: int
    low: int
    high: int


def choose(
    thresholds: NDArray[np.float64],
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    allowed: NDArray[np.bool_] | None = None,
) -> Choice:
    """The threshold to take.

    Noise is one standard error of the difference to the best threshold, paired, over patients. It is estimated from the
    sums of each patient as for any ratio of sums over clusters (Cochran, "Sampling Techniques", 1977, section 6.4).

    Args:
        thresholds: (k,) rising.
        sums: (patients, k) sums of Dice over each patient's slices.
        counts: (patients,) slices of each.
        allowed: (k,) those that may be chosen; None for all. Where none of the good ones may, the best is chosen.

    Example:
        >>> thresholds = np.array([0.2, 0.3, 0.4, 0.5])
        >>> sums = np.array([[0.8, 0.85, 0.84, 0.3], [0.8, 0.87, 0.88, 0.4], [0.7, 0.78, 0.78, 0.5]])
        >>> choose(thresholds, sums, np.ones(3))
        Choice(chosen=2, best=2, low=1, high=2)
    """
    slices, patients = counts.sum(), len(counts)
    mean = sums.sum(0) / slices
    best = best_threshold(thresholds, mean)
    loss = mean[best] - mean
    noise = np.zeros(len(thresholds))
    if patients > 1:
        residual = sums[:, [best]] - sums - counts[:, None] * loss
        noise = np.sqrt(patients / (patients - 1) * (residual**2).sum(0)) / slices
    good = loss <= np.minimum(noise, MOST_NOISE) + 1e-12
    below, above = np.flatnonzero(~good[:best]), np.flatnonzero(~good[best:])
    low = int(below[-1]) + 1 if below.size else 0
    high = best + int(above[0]) - 1 if above.size else len(thresholds) - 1
    range_ = np.arange(low, high + 1)
    free = range_ if allowed is None else range_[allowed[range_]]
    chosen = int(free[np.abs(thresholds[free] - 0.5).argmin()]) if free.size else best
    return Choice(chosen, best, low, high)


def best_of_resamples(
    thresholds: NDArray[np.float64],
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float | None, float | None]:
    """Interval of the best threshold, were it looked for on other patients: percentiles over draws of patients.

    Args:
        thresholds: (k,) rising.
        sums: (patients, k) sums of Dice over each patient's slices.
        counts: (patients,) slices of each.
        confidence: Share of the draws within.
        resamples: Draws.
        seed: Of the draws.

    Returns:
        Its limits; None with fewer than two patients.
    """
    patients = len(counts)
    if patients < 2:
        return None, None
    # The first of the highest is the nearest to 0.5, as in `best_threshold`.
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
    # Limits that are thresholds themselves, outwards.
    low = np.percentile(np.concatenate(found), tail, method="lower")
    high = np.percentile(np.concatenate(found), 100 - tail, method="higher")
    return float(low), float(high)
