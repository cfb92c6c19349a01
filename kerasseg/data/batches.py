"""Batches of a split as NumPy arrays, identified by epoch and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kerasseg.data.arrays import ArraySlices
from kerasseg.data.augmentation import SafeAugmentation
from kerasseg.data.sampling import stratified_batches
from kerasseg.data.split import MEMORY_BUDGET, CacheChoice, Caching, SplitSlices, open_split
from kerasseg.losses import class_weights
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.records.manifest import Manifest
from kerasseg_tfrecords.text import Progress


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One batch, or a replica's part of it.

    Attributes:
        image: (batch, size, size, channels) float32 in [0, 1].
        mask: (batch, size, size, 1) float32, 0 and 1.
        weight: (batch,) float32: weight of the class; 0 for padding.
        label: (batch,) int64 index into the manifest's classes.
        slice: (batch,) int64 number of the slice within its split; -1 for padding.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.float32]
    weight: NDArray[np.float32]
    label: NDArray[np.int64]
    slice: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """Plan of an epoch: `batches` (steps, batch) of slice numbers, `table` (slices, 4) of augmentation parameters."""

    batches: NDArray[np.int64]
    table: NDArray[np.float32] | None


class _Batches:
    """What both kinds of batches have."""

    slices: SplitSlices | ArraySlices
    steps: int

    def _open(
        self,
        shards: Path | str | ArraySlices,
        split: str,
        batch_size: int,
        channels: int | None,
        caching: Caching,
        **options: Any,
    ) -> None:
        """Set `slices`, `channels`, `labels` and `batch_size`; options are those of `open_split`."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError("invalid batch size", found=repr(batch_size), expected="an integer >= 1")
        self.slices = shards if isinstance(shards, ArraySlices) else open_split(shards, split, caching, **options)
        self.channels, self.labels, self.batch_size = _channels(self.slices, channels), self.slices.labels, batch_size

    @property
    def manifest(self) -> Manifest:
        if isinstance(self.slices, ArraySlices):
            raise UsageError("slices that were given as arrays have no manifest")
        return self.slices.manifest

    @property
    def cache(self) -> Literal["none", "memory", "disk"]:
        return self.slices.cache

    def __len__(self) -> int:
        return self.steps


