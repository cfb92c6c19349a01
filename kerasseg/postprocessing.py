"""Apply a `MaskRule`: from probabilities to a mask, then post-processing.

Objects are 8-connected: pixels that touch at a corner belong together. (Thin tumour rims run diagonally; with
4-connectivity they would break into pieces, which the first step then removes.) Holes, accordingly, are 4-connected parts
of the background that do not reach the outside.

Lengths of a rule are shares of the width: the slice's longer side, which is the width of the square that the network saw.
So a rule means the same millimetres at the network's size and at native size, and for a slice that lies on its side.

A disk of radius r holds the pixels whose centres are at most r away; below 1 it is one pixel, and the step does nothing.
Beyond the slice's edge everything is background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.validation import complaint

__all__ = ["MaskRule", "apply_rule", "postprocess", "rule_in_words"]

_Length = Annotated[float, Field(ge=0, le=1)]
_Threshold = Annotated[float, Field(gt=0, le=1)]


class RuleError(UsageError, ValueError):
    """An invalid rule; a ValueError too, so that a file with such a rule is reported as damaged."""


class MaskRule(BaseModel):
    """From probabilities to a mask: a threshold, then post-processing, in the order of the attributes.

    Lengths are shares of the slice's width, so that a rule suits any resolution.

    Attributes:
        threshold: A pixel is tumour where its probability is at least this, (0, 1].
        class_thresholds: Class -> its own threshold instead; empty for one for all. Needs the class at prediction time.
        min_diameter: Objects smaller in area than a disk of this diameter are removed; 0 for none.
        close_radius: Of the disk that closes gaps; 0 for none.
        fill_holes: Whether holes are filled.
        keep_largest: Whether only the largest object stays.
        open_radius: Of the disk that opens (removes thin parts); 0 for none.

    Raises:
        UsageError: A name that is not known, or a number out of its range.

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
        """Whether the rule has post-processing."""
        return self != self.without_postprocessing()

    def threshold_for(self, name: str | None) -> float:
        """Return the threshold for a class; the common one if the class is unknown or has none of its own."""
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
        class_name: The slice's class, for rules with a threshold for each; None where it is unknown.
        width: As in `postprocess`.

    Returns:
        (height, width) bool.

    Raises:
        UsageError: Another number of dimensions.

    Example:
        >>> apply_rule([[0.2, 0.6], [0.4, 0.1]], MaskRule(threshold=0.4)).tolist()
        [[False, True], [True, False]]
    """
    values = np.asarray(probability, np.float32)
    _check(values)
    return postprocess(values >= np.float32(rule.threshold_for(class_name)), rule, width=width)


def postprocess(mask: ArrayLike, rule: MaskRule, *, width: float | None = None) -> NDArray[np.bool_]:
    """Apply the steps of a rule after its threshold: remove small objects, close, fill, keep the largest object, open.

    Args:
        mask: (height, width) bool, or numbers of which those above 0.5 are tumour.
        rule: Its threshold is not used.
        width: Pixels that a length of 1 stands for; None for the longer side of the mask. Needed where the mask is a part
            of a slice.

    Returns:
        (height, width) bool; an array of its own.

    Raises:
        UsageError: Another number of dimensions.

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
    if not rule.postprocesses or not out.any():
        return out
    pixels = out.view(np.uint8)
    left, top, columns, rows = cv2.boundingRect(pixels)
    scale = float(max(out.shape) if width is None else width)
    # All steps stay within the bounding box: closing within the convex hull, the others within the objects. One pixel of
    # background around it is where holes end and disks are cut off.
    box = (slice(top, top + rows), slice(left, left + columns))
    inner = cv2.copyMakeBorder(np.ascontiguousarray(pixels[box]), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = _remove_small(inner, math.pi / 4 * (rule.min_diameter * scale) ** 2)
    inner = _close(inner, rule.close_radius * scale)
    if rule.fill_holes:
        inner = _fill(inner)
    if rule.keep_largest:
        inner = _largest(inner)
    inner = _open(inner, rule.open_radius * scale)
    pixels[box] = inner[1:-1, 1:-1]
    return out


def rule_in_words(rule: MaskRule) -> str:
    """Describe a rule; lengths in percent of the slice's width.

    >>> rule_in_words(MaskRule(threshold=0.42, min_diameter=0.02, fill_holes=True))
    'threshold 0.42, remove objects below 2 % of the width, fill holes'
    """
    steps = [f"threshold {rule.threshold:g}"]
    steps += [f"{value:g} for {name}" for name, value in rule.class_thresholds.items()]
    if rule.min_diameter:
        steps.append(f"remove objects below {100 * rule.min_diameter:.3g} % of the width")
    if rule.close_radius:
        steps.append(f"close gaps with a radius of {100 * rule.close_radius:.3g} %")
    if rule.fill_holes:
        steps.append("fill holes")
    if rule.keep_largest:
        steps.append("keep only the largest object")
    if rule.open_radius:
        steps.append(f"remove thin parts with a radius of {100 * rule.open_radius:.3g} %")
    return ", ".join(steps)


def _check(array: NDArray[np.generic]) -> None:
    if array.ndim != 2:
        raise UsageError("a slice has two dimensions", found=f"shape {array.shape}", expected="(height, width)")


def _remove_small(pixels: NDArray[np.uint8], area: float) -> NDArray[np.uint8]:
    """Without the objects of fewer pixels than `area`."""
    if area <= 1:
        return pixels
    count, labels, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8, ltype=cv2.CV_32S)
    keep = (stats[:, cv2.CC_STAT_AREA] >= area).astype(np.uint8)
    keep[0] = 0
    return pixels if keep[1:].all() or count < 2 else keep[labels]


def _largest(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest object; of several, the one that comes first in reading order."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8, ltype=cv2.CV_32S)
    if count < 3:
        return pixels
    areas = stats[1:, cv2.CC_STAT_AREA]
    candidates = 1 + np.flatnonzero(areas == areas.max())
    # OpenCV does not promise an order of its labels.
    first = candidates[0] if len(candidates) == 1 else labels.ravel()[np.isin(labels, candidates).argmax()]
    return np.asarray(labels == first, np.uint8)


def _fill(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With every part of the background that the outside does not reach."""
    outside = pixels.copy()
    cv2.floodFill(outside, None, (0, 0), 2, flags=4)
    return np.asarray(outside != 2, np.uint8)


def _close(pixels: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    if radius < 1:
        return pixels
    disk = _disk(math.floor(radius * radius + 1e-9))
    reach = len(disk) // 2
    # Dilated over the edge of the slice and eroded from there, as if the slice went on: otherwise a gap between tumour and
    # edge would be closed.
    wide = cv2.copyMakeBorder(pixels, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.erode(cv2.dilate(wide, disk), disk)
    return np.asarray(closed[reach:-reach, reach:-reach], np.uint8)


def _open(pixels: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    if radius < 1:
        return pixels
    disk = _disk(math.floor(radius * radius + 1e-9))
    return np.asarray(cv2.dilate(cv2.erode(pixels, disk), disk), np.uint8)


@lru_cache(maxsize=64)
def _disk(square: int) -> NDArray[np.uint8]:
    """Pixels whose centre is at most the root of `square` from the middle one."""
    reach = math.isqrt(square)
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(rows * rows + columns * columns <= square, np.uint8)
