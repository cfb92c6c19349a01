"""Decode records without TensorFlow, whose import takes seconds.

A record is a `tf.train.Example`, a protocol buffer: a sequence of fields, each with its number and the kind of its value.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.records.record import Record, unpack_mask, unpack_native_mask

_BYTES, _FLOATS, _INTS = 1, 2, 3
"""Numbers of the fields of `tf.train.Feature`."""


def decode(serialized: bytes, *, size: int, channels: int) -> Record:
    """Decode a record to NumPy arrays.

    Raises:
        DataError: A feature is missing, or has another type or length.
    """
    try:
        feature = _features(serialized)
        text = {name: feature[name, _BYTES][0].decode() for name in ("slice_id", "patient", "group", "volume")}
        number = {name: feature[name, _INTS][0] for name in ("label", "height", "width", "slice_index")}
        rows, columns = feature["spacing", _FLOATS]
        image = np.frombuffer(feature["image", _BYTES][0], np.uint8)
        mask, native = feature["mask", _BYTES][0], feature["mask_native", _BYTES][0]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise DataError("a damaged record, or not one of kerasseg", found=type(error).__name__) from error
    if image.size != size * size * channels:
        raise DataError(
            f"the image of slice {text['slice_id']} has the wrong length",
            found=f"{image.size} bytes",
            expected=f"{size}x{size}x{channels}",
        )
    return Record(
        image=image.reshape(size, size, channels),
        mask=unpack_mask(mask, size),
        mask_native=unpack_native_mask(native),
        spacing=(rows, columns),
        label=number["label"],
        height=number["height"],
        width=number["width"],
        slice_index=number["slice_index"],
        slice_id=text["slice_id"],
        patient=text["patient"],
        group=text["group"],
        volume=text["volume"],
    )


def read_unchanged(path: Path, *, size: int, channels: int) -> Iterator[Record]:
    """Yield the records of a TFRecord file whose SHA-256 has been checked; their own checksums are not.

    Raises:
        DataError: A record is damaged; those before it have been yielded.
    """
    with path.open("rb") as stream:
        room, count = os.fstat(stream.fileno()).st_size, 0
        while header := stream.read(12):
            length = int.from_bytes(header[:8], "little")
            if len(header) < 12 or length > room:
                raise DataError(f"a damaged record after {count} good ones", path=path, remedy=_REMEDY)
            try:
                yield decode(stream.read(length), size=size, channels=channels)
            except DataError as error:
                raise DataError(f"record {count}: {error}", path=path, remedy=_REMEDY) from error
            stream.seek(4, os.SEEK_CUR)
            count += 1


_REMEDY = "Prepare the shards again."


def _features(serialized: bytes) -> dict[tuple[str, int], list[Any]]:
    """Return the values of each feature by its name and kind."""
    found = {}
    for _, features in _fields(serialized):
        for _, entry in _fields(features):
            part = dict(_fields(entry))
            for kind, values in _fields(part[2]):
                found[part[1].decode(), kind] = _values(values, kind)
    return found


def _values(data: bytes, kind: int) -> list[Any]:
    values: list[Any] = []
    for _, value in _fields(data):
        if kind == _FLOATS:
            values += struct.unpack(f"<{len(value) // 4}f", value)
        elif kind == _INTS and isinstance(value, bytes):  # packed
            values += _integers(value)
        else:
            values.append(value)
    return [value - (1 << 64) if kind == _INTS and value >= 1 << 63 else value for value in values]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: an integer, or bytes."""
    at = 0
    while at < len(data):
        key, at = _integer(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _integer(data, at)
            yield key >> 3, value
            continue
        length, at = _integer(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + length > len(data):
            raise ValueError("the record ends in the middle of a field")
        yield key >> 3, data[at : at + length]
        at += length


def _integers(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _integer(data, at)
        yield value


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """Read an integer of 7 bits a byte, the lowest first; return it and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
