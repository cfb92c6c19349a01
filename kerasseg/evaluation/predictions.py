"""Predicted probabilities and references of the slices of a split, at the network's size and at native size."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg.data.batches import EvaluationBatches
from kerasseg.data.split import MEMORY_BUDGET, SplitSlices
from kerasseg_tfrecords.errors import KerassegError, UsageError
from kerasseg_tfrecords.files import temporary_space
from kerasseg_tfrecords.intensity import fitted_spacing, restore

Resolution = Literal["native", "model"]
"""Size at which masks are compared: the slice's own, or the square that the network sees."""

_RELEASED = 256
"""Slices after which the pages of probabilities in a file are unmapped."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One slice.

    Attributes:
        slice_id: Unique id.
        patient: Patient id as read; "" if unknown.
        group: Patient group that the split kept together; "" if unknown.
        volume: Volume of the slice; "" for single slices.
        label: Index into the classes.
        spacing: Millimetres per pixel, rows then columns, at the resolution of `mask`; (0, 0) if unknown.
        mask: (height, width) bool, the reference.
    """

    slice_id: str
    patient: str
    group: str
    volume: str
    label: int
    spacing: tuple[float, float]
    mask: NDArray[np.bool_]


class Predictions(Protocol):
    """Probabilities and references of slices, numbered from 0.

    Attributes:
        classes: Class names, indexed by label.
        labels: (slices,) int64 class of each slice.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of slices."""

    def case(self, number: int, resolution: Resolution = "native") -> Case:
        """Return facts and reference of a slice."""

    def probability(self, number: int, resolution: Resolution = "native") -> NDArray[np.float32]:
        """Return (height, width) probabilities, the same shape as the case's mask."""

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return the (size, size, channels) image that the network saw."""


class SplitPredictions:
    """Predictions for a split of a shard directory.

    Args:
        slices: The split.
        probabilities: (slices, size, size) float32, possibly memory-mapped.
    """

    def __init__(self, slices: SplitSlices, probabilities: NDArray[np.float32]) -> None:
        self.slices, self.probabilities = slices, probabilities
        self.classes, self.labels = slices.manifest.classes, slices.labels

    def __len__(self) -> int:
        return len(self.slices)

    def case(self, number: int, resolution: Resolution = "native") -> Case:
        """Return facts and reference of a slice, read from the shards each time."""
        record = self.slices.record(number)
        spacing = record.spacing
        if resolution == "model":
            manifest = self.slices.manifest
            if manifest.square_pixels:
                spacing = fitted_spacing(record.height, record.width, manifest.size, spacing)
            else:
                scale = max(record.height, record.width) / manifest.size
                spacing = (spacing[0] * scale, spacing[1] * scale)
        return Case(
            slice_id=record.slice_id,
            patient=record.patient,
            group=record.group,
            volume=record.volume,
            label=record.label,
            spacing=spacing,
            mask=record.mask_native if resolution == "native" else record.mask,
        )

    def probability(self, number: int, resolution: Resolution = "native") -> NDArray[np.float32]:
        """Return (height, width) probabilities; at native size without padding and bilinearly resized."""
        values = self.probabilities[number]
        if number % _RELEASED == 0:
            _release(self.probabilities)
        if resolution == "model":
            return np.asarray(values)
        record = self.slices.record(number)
        return restore(values, record.height, record.width, self.slices.manifest.fit_spacing(record.spacing))

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return the (size, size, channels) image as stored in the shards."""
        return self.slices.pixels(np.array([number]))[0][0]


