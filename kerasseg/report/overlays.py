"""Pictures of slices for pages: the whole slice with outlines, and a close-up with hits, misses and false alarms.

The slice is an `<img>` with a `data:` address; the overlay is SVG, exact to the pixel and sharp at any size. Colours are
Okabe and Ito's; outlines also differ in width and dashes, and areas in hatching.
"""

from __future__ import annotations

import base64

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

_SIDE = 240
"""Units of a picture's longer side; widths of lines and hatching are in the same units."""

_FINE = 4
"""Enlargement of masks before outlining: outlines then are within an eighth of a pixel of the border."""


def outlined(
    image: NDArray[np.uint8], reference: NDArray[np.bool_], prediction: NDArray[np.bool_], describe: str
) -> Markup:
    """Draw the whole slice with the outlines of both masks.

    Args:
        image: (height, width) or (height, width, channels), 0 to 255.
        reference: (height, width), True for tumour.
        prediction: (height, width), True for tumour.
        describe: Description for screen readers.
    """
    scale = _SIDE / max(reference.shape)
    layers = Markup('<path class="reference" d="{}"/><path class="prediction" d="{}"/>').format(
        outline_path(reference, scale), outline_path(prediction, scale)
    )
    return _over(image, layers, reference.shape, scale, describe)


def close_up(
    image: NDArray[np.uint8],
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    describe: str,
    *,
    around: NDArray[np.bool_] | None = None,
) -> Markup:
    """Draw the part around both masks, with hits, misses and false alarms filled; the whole slice if both are empty."""
    rows, columns = _around(reference | prediction if around is None else around)
    scale = _SIDE / max(reference[rows, columns].shape)
    shown, found = reference[rows, columns], prediction[rows, columns]
    areas = (("hit", shown & found), ("miss", shown & ~found), ("alarm", ~shown & found))
    layers = Markup("").join(
        Markup('<path class="{0}" d="{1}"/><path class="{0}-hatch" d="{1}"/>').format(name, outline_path(area, scale))
        for name, area in areas
        if area.any()
    )
    return _over(image[rows, columns], layers, shown.shape, scale, describe)


def outline_path(mask: NDArray[np.bool_], scale: float = 1.0) -> str:
    """Return the border of a mask as the `d` of an SVG path, including holes; "" for an empty mask.

    Example:
        >>> outline_path(np.array([[False, False, False], [False, True, False], [False, False, False]]))
        'M1.1 1.1L1.1 1.9 1.9 1.9 1.9 1.1Z'
    """
    fine = np.kron(mask.astype(np.uint8), np.ones((_FINE, _FINE), np.uint8))
    # Contours run through the centres of the outermost small pixels, holes through the first pixels around them.
    contours, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        points = (contour[:, 0].astype(np.float64) + 0.5) / _FINE * scale
        parts.append(
            "M" + "{:.1f} {:.1f}".format(*points[0]) + "L" + " ".join(f"{x:.1f} {y:.1f}" for x, y in points[1:])
        )
    return "".join(f"{part}Z" for part in parts)


def data_uri(image: NDArray[np.uint8]) -> str:
    """Encode a picture as a `data:` address: JPEG of high quality, a quarter of the size of PNG for noisy slices.

    Args:
        image: (height, width) or (height, width, 1 or 3, RGB), 0 to 255.
    """
    picture = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    picture = np.ascontiguousarray(picture if picture.ndim == 2 else picture[..., ::-1])
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    if not done:  # pragma: no cover - OpenCV writes any 8-bit picture
        msg = f"a picture cannot be encoded. Received: shape {picture.shape}"
        raise ValueError(msg)
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def threshold_slider(probability: NDArray[np.float32], reference: NDArray[np.bool_], threshold: float) -> Markup:
    """A place where `threshold.js` puts a slider; hidden without JavaScript.

    Args:
        probability: (height, width), in [0, 1]; embedded with 8 bits.
        reference: (height, width).
        threshold: Where the slider starts.
    """
    levels = np.asarray(np.rint(probability * 255), np.uint8)
    blue = np.zeros_like(levels)
    done, data = cv2.imencode(".png", np.dstack([blue, reference.astype(np.uint8) * np.uint8(255), levels]))
    if not done:  # pragma: no cover - OpenCV writes any 8-bit picture
        msg = f"a probability map cannot be encoded. Received: shape {probability.shape}"
        raise ValueError(msg)
    address = "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()
    level = min(max(round(threshold * 255), 1), 255)
    return Markup('<div class="slider" hidden data-level="{}" data-map="{}"></div>').format(level, address)


def _over(image: NDArray[np.uint8], layers: Markup, shape: tuple[int, ...], scale: float, describe: str) -> Markup:
    height, width = shape[:2]
    return Markup(
        '<span class="slice"><img src="{}" width="{}" height="{}" alt="{}">'
        '<svg viewBox="0 0 {:.1f} {:.1f}" aria-hidden="true">{}</svg></span>'
    ).format(data_uri(image), width, height, describe, width * scale, height * scale, layers)


def _around(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return rows and columns of a square around a mask, a third larger than the mask, within the picture."""
    height, width = mask.shape
    if not mask.any():
        return slice(0, height), slice(0, width)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    extent = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    side = min(max(round(extent * 1.6), 24), height, width)
    return _window(rows, side, height), _window(columns, side, width)


def _window(places: NDArray[np.intp], side: int, size: int) -> slice:
    middle = (int(places[0]) + int(places[-1]) + 1) // 2
    # A mask that is wider than the picture is high is shown whole.
    side = max(side, int(np.ptp(places)) + 1)
    start = min(max(middle - side // 2, 0), size - side)
    return slice(start, start + side)
