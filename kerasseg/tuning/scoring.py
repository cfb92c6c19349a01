"""Dice of many rules on the same slices in memory; rules that are clearly worse are dropped early."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg_tfrecords.workers import available_cpus

_RACE = 3
"""Every third slice is used to decide whether a rule is worth trying on the others."""

_FEWEST = 20
"""Slices in that third below which no rule is dropped early."""


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    """The part of a slice that any rule can turn into tumour, and the reference there.

    Attributes:
        probability: (rows, columns) float32, within the bounding box.
        mask: The same part of the reference.
        tumour: Tumour pixels of the whole reference.
        width: Width of the slice, see `postprocess`.
    """

    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]
    tumour: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class HeldSlices:
    """Slices that rules are tried on.

    Attributes:
        slices: The slices.
        labels: (n,) class of each slice.
        groups: (n,) number of each slice's patient.
    """

    slices: tuple[_Slice, ...]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]


def hold(
    predictions: Predictions,
    numbers: NDArray[np.int64],
    groups: NDArray[np.int64],
    resolution: Resolution,
    lowest: float,
) -> HeldSlices:
    """Keep the parts of slices that rules need in memory."""
    held = []
    for number in numbers.tolist():
        probability = predictions.probability(number, resolution)
        mask = predictions.case(number, resolution).mask
        # No step extends beyond the bounding box of the thresholded mask.
        box = _bounding_box(probability >= np.float32(lowest))
        held.append(
            _Slice(probability[box].copy(), mask[box].copy(), int(np.count_nonzero(mask)), max(probability.shape))
        )
    return HeldSlices(tuple(held), predictions.labels[numbers], groups[numbers])


class RuleSearch:
    """Dice of rules on held slices; a context manager.

    Args:
        held: The slices.
        jobs: Threads; None for all processors.
    """

    def __init__(self, held: HeldSlices, jobs: int | None = None) -> None:
        self.held = held
        self._jobs = jobs or available_cpus()
        self._pool = ThreadPoolExecutor(self._jobs)
        self._known: dict[str, NDArray[np.float64]] = {}
        every = np.arange(len(held.slices))
        self._first, self._rest = every[::_RACE], every[every % _RACE != 0]

    def __enter__(self) -> RuleSearch:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def dice(self, rule: MaskRule, names: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return (n,) Dice of every slice.

        Args:
            rule: Rule to try.
            names: Class names, if the rule has class thresholds.
        """
        key = rule.model_dump_json()
        if key not in self._known:
            self._known[key] = self._of(np.arange(len(self.held.slices)), rule, names)
        return self._known[key]

    def dice_of(self, numbers: NDArray[np.int64], rule: MaskRule) -> NDArray[np.float64]:
        """Return Dice of some slices."""
        return self._of(numbers, rule, None)

    def race(self, rule: MaskRule, standing: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return (n,) Dice of every slice, or None if a third of them shows that the rule is clearly worse.

        Clearly: the mean of the paired differences is more than two standard errors below zero.
        """
        key = rule.model_dump_json()
        if key in self._known:
            return self._known[key]
        out = np.empty(len(standing))
        out[self._first] = self._of(self._first, rule, None)
        behind = standing[self._first] - out[self._first]
        if len(behind) >= _FEWEST and behind.mean() > 2 * behind.std(ddof=1) / np.sqrt(len(behind)):
            return None
        out[self._rest] = self._of(self._rest, rule, None)
        self._known[key] = out
        return out

    def _of(self, numbers: NDArray[np.int64], rule: MaskRule, names: Sequence[str] | None) -> NDArray[np.float64]:
        slices, labels = self.held.slices, self.held.labels

        def some(part: NDArray[np.int64]) -> list[float]:
            # Class names are needed only for class thresholds.
            return [_dice(slices[i], rule, None if names is None else names[labels[i]]) for i in part.tolist()]

        parts = [numbers[start :: self._jobs] for start in range(self._jobs)]
        out = np.empty(len(self.held.slices))
        for part, values in zip(parts, self._pool.map(some, parts), strict=True):
            out[part] = values
        return out[numbers]


def _dice(one: _Slice, rule: MaskRule, name: str | None) -> float:
    found = apply_rule(one.probability, rule, name, width=one.width)
    size = int(np.count_nonzero(found)) + one.tumour
    return 2 * int(np.count_nonzero(found & one.mask)) / size if size else 1.0


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
