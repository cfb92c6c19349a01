"""Safe reading of untrusted HDF5 files in a separate process.

An HDF5 file can point to other files (links, external storage, virtual data sets), contain itself, declare terabytes that
it does not store, or contain a chunk that makes the C library read out of bounds. A child process parses it under limits on
memory and time and returns plain numbers and texts. This module writes them to a new file for kerasseg and Keras to read.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import CheckpointError, DataError
from kerasseg_tfrecords.files import temporary_space
from kerasseg_tfrecords.formats.weights import decoded, send_weights


@contextlib.contextmanager
def open_hdf5(source: Path, name: object, member: str | None = None) -> Iterator[h5py.File]:
    """Open a sanitised copy of an HDF5 file, with only its groups, numbers and texts.

    Yields:
        The copy, read-only; its `filename` ends in `.weights.h5` and exists until the block ends.

    Raises:
        CheckpointError: The file exceeds the limits or contains features that Keras does not use.
    """
    with temporary_space(), tempfile.TemporaryDirectory(prefix="kerasseg-") as folder:
        answer, copy = Path(folder, "answer"), Path(folder, "model.weights.h5")
        try:
            send_weights(source, str(name), answer, member)
            with answer.open("rb") as stream:
                _write_copy(stream, copy)
        except DataError as error:
            raise CheckpointError(error.what, path=str(name), remedy=error.remedy) from error
        except ValueError as error:
            raise _damaged(name, error) from error
        answer.unlink()
        with h5py.File(copy, "r") as file:
            yield file


def _damaged(name: object, found: object) -> CheckpointError:
    return CheckpointError(
        "the HDF5 file is damaged",
        path=str(name),
        found=found,
        remedy="Fetch it again and compare its size or checksum.",
    )


def _write_copy(answer: IO[bytes], copy: Path) -> None:
    """Write the child's output as a plain HDF5 file; raise `ValueError` if it is inconsistent."""
    size = os.fstat(answer.fileno()).st_size
    answer.seek(0)
    length = int.from_bytes(answer.read(8), "little")
    if not 0 < length <= size - 8:
        raise ValueError("its reader sent no header")
    header: dict[str, Any] = parse_json(answer.read(length))
    with (
        mmap.mmap(answer.fileno(), 0, access=mmap.ACCESS_READ) as data,
        h5py.File(copy, "w", libver="latest") as file,  # the layout without a size limit on attributes
    ):
        for path in header["groups"]:
            file.require_group(path or "/")
        at = 8 + length
        for path, kind, shape in header["datasets"]:
            dtype = np.dtype(kind)
            count = math.prod(shape)
            values = np.frombuffer(data, dtype, count, at).reshape(shape)
            file.create_dataset(path, data=values)
            del values
            at += count * dtype.itemsize
        for path, attributes in header["attributes"].items():
            for key, value in attributes.items():
                texts = value if isinstance(value, str) else np.array(value, dtype=h5py.string_dtype())
                file[path or "/"].attrs[key] = texts


def walk_datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield every data set below `group` with its path, in the order of the names."""
    for key in group:
        item = group[key]
        if isinstance(item, h5py.Dataset):
            yield key, item
        else:
            for path, dataset in walk_datasets(item):
                yield f"{key}/{path}", dataset


def text_attribute(group: h5py.Group, name: str) -> str | None:
    value = group.attrs.get(name)
    return value if value is None or isinstance(value, str) else decoded(value)


def attribute_texts(group: h5py.Group, name: str) -> list[str] | None:
    """Return a list of texts that Keras stored as attribute `name`, or split as `name0`, `name1`, ...; else None."""
    if name in group.attrs:
        return [decoded(v) for v in np.atleast_1d(group.attrs[name])]
    pieces: list[str] = []
    number = 0
    while f"{name}{number}" in group.attrs:
        pieces += [decoded(v) for v in np.atleast_1d(group.attrs[f"{name}{number}"])]
        number += 1
    return pieces or None
