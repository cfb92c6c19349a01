"""Convert stored values to the 8-bit, square image that a network takes, and predictions back to native size.

An intensity rule maps a window of stored values linearly to 0..255. The rules differ in the window:

| rule         | window                            | for                                                          |
| ------------ | --------------------------------- | ------------------------------------------------------------ |
| `minmax`     | minimum to maximum                | the default, as in the Cheng literature and most checkpoints |
| `percentile` | 0.5th to 99.5th percentile        | slices with a few very bright pixels (vessels, artefacts)    |
| `zscore`     | mean -+ 3 standard deviations     | data of several scanners                                     |

The statistics are those of the volume, or of a single slice. Colour images have one window for all channels, so that
colours keep their proportions. Slices with non-square pixels (7 x 1.6 mm) are resampled to square pixels; `restore` undoes
this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import UsageError

IntensityRule = Literal["minmax", "percentile", "zscore"]


@dataclass(frozen=True, slots=True)
class Window:
    """A window of stored values: up to `low` becomes 0, from `high` becomes 255.

    Attributes:
        low, high: Stored values.
        holds_all: True if no pixel is outside, so that clipping is not needed.
    """

    low: float
    high: float
    holds_all: bool = False


def intensity_window(pixels: NDArray[Any], rule: IntensityRule) -> Window:
    """Return the window of a rule for the pixels of a slice or a whole volume.

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
"""Largest relative difference between the sides of pixels that count as square, since headers round."""


def _shape(height: int, width: int, side: int, spacing: tuple[float, float]) -> tuple[int, int] | None:
    """Return rows and columns of a resampled slice within a square of `side` pixels; None if its pixels are square."""
    tall, wide = spacing
    if not (tall > 0 and wide > 0) or abs(tall - wide) <= _EVEN * max(tall, wide):
        return None
    scale = side / max(height * tall, width * wide)
    return max(1, round(height * tall * scale)), max(1, round(width * wide * scale))


def fitted_spacing(height: int, width: int, size: int, spacing: tuple[float, float]) -> tuple[float, float]:
    """Return the pixel size in millimetres after `fit_image` resized a slice to `size` pixels."""
    if _shape(height, width, size, spacing) is None:
        scale = max(height, width) / size
        return spacing[0] * scale, spacing[1] * scale
    both = max(height * spacing[0], width * spacing[1]) / size
    return both, both


def _stretch(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize each axis separately: by area when shrinking, linearly when growing."""
    for size in ((image.shape[1], height), (width, height)):
        if size != image.shape[1::-1]:
            shrinks = size[0] < image.shape[1] or size[1] < image.shape[0]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image


def _square(image: NDArray[Any], value: float, side: int = 0) -> NDArray[Any]:
    """Pad an image to a square, by default the smallest possible, with any odd pixel below or right."""
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
        spacing: Pixel size in millimetres, rows then columns; (0, 0) if unknown. Non-square pixels are resampled.

    Returns:
        (size, size, channels) uint8, channels 1 or 3. Padding is 0, and so is an image with an empty window.
    """
    channels = 1 if image.ndim == 2 else image.shape[2]
    if window.high <= window.low:
        return np.zeros((size, size, channels), np.uint8)
    # Clipping must precede interpolation. The linear map may follow it, where it is cheaper.
    pixels = image.astype(np.float32)
    if not window.holds_all:
        np.clip(pixels, np.float32(window.low), np.float32(window.high), out=pixels)
    small = _resized(pixels, size, window.low, spacing)
    small -= np.float32(window.low)
    small *= np.float32(255.0 / (window.high - window.low))
    whole: NDArray[np.uint8] = np.clip(np.rint(small, out=small), 0, 255, out=small).astype(np.uint8)
    return whole.reshape(size, size, channels)


def fit_mask(mask: NDArray[np.bool_], size: int, spacing: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.bool_]:
    """Resize a mask (height, width) like `fit_image`: a pixel is tumour if more than half of its area is.

    >>> fit_mask(np.eye(4, dtype=bool), 4).sum()
    np.int64(4)
    """
    if mask.shape == (size, size) and _shape(size, size, size, spacing) is None:
        return mask.astype(bool)
    return np.asarray(_resized(mask.astype(np.float32), size, 0, spacing) > 0.5)


def restore(
    values: NDArray[np.floating[Any]], height: int, width: int, spacing: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float32]:
    """Undo `fit_image` for a network's output: remove the padding and resize to native size.

    Args:
        values: (size, size) probabilities, or a mask of 0.0 and 1.0.
        height: Native height in pixels.
        width: Native width in pixels.
        spacing: The `spacing` given to `fit_image`.

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
