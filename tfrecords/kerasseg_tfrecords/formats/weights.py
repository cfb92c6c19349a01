"""Read untrusted files with networks: `.keras` archives, HDF5 files with weights (groups, texts, numbers), protobuf.

It belongs to `kerasseg.checkpoints`, but lies here so that the child process that runs it does not import Keras.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
from google.protobuf import descriptor_pool, message_factory

from kerasseg_tfrecords.errors import CheckpointError, DataError
from kerasseg_tfrecords.files import temporary_space
from kerasseg_tfrecords.formats.hdf5 import LIBRARY_ERRORS, read_numbers
from kerasseg_tfrecords.formats.zip import open_zip
from kerasseg_tfrecords.isolation import isolated, working_on

_SECONDS = 60
_MAX_DEPTH = 64
_MAX_OBJECTS = 1_000_000
_MAX_TEXT = 1 << 26  # characters of all text attributes together
_ALWAYS_FINE = 1 << 26  # bytes that a data set or a member may declare regardless of its stored size
_MAX_EXPANSION = 200  # times the stored bytes; compressed float32 weights stay below 2, zeros reach 1000
_MAX_MEMBERS = 10_000
_MEMBERS = ("config.json", "model.weights.h5")
_REMEDY = "The file was damaged or tampered with: download it again from a trusted source."
_AGAIN = "Fetch it again and compare its size or checksum."


@isolated
def member_names(path: Path) -> list[str]:
    """Return the names in a zip archive; none if it is damaged."""
    working_on(str(path), _SECONDS)
    try:
        with open_zip(path, _MAX_MEMBERS) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


@isolated
def read_members(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Return those of the named small members that a `.keras` archive has, after a check of the whole archive."""
    working_on(str(path), _SECONDS)
    with _opened_archive(path) as archive:
        found = set(archive.namelist())
        return {name: _read(archive, name) for name in names if name in found}


@isolated
def is_whole(path: Path) -> bool:
    """Return whether a `.keras` archive is one, and all its checksums are correct."""
    working_on(str(path), _SECONDS)
    try:
        with _opened_archive(path) as archive:
            return archive.testzip() is None
    except CheckpointError:
        return False


@contextlib.contextmanager
def _opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with open_zip(path, _MAX_MEMBERS) as archive:
            _check_archive(archive)
            yield archive
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError, zlib.error) as error:
        remedy = "Fetch it again and compare its size."
        raise CheckpointError("the archive is damaged", found=str(error), remedy=remedy) from error


def _check_archive(archive: zipfile.ZipFile) -> None:
    """Refuse archives that are not `.keras` files, or have too many, unsafe, duplicate or excessively large members."""
    names: set[str] = set()
    if len(archive.infolist()) > _MAX_MEMBERS:
        raise CheckpointError("refused: too many members in the archive")
    for info in archive.infolist():
        name = info.orig_filename
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name:
            what = "refused: a member of the archive has a path outside its folder"
            raise CheckpointError(what, found=name, remedy="The file may be malicious: get it from a trusted source.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise CheckpointError("refused: a member of the archive is a link", found=name)
        if info.filename in names:
            raise CheckpointError("refused: the archive names a member twice", found=name)
        if info.flag_bits & 1:
            raise CheckpointError("the archive is encrypted", found=name)
        names.add(info.filename)
        if info.file_size > max(_ALWAYS_FINE, _MAX_EXPANSION * info.compress_size):
            found = f"{name}: {info.file_size} bytes from {info.compress_size}"
            raise CheckpointError("refused: a member of the archive unpacks to far more than it stores", found=found)
    if not names.issuperset(_MEMBERS):
        found, expected = ", ".join(sorted(names)[:8]) or "nothing in it", "{}, metadata.json and {}".format(*_MEMBERS)
        raise CheckpointError("the archive is not a `.keras` file", found=found, expected=expected)


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > _ALWAYS_FINE:
        raise CheckpointError("the network's configuration is too long", found=f"{name}: {size} bytes")
    with archive.open(name) as member:
        data = member.read(size + 1)  # at most one byte more than declared
    if len(data) != size:
        raise zipfile.BadZipFile(f"{name} has another size than declared")
    return data


@isolated
def is_message(path: Path, kind: str, definitions: tuple[bytes, ...]) -> bool:
    """Return whether a file is a protobuf message; two bytes of one can take a hundred in memory.

    Args:
        path: The file.
        kind: Full name of the message.
        definitions: Serialised descriptors of the files that define it, each after those that it imports.

    Raises:
        DataError: Parsing it takes more than the memory or time allowed.
    """
    working_on(str(path), _SECONDS)
    pool = descriptor_pool.DescriptorPool()
    for definition in definitions:
        pool.AddSerializedFile(definition)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName(kind))
    try:
        message.FromString(path.read_bytes())
    except MemoryError:
        raise
    except Exception:  # protobuf's DecodeError is defined in another module for each of its implementations
        return False
    return True