class ArrayPredictions:
    """Predictions from plain arrays, for which both resolutions are the same.

    Args:
        probabilities: (slices, height, width) or (slices, height, width, 1), in [0, 1]; slices of several sizes as a list.
        masks: The same shapes; above 0.5 is tumour.
        labels: (slices,) index into `classes`; None: a single class.
        groups: (slices,) patient of each slice; None: each slice is its own patient.
        classes: Class names; None: "all", or the labels as text.
        spacing: Millimetres per pixel, rows then columns; None if unknown.
        images: (slices, height, width, channels) uint8 for pictures; None for none.

    Raises:
        UsageError: Shapes do not fit, or values are outside [0, 1].

    Example:
        >>> predictions = ArrayPredictions(np.zeros((2, 8, 8)), np.zeros((2, 8, 8)))
        >>> len(predictions), predictions.classes, predictions.case(1).slice_id
        (2, ('all',), '1')
    """

    def __init__(
        self,
        probabilities: ArrayLike | Sequence[ArrayLike],
        masks: ArrayLike | Sequence[ArrayLike],
        labels: ArrayLike | None = None,
        groups: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        spacing: tuple[float, float] | None = None,
        images: Sequence[ArrayLike] | None = None,
    ) -> None:
        self._probabilities = [_plane(p, "probabilities") for p in _each(probabilities)]
        self._masks = [_plane(m, "masks") > 0.5 for m in _each(masks)]
        count = len(self._probabilities)
        if [p.shape for p in self._probabilities] != [m.shape for m in self._masks]:
            found = f"{count} and {len(self._masks)} slices" if count != len(self._masks) else "other shapes"
            raise UsageError("probabilities and masks do not fit", found=found, expected="the same shapes")
        for number, values in enumerate(self._probabilities):
            if values.size and not (np.nanmin(values) >= 0 and np.nanmax(values) <= 1):
                found = f"{np.nanmin(values):g} to {np.nanmax(values):g} in slice {number}"
                raise UsageError(
                    "these are not probabilities",
                    found=found,
                    expected="values in [0, 1]",
                    remedy="If the network returns logits, apply a sigmoid first.",
                )
        self.labels = np.zeros(count, np.int64) if labels is None else np.asarray(labels, np.int64)
        if classes is None:
            names = ["all"] if labels is None else [str(i) for i in range(int(self.labels.max(initial=0)) + 1)]
        else:
            names = list(classes)
        self.classes = tuple(names)
        inside = not count or (int(self.labels.min()) >= 0 and int(self.labels.max()) < len(names))
        if self.labels.shape != (count,) or not inside or (groups is not None and len(groups) != count):
            raise UsageError(
                "labels or groups do not fit the slices",
                found=f"{count} slices, labels {self.labels.shape}, {None if groups is None else len(groups)} groups",
                expected=f"one per slice, labels 0 to {len(names) - 1}",
            )
        self._groups = None if groups is None else [str(group) for group in groups]
        self._spacing = (0.0, 0.0) if spacing is None else spacing
        self._images = None if images is None else [np.asarray(image, np.uint8) for image in images]

    def __len__(self) -> int:
        return len(self._masks)

    def case(self, number: int, resolution: Resolution = "native") -> Case:  # noqa: ARG002 - there is one
        """Return facts and reference of a slice."""
        group = "" if self._groups is None else self._groups[number]
        label = int(self.labels[number])
        return Case(str(number), group, group, "", label, self._spacing, self._masks[number])

    def probability(self, number: int, resolution: Resolution = "native") -> NDArray[np.float32]:  # noqa: ARG002
        return self._probabilities[number]

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return the (height, width, channels) image; black if none was given."""
        if self._images is None:
            return np.zeros((*self._masks[number].shape, 1), np.uint8)
        return self._images[number]


def predict_split(
    model: keras.Model,
    shards: Path | str,
    split: str,
    *,
    batch_size: int = 8,
    memory_budget: int = MEMORY_BUDGET,
    on_batch: Callable[[int, int], None] | None = None,
    transform: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]] | None = None,
    flip_average: bool = False,
) -> SplitPredictions:
    """Predict all slices of a split.

    Args:
        model: Network that takes (batch, size, size, 1 or 3) float32 in [0, 1] and returns probabilities (batch, size,
            size, 1).
        shards: The shard directory.
        split: "val" (or "validation"), "test" or "train".
        batch_size: Slices per batch.
        memory_budget: Memory for probabilities, in bytes; larger arrays go to a temporary file.
        on_batch: Called with (batches done, batches).
        transform: Called with (images, slice numbers) to change the images.
        flip_average: Whether to average the predictions of each image and its mirror image.
    """
    size, channels = _input_of(model)
    data = EvaluationBatches(
        shards, split, batch_size=batch_size, channels=channels, pad=True, memory_budget=memory_budget
    )
    if size is not None and size != data.manifest.size:
        raise UsageError(
            "the network and the shards disagree on the size of slices",
            path=shards,
            found=f"slices of {data.manifest.size}x{data.manifest.size}",
            expected=f"{size}x{size}",
            remedy=f"Prepare them with --size {size}.",
        )
    count, side = len(data.slices), data.manifest.size
    probabilities = _space((count, side, side), memory_budget)
    for step in range(data.steps):
        batch = data.batch(step)
        there = batch.slice >= 0
        images = batch.image if transform is None else transform(batch.image, batch.slice)
        values = predict_batch(model, images, flip_average=flip_average)
        probabilities[batch.slice[there]] = values[there]
        if step % (_RELEASED // batch_size + 1) == 0:
            _release(probabilities)
        if on_batch is not None:
            on_batch(step + 1, data.steps)
    return SplitPredictions(data.records, probabilities)


def _input_of(model: keras.Model) -> tuple[int | None, int]:
    shape = model.inputs[0].shape
    return None if shape[1] is None else int(shape[1]), int(shape[-1])


def check_probabilities(values: Any, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Check that a network's output is one probability per pixel.

    Args:
        values: Array or tensor (batch, height, width, 1).
        shape: Expected (batch, height, width).
    """
    found = np.asarray(keras.ops.convert_to_numpy(values), np.float32)
    if found.shape != (*shape, 1):
        raise UsageError(
            "the network does not return one probability per pixel",
            found=f"shape {found.shape}",
            expected=f"{(*shape, 1)}",
            remedy="Fit it to the task: kerasseg.fit_to_task(model).",
        )
    if np.isnan(found).any():
        raise KerassegError("the network returns NaN", remedy="Train again with a lower --learning-rate.")
    low, high = float(found.min()), float(found.max())
    if low < -1e-6 or high > 1 + 1e-6:
        raise UsageError(
            "the network does not return probabilities",
            found=f"values from {low:.3g} to {high:.3g}",
            expected="0 to 1",
            remedy="It seems to return logits: kerasseg.fit_to_task(model) appends a sigmoid.",
        )
    return np.clip(found[..., 0], 0, 1)


