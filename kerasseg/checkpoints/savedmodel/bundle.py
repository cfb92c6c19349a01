"""Reading and checking of the index of a variables file (`variables.index`) before TensorFlow reads the values.

The index is a sorted string table as in LevelDB: blocks of entries with shared key prefixes, a block that lists the
blocks, and a footer. Each entry gives the type, shape, file, offset and size of one tensor. TensorFlow's own reader trusts
the shapes; here they are checked against the file sizes, so that a small file cannot allocate a terabyte.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg.checkpoints.savedmodel.messages import type_name
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["Stored", "read_index", "refuse_pointer"]

MAX_INDEX = 64 << 20  # bytes; a network of 31 million parameters needs 10 kB

_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER = 48
_POINTER = b"version https://git-lfs.github.com/spec/"
_TRAILER = 5

_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_SIZES |= {
    t: np.dtype(t).itemsize for t in ("int8", "uint8", "bool", "int16", "uint16", "int32", "uint32", "int64", "uint64")
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a variables file.

    Attributes:
        dtype: For instance `float32`.
        shape: The declared shape, consistent with the size.
        size: Size in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int


def refuse_pointer(file: Path) -> None:
    """Refuse a Git LFS pointer in place of a file.

    Raises:
        CheckpointError: Names the file, its real size and the command that downloads it.
    """
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(_POINTER):
        size = re.search(rb"^size (\d+)", head, re.MULTILINE)
        raise CheckpointError(
            "this is a Git LFS pointer: the file itself was not fetched",
            path=file,
            found=f"a pointer to {int(size[1]):,} bytes" if size else "a pointer",
            remedy=f'In its repository run: git lfs pull --include="{file.name}"',
        )


def read_index(prefix: Path, header_type: Callable[[], Any], entry_type: Callable[[], Any]) -> Mapping[str, Stored]:
    """Read the tensors of a variables file, each checked against the data files.

    Args:
        prefix: `variables/variables`, to which `.index` and `.data-00000-of-00001` are added.
        header_type: `BundleHeaderProto`.
        entry_type: `BundleEntryProto`.

    Raises:
        CheckpointError: Files are missing, truncated or damaged, or a shape does not match its size.
    """
    index = prefix.with_name(prefix.name + ".index")
    if not index.is_file():
        raise CheckpointError("the variables of the SavedModel are missing", path=index, remedy="Copy the whole folder")
    refuse_pointer(index)
    size = index.stat().st_size
    if size > MAX_INDEX:
        raise CheckpointError("the index of variables is too large", path=index, found=f"{size:,} bytes")
    data = index.read_bytes()
    try:
        entries = list(_table(data))
        return _checked(prefix, entries, header_type, entry_type)
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes fail in many ways: IndexError, ValueError, DecodeError
        raise CheckpointError(
            "the index of variables is damaged",
            path=index,
            found=f"{type(error).__name__}: {error}",
            remedy="Copy or download the folder again",
        ) from error


def _checked(prefix: Path, entries: list[tuple[bytes, bytes]], header_type: Any, entry_type: Any) -> dict[str, Stored]:
    header = header_type()
    if not entries or entries[0][0] != b"":
        msg = "no header"
        raise ValueError(msg)
    header.ParseFromString(entries[0][1])
    if header.endianness != 0 or not 1 <= header.num_shards <= 10_000:
        msg = f"{header.num_shards} files, byte order {header.endianness}"
        raise ValueError(msg)
    files: dict[int, int] = {}
    found: dict[str, Stored] = {}
    for key, value in entries[1:]:
        entry = entry_type()
        entry.ParseFromString(value)
        name = key.decode("utf-8")
        shard = entry.shard_id
        if not 0 <= shard < header.num_shards:
            msg = f"{name} in file {shard} of {header.num_shards}"
            raise ValueError(msg)
        if shard not in files:
            file = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{header.num_shards:05d}")
            if not file.is_file():
                raise CheckpointError("values of variables are missing", path=file, remedy="Copy the whole folder")
            refuse_pointer(file)
            files[shard] = file.stat().st_size
        found[name] = _entry(name, entry, files[shard], prefix)
    if sum(s.size for s in found.values()) > sum(files.values()):
        raise CheckpointError("the variables overlap in their file", path=prefix, expected="separate bytes for each")
    return found


def _entry(name: str, entry: Any, available: int, prefix: Path) -> Stored:
    dtype = type_name(entry.dtype)
    shape = tuple(d.size for d in entry.shape.dim)
    if entry.slices:
        raise CheckpointError(f"the variable {name!r} is stored in slices", path=prefix, expected="whole variables")
    if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > available:
        raise CheckpointError(
            f"the values of {name!r} are cut off",
            path=prefix,
            found=f"{available:,} bytes",
            expected=f"at least {entry.offset + entry.size:,}",
            remedy="Copy or download the folder again",
        )
    fits = dtype not in _SIZES or (
        len(shape) <= 16 and all(n >= 0 for n in shape) and math.prod(shape) * _SIZES[dtype] == entry.size
    )
    if not fits or any(n < 0 or n > entry.size for n in shape if dtype not in _SIZES):
        raise CheckpointError(
            f"the variable {name!r} has an invalid shape",
            path=prefix,
            found=f"{shape} of {dtype} in {entry.size:,} bytes",
        )
    return Stored(dtype, shape, entry.size)


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(data) < _FOOTER or data[-8:] != _MAGIC:
        msg = "not a table of variables, or cut short"
        raise ValueError(msg)
    footer = data[-_FOOTER:]
    place = 0
    for _ in range(2):  # skip the handle of the meta index
        _, place = _varint(footer, place)
    start, place = _varint(footer, place)
    length, _ = _varint(footer, place)
    total = 0
    for _, handle in _block(data, start, length):
        begin, place = _varint(handle, 0)
        size, _ = _varint(handle, place)
        total += size
        if total > len(data):
            msg = "blocks overlap"
            raise ValueError(msg)
        yield from _block(data, begin, size)


def _block(data: bytes, start: int, length: int) -> Iterator[tuple[bytes, bytes]]:
    if start + length + _TRAILER > len(data) or length < 4:
        msg = f"a block of {length} bytes at {start}"
        raise ValueError(msg)
    if data[start + length] != 0:
        msg = "compressed, which TensorFlow does not write"
        raise ValueError(msg)
    block = data[start : start + length]
    restarts = int.from_bytes(block[-4:], "little")
    end = length - 4 - 4 * restarts
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        fresh, place = _varint(block, place)
        size, place = _varint(block, place)
        if shared > len(key) or place + fresh + size > end:
            msg = f"an entry beyond its block at {start + place}"
            raise ValueError(msg)
        key = key[:shared] + block[place : place + fresh]
        place += fresh
        yield key, block[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    msg = "a number without end"
    raise ValueError(msg)
