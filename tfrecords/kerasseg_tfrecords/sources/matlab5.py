"""MATLAB's older file form (`save -v6`, `-v7`): no HDF5, read by SciPy once its size is known to be harmless."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from kerasseg_tfrecords.errors import DataError

__all__ = ["read_variables"]

_COMPRESSED = 15


def _inflated(data: bytes, name: str, limit: int) -> bytes:
    """The file with its compressed variables inflated, so that SciPy meets no surprise, at most `limit` bytes."""
    order = "<" if data[126:128] == b"IM" else ">"
    parts, at, total = [data[:128]], 128, 128
    while at + 8 <= len(data):
        kind, size = struct.unpack(f"{order}II", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if len(body) < size:
            found, expected = f"{len(body)} bytes of a variable", f"{size} bytes"
            remedy = "Download or copy it again."
            raise DataError("the file is cut off", path=name, found=found, expected=expected, remedy=remedy)
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            part = stream.decompress(body, limit - total + 1)
            if total + len(part) > limit:
                expected = f"at most {limit} bytes"
                raise DataError("a variable is too large", path=name, expected=expected, kind="too-large")
            if not stream.eof:
                raise DataError("the file is damaged", path=name, found="a compressed variable that does not end")
        else:
            # Top-level variables are padded to eight bytes, and the last one may miss its padding.
            part = data[at : at + 8 + size]
        parts.append(part)
        total += len(part)
        at += 8 + size
    return b"".join(parts)


def read_variables(data: bytes, name: str, *, limit: int) -> dict[str, Any]:
    """All variables of a MATLAB 5 file as SciPy gives them (arrays upright, structs as record arrays).

    Args:
        data: The file.
        name: What errors call it.
        limit: Bytes that its variables may take.

    Raises:
        DataError: It is damaged or too large.
    """
    try:
        found = loadmat(BytesIO(_inflated(data, name, limit)), chars_as_strings=True)
    except DataError:
        raise
    except (MatReadError, zlib.error, OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError,
            MemoryError, OverflowError, EOFError, AttributeError, struct.error) as error:  # fmt: skip
        what = "the MATLAB file is damaged"
        raise DataError(what, path=name, found=error, remedy="Download or copy it again.") from error
    return {key: value for key, value in found.items() if not key.startswith("__")}


def field(struct_array: Any, key: str) -> NDArray[Any] | None:
    """One field of a 1x1 struct as an array; None where there is none."""
    names = getattr(getattr(struct_array, "dtype", None), "names", None)
    if not names or key not in names or struct_array.size != 1:
        return None
    return np.asarray(struct_array.reshape(-1)[0][key])
