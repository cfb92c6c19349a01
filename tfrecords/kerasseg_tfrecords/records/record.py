"""The content of a record. `schema` serialises it, `shards` stores it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError


@dataclass(frozen=True, slots=True)
class SliceFacts:
    """Metadata of a slice.

    Attributes:
        slice_id: Unique over all inputs: name of the input, a slash, the reader's id.
        source: File that it was read from, with the same prefix.
        sha256: Hex digest of the bytes that were read.
        label: Class name.
        patient: As read; "" if unknown.
        volume: Unique over all inputs; "" for single slices.
        slice_index: Index in the volume, from 0; -1 for single slices.
        height, width: Native size in pixels.
        channels: 1 or 3.
        spacing: Pixel size in millimetres, rows then columns; (0, 0) if unknown.
        tumour_pixels: Tumour area in pixels at native size.
        notes: Notes of the reader.
    """

    slice_id: str
    source: str
    sha256: str
    label: str
    patient: str
    volume: str
    slice_index: int
    height: int
    width: int
    channels: int
    spacing: tuple[float, float]
    tumour_pixels: int
    notes: tuple[str, ...] = ()

    def tumour_mm2(self) -> float | None:
        """Return the tumour area in square millimetres; None if the spacing is unknown."""
        return self.tumour_pixels * self.spacing[0] * self.spacing[1] if min(self.spacing) > 0 else None


@dataclass(frozen=True, slots=True)
class Payload:
    """The three byte strings of a record, ready to be written.

    Attributes:
        image: uint8, row-major, size x size x channels.
        mask: size x size bits, see `pack_mask`.
        mask_native: PNG of 1 bit, native size.
    """

    image: bytes
    mask: bytes
    mask_native: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One decoded record.

    Attributes:
        image: (size, size, channels) uint8.
        mask: (size, size) bool.
        mask_native: (height, width) bool.
        label: Index into the manifest's classes.
        group: All slices of a group are in one split.
        Others: As in `SliceFacts`.

    Example:
        >>> from kerasseg_tfrecords import read_records
        >>> record = next(iter(read_records("shards", "test")))
        >>> record.mask.dtype, record.mask_native.shape == (record.height, record.width)
        (dtype('bool'), True)
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    mask_native: NDArray[np.bool_]
    label: int
    slice_id: str
    patient: str
    group: str
    volume: str
    slice_index: int
    height: int
    width: int
    spacing: tuple[float, float]


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """Pack a mask: one bit per pixel, row-major, most significant bit first, each row padded to a byte.

    >>> pack_mask(np.array([[True, False, False], [False, False, True]])).hex()
    '8020'
    """
    return np.packbits(mask, axis=1).tobytes()


def unpack_mask(data: bytes, size: int) -> NDArray[np.bool_]:
    """Undo `pack_mask` for a square mask of side `size`."""
    rows = np.frombuffer(data, np.uint8)
    stride = (size + 7) // 8
    if rows.size != size * stride:
        raise DataError("the mask has the wrong length", found=f"{rows.size} bytes", expected=f"{size * stride} bytes")
    return np.unpackbits(rows.reshape(size, stride), axis=1, count=size).astype(bool)


def pack_native_mask(mask: NDArray[np.bool_]) -> bytes:
    """Encode a mask as PNG with 1 bit per pixel."""
    # Fixed settings, so that the bytes depend only on the mask and the library.
    settings = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 1]
    done, data = cv2.imencode(".png", mask.view(np.uint8) * np.uint8(255), settings)
    if not done:
        raise DataError("the mask cannot be encoded as PNG", found=f"{mask.shape[1]}x{mask.shape[0]}")
    return bytes(data.tobytes())


def unpack_native_mask(data: bytes) -> NDArray[np.bool_]:
    """Undo `pack_native_mask`."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    if image is None:
        raise DataError("the native mask is not a PNG")
    return np.asarray(image > 0)
