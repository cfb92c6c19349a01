"""Read MATLAB level 5 files (`save -v6`, `-v7`), which are not HDF5, with SciPy.

SciPy 1.16 uses the type of an element as an index without a check, and does not read a compressed variable to its end,
where its checksum is. Both are checked here.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

from kerasseg_tfrecords.errors import DataError

_MATRIX, _COMPRESSED, _OPAQUE = 14, 15, 17
_TYPES = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}
_ELEMENTS = {1: 2, 2: 4, 3: 5, 5: 5, 16: 2, 17: 3}
"""Class of a matrix -> number of its elements, without nested matrices and imaginary parts; 3 for all others."""


def is_matlab5(head: bytes) -> bool:
    """Whether a file with these first 128 bytes or more is a level 5 file."""
    return len(head) >= 128 and head[124:128] in {b"\x00\x01IM", b"\x01\x00MI"}


def read_variables(data: bytes, name: str, *, limit: int) -> dict[str, Any]:
    """Return the variables of a file as `scipy.io.loadmat` does, numbers in MATLAB's type.

    Raises:
        DataError: The file is truncated, damaged, or inflates to more than `limit` bytes.
    """
    from scipy.io import loadmat  # slow to import, and rarely needed

    try:
        _check(data, name, limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about duplicate names
            found = loadmat(io.BytesIO(data), mat_dtype=True)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # SciPy passes on whatever damaged bytes lead to
        remedy = "Download or copy it again."
        raise DataError("the MATLAB file is cut off or damaged", path=name, found=error, remedy=remedy) from error
    return {key: value for key, value in found.items() if not key.startswith("__")}


def _check(data: bytes, name: str, limit: int) -> None:
    """Check that variables are complete, have known types, and match their checksums if they are compressed."""
    order = "<" if data[126:128] == b"IM" else ">"
    at, total = 128, 0
    while at + 8 <= len(data):
        kind, size = struct.unpack(f"{order}II", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if len(body) < size:
            raise ValueError(f"{len(body)} of {size} bytes of a variable")
        at += 8 + size
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            variable = stream.decompress(body, limit - total + 1)
            total += len(variable)
            if total > limit:
                expected = f"at most {limit} bytes"
                raise DataError("a variable is too large", path=name, expected=expected, kind="too-large")
            if not stream.eof:
                raise ValueError("a compressed variable that does not end")
            _check_types(variable, order)
        else:
            _check_types(data[at - 8 - size : at], order)


def _check_types(variable: bytes, order: str) -> None:
    """Check that each element has the kind of type that SciPy reads at its place."""
    at = missing = 0
    while at + 8 <= len(variable):
        kind, size = struct.unpack_from(f"{order}II", variable, at)
        at += 8
        if kind == _MATRIX and not missing:  # its elements follow, those of nested matrices among them
            if size:
                head = struct.unpack_from(f"{order}6I", variable, at)
                if head[:2] != (6, 8):
                    raise ValueError("a matrix without flags")
                flags = head[2]
                if flags & 0xFF != _OPAQUE and (head[4] not in {5, 6} or head[5] < 8):
                    raise ValueError("a matrix without a shape")
                at += 16
                missing = _ELEMENTS.get(flags & 0xFF, 3) + (flags >> 11 & 1)
        elif kind & 0xFFFF in _TYPES:
            missing = max(0, missing - 1)
            if not kind >> 16:  # others have up to four bytes beside their type
                at += size + -size % 8
        else:
            raise ValueError(f"an element of type {kind}")
