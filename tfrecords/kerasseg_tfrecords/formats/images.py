"""Decode picture files (PNG, JPEG, TIFF, BMP, GIF, .npy) to grey or colour slices."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageSequence

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.codecs import decode
from kerasseg_tfrecords.formats.image_headers import Header, check_pixels, damaged, inspect, pillow
from kerasseg_tfrecords.formats.sniff import picture_kind
from kerasseg_tfrecords.isolation import memory_limit

_MOST_FRAMES = 1 << 26  # pixels of all frames of a GIF


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (height, width) or (height, width, 3) in RGB order, in the stored type.
        alpha: (height, width) opacity in the same type; None if all pixels are opaque.
        lossy: Whether the pixels are JPEG-compressed.
        indices: (height, width) palette indices; None without a palette.
        white_is_zero: Whether the file declares 0 as white; `pixels` are as displayed.
        orientation: EXIF orientation, 1 (upright) to 8; not yet applied to `pixels`.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None
    lossy: bool
    indices: NDArray[np.uint8] | None = None
    white_is_zero: bool = False
    orientation: int = 1


def decode_picture(data: bytes, name: str, max_pixels: int) -> Picture:
    """Decode a picture file with one page; see `decode_pages`.

    Example:
        >>> import cv2, numpy as np
        >>> file = cv2.imencode(".png", np.full((2, 3, 3), 7, np.uint8))[1].tobytes()
        >>> decode_picture(file, "a.png", 100).pixels.shape
        (2, 3)
    """
    pages = decode_pages(data, name, max_pixels)
    if len(pages) > 1:
        raise DataError(
            "a picture of several pages",
            path=name,
            found=f"{len(pages)} pages",
            expected="one slice per file",
            kind="pages",
        )
    return pages[0]


def decode_pages(data: bytes, name: str, max_pixels: int) -> tuple[Picture, ...]:
    """Decode all pages of a picture file.

    Colour profiles are ignored and palettes are resolved. TIFFs in which 0 is white are inverted. Grey PNGs of 2 or 4 bits
    keep their stored values, which are usually labels. A picture whose three channels are equal becomes grey, since a data
    set often holds both forms. The EXIF orientation is reported but not applied: whether it matters depends on the mask.

    Raises:
        DataError: The file is not a supported picture, too large (`max_pixels`), damaged, or has non-finite values.
    """
    if picture_kind(data) == "NPY":
        stored = [_array(data, name, max_pixels)]
        header = Header("NPY", stored[0].shape[0], stored[0].shape[1])
    else:
        header = inspect(data, name, max_pixels)
        # OpenCV does not read GIF.
        stored = _frames(data, name) if header.kind == "GIF" else decode(data, name, header.kind, header.pages)
    indices = _indices(data, header) if header.palette and len(stored) == 1 else None
    orientation = _orientation(data, header)
    pages = [_page(page, header, name) for page in stored]
    if any(page.pixels.ndim == 3 for page in pages):  # a black page of a colour file looks grey
        pages = [p if p.pixels.ndim == 3 else replace(p, pixels=np.dstack([p.pixels] * 3)) for p in pages]
    return tuple(replace(page, indices=indices, orientation=orientation) for page in pages)


def _page(stored: NDArray[Any], header: Header, name: str) -> Picture:
    if stored.shape[:2] != (header.height, header.width):
        raise DataError(
            "the decoded image differs in size from its header",
            path=name,
            found=f"{stored.shape[0]} x {stored.shape[1]}",
            expected=f"{header.height} x {header.width}",
        )
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        bad = int(np.count_nonzero(~np.isfinite(stored)))
        raise DataError("the image has NaN or infinite values", path=name, found=f"{bad} of them", kind="not-finite")
    alpha = None
    if stored.ndim == 3 and stored.shape[2] == 4:
        alpha, stored = stored[..., 3], stored[..., :3]
        if (alpha == _opaque(alpha.dtype)).all():
            alpha = None
    if stored.ndim == 3:
        stored = stored[..., 0] if stored.shape[2] == 1 or _is_grey(stored) else stored[..., ::-1]
    if header.white_is_zero and stored.dtype == np.uint16:  # OpenCV inverts 8 bits itself
        stored = np.iinfo(np.uint16).max - stored
    if header.kind == "PNG" and header.grey and header.depth in {2, 4} and alpha is None:
        stored = stored // (255 // (2**header.depth - 1))
    return Picture(np.ascontiguousarray(stored), alpha, header.lossy, white_is_zero=header.white_is_zero)


def _array(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    """Return the values of an .npy file, colours in BGR order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except MemoryError:  # NumPy allocates what is declared before it reads
        if len(data) > memory_limit() // 8:
            raise
        raise damaged(name, "NPY", f"it declares far more values than its {len(data)} bytes hold") from None
    except Exception as error:  # NumPy passes on what Python's tokenizer and parser raise
        what, found = "a damaged NPY file, or an unsupported kind of it", f"{type(error).__name__}: {error}"[:99]
        raise DataError(what, path=name, found=found) from None
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        found = str(values.dtype)[:40]
        raise DataError("this type of array is not supported", path=name, found=found, expected="numbers")
    if values.ndim not in {2, 3} or (values.ndim == 3 and values.shape[2] != 3):
        found = " x ".join(map(str, values.shape)) or "one value"
        expected = "height x width or height x width x 3"
        raise DataError("the array is not an image", path=name, found=found, expected=expected)
    check_pixels(values.shape[0], values.shape[1], name, max_pixels)
    values = values.astype(np.uint8 if values.dtype == np.bool_ else values.dtype.newbyteorder("="))
    return values if values.ndim == 2 else values[..., ::-1]


