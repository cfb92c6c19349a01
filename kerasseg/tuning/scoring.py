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
from kerasseg.postprocessing import MaskRule, apply_steps, rows_between
from kerasseg.tuning.thresholds import THRESHOLDS, dice_at_all
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.workers import available_cpus

LARGEST_CLOSING = 0.008
"""Largest `close_radius` of rules that are tried."""

_RACE = 3
"""Every third slice is used to decide whether a rule is worth trying on the others."""

_FEWEST = 20
"""Slices in that third below which no rule is dropped early."""

_STRIP = 1 << 16
"""Pixels that a strip holds at least, if there are enough slices; more would not fit into a processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The part of a slice that any rule can turn into tumour, and the reference there.

    Attributes:
        number: Index of the slice.
        probability: (rows, columns) float32.
        mask: The same part of the reference.
        tumour: Tumour pixels of the whole reference.
        width: Width of the slice, see `postprocess`.
    """

    number: int
    probability: NDArray[np.float32]
    mask: NDArray[np.bool_]
    tumour: int
    width: int


class _Strip:
    """Parts of slices of one width below each other, so that one call handles all of them.

    Args:
        parts: The parts.

    Attributes:
        numbers: (n,) indices of the slices.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.numbers = np.array([part.number for part in parts])
        self._tumour = np.array([part.tumour for part in parts])
        self._width = parts[0].width
        empty = rows_between(LARGEST_CLOSING * self._width)
        # The rows of slice i, and the empty rows above them, are those from ends[i] to ends[i + 1].
        self._ends = np.cumsum([0, *(empty + len(part.mask) for part in parts)])
        self._ends[-1] += 1
        shape = int(self._ends[-1]), max(part.mask.shape[1] for part in parts) + 2
        self._probability, self._mask = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        for part, top in zip(parts, (self._ends[:-1] + empty).tolist(), strict=True):
            box = slice(top, top + part.mask.shape[0]), slice(1, 1 + part.mask.shape[1])
            self._probability[box], self._mask[box] = part.probability, part.mask

    def dice(self, rule: MaskRule, thresholds: NDArray[np.float32] | None) -> NDArray[np.float64]:
        """Return (n,) Dice; `thresholds` of all slices replace that of the rule."""
        least: NDArray[np.float32] | np.float32 = np.float32(rule.threshold)
        if thresholds is not None:
            least = thresholds[self.numbers].repeat(np.diff(self._ends))[:, None]
        found = (self._probability >= least).view(np.uint8)
        if rule.postprocesses:
            found = apply_steps(found, rule, self._width, self._ends[:-1])
        sizes, overlap = self._tumour + self._counted(found), self._counted(found & self._mask)
        return np.divide(2 * overlap, sizes, out=np.ones(len(sizes)), where=sizes > 0)

    def _counted(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        rows = cv2.reduce(pixels, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        return np.add.reduceat(rows.ravel(), self._ends[:-1], dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class HeldSlices:
    """Slices that rules are tried on.

    Attributes:
        first: Every third slice.
        rest: The other slices.
        labels: (n,) class of each slice.
        groups: (n,) number of each slice's patient.
        lowest: Threshold that the slices are cut for; lower ones would need more of them.
    """

    first: tuple[_Strip, ...]
    rest: tuple[_Strip, ...]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    lowest: float


def hold(
    predictions: Predictions,
    numbers: NDArray[np.int64],
    groups: NDArray[np.int64],
    resolution: Resolution,
    lowest: float,
) -> HeldSlices:
    """Keep the parts of slices that rules need in memory."""
    parts: tuple[list[_Part], list[_Part]] = [], []
    for index, number in enumerate(numbers.tolist()):
        probability = predictions.probability(number, resolution)
        mask = predictions.case(number, resolution).mask
        found, width = probability >= np.float32(lowest), max(probability.shape)
        rows, columns = (_lines(np.asarray(found.any(axis)), width) for axis in (1, 0))
        part = probability.take(rows, 0).take(columns, 1), mask.take(rows, 0).take(columns, 1)
        parts[index % _RACE > 0].append(_Part(index, *part, int(np.count_nonzero(mask)), width))
    return HeldSlices(_strips(parts[0]), _strips(parts[1]), predictions.labels[numbers], groups[numbers], lowest)


def _lines(tumour: NDArray[np.bool_], width: int) -> NDArray[np.int64]:
    """Return the rows or columns that rules need: those with tumour at the lowest threshold, and some between.

    No step extends beyond the bounding box of an object, or reaches from one across `rows_between` empty lines to another.
    """
    end = 1 + int(np.flatnonzero(tumour).max(initial=-1))
    beside = np.ones(rows_between(LARGEST_CLOSING * width) + 1)
    return np.flatnonzero(np.convolve(tumour[:end], beside)[:end]) if end else np.zeros(0, np.int64)


def _strips(parts: list[_Part]) -> tuple[_Strip, ...]:
    """Put parts of similar size into strips; the list is emptied, so that little is in memory twice."""
    parts.sort(key=lambda part: (part.width, part.mask.shape[1]))
    strips = []
    while parts:
        together = [parts.pop()]
        pixels = together[0].mask.size
        while parts and parts[-1].width == together[0].width and pixels < _STRIP:
            together.append(parts.pop())
            pixels += together[-1].mask.size
        strips.append(_Strip(together))
    return tuple(strips)


class RuleSearch:
    """Dice of rules on held slices; a context manager."""

    def __init__(self, held: HeldSlices, jobs: int | None = None) -> None:
        self.held = held
        self._pool = ThreadPoolExecutor(jobs or available_cpus())
        self._known: dict[str, NDArray[np.float64]] = {}

    def __enter__(self) -> RuleSearch:
        self._opencv = cv2.getNumThreads()  # turned off, since they only delay ours
        cv2.setNumThreads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(self._opencv)

    def dice(self, rule: MaskRule, names: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return (n,) Dice of every slice; class thresholds need the names of the classes."""
        key = rule.model_dump_json()
        if key not in self._known:
            self._known[key] = self.fresh(rule, names)
        return self._known[key]

    def fresh(self, rule: MaskRule, names: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return the same as `dice`, without keeping it."""
        thresholds = None
        if names is not None:
            thresholds = np.array([rule.threshold_for(names[i]) for i in self.held.labels], np.float32)
        out = np.empty(len(self.held.labels))
        self._fill(out, self.held.first + self.held.rest, rule, thresholds)
        return out

    def race(self, rule: MaskRule, standing: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return (n,) Dice of every slice, or None if a third of them shows that the rule is clearly worse.

        Clearly: the mean of the paired differences is more than two standard errors below zero.
        """
        key = rule.model_dump_json()
        if key in self._known:
            return self._known[key]
        out = np.empty(len(standing))
        self._fill(out, self.held.first, rule)
        behind = standing[::_RACE] - out[::_RACE]
        if len(behind) >= _FEWEST and behind.mean() > 2 * behind.std(ddof=1) / np.sqrt(len(behind)):
            return None
        self._fill(out, self.held.rest, rule)
        self._known[key] = out
        return out

    def _fill(
        self,
        out: NDArray[np.float64],
        strips: Sequence[_Strip],
        rule: MaskRule,
        thresholds: NDArray[np.float32] | None = None,
    ) -> None:
        def fill(strip: _Strip) -> None:
            out[strip.numbers] = strip.dice(rule, thresholds)

        list(self._pool.map(fill, strips))  # also raises what a thread raises


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
