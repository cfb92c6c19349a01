"""HDF5 files of strangers, parsed in a process of their own.

An HDF5 file is a small file system. It can point into other files (external and soft links, external storage, virtual data
sets), contain its own parent, declare terabytes that it does not store, or hold a chunk that makes the C library read
beyond its memory. `hdf5_child.py` reads it under limits on memory and time and hands over plain numbers and texts; from
these a new file is written here, which the rest of kerasseg and Keras read.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from kerasseg.checkpoints import hdf5_child
from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.files import temporary_space

__all__ = ["attribute_texts", "open_hdf5", "text_attribute", "walk_datasets"]

_MEMORY = 2 << 30  # bytes of address space; the data sets are read one by one
_SECONDS = 60


@contextlib.contextmanager
def open_hdf5(source: Path | bytes, name: object) -> Iterator[h5py.File]:
    """Open a copy of an HDF5 file that holds its groups, numbers and texts and nothing else.

    Args:
        source: The file, or its bytes.
        name: What to call it in messages.

    Yields:
        The copy, read-only; its `filename` ends in `.weights.h5` and exists until the block ends.

    Raises:
        CheckpointError: If the file cannot be read within the limits or holds anything that a checkpoint has no use for.
    """
    with temporary_space(), tempfile.TemporaryDirectory(prefix="kerasseg-") as folder:
        with tempfile.TemporaryFile(dir=folder) as answer:
            with contextlib.ExitStack() as stack:
                stream: IO[bytes]
                if isinstance(source, bytes):
                    stream = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                    stream.write(source)
                    stream.seek(0)
                else:
                    stream = stack.enter_context(source.open("rb"))
                _parse(stream, answer, name)
            copy = Path(folder, "model.weights.h5")
            try:
                _write_copy(answer, copy)
            except ValueError as error:
                raise _damaged(name, error) from error
        with h5py.File(copy, "r") as file:
            yield file


def _parse(stream: IO[bytes], answer: IO[bytes], name: object) -> None:
    """Let the child process read `stream` into `answer`."""
    # -P: the folder of the script holds modules (`open`, `h5`) that must not hide others.
    command = [sys.executable, "-P", hdf5_child.__file__, str(_MEMORY), str(_SECONDS)]
    try:
        child = subprocess.run(
            command, stdin=stream, stdout=answer, stderr=subprocess.PIPE, timeout=2 * _SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _damaged(name, f"reading it took more than {2 * _SECONDS} s") from error
    if child.returncode == 0:
        return
    if child.returncode == hdf5_child.REFUSED:
        try:
            reason = parse_json(child.stderr.splitlines()[-1], max_bytes=1 << 16)
        except (ValueError, IndexError):
            reason = {"what": "the HDF5 file is damaged"}
        raise CheckpointError(path=str(name), **reason)
    if child.returncode > 0:
        raise _damaged(name, f"its reader failed: {child.stderr[-200:].decode(errors='replace').strip()}")
    number = -child.returncode
    limit = number in (getattr(signal, "SIGXCPU", 0), getattr(signal, "SIGKILL", 0))
    raise _damaged(
        name, f"reading it took more than {_SECONDS} s" if limit else f"it crashes the HDF5 library (signal {number})"
    )


def _damaged(name: object, found: object) -> CheckpointError:
    return CheckpointError(
        "the HDF5 file is damaged",
        path=str(name),
        found=found,
        remedy="Fetch it again and compare its size or checksum.",
    )


def _write_copy(answer: IO[bytes], copy: Path) -> None:
    """Write what the child sent as a plain HDF5 file; raise `ValueError` where the message contradicts itself."""
    size = os.fstat(answer.fileno()).st_size
    answer.seek(0)
    length = int.from_bytes(answer.read(8), "little")
    if not 0 < length <= size - 8:
        raise ValueError("its reader sent no header")
    header: dict[str, Any] = parse_json(answer.read(length))
    with (
        mmap.mmap(answer.fileno(), 0, access=mmap.ACCESS_READ) as data,
        h5py.File(copy, "w", libver="latest") as file,  # of the layouts, the one without limits on attributes
    ):
        for path in header["groups"]:
            file.require_group(path or "/")
        at = 8 + length
        for path, kind, shape in header["datasets"]:
            dtype = np.dtype(kind)
            count = math.prod(shape)
            if at + count * dtype.itemsize > size:
                raise ValueError("its reader sent too few numbers")
            values = np.frombuffer(data, dtype, count, at).reshape(shape)
            file.create_dataset(path, data=values)
            del values
            at += count * dtype.itemsize
        for path, attributes in header["attributes"].items():
            for key, value in attributes.items():
                texts = value if isinstance(value, str) else np.array(value, dtype=h5py.string_dtype())
                file[path or "/"].attrs[key] = texts


def walk_datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every data set below `group` with its path, in the order of the names."""
    for key in group:
        item = group[key]
        if isinstance(item, h5py.Dataset):
            yield key, item
        else:
            for path, dataset in walk_datasets(item):
                yield f"{key}/{path}", dataset


def text_attribute(group: h5py.Group, name: str) -> str | None:
    """One attribute as text, or None where it is not there."""
    value = group.attrs.get(name)
    return value if value is None or isinstance(value, str) else hdf5_child.decoded(value)


def attribute_texts(group: h5py.Group, name: str) -> list[str] | None:
    """A list of texts that Keras wrote as attribute `name`, or in pieces as `name0`, `name1`, ...; None without it."""
    if name in group.attrs:
        return [hdf5_child.decoded(v) for v in np.atleast_1d(group.attrs[name])]
    pieces: list[str] = []
    number = 0
    while f"{name}{number}" in group.attrs:
        pieces += [hdf5_child.decoded(v) for v in np.atleast_1d(group.attrs[f"{name}{number}"])]
        number += 1
    return pieces or None
