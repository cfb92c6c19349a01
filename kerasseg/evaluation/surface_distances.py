"""Distances between the borders of two masks, such as HD95, from one pair of distance maps.

A border pixel belongs to the mask and has a neighbour above, below, left or right that does not; outside the image there
is no mask. Distances go from each border pixel of one mask to the nearest border pixel of the other, centre to centre,
exactly and in both directions. HD95 is the larger of the two directed 95th percentiles (Metrics Reloaded: Maier-Hein et
al., Nature Methods 21, 2024; the same in MONAI). `docs/decisions/hd95.md` compares other definitions.

| reference | prediction | `outcome` | distances | `..._or_diagonal` |
| --- | --- | --- | --- | --- |
| empty | empty | "no_tumour" | 0 | 0 |
| empty | something | "false_alarm" | infinite | the image's diagonal |
| tumour | empty | "missed" | infinite | the image's diagonal |
| tumour | something | "compared" | as measured | as measured |

Distances are infinite instead of NaN, because a mean that leaves NaN out would drop missed tumours and improve with each.
Count the misses and average the rest, or use the finite variant: the diagonal is longer than any distance within the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from kerasseg.evaluation.overlap import mask_pair
from kerasseg_tfrecords.errors import UsageError

Outcome = Literal["compared", "missed", "false_alarm", "no_tumour"]

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)

_EXACT_IN_FLOAT32 = 1 << 21
"""Squared distances in pixels below which rounding restores exact values (the error of float32 is a quarter there)."""


@dataclass(frozen=True, slots=True)
class DirectedDistances:
    """Distances from the border pixels of one mask to the nearest border pixel of the other.

    Attributes:
        count: Border pixels of that mask; 0 if it is empty.
        mean, p95, largest: Mean, 95th percentile (linear between ranks, as NumPy's default) and maximum, in the unit of
            the spacing. Infinite in both directions if one mask is empty, 0 if both are.
    """

    count: int
    mean: float
    p95: float
    largest: float


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """Distances of one slice, in pixels, or in millimetres with a spacing.

    Attributes:
        outcome: Row of the table above: "compared", "missed", "false_alarm", "no_tumour".
        to_reference: Distances from the prediction's border to the reference's.
        to_prediction: Distances from the reference's border to the prediction's.
        diagonal: Diagonal of the image, from outer corner to outer corner.

    Example:
        >>> reference = np.zeros((3, 4)); reference[1, :2] = 1
        >>> found = surface_distances(reference, reference)
        >>> found.outcome, found.hd95, found.diagonal
        ('compared', 0.0, 5.0)
        >>> missed = surface_distances(np.zeros((3, 4)), reference)
        >>> missed.outcome, missed.hd95, missed.hd95_or_diagonal
        ('missed', inf, 5.0)
    """

    outcome: Outcome
    to_reference: DirectedDistances
    to_prediction: DirectedDistances
    diagonal: float

    @property
    def hd95(self) -> float:
        """The larger of the two directed 95th percentiles."""
        return max(self.to_reference.p95, self.to_prediction.p95)

    @property
    def hd(self) -> float:
        """Hausdorff distance: the largest distance."""
        return max(self.to_reference.largest, self.to_prediction.largest)

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: the mean over the border pixels of both masks."""
        if self.outcome != "compared":
            return self.to_reference.mean
        there, back = self.to_reference, self.to_prediction
        return (there.mean * there.count + back.mean * back.count) / (there.count + back.count)

    @property
    def masd(self) -> float:
        """Mean average surface distance: the mean of the two directed means, whatever the lengths of the borders."""
        return (self.to_reference.mean + self.to_prediction.mean) / 2

    @property
    def hd95_or_diagonal(self) -> float:
        """HD95, or the image's diagonal for a missed tumour or a false alarm."""
        return min(self.hd95, self.diagonal)

    @property
    def assd_or_diagonal(self) -> float:
        """Average symmetric surface distance, or the image's diagonal for a missed tumour or a false alarm."""
        return min(self.assd, self.diagonal)


def surface_distances(
    prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float] = (1.0, 1.0)
) -> SurfaceDistances:
    """Compute all distances of one slice; see the table above for edge cases.

    Args:
        prediction: Mask (height, width): booleans, or 0 and 1.
        reference: Ground truth of the same shape.
        spacing: Millimetres per pixel, rows then columns; 1 and 1 for pixels. Three numbers make the masks one volume
            (slices, height, width).

    Returns:
        Distances in the unit of `spacing`. Swapping the masks swaps only the directions.

    Raises:
        UsageError: Sizes differ, values are neither 0 nor 1, or the spacing does not fit or is unknown (0).

    Example:
        >>> reference = np.zeros((64, 64), bool); reference[20:40, 20:40] = True
        >>> prediction = np.roll(reference, 3, axis=1)
        >>> found = surface_distances(prediction, reference, spacing=(0.5, 0.5))
        >>> found.hd95, found.hd, round(found.assd, 3), found.to_reference.count
        (1.5, 1.5, 0.75, 76)
        >>> missed = surface_distances(np.zeros_like(reference), reference)
        >>> missed.outcome, missed.hd95, round(missed.hd95_or_diagonal, 1)
        ('missed', inf, 90.5)
    """
    predicted, true = mask_pair(prediction, reference)
    steps = _steps(spacing, predicted.shape)
    diagonal = math.hypot(*(n * step for n, step in zip(predicted.shape, steps, strict=True)))
    box = _box(predicted | true)
    # The box contains all border pixels, and its rim counts as no mask.
    predicted_border, true_border = _border(predicted[box]), _border(true[box])
    counts = int(np.count_nonzero(predicted_border)), int(np.count_nonzero(true_border))
    if not all(counts):
        value = math.inf if any(counts) else 0.0
        outcome: Outcome = "false_alarm" if counts[0] else "missed" if counts[1] else "no_tumour"
        there, back = (DirectedDistances(n, value, value, value) for n in counts)
        return SurfaceDistances(outcome, there, back, diagonal)
    return SurfaceDistances(
        "compared",
        _summary(_distances(predicted_border, true_border, steps)),
        _summary(_distances(true_border, predicted_border, steps)),
        diagonal,
    )


