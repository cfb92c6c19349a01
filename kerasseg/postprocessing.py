"""From probabilities to a mask, and from a mask to a tidier one: the steps of a `MaskRule`, in their order.

Objects are 8-connected: pixels that touch at a corner belong together. (Thin tumour rims run diagonally; with
4-connectivity they would fall into dust, which the first step would then remove.) Holes, accordingly, are 4-connected parts
of the background that do not reach the outside.

Lengths of a rule are shares of the width: the slice's longer side, which is the width of the square that the network saw.
So a rule means the same millimetres at the network's size and at native size, and for a slice that lies on its side.

A disk of radius r holds the pixels whose centres are at most r away; below 1 it is one pixel, and the step does nothing.
Beyond the slice's edge everything is background.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg.rule import MaskRule
from kerasseg_tfrecords.errors import UsageError

__all__ = ["apply_rule", "postprocess"]


def apply_rule(
    probability: ArrayLike, rule: MaskRule, class_name: str | None = None, *, width: float | None = None
) -> NDArray[np.bool_]:
    """The mask that a rule makes of the probabilities of one slice.

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
    """The steps of a rule after its threshold: remove small objects, close, fill holes, keep the largest object, open.

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
