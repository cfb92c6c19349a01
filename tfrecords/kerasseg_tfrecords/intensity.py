"""Conversion of stored values to the 8-bit, square image that a network takes, and back to native size.

The intensity rule maps a window of stored values linearly onto 0..255; the three rules differ only in the window:

| rule         | window                            | for                                                          |
| ------------ | --------------------------------- | ------------------------------------------------------------ |
| `minmax`     | minimum to maximum                | the default: the Cheng literature and the usual checkpoints  |
| `percentile` | 0.5th to 99.5th percentile        | slices with a few very bright pixels (vessels, artefacts)    |
| `zscore`     | mean -+ 3 standard deviations     | data of several scanners                                     |

The statistics are those of the slice, or of the whole volume where the slice belongs to one. Colour images have one
window over all channels, so that colours keep their proportions.

Slices whose pixels are not square (7 x 1.6 mm) are resampled to square ones for the network; `restore` undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import UsageError

__all__ = ["IntensityRule", "Window", "fit_image", "fit_mask", "fitted_spacing", "intensity_window", "restore"]

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


_EVEN = 0.01
"""Pixels whose sides differ by less than this share count as square: headers round."""


def _shape(height: int, width: int, side: int, spacing: tuple[float, float]) -> tuple[int, int] | None:
    """Rows and columns that a slice takes within a square of `side` pixels; None where its own pixels are square."""
    tall, wide = spacing
    if not (tall > 0 and wide > 0) or abs(tall - wide) <= _EVEN * max(tall, wide):
        return None
    scale = side / max(height * tall, width * wide)
    return max(1, round(height * tall * scale)), max(1, round(width * wide * scale))


def fitted_spacing(height: int, width: int, size: int, spacing: tuple[float, float]) -> tuple[float, float]:
    """Millimetres a pixel after `fit_image` brought a slice of this size and spacing to `size` pixels."""
    if _shape(height, width, size, spacing) is None:
        scale = max(height, width) / size
        return spacing[0] * scale, spacing[1] * scale
    both = max(height * spacing[0], width * spacing[1]) / size
    return both, both


def _stretch(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resizes each axis by itself: area where it shrinks, linear where it grows."""
    for size in ((image.shape[1], height), (width, height)):
        if size != image.shape[1::-1]:
            shrinks = size[0] < image.shape[1] or size[1] < image.shape[0]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image


def _square(image: NDArray[Any], value: float, side: int = 0) -> NDArray[Any]:
    """`image` in the middle of a square (by default the smallest that holds it), the odd pixel below or right."""
    height, width = image.shape[:2]
    side = side or max(height, width)
    if height == width == side:
        return image
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, *image.shape[2:]), value, dtype=image.dtype)
    square[top : top + height, left : left + width] = image
    return square


def _resized(image: NDArray[np.float32], size: int, value: float, spacing: tuple[float, float]) -> NDArray[np.float32]:
    inner = _shape(image.shape[0], image.shape[1], size, spacing)
    if inner is not None:
        return _square(_stretch(image, *inner), value, size)
    return np.asarray(cv2.resize(_square(image, value), (size, size), interpolation=cv2.INTER_AREA), np.float32)


def fit_image(
    image: NDArray[Any], window: Window, size: int, spacing: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.uint8]:
    """Apply the window, pad to a square and resize by area interpolation.

    Args:
        image: (height, width) or (height, width, 3), any integer or float type, finite.
        window: From `intensity_window`.
        size: Side of the result in pixels.
        spacing: Millimetres a pixel, rows then columns. Where they differ, the image is resampled to square pixels;
            (0, 0) where unknown.

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
    small = _resized(pixels, size, window.low, spacing)
    small -= np.float32(window.low)
    small *= np.float32(255.0 / (window.high - window.low))
    whole: NDArray[np.uint8] = np.clip(np.rint(small, out=small), 0, 255, out=small).astype(np.uint8)
    return whole.reshape(size, size, channels)


def fit_mask(mask: NDArray[np.bool_], size: int, spacing: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.bool_]:
    """Bring a mask to the network's size: a pixel is tumour where more than half of its area is.

    Args:
        mask: (height, width).
        size: Side of the result in pixels.
        spacing: As in `fit_image`.

    >>> fit_mask(np.eye(4, dtype=bool), 4).sum()
    np.int64(4)
    """
    if mask.shape == (size, size) and _shape(size, size, size, spacing) is None:
        return mask.astype(bool)
    return np.asarray(_resized(mask.astype(np.float32), size, 0, spacing) > 0.5)


def restore(
    values: NDArray[np.floating[Any]], height: int, width: int, spacing: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float32]:
    """Undo `fit_image` for a network's output: cut the padding off and resize to native size.

    Args:
        values: (size, size) probabilities (or a mask as 0.0 and 1.0).
        height: Native height in pixels.
        width: Native width in pixels.
        spacing: As given to `fit_image`.

    Returns:
        (height, width) float32, bilinearly interpolated; threshold it afterwards.

    Example:
        >>> restore(np.ones((32, 32), np.float32), height=48, width=40).shape
        (48, 40)
    """
    square = np.ascontiguousarray(values, dtype=np.float32)
    inner = _shape(height, width, len(square), spacing)
    side = max(height, width)
    if inner is None and len(square) != side:
        square = cv2.resize(square, (side, side), interpolation=cv2.INTER_LINEAR)
    rows, columns = inner or (height, width)
    top, left = (len(square) - rows) // 2, (len(square) - columns) // 2
    part = square[top : top + rows, left : left + columns]
    return np.asarray(part if inner is None else _stretch(part, height, width), dtype=np.float32)