def hd95(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float] = (1.0, 1.0)) -> float:
    """Compute the larger of the two directed 95th percentiles over border pixels.

    Args:
        prediction: Mask (height, width): booleans, or 0 and 1.
        reference: Ground truth of the same shape.
        spacing: Millimetres per pixel, rows then columns; 1, 1 for a result in pixels.

    Returns:
        Pixels or millimetres; infinite if one mask is empty, 0 if both are.

    Raises:
        UsageError: As in `surface_distances`.

    Example:
        >>> hd95(np.eye(5), np.eye(5, k=2)), hd95(np.eye(5), np.zeros((5, 5)))
        (2.0, inf)
    """
    return surface_distances(prediction, reference, spacing).hd95


def _steps(spacing: Sequence[float], shape: tuple[int, ...]) -> tuple[float, ...]:
    steps = tuple(float(step) for step in spacing)
    if len(shape) not in (2, 3) or len(steps) != len(shape) or 0 in shape:
        raise UsageError(
            "mask and spacing do not fit",
            found=f"a mask {shape} and {len(steps)} numbers",
            expected="(height, width) and 2, or (slices, height, width) and 3",
            remedy="Measure the slices of a stack one by one",
        )
    if not all(0 < step < math.inf for step in steps):
        remedy = "Leave it out to measure in pixels"
        raise UsageError("invalid spacing", found=steps, expected="millimetres above 0", remedy=remedy)
    return steps


def _box(union: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the bounding box of the mask; empty slices for an empty mask."""
    if union.ndim == 2:
        x, y, width, height = cv2.boundingRect(union.view(np.uint8))
        return slice(y, y + height), slice(x, x + width)
    found = ndimage.find_objects(union.view(np.uint8))
    return found[0] if found else (slice(0),) * union.ndim


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if mask.ndim == 2 and mask.size:
        # OpenCV's default treats the outside of the image as mask.
        inner = cv2.erode(mask.view(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        return mask ^ inner.view(bool)
    return mask ^ ndimage.binary_erosion(mask)


def _distances(border: NDArray[np.bool_], other: NDArray[np.bool_], steps: tuple[float, ...]) -> NDArray[np.float64]:
    """Return distances from each pixel of `border` to the nearest of `other`, ascending; neither is empty."""
    square = len(steps) == 2 and steps[0] == steps[1]
    if square and sum((n - 1) ** 2 for n in border.shape) < _EXACT_IN_FLOAT32:
        # Three times as fast as SciPy. Squared distances are integers, so that rounding them gives exact distances.
        apart = cv2.distanceTransform((~other).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[border]
        found = np.sqrt(np.rint(np.square(apart, dtype=np.float64))) * steps[0]
    else:
        found = ndimage.distance_transform_edt(~other, sampling=steps)[border]
    found.sort()
    return found


def _summary(ascending: NDArray[np.float64]) -> DirectedDistances:
    # numpy.percentile gives the same, but takes longer than a distance map.
    count = len(ascending)
    rank, part = divmod(0.95 * (count - 1), 1)
    low, high = float(ascending[int(rank)]), float(ascending[min(int(rank) + 1, count - 1)])
    return DirectedDistances(count, float(ascending.sum()) / count, low + part * (high - low), float(ascending[-1]))
