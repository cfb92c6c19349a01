"""Masks from probabilities: apply the threshold and post-processing of a `MaskRule`.

Objects are 8-connected, because thin diagonal parts of a tumour would otherwise break into pieces and be removed as small
objects. Holes are 4-connected parts of the background that do not reach the outside.

Lengths are fractions of the slice's longer side, which is the width of the square network input. A rule therefore means
the same millimetres at the network's size and at native size.

A disk of radius r contains the pixels whose centres are at most r away; with r < 1 a step has no effect. Beyond the edge
of the slice everything is background.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.validation import complaint

_Length = Annotated[float, Field(ge=0, le=1)]
_Threshold = Annotated[float, Field(gt=0, le=1)]
_ONE = np.zeros(1, np.int64)


class RuleError(UsageError, ValueError):
    """An invalid rule; also a ValueError, so that a file with such a rule is reported as damaged."""


class MaskRule(BaseModel):
    """A threshold and post-processing steps, applied in the order of the attributes.

    Lengths are fractions of the slice's width, so that a rule fits any resolution.

    Attributes:
        threshold: Minimum probability of a tumour pixel, (0, 1].
        class_thresholds: Class -> its own threshold. Needs the class at prediction time.
        min_diameter: Objects smaller in area than a disk of this diameter are removed; 0 for none.
        close_radius: Radius of the disk that closes gaps; 0 for none.
        fill_holes: Whether to fill holes.
        keep_largest: Whether to keep only the largest object.
        open_radius: Radius of the disk that removes thin parts (opening); 0 for none.

    Raises:
        UsageError: An unknown name, or a number out of range.

    Example:
        >>> MaskRule(threshold=0.4, min_diameter=0.02).without_postprocessing()
        MaskRule(threshold=0.4)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    threshold: _Threshold = 0.5
    class_thresholds: Mapping[str, _Threshold] = {}
    min_diameter: _Length = 0.0
    close_radius: _Length = 0.0
    fill_holes: bool = False
    keep_largest: bool = False
    open_radius: _Length = 0.0

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = complaint(error, list(MaskRule.model_fields))
            if wrong.kind == "unknown":
                raise RuleError(f"a rule has no {wrong.where!r}", remedy=wrong.remedy) from None
            raise RuleError(f"invalid {wrong.where} of a rule", found=wrong.found, expected=wrong.expected) from None

    def without_postprocessing(self) -> MaskRule:
        """Return the thresholds alone."""
        return MaskRule(threshold=self.threshold, class_thresholds=self.class_thresholds)

    @property
    def postprocesses(self) -> bool:
        """Whether there are steps after the threshold."""
        return bool(self.min_diameter or self.close_radius or self.fill_holes or self.keep_largest or self.open_radius)

    @property
    def lowest_threshold(self) -> float:
        """The lowest of all thresholds."""
        return min([self.threshold, *self.class_thresholds.values()])

    def threshold_for(self, name: str | None) -> float:
        """Return the threshold of a class; the common one if the class is unknown or has none."""
        return self.threshold if name is None else self.class_thresholds.get(name, self.threshold)

    def __repr_args__(self) -> list[tuple[str | None, object]]:
        """Return the threshold and what differs from the default."""
        plain = type(self).model_fields
        return [(k, v) for k, v in self if k == "threshold" or v != plain[k].default]


def apply_rule(
    probability: ArrayLike, rule: MaskRule, class_name: str | None = None, *, width: float | None = None
) -> NDArray[np.bool_]:
    """Apply a rule to the probabilities of one slice.

    Args:
        probability: (height, width), in [0, 1]; compared as float32.
        rule: Threshold and post-processing.
        class_name: The slice's class, for rules with class thresholds; None if unknown.
        width: See `postprocess`.

    Returns:
        (height, width) bool.

    Raises:
        UsageError: The array does not have two dimensions.

    Example:
        >>> apply_rule([[0.2, 0.6], [0.4, 0.1]], MaskRule(threshold=0.4)).tolist()
        [[False, True], [True, False]]
    """
    values = np.asarray(probability, np.float32)
    _check(values)
    return postprocess(values >= np.float32(rule.threshold_for(class_name)), rule, width=width)


