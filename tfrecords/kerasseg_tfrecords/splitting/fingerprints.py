"""Fingerprints of slices for the search for copies: a digest, a perceptual hash and a thumbnail of details.

Copies may have other names, formats, sizes or brightness, and may be turned or mirrored (BRISC 2025 has mirror images of
slices of the Cheng set); their fingerprints remain similar. `duplicates` compares them. docs/split.md has the measurements
behind the constants; `python -m benchmarks.duplicates` repeats them.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 48
"""Side of the thumbnail in pixels: small enough to average out compression noise, large enough for neighbouring slices."""

_BLUR = 1.5
"""Standard deviation, in thumbnail pixels, of the blur that is subtracted to obtain the details.

Thumbnails of different patients correlate at up to 0.96, because all heads are bright ovals; their details at up to 0.79,
and details of copies at 0.99."""

_RING = (6, 12)
"""Distance from the constant term of the DCT coefficients in the hash, [6, 12).

Lower ones describe the oval common to all heads; higher ones change with JPEG and resizing."""

ORIENTATIONS = (
    "same",
    "mirrored",
    "upside down",
    "turned by 180",
    "transposed",
    "turned by 90",
    "turned by 270",
    "anti-transposed",
)
"""The eight orientations of a picture. Bit 0: columns reversed; bit 1: rows reversed; bit 2: then transposed."""

_DIGEST = 16


def _ring() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rows, columns = np.mgrid[: _RING[1], : _RING[1]]
    radius = np.hypot(rows, columns)
    return np.nonzero((radius >= _RING[0]) & (radius < _RING[1]))  # type: ignore[return-value]


_ROWS, _COLUMNS = _ring()
HASH_SIZE = len(_ROWS)
"""Number of coefficients in the hash, one signed byte each."""
# Index of the same coefficient of the transposed picture; the ring is symmetric.
_PARTNER = np.array(
    [int(np.flatnonzero((c == _ROWS) & (r == _COLUMNS))[0]) for r, c in zip(_ROWS, _COLUMNS, strict=True)]
)


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """Fingerprint of one slice (about 2.4 KB).

    Attributes:
        digest: 16 bytes of a SHA-256; equal for equal pixels (and equal shape).
        hash: (HASH_SIZE,) int8, 127 times the ring of DCT coefficients of the thumbnail, scaled to length 1. Mirroring
            changes signs and transposing permutes, so one hash serves all eight orientations.
        detail: (SIDE, SIDE) int8, the thumbnail minus its blur, scaled to a maximum of 127.
        variance: Variance of the thumbnail, in grey levels squared (0 to 16,256).
    """

    digest: bytes
    hash: NDArray[np.int8]
    detail: NDArray[np.int8]
    variance: float

    def to_bytes(self) -> bytes:
        """Serialise the fingerprint to bytes of fixed length."""
        arrays: tuple[bytes, bytes] = self.hash.tobytes(), self.detail.tobytes()
        return b"".join((self.digest, struct.pack("<f", self.variance), *arrays))

    @classmethod
    def from_bytes(cls, data: bytes) -> Fingerprint:
        """Undo `to_bytes`; `ValueError` if the length is wrong."""
        expected = _DIGEST + 4 + HASH_SIZE + SIDE * SIDE
        if len(data) != expected:
            msg = f"a fingerprint has {expected} bytes. Received: {len(data)}"
            raise ValueError(msg)
        tail = np.frombuffer(data, np.int8, offset=_DIGEST + 4)
        return cls(
            digest=data[:_DIGEST],
            variance=struct.unpack_from("<f", data, _DIGEST)[0],
            hash=tail[:HASH_SIZE],
            detail=tail[HASH_SIZE:].reshape(SIDE, SIDE),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprints:
    """Many fingerprints as columns, in the order of the slices.

    Attributes:
        digests: (n,) bytes of length 16, type `V16`.
        hashes: (n, HASH_SIZE) int8.
        details: (n, SIDE, SIDE) int8, in memory or in a file.
        variances: (n,) float32.
    """

    digests: NDArray[np.void]
    hashes: NDArray[np.int8]
    details: NDArray[np.int8] | DetailsFile
    variances: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.digests)

    @classmethod
    def of(cls, prints: Iterable[Fingerprint]) -> Fingerprints:
        rows = list(prints)
        details = np.empty((len(rows), SIDE, SIDE), np.int8)
        hashes = np.empty((len(rows), HASH_SIZE), np.int8)
        for k, row in enumerate(rows):
            details[k], hashes[k] = row.detail, row.hash
        return cls(
            digests=np.frombuffer(b"".join(row.digest for row in rows), dtype=f"V{_DIGEST}"),
            hashes=hashes,
            details=details,
            variances=np.array([row.variance for row in rows], np.float32),
        )


class FingerprintFile:
    """Collects any number of fingerprints with their details in a file: 2.3 KB per slice that memory need not hold.

    Args:
        path: The file, which must exist as long as the result of `fingerprints` is used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests, self._hashes, self._variances = bytearray(), bytearray(), array("f")
        path.write_bytes(b"")

    def add(self, prints: Iterable[Fingerprint]) -> None:
        with self._path.open("ab") as stream:
            for one in prints:
                stream.write(one.detail.tobytes())
                self._digests += one.digest
                self._hashes += one.hash.tobytes()
                self._variances.append(one.variance)

    def fingerprints(self, chosen: Sequence[int]) -> Fingerprints:
        rows = np.asarray(chosen, np.int64)
        return Fingerprints(
            digests=np.frombuffer(bytes(self._digests), dtype=f"V{_DIGEST}")[rows],
            hashes=np.frombuffer(bytes(self._hashes), np.int8).reshape(-1, HASH_SIZE)[rows],
            details=DetailsFile(self._path, rows),
            variances=np.array(self._variances, np.float32)[rows],
        )