@isolated
def send_weights(source: Path, name: str, copy: Path, member: str | None = None) -> None:
    """Check an HDF5 file and write its groups, numbers and text attributes to a new HDF5 file.

    Args:
        source: The file, or an archive that holds it.
        name: Its name in messages.
        copy: The file to write.
        member: The name of the HDF5 file in the archive.

    Raises:
        CheckpointError: The file is damaged, or contains what Keras does not write (links, more than it stores, ...).
    """
    working_on(name, _SECONDS)
    if member is not None:
        with _opened_archive(source) as archive:
            source = copy.with_name("packed")
            with temporary_space(copy.parent.parent), archive.open(member) as packed, source.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
    try:
        # As a file object, so that relative external links have no folder to start from.
        with source.open("rb") as stream, h5py.File(stream, "r") as file:
            _send(file, os.fstat(stream.fileno()).st_size, name, copy)
    except DataError as error:
        details = {"found": error.found, "expected": error.expected}
        raise CheckpointError(error.what, path=name, remedy=_REMEDY, **details) from error
    except LIBRARY_ERRORS as error:
        if isinstance(error, OSError) and error.filename:
            raise CheckpointError("cannot be read", path=name, found=error.strerror) from error
        text = str(error)
        if cut := re.search(r"eof = (\d+).*stored_eof = (\d+)", text):
            what = f"the HDF5 file is truncated: {int(cut[1]):,} of {int(cut[2]):,} bytes"
            raise CheckpointError(what, path=name, remedy=_AGAIN) from error
        found = text.split("(")[0].strip() or type(error).__name__
        raise CheckpointError("the HDF5 file is damaged", path=name, found=found, remedy=_AGAIN) from error


def _send(file: h5py.File, size: int, name: str, copy: Path) -> None:
    groups, datasets = _look_over(file, size, name)
    texts: list[tuple[str, str, str | list[str]]] = []
    left = _MAX_TEXT
    for path, item in (*groups, *datasets):
        for key, text in _texts(item):
            left -= len(text) if isinstance(text, str) else sum(len(part) + 1 for part in text)
            if left < 0:
                raise _refused("its attributes are too long", name, expected=f"at most {_MAX_TEXT} characters")
            texts.append((path, key, text))
    needed = (
        sum(item.nbytes for _, item in datasets) + 4 * (_MAX_TEXT - left) + 1024 * (len(groups) + len(datasets) + 999)
    )
    space = temporary_space(copy.parent.parent, needed)  # HDF5 crashes when it closes a file on a full disk
    with space, h5py.File(copy, "w", libver="latest") as out:  # the layout without a limit on attributes
        for path, _ in groups:
            out.require_group(path or "/")
        for path, item in datasets:
            out[path] = read_numbers(item.id, f"`{path}`", name, max_values=1 << 40, opaque=True)
        for path, key, text in texts:
            out[path or "/"].attrs[key] = text if isinstance(text, str) else np.array(text, h5py.string_dtype())


def _look_over(
    file: h5py.File, size: int, name: str
) -> tuple[list[tuple[str, h5py.Group]], list[tuple[str, h5py.Dataset]]]:
    """Check the file and return its groups and numeric data sets with their paths."""
    seen: set[int] = set()
    groups: list[tuple[str, h5py.Group]] = []
    datasets: list[tuple[str, h5py.Dataset]] = []
    declared = 0
    stack: list[tuple[h5py.Group, str, int]] = [(file, "", 0)]
    while stack:
        group, prefix, depth = stack.pop()
        groups.append((prefix, group))
        if depth > _MAX_DEPTH or len(seen) > _MAX_OBJECTS:
            raise _refused("its groups are nested too deeply", name, found=prefix)
        for key in group:
            path = f"{prefix}/{key}"
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                target = getattr(link, "filename", None) or getattr(link, "path", "")
                kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
                raise _refused(f"`{path}` is {kind}", name, found=f"a link to {target}", expected="data")
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise _refused(f"`{path}` is in the file twice", name)
            seen.add(address)
            if isinstance(item, h5py.Group):
                stack.append((item, path, depth + 1))
            elif isinstance(item, h5py.Dataset):
                declared += _declared(item, path, name)
                # Keras stores bfloat16 as two opaque bytes. Texts and tables are not weights.
                if item.dtype.kind in "fiub" or (item.dtype.kind, item.dtype.itemsize) == ("V", 2):
                    datasets.append((path, item))
    if declared > max(_ALWAYS_FINE, _MAX_EXPANSION * size):
        found = f"{declared} bytes declared, {size} stored"
        raise _refused("it declares far more than it stores", name, found=found)
    return groups, datasets


def _declared(dataset: h5py.Dataset, path: str, name: str) -> int:
    """Check a data set and return the number of bytes that it declares."""
    if dataset.is_virtual:
        raise _refused(f"`{path}` is a virtual data set", name, expected="numbers stored in it")
    if dataset.external:
        raise _refused(f"`{path}` keeps its numbers in another file", name, found=dataset.external[0][0])
    size: int = math.prod(int(n) for n in dataset.shape or ()) * int(dataset.dtype.itemsize)
    stored = dataset.id.get_storage_size()
    if size > max(_ALWAYS_FINE, _MAX_EXPANSION * stored):
        found = f"shape {dataset.shape}, {stored} bytes"
        raise _refused(f"`{path}` declares far more than it stores", name, found=found)
    return size


def _refused(what: str, name: str, *, found: object = None, expected: object = None) -> CheckpointError:
    return CheckpointError(f"refused: {what}", path=name, found=found, expected=expected, remedy=_REMEDY)


def _texts(item: Any) -> Iterator[tuple[str, str | list[str]]]:
    for name in item.attrs:
        try:
            attribute = item.attrs.get_id(name)
            text = isinstance(attribute.get_type(), h5py.h5t.TypeStringID)
            if not text and 0 not in attribute.shape:  # HDF5 crashes on some damaged values of other types
                continue
            value = item.attrs[name] if text else np.empty(0)
        except (OSError, TypeError, ValueError):  # a type that h5py does not support and Keras does not write
            continue
        if isinstance(value, str | bytes):
            yield name, decoded(value)
        elif isinstance(value, np.ndarray) and value.ndim <= 1:
            yield name, [decoded(v) for v in np.atleast_1d(value)]


def decoded(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