def postprocess(mask: ArrayLike, rule: MaskRule, *, width: float | None = None) -> NDArray[np.bool_]:
    """Apply the steps of a rule after its threshold.

    Args:
        mask: (height, width) bool, or numbers of which those above 0.5 are tumour.
        rule: The rule; its threshold is not used.
        width: Pixels that a length of 1 corresponds to; None for the longer side of the mask. Pass it if the mask is only
            part of a slice.

    Returns:
        A new (height, width) bool array.

    Raises:
        UsageError: The mask does not have two dimensions.

    Example:
        >>> mask = np.zeros((20, 20), bool)
        >>> mask[2:8, 2:8] = True; mask[4, 4] = False; mask[15, 15] = True
        >>> tidy = postprocess(mask, MaskRule(min_diameter=0.2, fill_holes=True))
        >>> int(mask.sum()), int(tidy.sum())
        (36, 36)
        >>> bool(tidy[4, 4]), bool(tidy[15, 15])
        (True, False)
    """
    given = np.asarray(mask)
    _check(given)
    out = given.copy() if given.dtype == np.bool_ else given > 0.5
    if not rule.postprocesses:
        return out
    pixels = out.view(np.uint8)
    left, top, columns, rows = cv2.boundingRect(pixels)
    if not columns:
        return out
    # No step reaches outside the bounding box.
    box = (slice(top, top + rows), slice(left, left + columns))
    inner = cv2.copyMakeBorder(np.ascontiguousarray(pixels[box]), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    pixels[box] = apply_steps(inner, rule, float(max(out.shape) if width is None else width))[1:-1, 1:-1]
    return out


def apply_steps(
    pixels: NDArray[np.uint8], rule: MaskRule, width: float, starts: NDArray[np.int64] = _ONE
) -> NDArray[np.uint8]:
    """Apply the steps of a rule after its threshold to one slice, or to several below each other.

    Args:
        pixels: (rows, columns) uint8, 0 or 1. The border is empty: there holes end and disks are cut. Between two slices,
            as many rows are empty as `rows_between` returns, so that no step of one reaches the other.
        rule: The rule; its threshold is not used.
        width: Pixels that a length of 1 corresponds to.
        starts: (slices,) first row of each slice.

    Returns:
        The new pixels, or the given ones if nothing changes.
    """
    # Objects are found once if no step between removing small ones and keeping the largest changes them.
    at_once = rule.keep_largest and rule.close_radius * width < 1 and not rule.fill_holes
    pixels = _keep(pixels, math.pi / 4 * (rule.min_diameter * width) ** 2, starts if at_once else None)
    pixels = _close(pixels, rule.close_radius * width)
    if rule.fill_holes:
        pixels = _fill(pixels)
    if rule.keep_largest and not at_once:
        pixels = _keep(pixels, 0, starts)
    return _open(pixels, rule.open_radius * width)


def rows_between(radius: float) -> int:
    """Return the number of empty rows between slices whose gaps are closed together with this radius, in pixels."""
    return len(_disk(radius))


def rule_in_words(
    rule: MaskRule, length: Callable[[float], str] = lambda share: f"{100 * share:.3g} % of the width"
) -> str:
    """Describe a rule, with lengths in percent of the slice's width, or as `length` writes a share of it.

    >>> rule_in_words(MaskRule(threshold=0.42, min_diameter=0.02, fill_holes=True))
    'threshold 0.42, remove objects smaller than a disk of diameter 2 % of the width, fill holes'
    """
    steps = [f"threshold {rule.threshold:g}"]
    steps += [f"{value:g} for {name}" for name, value in rule.class_thresholds.items()]
    if rule.min_diameter:
        steps.append(f"remove objects smaller than a disk of diameter {length(rule.min_diameter)}")
    if rule.close_radius:
        steps.append(f"close gaps with a radius of {length(rule.close_radius)}")
    if rule.fill_holes:
        steps.append("fill holes")
    if rule.keep_largest:
        steps.append("keep only the largest object")
    if rule.open_radius:
        steps.append(f"remove thin parts with a radius of {length(rule.open_radius)}")
    return ", ".join(steps)


def _check(array: NDArray[np.generic]) -> None:
    if array.ndim != 2:
        raise UsageError("a slice has two dimensions", found=f"shape {array.shape}", expected="(height, width)")


def _keep(pixels: NDArray[np.uint8], area: float, starts: NDArray[np.int64] | None) -> NDArray[np.uint8]:
    """Keep objects of at least `area` pixels; with `starts` only the largest of each slice, of several the first."""
    if area <= 1 and starts is None:
        return pixels
    count, labels = cv2.connectedComponents(pixels, connectivity=8, ltype=cv2.CV_32S)
    # Few pixels are tumour, and counting only those is faster than OpenCV's statistics.
    there = np.flatnonzero(pixels.view(np.bool_))
    numbers = labels.ravel().take(there) - 1
    areas = np.bincount(numbers, minlength=count - 1)
    kept = areas >= area
    if starts is not None and count > 2:
        # OpenCV does not guarantee the order of labels. Of repeated indices, the last assignment remains.
        first = np.empty(count - 1, np.intp)
        first[numbers[::-1]] = there[::-1]
        owner = np.searchsorted(starts, first // pixels.shape[1], side="right")
        order = np.lexsort((first, -areas, owner))
        kept[order[np.diff(owner[order], prepend=0) == 0]] = False
    if kept.all():
        return pixels
    out = pixels.copy()
    out.ravel()[there[~kept.take(numbers)]] = 0
    return out


def _fill(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill the parts of the background that are not connected to the outside."""
    outside = pixels.copy()
    cv2.floodFill(outside, None, (0, 0), 2, flags=4)
    return (outside != 2).view(np.uint8)


def _close(pixels: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    if radius < 1:
        return pixels
    disk = _disk(radius)
    reach = len(disk) // 2
    # Dilate and erode beyond the edge of the slice, so that a gap between tumour and edge stays open.
    wide = cv2.copyMakeBorder(pixels, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.erode(cv2.dilate(wide, disk), disk)
    return np.asarray(closed[reach:-reach, reach:-reach], np.uint8)


def _open(pixels: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    return pixels if radius < 1 else np.asarray(cv2.dilate(cv2.erode(pixels, _disk(radius)), _disk(radius)), np.uint8)


@lru_cache(maxsize=64)
def _disk(radius: float) -> NDArray[np.uint8]:
    """Return the pixels whose centre is at most `radius` from the middle."""
    square = math.floor(radius * radius + 1e-9)
    reach = math.isqrt(square)
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(rows * rows + columns * columns <= square, np.uint8)
