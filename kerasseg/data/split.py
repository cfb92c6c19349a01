"""Open a split: check it against its manifest, cache it, and read slices by number."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kerasseg.data.stores import CHUNK, MemorySlices, ShardSlices, SliceSource, cached_on_disk
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.records.manifest import Manifest, load_manifest, local_shards
from kerasseg_tfrecords.records.schema import Record, decode
from kerasseg_tfrecords.records.shards import ShardRecords, check_hashes, shard_paths
from kerasseg_tfrecords.storage import default_cache_folder
from kerasseg_tfrecords.text import Progress

_LOG = logging.getLogger("kerasseg")

MEMORY_BUDGET = 2 * 1024**3
"""Default memory for a split in bytes: 29,000 grey slices of 256 x 256."""

SPLITS = ("train", "val", "test")

CacheChoice = Literal["auto", "memory", "disk", "none"]


@dataclass(frozen=True, slots=True)
class Caching:
    """Where slices are cached.

    Attributes:
        kind: "memory", "disk", "none" (slices are read from the shards each time), or "auto": memory if the split fits
            `budget`; otherwise disk for a training split, and none for other splits, which are read in order, and for one
            of several workers, which needs only its part.
        budget: Memory that the split may take, in bytes.
        folder: Folder for "disk"; None for `default_cache_folder()`.
    """

    kind: CacheChoice = "auto"
    budget: int = MEMORY_BUDGET
    folder: Path | str | None = None


class SplitSlices:
    """The slices of a split; slice i is the i-th record in the order of the manifest."""

    def __init__(self, root: Path, split: str, records: ShardRecords, source: SliceSource) -> None:
        self.root, self.split, self.source = root, split, source
        self.manifest: Manifest = records.manifest
        self.labels = records.labels
        self._records = records

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, indexed by label."""
        return self.manifest.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a slice, as in the shards."""
        return self.manifest.size, self.manifest.size, self.manifest.channels

    def classes_to_expect(self) -> set[str]:
        return {shard.label for shard in self.manifest.shards if shard.records}

    @property
    def cache(self) -> Literal["none", "memory", "disk"]:
        return self.source.kind

    def pixels(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return images (n, size, size, channels), 0 to 255, and masks (n, size, size, 1), 0 and 1."""
        rows = self.source.take(numbers)
        return self.source.layout.images(rows), self.source.layout.masks(rows)

    def with_tumour(self) -> NDArray[np.bool_]:
        """Return (slices,) whether the mask of each slice has any pixel; reads all slices once."""
        chunks = (np.arange(i, min(i + CHUNK, len(self))) for i in range(0, len(self), CHUNK))
        found = [self.source.layout.tumour(self.source.take(chunk)) for chunk in chunks]
        return np.concatenate(found) if found else np.zeros(0, bool)

    def record(self, number: int) -> Record:
        """Read the record of a slice: id, patient, mask at native size, ..."""
        return decode(self._records.read(number), size=self.manifest.size, channels=self.manifest.channels)

    def slice_ids(self, numbers: NDArray[np.int64]) -> list[str]:
        return [self.record(number).slice_id for number in np.asarray(numbers).tolist()]


def open_split(
    shards: Path | str,
    split: str,
    caching: Caching = Caching(),
    *,
    worker: tuple[int, int] = (0, 1),
    check: bool = True,
    progress: Progress | None = None,
) -> SplitSlices:
    """Open a split of a shard directory.

    Args:
        shards: The shard directory, or its URL.
        split: `train`, `val` (or `validation`) or `test`.
        caching: Where slices are cached.
        worker: (index, number) of the machines that train together; each reads only the slices of its own batches, and
            checks its share of the files.
        check: Compare the SHA-256 of the files with the manifest's before reading. A cache on disk that matches the
            manifest is used without reading the shards.
        progress: Called with a stage ("check", "read", "cache"), the amount done and the total.
    """
    name = "val" if split == "validation" else split
    if name not in SPLITS:
        raise UsageError("unknown split", found=repr(split), expected=f"one of {', '.join(SPLITS)}")
    number, workers = worker
    if not 0 <= number < workers:
        raise UsageError("invalid worker", found=f"{number} of {workers}", expected="(index from 0, number)")
    root = local_shards(shards, [name], progress=progress)
    manifest = load_manifest(root)
    shard_paths(root, name, manifest)
    records = ShardRecords(root, manifest, name)
    if not len(records):
        held = ", ".join(f"{manifest.slices_in(other)} in {other}" for other in SPLITS if other != name)
        raise DataError(
            f"the split {name} holds no slices",
            path=root,
            found=held,
            remedy="Prepare the shards again with other shares.",
        )

    _LOG.info("%s of %s: %d slices in %d shards", name, root, len(records), len(records.shards))

    def verify() -> None:
        if check:
            check_hashes(root, records.shards[number::workers], progress)

    direct = ShardSlices(records)
    need = len(direct) * direct.layout.row_bytes
    kind = _choose(caching, need, name, workers)
    source: SliceSource = direct
    if kind == "disk":
        folder = Path(caching.folder) if caching.folder else default_cache_folder()
        source = cached_on_disk(direct, name, folder, check=verify, progress=progress)
    else:
        verify()
    if kind == "memory":
        source = kept = MemorySlices(direct)
        if workers == 1:
            kept.fill(progress)
    return SplitSlices(root, name, records, source)


def _choose(caching: Caching, need: int, split: str, workers: int) -> Literal["none", "memory", "disk"]:
    fits = need <= caching.budget
    if caching.kind == "auto":
        return "memory" if fits else "disk" if split == "train" and workers == 1 else "none"
    if caching.kind not in ("memory", "disk", "none"):
        raise UsageError("unknown cache", found=repr(caching.kind), expected="auto, memory, disk or none")
    if caching.kind == "memory" and not fits:
        raise UsageError(
            f"the split {split} does not fit into the memory budget of its cache",
            found=f"{need / 1e6:,.1f} MB",
            expected=f"at most {caching.budget / 1e6:,.1f} MB",
            remedy="Raise memory_budget, or use cache='disk'.",
        )
    return caching.kind
