"""Dice of many rules on the same slices in memory; rules that are clearly worse are dropped early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.tuning.thresholds import THRESHOLDS, dice_at_all
from kerasseg_tfrecords.errors import DataError, UsageError
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
    """Dice of rules on held slices; a context manager."""

    def __init__(self, held: HeldSlices, jobs: int | None = None) -> None:
        self.held = held
        self._jobs = jobs or available_cpus()
        self._pool = ThreadPoolExecutor(self._jobs)
        self._known: dict[str, NDArray[np.float64]] = {}
        every = np.arange(len(held.slices))
        self._first, self._rest = every[::_RACE], every[every % _RACE != 0]

    def __enter__(self) -> RuleSearch:
        self._opencv = cv2.getNumThreads()  # turned off, since on small slices they only delay ours
        cv2.setNumThreads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(self._opencv)

    def dice(self, rule: MaskRule, names: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return (n,) Dice of every slice."""
        key = rule.model_dump_json()
        if key not in self._known:
            self._known[key] = self._of(np.arange(len(self.held.slices)), rule, names)
        return self._known[key]

    def dice_of(self, numbers: NDArray[np.int64], rule: MaskRule) -> NDArray[np.float64]:
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


_BUCKETS = 2048
"""Maximum number of patients whose curves are kept apart; beyond it, several share one."""

_RAW = int(np.flatnonzero(THRESHOLDS == 0.5)[0])


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """Dice of the slices at every threshold.

    Attributes:
        classes: Names of the classes that have slices.
        sums: Class -> (buckets, 1000) sums of Dice over the slices of some patients.
        counts: Class -> (buckets,) slices.
        raw: (slices,) Dice at 0.5.
        groups: (slices,) number of the patient, from 0.
        width: Median of the slices' longer side.
        spacing: Median millimetres per pixel; None if no slice has a spacing.
        lowest, highest: Range of all probabilities.
        tumours: Slices with a tumour in the reference.
        tumour_patients: Patients with such a slice.
    """

    classes: tuple[str, ...]
    sums: dict[str, NDArray[np.float64]]
    counts: dict[str, NDArray[np.float64]]
    raw: NDArray[np.float64]
    groups: NDArray[np.int64]
    width: int
    spacing: float | None
    lowest: float
    highest: float
    tumours: int
    tumour_patients: int

    @property
    def patients(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def constant(self) -> bool:
        """Whether all probabilities are equal or below all thresholds, so that all rules are equivalent."""
        return self.lowest == self.highest or self.highest < THRESHOLDS[0]

    def by_patient(self, name: str | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (patients, 1000) sums of Dice and (patients,) slices, of one class or all of them."""
        names = self.classes if name is None else (name,)
        sums = np.add.reduce([self.sums[n] for n in names])
        counts = np.add.reduce([self.counts[n] for n in names])
        return sums[counts > 0], counts[counts > 0]

    def mean(self, name: str | None = None) -> NDArray[np.float64]:
        """Return the (1000,) mean over slices of Dice, of one class or all of them."""
        sums, counts = self.by_patient(name)
        return np.asarray(sums.sum(0) / counts.sum())

    def class_means(self, index: int) -> dict[str, float]:
        return {name: float(self.mean(name)[index]) for name in self.classes}

    def notes(self) -> tuple[str, ...]:
        """Return remarks about unusual predictions."""
        notes = []
        if self.highest < THRESHOLDS[0]:
            notes.append(
                f"The network finds no tumour: its highest probability is {self.highest:.2g}. Threshold 0.5 is kept."
            )
        elif self.constant:
            notes.append(f"The network returns {self.highest:.3g} for every pixel: threshold 0.5 is kept.")
        elif self.highest < 0.5:
            notes.append(f"No probability reaches 0.5 (the highest is {self.highest:.2g}): at 0.5 every mask is empty.")
        elif self.mean().argmax() == 0:
            notes.append("The best threshold is the lowest one, 0.001: tumours have very low probabilities.")
        return tuple(notes)


def survey(
    predictions: Predictions, resolution: Resolution, progress: Callable[[str, int, int], None] | None = None
) -> Survey:
    """Measure the Dice of every slice at every threshold."""
    count = len(predictions)
    if not count:
        raise UsageError("no slices to tune on", found="0 slices", expected="at least one")
    raw, widths = np.empty(count), np.empty(count)
    groups = np.empty(count, np.int64)
    spacings: list[float] = []
    sums: dict[tuple[int, int], NDArray[np.float64]] = {}
    counts: dict[tuple[int, int], int] = {}
    known: dict[str, int] = {}
    lowest, highest, tumours = np.inf, -np.inf, 0
    with_tumour: set[int] = set()
    for number in range(count):
        case, probability = predictions.case(number, resolution), predictions.probability(number, resolution)
        # A slice of unknown patient is a patient of its own.
        patient = case.group or case.patient or case.volume or f"\0{number}"
        groups[number] = known.setdefault(patient, len(known))
        dice = dice_at_all(probability, case.mask)
        key = case.label, int(groups[number]) % _BUCKETS
        sums[key] = sums[key] + dice if key in sums else dice
        counts[key] = counts.get(key, 0) + 1
        raw[number], widths[number] = dice[_RAW], max(case.mask.shape)
        if case.spacing[1] > 0:
            spacings.append(case.spacing[1])
        lowest, highest = min(lowest, float(probability.min())), max(highest, float(probability.max()))
        if case.mask.any():
            tumours += 1
            with_tumour.add(int(groups[number]))
        if progress is not None:
            progress("sweep", number + 1, count)
    if not tumours:
        raise DataError(
            "no slice has a tumour, so that no rule can be chosen",
            found=f"{count} slices without tumour",
            expected="at least one slice with a tumour",
            remedy="Prepare with more slices in validation: --split 70/15/15.",
        )
    buckets = min(len(known), _BUCKETS)
    by_class: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for label in sorted({label for label, _ in sums}):
        table, slices = np.zeros((buckets, len(THRESHOLDS))), np.zeros(buckets)
        for (other, bucket), values in sums.items():
            if other == label:
                table[bucket], slices[bucket] = values, counts[other, bucket]
        by_class[predictions.classes[label]] = table, slices
    return Survey(
        classes=tuple(by_class),
        sums={name: table for name, (table, _) in by_class.items()},
        counts={name: slices for name, (_, slices) in by_class.items()},
        raw=raw,
        groups=groups,
        width=int(np.median(widths)),
        spacing=float(np.median(spacings)) if spacings else None,
        lowest=lowest,
        highest=highest,
        tumours=tumours,
        tumour_patients=len(with_tumour),
    )