def predict_batch(
    model: keras.Model, images: NDArray[np.float32], *, flip_average: bool = False
) -> NDArray[np.float32]:
    """Predict a batch of slices.

    Args:
        model: Network that takes (batch, height, width, channels) in [0, 1] and returns (batch, height, width, 1).
        images: (batch, height, width, channels) float32.
        flip_average: Whether to average the prediction with that of the mirrored image (left and right exchanged), which
            doubles the time.

    Returns:
        (batch, height, width) float32 in [0, 1].

    Example:
        >>> import kerasseg
        >>> network = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=0)
        >>> images = np.random.default_rng(0).random((2, 16, 16, 1), np.float32)
        >>> averaged = predict_batch(network, images, flip_average=True)
        >>> bool(np.allclose(averaged, predict_batch(network, images[:, :, ::-1], flip_average=True)[:, :, ::-1]))
        True
    """
    shape = (images.shape[0], images.shape[1], images.shape[2])
    values = check_probabilities(model.predict_on_batch(images), shape)
    if not flip_average:
        return values
    mirrored = check_probabilities(model.predict_on_batch(np.ascontiguousarray(images[:, :, ::-1])), shape)
    return np.asarray((values + mirrored[:, :, ::-1]) / np.float32(2), np.float32)


def _space(shape: tuple[int, int, int], budget: int) -> NDArray[np.float32]:
    """Allocate the probabilities in memory, or in an unnamed file that the system deletes with the process."""
    size = 4 * shape[0] * shape[1] * shape[2]
    if size <= budget:
        return np.empty(shape, np.float32)
    with temporary_space(), tempfile.TemporaryFile(prefix="kerasseg-") as file:
        # Reserved now: if the disk fills up later, the system kills a process that writes to mapped memory.
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, np.float32, "w+", shape=shape)


def _release(values: NDArray[np.float32]) -> None:
    """Unmap the pages of an array in a file, which would count as memory of this process; the file keeps them."""
    mapped = getattr(values, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapped.madvise(mmap.MADV_DONTNEED)


def _each(values: Any) -> Sequence[Any]:
    if len(values) != 0 and np.ndim(values[0]) < 2:
        raise UsageError("slices have two dimensions", found=f"{np.ndim(values[0])}", expected="(height, width)")
    return list(values)


def _plane(values: Any, what: str) -> NDArray[np.float32]:
    array = np.asarray(values, np.float32)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise UsageError(f"invalid {what}", found=f"shape {array.shape}", expected="(height, width) per slice")
    return array