@dataclass(frozen=True, slots=True, eq=False)
class DetailsFile:
    """Rows of a `FingerprintFile`, which are read when they are asked for.

    Not a `numpy.memmap`, whose pages count as memory of the process once they have been read.
    """

    path: Path
    rows: NDArray[np.int64]

    def __getitem__(self, chosen: NDArray[np.int64]) -> NDArray[np.int8]:
        """Read the details of some slices, (n, SIDE, SIDE)."""
        size = SIDE * SIDE
        with self.path.open("rb") as stream:
            data = b"".join(os.pread(stream.fileno(), size, row * size) for row in self.rows[chosen].tolist())
        return np.frombuffer(data, np.int8).reshape(-1, SIDE, SIDE)


def fingerprint(image: NDArray[Any]) -> Fingerprint:
    """Return the fingerprint of a prepared slice.

    Use the uint8 image in the shards, so that data sets in different formats are comparable. Copies may differ in size and
    aspect ratio, but must show the same field of view: cropped or padded copies are not found. (Thumbnails of the bounding
    box of the head find fewer copies; see docs/split.md.)

    Args:
        image: (height, width) or (height, width, channels) uint8; channels are averaged.

    Raises:
        ValueError: The image is not uint8, not 2-D or 3-D, or empty.

    Example:
        >>> import numpy as np
        >>> picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
        >>> fingerprint(picture).digest == fingerprint(picture.copy()).digest
        True
    """
    if image.dtype != np.uint8 or image.ndim not in {2, 3} or image.size == 0:
        msg = f"fingerprint needs a uint8 image of 2 or 3 dimensions. Received: {image.dtype} {image.shape}"
        raise ValueError(msg)
    pixels = np.ascontiguousarray(image)
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.data)
    thumb = _thumbnail(pixels)
    return Fingerprint(
        digest=digest.digest()[:_DIGEST],
        hash=_hash(thumb),
        detail=_detail(thumb),
        variance=float(np.float32(thumb.var())),
    )


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    # float32, because in a dark slice the head spans only a few grey levels, and rounding would dominate the details.
    thumb: NDArray[np.float32] = cv2.resize(pixels.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if thumb.ndim == 3:
        thumb = thumb.mean(axis=2)
    return thumb


def _hash(thumb: NDArray[np.float32]) -> NDArray[np.int8]:
    ring = cv2.dct(thumb)[_ROWS, _COLUMNS]
    length = float(np.linalg.norm(ring))
    return _bytes(ring * (127 / length if length > 1e-3 else 0))


def _detail(thumb: NDArray[np.float32]) -> NDArray[np.int8]:
    detail = thumb - cv2.GaussianBlur(thumb, (0, 0), _BLUR)
    detail -= detail.mean()
    largest = float(np.abs(detail).max())
    return _bytes(detail * (127 / largest if largest > 1e-3 else 0))


def _bytes(values: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.rint(values).astype(np.int8)


def turn_hashes(hashes: NDArray[np.int8], orientation: int) -> NDArray[np.int8]:
    """Return the hashes (n, HASH_SIZE) of the same slices in another of the `ORIENTATIONS`."""
    signs = np.ones(HASH_SIZE, np.int8)
    if orientation & 1:
        signs[_COLUMNS % 2 == 1] *= -1
    if orientation & 2:
        signs[_ROWS % 2 == 1] *= -1
    turned = hashes * signs
    return turned[:, _PARTNER] if orientation & 4 else turned


def turn_details(details: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn pictures (n, side, side) to another of the `ORIENTATIONS`."""
    if orientation & 1:
        details = details[:, :, ::-1]
    if orientation & 2:
        details = details[:, ::-1]
    return details.transpose(0, 2, 1) if orientation & 4 else details
