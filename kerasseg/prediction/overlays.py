"""A slice with the outline of what was found, as a picture."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.intensity import Window

__all__ = ["draw_overlay", "grey_levels"]

_LEAST = 512
"""Pixels of an overlay's longer side: smaller slices are enlarged, so that the outline is thin beside the tumour."""
_COLOUR = (0, 159, 230)
"""Okabe and Ito's orange, in OpenCV's order."""
_FILL = 0.2


def grey_levels(image: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """The slice as the network's window shows it, at its own size.

    Args:
        image: (height, width) or (height, width, 3), stored values.
        window: Of the intensity rule.

    Returns:
        The same shape, 0 to 255.
    """
    if window.high <= window.low:
        return np.zeros(image.shape, np.uint8)
    scaled = (image.astype(np.float32) - np.float32(window.low)) * np.float32(255 / (window.high - window.low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def draw_overlay(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Outline and a tint over the slice.

    Args:
        image: (height, width) or (height, width, 3, RGB).
        mask: (height, width).

    Returns:
        (height * k, width * k, 3) in OpenCV's order (BGR), k the smallest whole number that makes it 512 pixels wide or
        high.

    Example:
        >>> draw_overlay(np.zeros((100, 80), np.uint8), np.ones((100, 80), bool)).shape
        (600, 480, 3)
    """
    height, width = mask.shape
    scale = max(1, -(-_LEAST // max(height, width)))
    size = (width * scale, height * scale)
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    if not mask.any():
        return np.asarray(picture)
    inside = cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    tinted = cv2.addWeighted(picture, 1 - _FILL, np.full_like(picture, _COLOUR), _FILL, 0)
    picture = np.where(inside[..., None] > 0, tinted, picture)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # Black below the colour: it shows on bright tumours too.
    for colour, thickness in (((0, 0, 0), 3), (_COLOUR, 1)):
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)
    return np.asarray(picture)