def _frames(data: bytes, name: str) -> list[NDArray[Any]]:
    """Decode the frames of a GIF, in BGRA order."""
    try:
        with pillow(data, "GIF") as file:
            many = getattr(file, "n_frames", 1)
            if many > 1 and many * file.height * file.width > _MOST_FRAMES:
                raise DataError("the picture has too many pages", path=name, found=f"{many}", kind="too-large")
            return [np.array(frame.convert("RGBA"))[..., [2, 1, 0, 3]] for frame in ImageSequence.Iterator(file)]
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow passes on any exception of its decoders
        raise damaged(name, "GIF", f"{type(error).__name__}: {error}") from error


def _indices(data: bytes, header: Header) -> NDArray[np.uint8] | None:
    """Return the palette indices of a picture; None if it has none, or if Pillow does not read it."""
    try:
        with pillow(data, header.kind) as file:
            return np.array(file) if file.mode == "P" else None
    except MemoryError:
        raise
    except Exception:  # OpenCV has decoded it
        return None


def _orientation(data: bytes, header: Header) -> int:
    """Return the EXIF orientation; 1 if there is none or it cannot be read."""
    marked = header.kind == "TIFF" or (header.kind == "JPEG" and b"Exif\0\0" in data[:65_536])
    if not marked and not (header.kind == "PNG" and b"eXIf" in data):
        return 1
    try:
        with pillow(data, header.kind) as file:
            found = int(file.getexif().get(0x0112, 1))
    except Exception:  # EXIF data are often malformed, and the pixels do not depend on them
        return 1
    return found if 1 <= found <= 8 else 1


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation (1 to 8).

    >>> upright(np.array([[1, 2, 3], [4, 5, 6]]), 6).tolist()
    [[4, 1], [5, 2], [6, 3]]
    """
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def to_slice(picture: Picture) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Convert a picture to a slice of the stored type, with transparent pixels black; return it with notes."""
    if picture.alpha is None:
        return picture.pixels, ()
    shown = np.empty_like(picture.pixels)
    share = picture.alpha.astype(np.float32) / np.float32(_opaque(picture.alpha.dtype))
    for channel in range(1 if shown.ndim == 2 else shown.shape[2]):  # one at a time, to save memory
        place = ... if shown.ndim == 2 else (..., channel)
        values = picture.pixels[place] * share
        shown[place] = values if shown.dtype.kind == "f" else np.rint(values)
    return shown, ("transparent pixels became black",)


def _opaque(dtype: np.dtype[Any]) -> float:
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def _is_grey(pixels: NDArray[Any]) -> bool:
    first = pixels[..., 0]
    return bool((pixels[..., 1] == first).all() and (pixels[..., 2] == first).all())
