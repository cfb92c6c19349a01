"""From stored values to the 8-bit, square image that a network takes, and back to native size.

The intensity rule maps a window of stored values linearly onto 0..255; the three rules differ only in the window:

| rule         | window                            | for                                                          |
| ------------ | --------------------------------- | ------------------------------------------------------------ |
| `minmax`     | minimum to maximum                | the default: the Cheng literature and the usual checkpoints  |
| `percentile` | 0.5th to 99.5th percentile        | slices with a few very bright pixels (vessels, artefacts)    |
| `zscore`     | mean -+ 3 standard deviations     | data of several scanners                                     |

The statistics are those of the slice, or of the whole volume where the slice belongs to one. Colour images have one
window over all channels, so that colours keep their proportions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import UsageError

__all__ = ["IntensityRule", "Window", "fit_image", "fit_mask", "intensity_window", "restore"]

IntensityRule = Literal["minmax", "percentile", "zscore"]


@dataclass(frozen=True, slots=True)
class Window:
    """Stored values `low` and below become 0, `high` and above 255.

    Attributes:
        low, high: In stored values.
        holds_all: True where no pixel lies outside, so that nothing need be clipped.
    """

    low: float
    high: float
    holds_all: bool = False


def intensity_window(pixels: NDArray[Any], rule: IntensityRule) -> Window:
    """The window of `rule` for these pixels (a slice, or a whole volume).

    >>> intensity_window(np.array([[0, 10], [20, 40]]), "minmax")
    Window(low=0.0, high=40.0, holds_all=True)
    """
    if rule == "minmax":
        return Window(float(pixels.min()), float(pixels.max()), holds_all=True)
    if rule == "percentile":
        low, high = np.percentile(pixels, (0.5, 99.5))
        return Window(float(low), float(high))
    if rule == "zscore":
        mean, deviation = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
        return Window(mean - 3 * deviation, mean + 3 * deviation)
    raise UsageError("unknown intensity rule", found=rule, expected=", ".join(get_args(IntensityRule)))


def _square(image: NDArray[Any], value: float) -> NDArray[Any]:
    """`image` in the middle of the smallest square that holds it; where that is uneven, one pixel more below or right."""
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, *image.shape[2:]), value, dtype=image.dtype)
    square[top : top + height, left : left + width] = image
    return square


def fit_image(image: NDArray[Any], window: Window, size: int) -> NDArray[np.uint8]:
    """Windows, pads to a square and resizes by area interpolation.

    Args:
        image: (height, width) or (height, width, 3), any integer or float type, finite.
        window: From `intensity_window`.
        size: Side of the result in pixels.

    Returns:
        (size, size, channels) uint8, channels 1 or 3. Padding is 0, as is an image whose window is empty.
    """
    channels = 1 if image.ndim == 2 else image.shape[2]
    if window.high <= window.low:
        return np.zeros((size, size, channels), np.uint8)
    # Clipping does not commute with interpolation, so it comes first; the linear map does, and is cheaper afterwards.
    pixels = image.astype(np.float32)
    if not window.holds_all:
        np.clip(pixels, np.float32(window.low), np.float32(window.high), out=pixels)
    small = cv2.resize(_square(pixels, window.low), (size, size), interpolation=cv2.INTER_AREA)
    small -= np.float32(window.low)
    small *= np.float32(255.0 / (window.high - window.low))
    whole: NDArray[np.uint8] = np.clip(np.rint(small, out=small), 0, 255, out=small).astype(np.uint8)
    return whole.reshape(size, size, channels)


def fit_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """The mask at the network's size: padded like the image; a pixel is tumour where more than half of its area is.

    >>> fit_mask(np.eye(4, dtype=bool), 4).sum()
    np.int64(4)
    """
    square = _square(mask.view(np.uint8), 0)
    if square.shape[0] == size:
        return square.astype(bool)
    area = cv2.resize(square.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(area > 0.5)


def restore(values: NDArray[np.floating[Any]], height: int, width: int) -> NDArray[np.float32]:
    """Undoes `fit_image` for what a network put out: back to native size, padding cut off.

    Args:
        values: (size, size) probabilities (or a mask as 0.0 and 1.0).
        height: Native height in pixels.
        width: Native width in pixels.

    Returns:
        (height, width) float32, bilinearly interpolated; threshold it afterwards.

    Example:
        >>> restore(np.ones((32, 32), np.float32), height=48, width=40).shape
        (48, 40)
    """
    side = max(height, width)
    square = np.ascontiguousarray(values, dtype=np.float32)
    if square.shape[0] != side:
        square = cv2.resize(square, (side, side), interpolation=cv2.INTER_LINEAR)
    top, left = (side - height) // 2, (side - width) // 2
    return np.asarray(square[top : top + height, left : left + width], dtype=np.float32)