class TrainingBatches(_Batches):
    """Batches of the training split, identified by epoch and step.

    A batch depends only on the shards, the options and (seed, epoch, step), and the appearance of a slice in an epoch only
    on (seed, epoch, slice). A run therefore resumes exactly where it stopped, and one device, several replicas and several
    machines see the same global batches.

    Args:
        shards: A shard directory, written by `prepare`; or slices in memory (`ArraySlices`), for which `cache`,
            `memory_budget`, `cache_folder`, `worker`, `check` and `progress` have no effect.
        batch_size: Slices in a global batch, over all replicas.
        channels: Input channels of the network, 1 or 3; None for those of the shards. Grey is repeated to three.
        balance: "proportional" (each slice once per epoch) or "balanced" (equal classes); see `stratified_batches`.
        augmentation: Augmentation; None for none.
        seed: Random seed for order and augmentation.
        cache: Where slices are cached, see `kerasseg.data.split.Caching`. "auto": memory if they fit the budget, else disk.
        memory_budget: Memory that the slices may take, in bytes; 2 GiB by default, 29,000 grey slices of 256 x 256.
        cache_folder: Folder of the cache on disk; None for `$KERASSEG_CACHE`, `$XDG_CACHE_HOME/kerasseg` or
            `~/.cache/kerasseg`.
        positives_only: Leave out slices without tumour.
        class_weight: Class name -> weight, or "balanced"; batches then have weights (mean 1). None for no weights.
        with_labels: Datasets yield dictionaries of all fields of `Batch`, instead of tuples.
        worker: (index, number) of the machines that train together.
        check: Compare the files with the manifest's hashes first.
        progress: Called with a stage, the amount done and the total.

    Attributes:
        steps: Batches in an epoch.
        numbers: (n,) numbers of the training slices: all, or those with tumour.
        labels: (slices,) class of each slice of the split, as an index into `manifest.classes`.
        manifest: Manifest of the shards.
        cache: "memory", "disk" or "none".

    Raises:
        DataError: Shards are missing, damaged or do not match their manifest; there are no slices; or a class of the
            data set has none in this split.
        UsageError: An option is invalid, a batch is larger than the split, or the slices have more channels than the
            network.
        KerassegError: The cache on disk cannot be written.

    Example:
        >>> data = TrainingBatches("shards", batch_size=8, channels=3)
        >>> data.batch(epoch=3, step=2).image.shape
        (8, 32, 32, 3)
    """

    def __init__(
        self,
        shards: Path | str | ArraySlices,
        *,
        batch_size: int = 8,
        channels: int | None = None,
        balance: Literal["proportional", "balanced"] = "proportional",
        augmentation: SafeAugmentation | None = SafeAugmentation(),  # noqa: B008 - it has no state
        seed: int = 42,
        cache: CacheChoice = "auto",
        memory_budget: int = MEMORY_BUDGET,
        cache_folder: Path | str | None = None,
        positives_only: bool = False,
        class_weight: Mapping[str, float] | Literal["balanced"] | None = None,
        with_labels: bool = False,
        worker: tuple[int, int] = (0, 1),
        check: bool = True,
        progress: Progress | None = None,
    ) -> None:
        caching = Caching(cache, memory_budget, cache_folder)
        self._open(shards, "train", batch_size, channels, caching, worker=worker, check=check, progress=progress)
        self.balance, self.seed, self.augmentation, self.with_labels = balance, seed, augmentation, with_labels
        self.numbers = np.flatnonzero(self.slices.with_tumour()) if positives_only else np.arange(len(self.slices))
        self._check_content(positives_only)
        self._weights = _weights(self.slices, self.numbers, class_weight)
        self.weighted = class_weight is not None
        # Two epochs, since the next one is prefetched during the last batches of this one.
        self._plan: Callable[[int], _Plan] = lru_cache(maxsize=2)(self._make_plan)
        self.steps = len(self._plan(0).batches)

    def batch_slices(self, epoch: int) -> NDArray[np.int64]:
        """Return (steps, batch) numbers of the slices in an epoch's batches; `slices.slice_ids` gives their names."""
        return self._plan(epoch).batches

    def batch(self, epoch: int, step: int) -> Batch:
        return self.part(epoch, step, 0, self.batch_size)

    def part(self, epoch: int, step: int, first: int, count: int) -> Batch:
        """Return slices `first` to `first + count` of a global batch, a replica's share."""
        plan = self._plan(epoch)
        numbers = plan.batches[step, first : first + count]
        images, masks = self.slices.pixels(numbers)
        if plan.table is None or self.augmentation is None:
            image, mask = _plain(images, self.channels), masks.astype(np.float32)
        else:
            image, mask = self.augmentation.apply_numpy(images, masks, plan.table[numbers], self.channels)
        return Batch(image, mask, self._weights[numbers], self.labels[numbers], numbers)

    def _make_plan(self, epoch: int) -> _Plan:
        batches = stratified_batches(
            self.labels[self.numbers], self.batch_size, self.balance, seed=self.seed, epoch=epoch
        )
        table = None
        if self.augmentation is not None:
            table = self.augmentation.parameters(self.seed, epoch, np.arange(len(self.slices)))
        return _Plan(self.numbers[batches], table)

    def _check_content(self, positives_only: bool) -> None:
        there = np.unique(self.labels[self.numbers])
        missing = self.slices.classes_to_expect() - {self.slices.classes[i] for i in there}
        kind = "slices with tumour" if positives_only else "slices"
        if not len(self.numbers) or (missing and not positives_only):
            raise DataError(
                f"the split train holds no {kind}" + (f" of {', '.join(sorted(missing))}" if missing else ""),
                path=self.slices.root,
                remedy="Prepare the shards again with another split.",
            )
        if self.batch_size > len(self.numbers):
            raise UsageError(
                "a batch is larger than the training split",
                path=self.slices.root,
                found=f"batches of {self.batch_size}",
                expected=f"at most {len(self.numbers)}",
                remedy=f"Use a smaller batch size: --batch-size {len(self.numbers)}",
            )


