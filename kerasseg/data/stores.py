"""Slices by number: from the shards, from memory, or from a cache file on disk.

All sources give the same rows of bytes: the image of a slice (size x size x channels, uint8), then its mask, one bit per
pixel. They are read by several threads at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kerasseg.data.buffers import RecycledArrays
from kerasseg_tfrecords.errors import DataError, KerassegError
from kerasseg_tfrecords.files import explain_os_error, locked, write_atomically
from kerasseg_tfrecords.records.manifest import MANIFEST, Manifest
from kerasseg_tfrecords.records.schema import decode_pixels
from kerasseg_tfrecords.records.shards import ShardRecords
from kerasseg_tfrecords.text import Progress

CHUNK = 64
"""Number of slices read at a time: 5 MB."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Layout of image and mask in a row of bytes.

    Attributes:
        size: Side of the square slices in pixels.
        channels: 1 or 3.
    """

    size: int
    channels: int

    @property
    def image_bytes(self) -> int:
        return self.size * self.size * self.channels

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; 73,728 for a grey slice of 256 x 256."""
        return self.image_bytes + self.size * ((self.size + 7) // 8)

    def images(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return images (n, size, size, channels) of rows (n, row_bytes)."""
        return rows[:, : self.image_bytes].reshape(len(rows), self.size, self.size, self.channels)

    def masks(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return masks (n, size, size, 1), 0 and 1, of rows (n, row_bytes)."""
        packed = rows[:, self.image_bytes :].reshape(len(rows), self.size, (self.size + 7) // 8)
        return np.unpackbits(packed, axis=2, count=self.size)[..., None]

    def tumour(self, rows: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return (n,) whether the mask has any pixel."""
        return np.asarray(rows[:, self.image_bytes :].any(axis=1))


class SliceSource(Protocol):
    """Source of slices by number."""

    kind: Literal["none", "memory", "disk"]
    layout: RowLayout

    def __len__(self) -> int:
        """Number of slices."""

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a copy of n slices as (n, row_bytes), in the given order."""


class ShardSlices:
    """Slices read from the shards when needed."""

    kind: Literal["none", "memory", "disk"] = "none"

    def __init__(self, records: ShardRecords) -> None:
        self.records = records
        self.layout = RowLayout(records.manifest.size, records.manifest.channels)
        self._arrays = RecycledArrays()

    def __len__(self) -> int:
        return len(self.records)

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return n slices as (n, row_bytes)."""
        rows = self._arrays.take((len(numbers), self.layout.row_bytes), np.uint8)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            try:
                data = self.records.read(number)
                image, mask, label = decode_pixels(data, size=self.layout.size, channels=self.layout.channels)
            except DataError as error:
                if error.path is not None:
                    raise
                raise DataError(
                    error.what,
                    path=self.records.path_of(number),
                    found=error.found,
                    expected=error.expected,
                    remedy="Run kerasseg verify, and prepare again.",
                ) from error
            if label != self.records.labels[number]:
                raise DataError(
                    "the class of a record differs from that of its file",
                    path=self.records.path_of(number),
                    found=label,
                    expected=int(self.records.labels[number]),
                    remedy="Run kerasseg verify, and prepare again.",
                )
            row[: self.layout.image_bytes] = np.frombuffer(image, np.uint8)
            row[self.layout.image_bytes :] = np.frombuffer(mask, np.uint8)
        return rows


class MemorySlices:
    """Slices in memory; each is read from the shards once, when first needed."""

    kind: Literal["none", "memory", "disk"] = "memory"

    def __init__(self, shards: SliceSource) -> None:
        self.layout = shards.layout
        self._shards = shards
        self._arrays = RecycledArrays()
        self._rows = np.empty((len(shards), shards.layout.row_bytes), np.uint8)
        self._there = np.zeros(len(shards), bool)

    def __len__(self) -> int:
        return len(self._rows)

    def fill(self, progress: Progress | None = None) -> None:
        """Read all slices now, in the order of the shards."""
        for first in range(0, len(self), CHUNK):
            if progress:
                progress("read", first, len(self))
            self._fetch(np.arange(first, min(first + CHUNK, len(self))))
        if progress:
            progress("read", len(self), len(self))

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return n slices as (n, row_bytes)."""
        missing = numbers[~self._there[numbers]]
        if missing.size:
            self._fetch(np.unique(missing))
        rows = self._arrays.take((len(numbers), self.layout.row_bytes), np.uint8)
        return np.take(self._rows, numbers, axis=0, out=rows, mode="wrap")  # "raise" would make a copy

    def _fetch(self, numbers: NDArray[np.int64]) -> None:
        # Two threads may fetch the same slice; they write the same bytes, and mark them only afterwards.
        self._rows[numbers] = self._shards.take(numbers)
        self._there[numbers] = True


class FileSlices:
    """Slices in one file, row after row.

    The file is read by `pread` instead of mapped: pages of a mapping count as memory of this process, which a scheduler
    with a memory limit might kill.

    Args:
        path: The file; it stays open as long as this object exists, so it may be deleted meanwhile.
        count: Number of slices.
        layout: Layout of the rows.
    """

    kind: Literal["none", "memory", "disk"] = "disk"

    def __init__(self, path: Path, count: int, layout: RowLayout) -> None:
        self.path, self.layout, self._count = path, layout, count
        self._arrays = RecycledArrays()
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self._count

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return n slices as (n, row_bytes)."""
        width = self.layout.row_bytes
        rows = self._arrays.take((len(numbers), width), np.uint8)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            done = 0
            while done < width:  # one call reads at most 2 GB, and may be interrupted
                got = os.preadv(self._descriptor, [row[done:].data], number * width + done)
                if got == 0:
                    raise DataError(
                        "the slice cache on disk is truncated",
                        path=self.path,
                        remedy="Run the command again; the cache is rebuilt.",
                    )
                done += got
        return rows


_VERSION = 1
_REMEDY = "Choose another folder (cache_folder, or the variable KERASSEG_CACHE), or read without one (cache='none')."


def cache_key(manifest: Manifest, split: str) -> str:
    """Return the name of a cache, which depends on the content of the split's shards but not on their folder."""
    shards = [[shard.path, shard.sha256, shard.records] for shard in manifest.shards_of(split)]
    facts = [_VERSION, manifest.fingerprint, split, manifest.size, manifest.channels, shards]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def cached_on_disk(
    shards: ShardSlices,
    split: str,
    folder: Path,
    *,
    check: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> FileSlices:
    """Open the cache of a split, after building it if necessary."""
    manifest, root = shards.records.manifest, shards.records.root.resolve()
    key = cache_key(manifest, split)
    path = folder / f"{split}-{key}.slices"
    need = len(shards) * shards.layout.row_bytes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            if not (path.is_file() and path.stat().st_size == need):
                check()
                _clear(folder, root, split, key)
                free = shutil.disk_usage(folder).free
                if free < need:
                    raise KerassegError(
                        "not enough disk space for the slice cache",
                        path=folder,
                        found=f"{free / 1e9:.1f} GB free",
                        expected=f"{need / 1e9:.1f} GB",
                        remedy=_REMEDY,
                    )
                _build(shards, path, progress)
            # Also for an existing cache: the shards may have moved, and caches without shards are deleted.
            facts = {"shards": str(root), "split": split, "fingerprint": manifest.fingerprint}
            write_atomically(path.with_suffix(".json"), json.dumps(facts, indent=1) + "\n", durable=False)
            # Opened under the lock; a later cleanup then removes only the name.
            return FileSlices(path, len(shards), shards.layout)
    except OSError as error:
        raise KerassegError(explain_os_error(error, folder).what, path=folder, remedy=_REMEDY) from error


def _build(shards: ShardSlices, path: Path, progress: Progress | None) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            for first in range(0, len(shards), CHUNK):
                if progress:
                    progress("cache", first, len(shards))
                stream.write(shards.take(np.arange(first, min(first + CHUNK, len(shards)))).data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if progress:
        progress("cache", len(shards), len(shards))


def _clear(folder: Path, root: Path, split: str, key: str) -> None:
    """Remove stale caches and files of killed processes; the caller holds the lock."""
    for left in folder.glob(".tmp-*"):
        left.unlink(missing_ok=True)
    for data in folder.glob("*.slices"):
        if not data.with_suffix(".json").exists():
            data.unlink(missing_ok=True)
    for facts in folder.glob("*.json"):
        try:
            state = json.loads(facts.read_text())
            of, its_split = Path(state["shards"]), state["split"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        replaced = of == root and its_split == split and not facts.stem.endswith(key)
        if replaced or not (of / MANIFEST).is_file():
            facts.with_suffix(".slices").unlink(missing_ok=True)
            facts.unlink(missing_ok=True)
