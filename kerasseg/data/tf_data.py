"""Shards as `tf.data`: `load_split` for any TensorFlow project, `TrainingData` to choose epoch and step.

For training: order of the epoch -> slices from the cache (uint8, masks packed) -> augmentation of the whole batch with
OpenCV -> grey repeated to three channels -> prefetch. Nothing has state: a batch is a function of (seed, epoch, step), so
that any replica or worker can make any batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from kerasseg.data.augmentation import SafeAugmentation
from kerasseg.data.batches import Batch, EvaluationBatches, TrainingBatches
from kerasseg.data.split import MEMORY_BUDGET, CacheChoice
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.workers import available_cpus

_PARALLEL = 8
"""Maximum number of batches made in parallel; with more, threads wait for Python's lock."""


class TrainingData(TrainingBatches):
    """The training split as `tf.data`: any epoch, from any step.

    Arguments, attributes and errors are those of `TrainingBatches`.

    Example:
        >>> data = TrainingData("shards", batch_size=4, channels=3)
        >>> for epoch in range(2):
        ...     for image, mask in data.epoch(epoch).take(1):
        ...         print(epoch, image.shape, mask.shape)
        0 (4, 32, 32, 3) (4, 32, 32, 1)
        1 (4, 32, 32, 3) (4, 32, 32, 1)
    """

    def epoch(
        self, epoch: int, start_step: int = 0, *, input_context: tf.distribute.InputContext | None = None
    ) -> tf.data.Dataset:
        """Return the batches of one epoch, from a step on.

        Args:
            epoch: Epoch, from 0.
            start_step: First batch, 0 to `steps`.
            input_context: From `strategy.distribute_datasets_from_function(lambda context: data.epoch(e,
                input_context=context))`: batches are then a replica's part of the global one, in the order of the replicas.

        Returns:
            `steps - start_step` batches (image, mask), or (image, mask, weight) with class weights, or dictionaries of the
            fields of `Batch` with `with_labels`. Iterating again gives the same result.

        Raises:
            UsageError: Epoch or step do not exist, or the batch cannot be divided by the number of replicas.
        """
        if not 0 <= start_step <= self.steps:
            raise UsageError("invalid step", found=start_step, expected=f"0 to {self.steps}")
        self._plan(epoch)
        share = _Share.of(self.batch_size, input_context)
        pairs = tf.data.Dataset.range(start_step * share.replicas, self.steps * share.replicas)
        return self._dataset(pairs.map(lambda place: (tf.constant(epoch, tf.int64), place)), share)

    def epochs(
        self,
        first_epoch: int = 0,
        count: int | None = None,
        start_step: int = 0,
        *,
        input_context: tf.distribute.InputContext | None = None,
    ) -> tf.data.Dataset:
        """Return epoch after epoch, for `model.fit`.

        Args:
            first_epoch: Epoch, from 0.
            count: None: each iteration of the dataset is the next epoch, for `fit(dataset, epochs=20)`. A number: one
                iteration gives so many epochs, for `fit(dataset.repeat(), steps_per_epoch=data.steps)` or custom loops.
            start_step: First step of the first epoch; needs a `count`.
            input_context: As in `epoch`.

        Returns:
            As `epoch`. With None, every other iteration (looking at the first batch; Keras' own, under a strategy, before
            the first epoch) uses up an epoch.

        Raises:
            UsageError: As `epoch`.
        """
        share = _Share.of(self.batch_size, input_context)
        self._plan(first_epoch)
        places = self.steps * share.replicas
        if count is not None:
            if not 0 <= start_step <= self.steps or count < 1:
                found = f"step {start_step}, {count} epochs"
                raise UsageError("invalid epochs", found=found, expected=f"step 0 to {self.steps}, at least 1 epoch")
            first = first_epoch * places + start_step * share.replicas
            pairs = tf.data.Dataset.range(first, (first_epoch + count) * places)
            return self._dataset(pairs.map(lambda place: (place // places, place % places)), share)
        if start_step:
            raise UsageError("a step needs a number of epochs", found=start_step, expected="count")
        counter = itertools.count(first_epoch)
        one = tf.data.Dataset.range(1).map(
            lambda _: tf.ensure_shape(tf.numpy_function(lambda: np.int64(next(counter)), [], tf.int64), [])
        )
        pairs = one.flat_map(lambda e: tf.data.Dataset.range(places).map(lambda place: (e, place)))
        return self._dataset(pairs.apply(tf.data.experimental.assert_cardinality(places)), share)

    def _dataset(self, pairs: tf.data.Dataset, share: _Share) -> tf.data.Dataset:
        def make(epoch: Any, place: Any) -> tuple[Any, ...]:
            first = share.first(int(place) % share.replicas)
            return _as_tuple(self.part(int(epoch), int(place) // share.replicas, first, share.size))

        shape = _Shape(*self.slices.shape[:2], self.channels, share.size)
        return _batches(pairs, make, shape, weighted=self.weighted, with_labels=self.with_labels)


class EvaluationData(EvaluationBatches):
    """A split as `tf.data`, in the order of the shards, for validation, test and prediction.

    Arguments, attributes and errors are those of `EvaluationBatches`.

    Example:
        >>> data = EvaluationData("shards", "val", batch_size=4, channels=3)
        >>> sum(len(image) for image, mask in data.dataset()) == len(data.slices)
        True
    """

    def dataset(self, *, input_context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        """Return all slices, once.

        Args:
            input_context: As in `TrainingData.epoch`; needs `pad`.

        Returns:
            `steps` batches (image, mask), or (image, mask, weight) with `pad`, or dictionaries of the fields of `Batch`
            with `with_labels`.

        Raises:
            UsageError: There are several replicas, and batches are not padded or not divisible by their number.
        """
        share = _Share.of(self.batch_size, input_context)
        if input_context is not None and input_context.num_replicas_in_sync > 1 and not self.pad:
            raise UsageError("several replicas need batches of the same size", expected="pad=True")

        def make(place: Any) -> tuple[Any, ...]:
            first = share.first(int(place) % share.replicas)
            return _as_tuple(self.part(int(place) // share.replicas, first, share.size))

        uniform = self.pad or len(self.slices) % self.batch_size == 0
        shape = _Shape(*self.slices.shape[:2], self.channels, share.size if uniform else None)
        places = tf.data.Dataset.range(self.steps * share.replicas)
        return _batches(places, make, shape, weighted=self.pad, with_labels=self.with_labels)


def load_split(
    shards: Path | str,
    split: str,
    *,
    batch_size: int = 8,
    channels: int | None = None,
    balance: Literal["proportional", "balanced"] = "proportional",
    augmentation: SafeAugmentation | None = SafeAugmentation(),  # noqa: B008 - it has no state
    seed: int = 42,
    first_epoch: int = 0,
    epochs: int | None = None,
    class_weight: Mapping[str, float] | Literal["balanced"] | None = None,
    positives_only: bool = False,
    pad: bool = False,
    with_labels: bool = False,
    cache: CacheChoice = "auto",
    memory_budget: int = MEMORY_BUDGET,
    cache_folder: Path | str | None = None,
    input_context: tf.distribute.InputContext | None = None,
    check: bool = True,
) -> tf.data.Dataset:
    """Load a split of a shard directory as a `tf.data.Dataset`, for `model.fit` and any other TensorFlow code.

    "train" gives stratified, augmented batches; each iteration of the dataset is the next epoch, with a new order and new
    augmentation. Other splits are given unchanged in the order of the shards. To choose epoch and step, use `TrainingData`
    and `EvaluationData`.

    Args:
        shards: A shard directory, written by `prepare`.
        split: "train", "val" (or "validation"), "test".
        batch_size: Slices in a global batch.
        channels: Input channels of the network, 1 or 3; None for those of the shards.
        balance: "proportional" (each slice once per epoch) or "balanced" (equal classes). This argument and those up to
            `positives_only` only affect training.
        augmentation: Augmentation; None for none.
        seed: Random seed for order and augmentation.
        first_epoch: First epoch, from 0.
        epochs: None: each iteration is the next epoch. A number: one iteration gives so many epochs.
        class_weight: Class name -> weight, or "balanced".
        positives_only: Leave out slices without tumour.
        pad: Pad the last batch of another split with slices of weight 0; training batches are always full.
        with_labels: Yield dictionaries: image, mask, weight, label, slice.
        cache: "auto", "memory", "disk" or "none".
        memory_budget: Memory that the slices of this split may take, in bytes.
        cache_folder: Folder of the cache on disk.
        input_context: Context of a `tf.distribute` strategy; batches are then a replica's part of the global one.
        check: Compare the files with the manifest's hashes first.

    Returns:
        (image, mask): float32 in [0, 1], (batch, size, size, channels), and float32 of 0 and 1, (batch, size, size, 1).
        With class weights or `pad`, (image, mask, weight).

    Raises:
        DataError: Shards are missing, damaged or do not match their manifest; the split is empty, or a class is missing.
        UsageError: The split is unknown, or an option is invalid.
        KerassegError: The cache on disk cannot be written.

    Example:
        >>> import keras
        >>> train = load_split("shards", "train", batch_size=4, channels=3)
        >>> validation = load_split("shards", "val", channels=3)
        >>> model = keras.Sequential([keras.layers.Conv2D(1, 1, activation="sigmoid")])
        >>> model.compile("adam", "binary_crossentropy")
        >>> done = model.fit(train, validation_data=validation, epochs=1, shuffle=False, verbose=0)
        >>> sorted(done.history)
        ['loss', 'val_loss']
    """
    worker = (0, 1) if input_context is None else (input_context.input_pipeline_id, input_context.num_input_pipelines)
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "channels": channels,
        "with_labels": with_labels,
        "cache": cache,
        "memory_budget": memory_budget,
        "cache_folder": cache_folder,
        "worker": worker,
        "check": check,
    }
    if split != "train":
        return EvaluationData(shards, split, pad=pad, **common).dataset(input_context=input_context)
    training = TrainingData(
        shards,
        balance=balance,
        augmentation=augmentation,
        seed=seed,
        positives_only=positives_only,
        class_weight=class_weight,
        **common,
    )
    return training.epochs(first_epoch, epochs, input_context=input_context)


@dataclass(frozen=True, slots=True)
class _Share:
    """Part of each global batch for one input pipeline: `replicas` parts of `size`, from replica `offset` on."""

    size: int
    replicas: int
    offset: int

    @classmethod
    def of(cls, batch_size: int, context: tf.distribute.InputContext | None) -> _Share:
        if context is None:
            return cls(batch_size, 1, 0)
        total = context.num_replicas_in_sync
        if batch_size % total:
            raise UsageError(
                "the batch size is not a multiple of the number of replicas",
                found=f"{batch_size} slices, {total} replicas",
                expected=f"a multiple of {total}",
                remedy="Change the batch size, or the number of devices.",
            )
        here = total // context.num_input_pipelines
        return cls(batch_size // total, here, context.input_pipeline_id * here)

    def first(self, replica: int) -> int:
        """Return where in the global batch the part of a replica starts."""
        return (self.offset + replica) * self.size


@dataclass(frozen=True, slots=True)
class _Shape:
    """Static shape of a batch; `batch` is None if the last one is smaller."""

    height: int
    width: int
    channels: int
    batch: int | None


def _batches(
    places: tf.data.Dataset, make: Callable[..., tuple[Any, ...]], shape: _Shape, *, weighted: bool, with_labels: bool
) -> tf.data.Dataset:
    types = (tf.float32, tf.float32, tf.float32, tf.int64, tf.int64)
    size = (shape.height, shape.width)
    image, mask = (shape.batch, *size, shape.channels), (shape.batch, *size, 1)

    def element(*place: Any) -> Any:
        values = tf.numpy_function(make, place, types)
        shapes = (image, mask, (shape.batch,), (shape.batch,), (shape.batch,))
        for value, known in zip(values, shapes, strict=True):
            value.set_shape(known)
        if with_labels:
            return dict(zip(("image", "mask", "weight", "label", "slice"), values, strict=True))
        return tuple(values[:3]) if weighted else tuple(values[:2])

    options = tf.data.Options()
    options.deterministic = True
    # Workers take their parts by `input_context`; TensorFlow must not divide the files.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    parallel = min(available_cpus(), _PARALLEL)
    return places.map(element, num_parallel_calls=parallel, deterministic=True).prefetch(2).with_options(options)


def _as_tuple(batch: Batch) -> tuple[Any, ...]:
    return batch.image, batch.mask, batch.weight, batch.label, batch.slice
