"""Read any record of a split by its number, directly from the TFRecord files and without TensorFlow.

Each record of a TFRecord file is 8 bytes of length (little-endian), 4 bytes of checksum, the data, and 4 bytes of checksum.
`ShardRecords` reads the lengths once and then single records by their offsets.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.files import file_sha256
from kerasseg_tfrecords.records.manifest import Manifest, ShardFacts
from kerasseg_tfrecords.text import Progress, count

_HEADER, _FOOTER = 12, 4
_REMEDY = "Run kerasseg verify, then prepare the shards again."


def scan_offsets(path: Path, expected: int) -> NDArray[np.int64]:
    """Return the offset and length in bytes of the data of all records of a TFRecord file, (expected, 2).

    Raises:
        DataError: The file ends in the middle of a record, or does not have the `expected` number of records.
    """
    places: list[tuple[int, int]] = []
    try:
        with path.open("rb", buffering=0) as stream:
            size, at = os.fstat(stream.fileno()).st_size, 0
            while at < size:
                header = os.pread(stream.fileno(), 8, at)
                length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
                if at + _HEADER + length + _FOOTER > size:
                    raise DataError(
                        f"damaged or truncated after {count(len(places), 'record')}",
                        path=path,
                        expected=f"{expected} records",
                        remedy=_REMEDY,
                    )
                places.append((at + _HEADER, length))
                at += _HEADER + length + _FOOTER
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path, remedy=_REMEDY) from error
    if len(places) != expected:
        raise DataError(
            "the number of records differs from the manifest",
            path=path,
            found=len(places),
            expected=expected,
            remedy=_REMEDY,
        )
    return np.array(places, np.int64).reshape(-1, 2)


def check_hashes(root: Path, shards: Sequence[ShardFacts], progress: Progress | None = None) -> None:
    """Compare the SHA-256 of files with the manifest; `DataError` if one has changed.

    `progress` is called with "check", the files done, and their total.
    """
    for done, shard in enumerate(shards):
        if progress:
            progress("check", done, len(shards))
        path = root / shard.path
        try:
            digest = file_sha256(path)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path=path, remedy=_REMEDY) from error
        if digest != shard.sha256:
            raise DataError(
                "its bytes have changed since it was written",
                path=path,
                found=f"SHA-256 {digest[:12]}...",
                expected=f"{shard.sha256[:12]}...",
                remedy=_REMEDY,
            )
    if progress:
        progress("check", len(shards), len(shards))


class ShardRecords:
    """The records of one split as a sequence, in the order of the files in the manifest.

    Keeps no file open and only 16 bytes per record in memory. Several threads may read at once.

    Attributes:
        labels: (records,) index into the classes of the manifest; known without reading a record.
    """

    def __init__(self, root: Path, manifest: Manifest, split: str) -> None:
        self.root, self.manifest = root, manifest
        self.shards = manifest.shards_of(split)
        counts = [shard.records for shard in self.shards]
        classes = [manifest.classes.index(shard.label) for shard in self.shards]
        self.labels: NDArray[np.int64] = np.repeat(np.array(classes, np.int64), counts)
        self._shard = np.repeat(np.arange(len(counts)), counts)
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._places: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Return the number of records in the split."""
        return len(self.labels)

    def path_of(self, number: int) -> Path:
        """Return the file that holds record `number`."""
        return self.root / self.shards[int(self._shard[number])].path

    def read(self, number: int) -> bytes:
        """Read the serialised Example of one record.

        Raises:
            DataError: Its file is damaged or missing.
        """
        shard = int(self._shard[number])
        path = self.root / self.shards[shard].path
        if shard not in self._places:  # two threads may both do this, with the same result
            self._places[shard] = scan_offsets(path, self.shards[shard].records)
        offset, length = self._places[shard][number - int(self._first[shard])].tolist()
        try:
            with path.open("rb", buffering=0) as stream:
                data = os.pread(stream.fileno(), length, offset)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path=path, remedy=_REMEDY) from error
        if len(data) != length:
            raise DataError("ends in the middle of a record", path=path, remedy=_REMEDY)
        return data
