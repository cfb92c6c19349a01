"""Read MATLAB level 5 files (`save -v6`, `-v7`), which are not HDF5, with SciPy.

One flipped bit can end a process in which SciPy reads such a file (seen with 1.16), so it is read in a child process. SciPy
does not read a compressed variable to its end, where its checksum is, so that is done here.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

from kerasseg_tfrecords.errors import DataError

_COMPRESSED = 15


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
    """Check that variables are complete, and that compressed ones match their checksums."""
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
            total += len(stream.decompress(body, limit - total + 1))
            if total > limit:
                expected = f"at most {limit} bytes"
                raise DataError("a variable is too large", path=name, expected=expected, kind="too-large")
            if not stream.eof:
                raise ValueError("a compressed variable that does not end")
