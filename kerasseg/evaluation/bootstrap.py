"""Means over slices with their intervals, by bootstrap over patients.

Slices of one head resemble one another, so that 100 slices of 20 patients tell less than 100 slices of 100 patients. What
is drawn with replacement is therefore the patient, with all of his slices (the cluster bootstrap: Field and Welsh,
"Bootstrapping clustered data", J. R. Statist. Soc. B 69, 2007), and the limits are percentiles of the means of the draws
(Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). Percentiles need no correction here: a mean of
bounded values over tens of patients is close to symmetric, and the corrected BCa limits need a jackknife that is unstable
with few patients. With fewer than ten patients every such interval is too narrow; `Interval.few` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg_tfrecords.errors import UsageError

__all__ = ["Interval", "bootstrap_interval", "group_numbers", "paired_interval"]

_CHUNK = 1 << 22
"""Numbers drawn at once: 32 MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over slices with its interval.

    Attributes:
        estimate: The mean; NaN where no slice counts.
        low, high: Limits; NaN with fewer than two patients, where nothing can be said.
        confidence: Share of intervals that hold the true mean, such as 0.95.
        slices: Slices that count.
        groups: Patients (groups) that they come from.

    Example:
        >>> gain = Interval(0.033, 0.012, 0.051, slices=200, groups=24)
        >>> print(gain, gain.above_zero, gain.few)
        0.033 (95 % 0.012 to 0.051) True False
    """

    estimate: float
    low: float
    high: float
    confidence: float = 0.95
    slices: int = 0
    groups: int = 0

    @property
    def few(self) -> bool:
        """Fewer than ten patients: the true interval is wider."""
        return self.groups < 10

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0; False where there is none."""
        return self.low > 0

    def __str__(self) -> str:
        """For instance `0.712 (95 % 0.690 to 0.733)`."""
        return f"{self.estimate:.3f} ({100 * self.confidence:g} % {self.low:.3f} to {self.high:.3f})"


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean over slices, with the interval that drawing patients anew gives.

    Args:
        values: (slices,) any measure; NaN where a slice has none (a distance of a missed tumour, say), which leaves it out.
        groups: (slices,) patient of each slice; "" is a patient of its own, for each slice; None: every slice is.
        confidence: In (0, 1).
        resamples: Draws.
        seed: Of the draws: the same values give the same interval.

    Raises:
        UsageError: Arrays that do not fit, or a number out of its range.

    Example:
        >>> print(bootstrap_interval([0.9, 0.9, 0.1, 0.5], ["a", "a", "b", "c"]))
        0.600 (95 % 0.100 to 0.900)
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1:
        raise UsageError("an interval needs one value a slice", found=f"shape {numbers.shape}", expected="(slices,)")
    if not 0 < confidence < 1 or resamples < 1:
        found = f"confidence {confidence}, {resamples} resamples"
        raise UsageError(
            "an interval cannot be computed so", found=found, expected="0 < confidence < 1, resamples >= 1"
        )
    members = np.arange(len(numbers)) if groups is None else group_numbers(groups)
    if members.shape != numbers.shape:
        found = f"{len(numbers)} values, {len(members)} groups"
        raise UsageError("values and groups do not fit", found=found, expected="one group a value")
    if np.isinf(numbers).any():
        raise UsageError(
            "an interval of infinite values cannot be given",
            found=f"{int(np.isinf(numbers).sum())} of {numbers.size}",
            remedy="Report misses as a number, or take the finite variant (hd95_or_diagonal).",
        )
    counted = ~np.isnan(numbers)
    numbers, members = numbers[counted], members[counted]
    if not numbers.size:
        return Interval(float("nan"), float("nan"), float("nan"), confidence)
    _, members = np.unique(members, return_inverse=True)
    sums = np.bincount(members, numbers).astype(np.float64)
    counts = np.bincount(members).astype(np.float64)
    estimate = float(numbers.mean())
    many = len(counts)
    if many < 2:
        return Interval(estimate, float("nan"), float("nan"), confidence, len(numbers), many)
    means = _resampled(sums, counts, resamples, seed)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(estimate, float(low), float(high), confidence, len(numbers), many)


def paired_interval(
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of `second - first` over the same slices: a gain, with its interval.

    Both were measured on the same patients, so what they share (easy and hard heads) falls out of the difference; two
    intervals side by side would hide a gain that is there. Slices where either is NaN are left out.

    Args:
        first: (slices,) before.
        second: (slices,) after, in the same order.
        groups: As in `bootstrap_interval`.
        confidence: In (0, 1).
        resamples: Draws.
        seed: Of the draws.

    Raises:
        UsageError: As in `bootstrap_interval`.

    Example:
        >>> gain = paired_interval([0.2, 0.9, 0.5], [0.3, 1.0, 0.6], ["a", "b", "c"])
        >>> round(gain.estimate, 6), gain.above_zero
        (0.1, True)
    """
    before, after = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if before.shape != after.shape:
        found = f"{before.shape} and {after.shape}"
        raise UsageError("paired values do not fit", found=found, expected="the same slices")
    return bootstrap_interval(after - before, groups, confidence=confidence, resamples=resamples, seed=seed)


def group_numbers(groups: ArrayLike) -> NDArray[np.int64]:
    """Whole numbers that are equal where the groups are; "" (unknown) is a group of its own, each time.

    >>> group_numbers(["a", "", "a", ""]).tolist()
    [0, 1, 0, 2]
    """
    # None and NaN are what tables have where nothing is known.
    given = np.asarray(groups, object).ravel().tolist()
    names = np.array(["" if g is None or g != g else str(g) for g in given], str)
    known: dict[str, int] = {}
    found = np.empty(len(names), np.int64)
    fresh = 0
    for i, name in enumerate(names.tolist()):
        if name == "" or name not in known:
            found[i] = fresh
            if name:
                known[name] = fresh
            fresh += 1
        else:
            found[i] = known[name]
    return found


def _resampled(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Means of the resamples: sums over drawn groups by their slices."""
    many = len(counts)
    if resamples * many <= _CHUNK:
        # One product for both: what takes time is to read the table.
        total, slices = (_times_drawn(many, resamples, seed) @ np.column_stack([sums, counts])).T
        return np.asarray(total / slices)
    rng = np.random.default_rng(seed)
    means = []
    at_once = max(1, _CHUNK // many)
    for start in range(0, resamples, at_once):
        drawn = rng.integers(0, many, (min(at_once, resamples - start), many))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)


@lru_cache(maxsize=4)
def _times_drawn(many: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """(resamples, many) how often each group was drawn; an evaluation asks for hundreds of intervals over the same ones."""
    drawn = np.random.default_rng(seed).integers(0, many, (resamples, many))
    places = drawn + many * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * many).reshape(resamples, many).astype(np.float64)
