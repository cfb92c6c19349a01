"""Write, read and hash the TFRecord files of a data set.

Each record of a TFRecord file is 8 bytes of length (little-endian), 4 bytes of checksum, the data, and 4 bytes of checksum.
`ShardRecords` reads the lengths once and then single records by their offsets, without TensorFlow.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.files import explain_os_error, file_sha256
from kerasseg_tfrecords.records.manifest import Manifest, ShardFacts, load_manifest, local_shards
from kerasseg_tfrecords.records.schema import Record, decode
from kerasseg_tfrecords.splitting.split import SPLITS
from kerasseg_tfrecords.text import Progress, count


def family_names(labels: Sequence[str]) -> dict[str, str]:
    """Turn class names into parts of file names; equal ones get a number.

    >>> family_names(["glioma", "no tumour", "no/tumour"])
    {'glioma': 'glioma', 'no tumour': 'no_tumour', 'no/tumour': 'no_tumour-2'}
    """
    families: dict[str, str] = {}
    for label in labels:
        base = re.sub(r"[^A-Za-z0-9_.-]+", "_", label).strip("._") or "class"
        family, number = base, 2
        while family in families.values():
            family, number = f"{base}-{number}", number + 1
        families[label] = family
    return families


def family_files(split: str, family: str, count: int, records_per_shard: int) -> Iterator[tuple[str, int, int]]:
    """Yield the files of one class in one split: path in the shard directory, first record and record after the last.

    Args:
        split: `train`, `val` or `test`.
        family: Class name as part of a file name (`family_names`).
        count: Number of records.
        records_per_shard: Largest number of records in a file; they are spread evenly.

    Example:
        >>> list(family_files("val", "glioma", 3, 2))
        [('val/glioma-00000-of-00002.tfrecord', 0, 1), ('val/glioma-00001-of-00002.tfrecord', 1, 3)]
    """
    shards = -(-count // records_per_shard)
    for number in range(shards):
        first, last = count * number // shards, count * (number + 1) // shards
        yield f"{split}/{family}-{number:05d}-of-{shards:05d}.tfrecord", first, last


def write_shard(root: Path, name: str, label: str, serialized: Iterable[bytes]) -> ShardFacts:
    """Write the serialised Examples of one class to the file `name` (`SPLIT/...`) of a shard directory."""
    path, records = root / name, 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            for record in serialized:
                stream.write(framed(record))
                records += 1
    except OSError as error:
        raise explain_os_error(error, path) from error
    return ShardFacts(
        path=name,
        split=name.partition("/")[0],
        label=label,
        records=records,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )


def framed(data: bytes) -> bytes:
    """Frame data as a record of a TFRecord file: length, its checksum, data, their checksum.

    >>> framed(b"a").hex()
    '01000000000000000175de4161786ee428'
    """
    length = struct.pack("<Q", len(data))
    return b"".join((length, _checksum(length), data, _checksum(data)))


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as TFRecord files have it."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def shard_paths(folder: Path | str, split: str, manifest: Manifest | None = None) -> list[Path]:
    """Return the files of a split in the order of the manifest, after checking that they exist and have the right size.

    Args:
        folder: A shard directory, or its URL.
        split: "train", "val" (or "validation") or "test".
        manifest: The manifest, if it has been read already.

    Raises:
        DataError: A file is missing or has another size than in the manifest.

    Example:
        >>> [path.name for path in shard_paths("shards", "train")][0]
        'meningioma-00000-of-00001.tfrecord'
    """
    root = local_shards(folder, [split])
    listed = (manifest or load_manifest(root)).shards_of(split)
    for shard in listed:
        path = root / shard.path
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            raise DataError(
                "the shard does not fit the manifest",
                path=path,
                found="no such file" if size is None else f"{size} bytes",
                expected=f"{shard.bytes} bytes",
                remedy="Run kerasseg verify, then prepare the shards again.",
            )
    return [root / shard.path for shard in listed]


def read_shard(path: Path, *, size: int, channels: int) -> Iterator[Record]:
    """Yield the records of one file.

    Raises:
        DataError: A record is damaged; those before it have been yielded.
    """
    remedy = "Prepare the shards again."
    count = 0
    with path.open("rb") as stream:
        left = path.stat().st_size
        while header := stream.read(12):
            length = int.from_bytes(header[:8], "little")
            left -= 16 + length
            sound = header[8:] == _checksum(header[:8])
            if len(header) < 12 or (sound and left < 0):
                kind = "the file ends in the middle of a record"
                raise DataError(f"{kind} after {count} good ones", path=path, remedy=remedy)
            data = stream.read(length) if sound else b""
            if not sound or stream.read(4) != _checksum(data):
                raise DataError(f"a damaged record after {count} good ones", path=path, remedy=remedy)
            try:
                yield decode(data, size=size, channels=channels)
            except DataError as error:
                raise DataError(f"record {count}: {error}", path=path, remedy=remedy) from error
            count += 1


def read_records(folder: Path | str, splits: str | Sequence[str] = SPLITS) -> Iterator[Record]:
    """Yield all records of some splits of a shard directory as NumPy arrays, file by file.

    Args:
        folder: A shard directory, or its URL.
        splits: "train", "val" or "test"; one or several.

    Raises:
        DataError: A file is missing or damaged; the records before it have been yielded.

    Example:
        >>> record = next(iter(read_records("shards", ["train"])))
        >>> record.image.shape, record.image.dtype, record.mask.shape, record.mask_native.shape
        ((32, 32, 1), dtype('uint8'), (32, 32), (48, 48))
    """
    manifest = load_manifest(folder)
    wanted = [splits] if isinstance(splits, str) else list(splits)
    unknown = [split for split in wanted if split not in (*SPLITS, "validation")]
    if unknown:
        raise UsageError("unknown split", found=", ".join(unknown), expected=", ".join(SPLITS))
    for split in wanted:
        for path in shard_paths(folder, split, manifest):
            yield from read_shard(path, size=manifest.size, channels=manifest.channels)


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
        return len(self.labels)

    def path_of(self, number: int) -> Path:
        return self.root / self.shards[int(self._shard[number])].path

    def read(self, number: int) -> bytes:
        """Read the serialised Example of one record."""
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