class EvaluationBatches(_Batches):
    """Slices of a split in the order of the shards, without augmentation, for validation, test and prediction.

    Args:
        shards: A shard directory, written by `prepare`; or slices in memory, as in `TrainingBatches`.
        split: "val" or "validation", "test", or "train".
        batch_size: Slices in a global batch, over all replicas.
        channels: Input channels of the network, 1 or 3; None for those of the shards.
        pad: Pad the last batch with slices of weight 0, so that all batches have the same size. Needed with several
            replicas: Keras raises an error if a replica gets nothing.
        cache, memory_budget, cache_folder, worker, check, progress: As in `TrainingBatches`; "auto" keeps the split in
            memory if it fits the budget, and reads from the shards otherwise.
        with_labels: As in `TrainingBatches`.

    Attributes:
        steps: Number of batches.
        labels, manifest, cache: As in `TrainingBatches`.

    Example:
        >>> data = EvaluationBatches("shards", "val", channels=3)
        >>> masks = [data.batch(step).mask for step in range(data.steps)]
    """

    def __init__(
        self,
        shards: Path | str | ArraySlices,
        split: str = "val",
        *,
        batch_size: int = 8,
        channels: int | None = None,
        pad: bool = False,
        cache: CacheChoice = "auto",
        memory_budget: int = MEMORY_BUDGET,
        cache_folder: Path | str | None = None,
        with_labels: bool = False,
        worker: tuple[int, int] = (0, 1),
        check: bool = True,
        progress: Progress | None = None,
    ) -> None:
        caching = Caching(cache, memory_budget, cache_folder)
        self._open(shards, split, batch_size, channels, caching, worker=worker, check=check, progress=progress)
        self.pad, self.with_labels = pad, with_labels
        self.steps = -(-len(self.slices) // batch_size)

    @property
    def records(self) -> SplitSlices:
        if isinstance(self.slices, ArraySlices):
            raise UsageError("slices in memory have no records", expected="a shard directory")
        return self.slices

    def batch(self, step: int) -> Batch:
        return self.part(step, 0, self.batch_size)

    def part(self, step: int, first: int, count: int) -> Batch:
        """Return slices `first` to `first + count` of a global batch, a replica's share."""
        start = step * self.batch_size + first
        numbers = np.arange(start, start + count)
        there = numbers < len(self.slices)
        if not self.pad:
            numbers, there = numbers[there], there[there]
        # Padding repeats the last slice, so that it is a valid image.
        safe = np.minimum(numbers, len(self.slices) - 1)
        images, masks = self.slices.pixels(safe)
        return Batch(
            _plain(images, self.channels),
            masks.astype(np.float32),
            there.astype(np.float32),
            self.labels[safe],
            np.where(there, numbers, -1),
        )


def _plain(images: NDArray[Any], channels: int) -> NDArray[np.float32]:
    """Convert images to the input of the network, without augmentation."""
    scaled = images.astype(np.float32) / np.float32(1 if images.dtype.kind == "f" else 255)
    return scaled if images.shape[3] == channels else np.repeat(scaled, channels, axis=3)


def _channels(slices: SplitSlices | ArraySlices, channels: int | None) -> int:
    held = slices.shape[2]
    if channels is None or channels == held:
        return held
    if channels not in (1, 3):
        raise UsageError("invalid number of channels", found=channels, expected="1 or 3")
    if held != 1:
        raise UsageError(
            "the number of channels of the slices does not fit the network",
            path=slices.root,
            found=f"{held} channels",
            expected=channels,
            remedy="Use a network with three channels, or prepare grey slices.",
        )
    return channels


def _weights(
    slices: SplitSlices | ArraySlices,
    numbers: NDArray[np.int64],
    asked: Mapping[str, float] | Literal["balanced"] | None,
) -> NDArray[np.float32]:
    weights = np.ones(len(slices), np.float32)
    if asked is not None:
        names = np.array(slices.classes)[slices.labels[numbers]]
        unknown = [] if isinstance(asked, str) else sorted(set(asked) - set(slices.classes))
        if unknown:
            known = ", ".join(slices.classes)
            raise UsageError("weight of an unknown class", found=", ".join(unknown), expected=known)
        # Classes without a given weight have weight 1.
        whole = asked if isinstance(asked, str) else dict.fromkeys(slices.classes, 1.0) | dict(asked)
        weights[numbers] = class_weights(names, whole)
    return weights
