"""Decodes pictures: PNG, JPEG and TIFF files to grey or colour slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.codecs import decode
from kerasseg_tfrecords.formats.image_headers import inspect

__all__ = ["Picture", "decode_picture", "to_slice"]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture file.

    Attributes:
        pixels: (height, width) or (height, width, 3) in RGB order, in the stored type: uint8, uint16, or what a TIFF holds.
        alpha: (height, width) opacity in the same type; None where all is opaque.
        lossy: Whether the pixels went through JPEG.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None
    lossy: bool


def decode_picture(data: bytes, name: str, max_pixels: int) -> Picture:
    """Decodes a PNG, JPEG or TIFF file as it is stored.

    A rotation in the EXIF data is not applied (the mask would not turn with it), colour profiles are ignored, palettes are
    resolved, TIFFs in which 0 is white are shown as meant, and grey PNGs of 2 or 4 bits keep their stored values, since
    these are labels more often than not. A picture whose three channels agree in every pixel is grey: one data set often
    holds both ways of storing the same thing.

    Args:
        data: The file.
        name: For messages.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        DataError: Not such a file, too large, cut off, damaged, or not finite.

    Example:
        >>> import cv2, numpy as np
        >>> file = cv2.imencode(".png", np.full((2, 3, 3), 7, np.uint8))[1].tobytes()
        >>> decode_picture(file, "a.png", 100).pixels.shape
        (2, 3)
    """
    header = inspect(data, name, max_pixels)
    stored = decode(header.payload, name, header.kind.upper())
    if stored.shape[:2] != (header.height, header.width):
        raise DataError(
            "the decoded image is of another size than its header says",
            path=name,
            found=f"{stored.shape[0]} x {stored.shape[1]}",
            expected=f"{header.height} x {header.width}",
        )
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        bad = int(np.count_nonzero(~np.isfinite(stored)))
        raise DataError("the image holds NaN or infinite values", path=name, found=f"{bad} of them", kind="not-finite")
    alpha = None
    if stored.ndim == 3 and stored.shape[2] == 4:
        alpha, stored = stored[..., 3], stored[..., :3]
        if (alpha == _opaque(alpha.dtype)).all():
            alpha = None
    if stored.ndim == 3:
        stored = stored[..., 0] if stored.shape[2] == 1 or _is_grey(stored) else stored[..., ::-1]
    if header.white_is_zero and stored.dtype == np.uint16:  # OpenCV turns 8 bits itself
        stored = np.iinfo(np.uint16).max - stored
    if header.kind == "png" and header.grey and header.depth in {2, 4} and alpha is None:
        stored = stored // (255 // (2**header.depth - 1))
    return Picture(np.ascontiguousarray(stored), alpha, header.lossy)


def to_slice(picture: Picture) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The picture as a slice, and what had to be decided: transparent pixels become black.

    Returns:
        (height, width) or (height, width, 3), in the stored type; notes.
    """
    if picture.alpha is None:
        return picture.pixels, ()
    alpha = picture.alpha if picture.pixels.ndim == 2 else picture.alpha[..., None]
    shown = picture.pixels.astype(np.float64) * (alpha / _opaque(picture.alpha.dtype))
    if picture.pixels.dtype.kind != "f":
        shown = np.rint(shown)
    return shown.astype(picture.pixels.dtype), ("transparent pixels became black",)


def _opaque(dtype: np.dtype[Any]) -> float:
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def _is_grey(pixels: NDArray[Any]) -> bool:
    first = pixels[..., 0]
    return bool((pixels[..., 1] == first).all() and (pixels[..., 2] == first).all())
