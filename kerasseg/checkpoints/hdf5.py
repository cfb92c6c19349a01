"""Safe reading of untrusted HDF5 files in a separate process.

An HDF5 file can point to other files (links, external storage, virtual data sets), contain itself, declare terabytes that
it does not store, or contain a chunk that makes the C library read out of bounds. A child process parses it under limits on
memory and time, and writes its numbers and texts to a new file for kerasseg and Keras to read.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from kerasseg_tfrecords.errors import CheckpointError, DataError
from kerasseg_tfrecords.files import system_error, temporary_space
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
        copy = Path(folder, "model.weights.h5")
        try:
            send_weights(source, str(name), copy, member)
        except DataError as error:
            if (known := system_error(error)) is not None:  # HDF5 crashed when it closed the copy on a full disk
                raise known from error
            raise CheckpointError(error.what, path=str(name), remedy=error.remedy) from error
        with h5py.File(copy, "r") as file:
            yield file


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
