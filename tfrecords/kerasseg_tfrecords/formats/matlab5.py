"""Read MATLAB level 5 files (`save -v6`, `-v7`), which are not HDF5, as far as slices need it.

SciPy reads these files without checks: one flipped bit in a header can end the process (seen with 1.16). Here every length
is checked against the size of the file. Format: MathWorks, "MAT-File Format", chapter "Level 5 MAT-Files".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError

__all__ = ["Variable", "is_matlab5", "read_variables"]

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_STRUCT, _CHAR = 2, 4
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_COMPLEX = 0x800
_MAX_DEPTH = 8
_MAX_VARIABLES = 1_000


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable, or one field of a struct.

    Attributes:
        shape: Shape in MATLAB.
        array: Values of a numeric array, in MATLAB's orientation (a column-major view of the file); otherwise None.
        text: Content of a character array; otherwise None.
        fields: Fields of a struct with one element; otherwise None.
    """

    shape: tuple[int, ...]
    array: NDArray[Any] | None = None
    text: str | None = None
    fields: dict[str, Variable] | None = None


def is_matlab5(head: bytes) -> bool:
    """Whether a file with these first 128 bytes or more is a level 5 file."""
    return len(head) >= 128 and head[124:128] in {b"\x00\x01IM", b"\x01\x00MI"}


def read_variables(data: bytes, name: str, *, limit: int) -> dict[str, Variable]:
    """Read all variables of a file.

    Raises:
        DataError: The file is truncated, damaged, or inflates to more than `limit` bytes.
    """
    order = "<" if data[126:128] == b"IM" else ">"
    found: dict[str, Variable] = {}
    try:
        for body in _top_level(memoryview(data), order, name, limit):
            key, variable = _matrix(body, order, 0)
            found[key] = variable
            if len(found) > _MAX_VARIABLES:
                raise DataError("the file holds too many variables", path=name, kind="too-large")
    except (struct.error, zlib.error, ValueError, OverflowError, MemoryError) as error:
        remedy = "Download or copy it again."
        raise DataError("the MATLAB file is cut off or damaged", path=name, found=error, remedy=remedy) from error
    return found


def _top_level(data: memoryview, order: str, name: str, limit: int) -> Iterator[memoryview]:
    """Yield the body of each matrix in the file, inflated if compressed."""
    at, total = 128, 0
    while at + 8 <= len(data):
        kind, size = struct.unpack(f"{order}II", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if len(body) < size:
            raise ValueError(f"{len(body)} of {size} bytes of a variable")
        at += 8 + size
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            inflated = stream.decompress(body, limit - total + 1)
            total += len(inflated)
            if total > limit:
                expected = f"at most {limit} bytes"
                raise DataError("a variable is too large", path=name, expected=expected, kind="too-large")
            if not stream.eof:
                raise ValueError("a compressed variable that does not end")
            kind, size = struct.unpack(f"{order}II", inflated[:8])
            body = memoryview(inflated)[8 : 8 + size]
        if kind == _MATRIX:
            yield body


class _Elements:
    """Reads the tagged elements of a matrix one after another."""

    def __init__(self, data: memoryview, order: str) -> None:
        self.data, self.order, self.at = data, order, 0

    def next(self) -> tuple[int, memoryview]:
        """(type, bytes) of the next element."""
        (word,) = struct.unpack(f"{self.order}I", self.data[self.at : self.at + 4])
        if word >> 16:  # a small element: up to four bytes in the tag itself
            kind, size = word & 0xFFFF, word >> 16
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
            body, self.at = self.data[self.at + 4 : self.at + 4 + size], self.at + 8
        else:
            kind = word
            (size,) = struct.unpack(f"{self.order}I", self.data[self.at + 4 : self.at + 8])
            body = self.data[self.at + 8 : self.at + 8 + size]
            # Padded to eight bytes, matrices excepted (they are multiples of eight anyway).
            self.at += 8 + size + (-size % 8)
        if len(body) < size:
            raise ValueError(f"{len(body)} of {size} bytes of an element")
        return kind, body

    def numbers(self) -> NDArray[Any]:
        kind, body = self.next()
        if kind not in _STORED:
            raise ValueError(f"numbers of the unknown type {kind}")
        return np.frombuffer(body, self.order + _STORED[kind])


def _matrix(body: memoryview, order: str, depth: int) -> tuple[str, Variable]:
    """(name, variable) of one matrix element."""
    if len(body) == 0:  # an empty array in a struct or cell may have no header at all
        return "", Variable((0, 0))
    if depth > _MAX_DEPTH:
        raise ValueError("structs are nested too deeply")
    elements = _Elements(body, order)
    flags = elements.numbers()
    if flags.size < 1:
        raise ValueError("an array without flags")
    kind, flag = int(flags[0]) & 0xFF, int(flags[0])
    shape = tuple(int(length) for length in elements.numbers())
    if not 2 <= len(shape) <= 32 or min(shape) < 0:
        raise ValueError(f"an array of shape {shape}")
    name = bytes(elements.next()[1]).decode("latin-1")
    if kind in _CLASSES and not flag & _COMPLEX:
        stored = elements.numbers()
        if stored.size != math.prod(shape):
            raise ValueError(f"{stored.size} numbers for an array of shape {shape}")
        return name, Variable(shape, array=stored.astype(_CLASSES[kind], copy=False).reshape(shape, order="F"))
    if kind == _CHAR:
        code, raw = elements.next()
        if code not in _TEXTS:
            raise ValueError(f"text of the unknown type {code}")
        endian = "" if code in {1, 2, 16} else "-le" if order == "<" else "-be"
        return name, Variable(shape, text=bytes(raw).decode(_TEXTS[code] + endian, "backslashreplace"))
    if kind == _STRUCT and math.prod(shape) == 1:
        return name, Variable(shape, fields=_fields(elements, order, depth))
    return name, Variable(shape)


def _fields(elements: _Elements, order: str, depth: int) -> dict[str, Variable]:
    length = int(elements.numbers()[:1].sum())
    raw = bytes(elements.next()[1])
    if length < 1 or len(raw) % length:
        raise ValueError("damaged field names")
    fields: dict[str, Variable] = {}
    for start in range(0, len(raw), length):
        key = raw[start : start + length].split(b"\0")[0].decode("latin-1")
        kind, body = elements.next()
        if kind != _MATRIX:
            raise ValueError(f"field {key!r} is not an array")
        fields[key] = _matrix(body, order, depth + 1)[1]
    return fields
