"""HDF5 files of strangers: looked over before a number is read from them.

An HDF5 file is a small file system. It can point into other files (external and soft links, external storage, virtual data
sets), hold a link that leads back to its own parent, and declare terabytes that it does not store. Nothing of that occurs
in a checkpoint, so all of it is refused by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np

from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["attribute_texts", "open_hdf5", "text_attribute", "walk_datasets"]

_DEEPEST = 64
_MOST_OBJECTS = 1_000_000
_ALWAYS_FINE = 1 << 26  # bytes that a data set may declare whatever it stores
_MOST_EXPANSION = 200  # times the bytes stored; compressed float32 weights stay below 2, zeros compress to 1 in 1000


@contextlib.contextmanager
def open_hdf5(source: Path | bytes, name: object) -> Iterator[h5py.File]:
    """Open and look over an HDF5 file; what is yielded is the very file that was looked over.

    Args:
        source: The file, or its bytes.
        name: How to call it in messages.

    Raises:
        CheckpointError: If it cannot be read or holds anything that a checkpoint has no use for.
    """
    try:
        # By file object: HDF5 then has no folder that a relative external link could start from.
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(BytesIO(source) if isinstance(source, bytes) else source.open("rb"))
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            file = stack.enter_context(h5py.File(stream, "r"))
            _look_over(file, size, name)
            yield file
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            "the HDF5 file is damaged",
            path=str(name),
            found=str(error).split("(")[0].strip() or type(error).__name__,
            remedy="Fetch it again and compare its size or checksum.",
        ) from error


def _look_over(file: h5py.File, size: int, name: object) -> None:
    seen: set[int] = set()
    declared = 0
    stack: list[tuple[h5py.Group, str, int]] = [(file, "", 0)]
    while stack:
        group, prefix, depth = stack.pop()
        if depth > _DEEPEST or len(seen) > _MOST_OBJECTS:
            raise CheckpointError("refused: its groups are nested without end", path=str(name), found=prefix)
        for key in group:
            path = f"{prefix}/{key}"
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                target = getattr(link, "filename", None) or getattr(link, "path", "")
                kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
                raise CheckpointError(
                    f"refused: `{path}` is {kind}",
                    path=str(name),
                    found=f"a link to {target}",
                    expected="data",
                    remedy="Do not trust this file.",
                )
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise CheckpointError(f"refused: `{path}` stands in the file twice", path=str(name))
            seen.add(address)
            if isinstance(item, h5py.Group):
                stack.append((item, path, depth + 1))
            elif isinstance(item, h5py.Dataset):
                declared += _check_dataset(item, path, name)
    if declared > max(_ALWAYS_FINE, _MOST_EXPANSION * size):
        raise CheckpointError(
            "refused: it declares far more than it stores",
            path=str(name),
            found=f"{declared} bytes declared, {size} stored",
        )


def _check_dataset(dataset: h5py.Dataset, path: str, name: object) -> int:
    if dataset.is_virtual:
        raise CheckpointError(
            f"refused: `{path}` is a virtual data set", path=str(name), expected="numbers stored in it"
        )
    if dataset.external:
        raise CheckpointError(
            f"refused: `{path}` keeps its numbers in another file", path=str(name), found=dataset.external[0][0]
        )
    size = int(np.prod([int(n) for n in dataset.shape or ()], dtype=object)) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if size > max(_ALWAYS_FINE, _MOST_EXPANSION * stored):
        raise CheckpointError(
            f"refused: `{path}` declares far more than it stores",
            path=str(name),
            found=f"shape {dataset.shape}, {stored} bytes",
            remedy="Do not trust this file.",
        )
    return size


def walk_datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every data set below `group` with its path, in the order of the names; of a file that `open_hdf5` looked over."""
    for key in group:
        item = group[key]
        if isinstance(item, h5py.Dataset):
            yield key, item
        else:
            for path, dataset in walk_datasets(item):
                yield f"{key}/{path}", dataset


def _decoded(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def text_attribute(group: h5py.Group, name: str) -> str | None:
    """One attribute as text, or None where it is not there."""
    value = group.attrs.get(name)
    return None if value is None else _decoded(value)


def attribute_texts(group: h5py.Group, name: str) -> list[str] | None:
    """A list of texts that Keras wrote as attribute `name`, or in pieces as `name0`, `name1`, ...; None without it."""
    if name in group.attrs:
        return [_decoded(v) for v in np.atleast_1d(group.attrs[name])]
    pieces: list[str] = []
    number = 0
    while f"{name}{number}" in group.attrs:
        pieces += [_decoded(v) for v in np.atleast_1d(group.attrs[f"{name}{number}"])]
        number += 1
    return pieces or None
