"""Reading and checking of the index of a variables file (`variables.index`) before TensorFlow reads the values.

The index is a sorted string table as in LevelDB: blocks of entries with shared key prefixes, a block that lists the
blocks, and a footer. Each entry gives the type, shape, file, offset and size of one tensor. TensorFlow's own reader trusts
the shapes; here they are checked against the file sizes, so that a small file cannot allocate a terabyte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import tensor_bundle_pb2

from kerasseg.checkpoints.identify import refuse_pointer
from kerasseg.checkpoints.savedmodel.messages import MAX_RANK, item_size, type_name
from kerasseg_tfrecords.errors import CheckpointError

MAX_INDEX = 8 << 20  # bytes; a network of 31 million parameters needs 10 kB
FETCH_AGAIN = "Copy or download the folder again"

_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER = 48
_LONGEST = 4096  # bytes of a name
_TRAILER = 5


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a variables file: its type, for instance `float32`, its shape, and its size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


def read_index(prefix: Path) -> Mapping[str, Stored]:
    """Read the tensors of a variables file `variables/variables`, each checked against the data files."""
    index = prefix.with_name(prefix.name + ".index")
    if not index.is_file():
        raise CheckpointError("the variables of the SavedModel are missing", path=index, remedy="Copy the whole folder")
    refuse_pointer(index)
    size = index.stat().st_size
    if size > MAX_INDEX:
        raise CheckpointError("the index of variables is too large", path=index, found=f"{size:,} bytes")
    try:
        return _checked(prefix, list(_table(index.read_bytes())))
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes fail in many ways: IndexError, ValueError, DecodeError
        found = f"{type(error).__name__}: {error}"
        what = "the index of variables is damaged"
        raise CheckpointError(what, path=index, found=found, remedy=FETCH_AGAIN) from error


def _checked(prefix: Path, entries: list[tuple[bytes, bytes]]) -> dict[str, Stored]:
    header = tensor_bundle_pb2.BundleHeaderProto()
    if not entries or entries[0][0] != b"":
        raise ValueError("no header")
    header.ParseFromString(entries[0][1])
    if header.endianness != 0 or not 1 <= header.num_shards <= 10_000:
        raise ValueError(f"{header.num_shards} files, byte order {header.endianness}")
    files: dict[int, int] = {}
    found: dict[str, Stored] = {}
    for key, value in entries[1:]:
        entry = tensor_bundle_pb2.BundleEntryProto()
        entry.ParseFromString(value)
        name, shard = key.decode("utf-8"), entry.shard_id
        if not 0 <= shard < header.num_shards:
            raise ValueError(f"{name} in file {shard} of {header.num_shards}")
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
    dtype, shape = type_name(entry.dtype), tuple(d.size for d in entry.shape.dim)
    if entry.slices:
        raise CheckpointError(f"the variable {name!r} is stored in slices", path=prefix, expected="whole variables")
    if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > available:
        what, expected = f"the values of {name!r} are cut off", f"at least {entry.offset + entry.size:,}"
        raise CheckpointError(what, path=prefix, found=f"{available:,} bytes", expected=expected, remedy=FETCH_AGAIN)
    item, count = item_size(dtype), math.prod(shape)
    fits = count <= entry.size if item is None else count * item == entry.size
    if not fits or len(shape) > MAX_RANK or any(n < 0 for n in shape):
        found = f"{shape} of {dtype} in {entry.size:,} bytes"
        raise CheckpointError(f"the variable {name!r} has an invalid shape", path=prefix, found=found)
    return Stored(dtype, shape, entry.size)


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(data) < _FOOTER or data[-8:] != _MAGIC:
        raise ValueError("not a table of variables, or cut short")
    footer, place = data[-_FOOTER:], 0
    for _ in range(2):  # skip the handle of the meta index
        _, place = _varint(footer, place)
    start, place = _varint(footer, place)
    length, _ = _varint(footer, place)
    total = keys = 0
    for _, handle in _block(data, start, length):
        begin, place = _varint(handle, 0)
        size, _ = _varint(handle, place)
        total += size
        if total > len(data):
            raise ValueError("blocks overlap")
        for key, value in _block(data, begin, size):
            keys += len(key)
            if keys > MAX_INDEX:
                raise ValueError("the names of variables are too long")
            yield key, value


def _block(data: bytes, start: int, length: int) -> Iterator[tuple[bytes, bytes]]:
    if start + length + _TRAILER > len(data) or length < 4:
        raise ValueError(f"a block of {length} bytes at {start}")
    if data[start + length] != 0:
        raise ValueError("compressed, which TensorFlow does not write")
    block = data[start : start + length]
    end = length - 4 - 4 * int.from_bytes(block[-4:], "little")  # before the restart points
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        fresh, place = _varint(block, place)
        size, place = _varint(block, place)
        if shared > len(key) or place + fresh + size > end:
            raise ValueError(f"an entry beyond its block at {start + place}")
        key = key[:shared] + block[place : place + fresh]
        if len(key) > _LONGEST:  # a few bytes each, if they share their beginning
            raise ValueError(f"a name of {len(key):,} bytes")
        yield key, block[place + fresh : place + fresh + size]
        place += fresh + size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        value |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            return value, place
    raise ValueError("a number without end")
