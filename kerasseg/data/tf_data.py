"""Shards -> batches of tensors: `load_split` for any TensorFlow project, `TrainingData` where every step counts.

The order, for training: index table of an epoch -> slices out of the cache (uint8, masks packed) -> augmentation of the
whole batch with OpenCV, by the epoch's table of parameters -> grey repeated to three channels -> prefetch. Nothing in it
keeps state: a batch is a function of (seed, epoch, step), so that any can be made at once, by any replica or worker.
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

__all__ = ["MEMORY_BUDGET", "Batch", "EvaluationData", "TrainingData", "load_split"]

_PARALLEL = 8
"""Batches made at once, at most: beyond it Python's lock holds the threads up."""


class TrainingData(TrainingBatches):
    """The training split as `tf.data`: any epoch, from any step on.

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
        """The batches of one epoch, from a step on.

        Args:
            epoch: Counted from 0.
            start_step: The first batch, 0 to `steps`: what a resumed run gives.
            input_context: From `strategy.distribute_datasets_from_function(lambda context: data.epoch(e,
                input_context=context))`: batches are then a replica's part of the global one, in the order of the replicas.

        Returns:
            `steps - start_step` batches (image, mask), with class weights (image, mask, weight), as Keras takes them; with
            `with_labels` dictionaries with the names of `Batch`. It can be iterated again, with the same result.

        Raises:
            UsageError: If epoch or step do not exist, or the batch cannot be divided by the number of replicas.
        """
        if not 0 <= start_step <= self.steps:
            raise UsageError("step cannot be used", found=start_step, expected=f"0 to {self.steps}")
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
        """Epoch after epoch, for `model.fit`.

        Args:
            first_epoch: Counted from 0.
            count: None: each time the dataset is iterated it gives the next epoch, as `fit(dataset, epochs=20)` wants
                it. A number: one pass gives so many epochs, for `fit(dataset.repeat(), steps_per_epoch=data.steps)` or
                loops of one's own.
            start_step: Where the first epoch begins; needs a `count`.
            input_context: As in `epoch`.

        Returns:
            As `epoch`. With None, whatever else iterates the dataset (a look at its first batch; Keras' own, under a
            strategy, before the first epoch) uses an epoch up.

        Raises:
            UsageError: As `epoch`.
        """
        share = _Share.of(self.batch_size, input_context)
        self._plan(first_epoch)
        places = self.steps * share.replicas
        if count is not None:
            if not 0 <= start_step <= self.steps or count < 1:
                found = f"step {start_step}, {count} epochs"
                raise UsageError("epochs cannot be used", found=found, expected=f"step 0 to {self.steps}, >= 1 epochs")
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
        """All slices, once.

        Args:
            input_context: As in `TrainingData.epoch`; needs `pad`.

        Returns:
            `steps` batches (image, mask), where they are padded (image, mask, weight); with `with_labels` dictionaries with
            the names of `Batch`.

        Raises:
            UsageError: If there are several replicas and batches are not padded, or cannot be divided by their number.
        """
        share = _Share.of(self.batch_size, input_context)
        if input_context is not None and input_context.num_replicas_in_sync > 1 and not self.pad:
            raise UsageError("several replicas need batches of one size", expected="pad=True")

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
    """One split of a shard directory as a `tf.data.Dataset`, for `model.fit` and any other TensorFlow code.

    "train" gives stratified, augmented batches of one size, in a new order and with new augmentation each time the dataset
    is iterated: the next epoch. The other splits are given in the order of the shards, as they are. To choose epoch and
    step oneself, use `TrainingData` and `EvaluationData`; `TrainingBatches` tells more about the arguments.

    Args:
        shards: A shard directory, written by `prepare`.
        split: "train", "val" (or "validation"), "test".
        batch_size: Slices in a global batch.
        channels: What the network takes, 1 or 3; None for what the shards hold.
        balance: "proportional" (each slice once an epoch) or "balanced" (equal classes). This and what follows up to
            `positives_only` concerns training; the other splits pass it over.
        augmentation: None for none.
        seed: Of order and augmentation.
        first_epoch: The epoch that is given first, from 0.
        epochs: None: each iteration is the next epoch. A number: one iteration gives so many epochs.
        class_weight: Class name -> weight, or "balanced".
        positives_only: Leave out slices without tumour.
        pad: Fill the last batch up with slices of weight 0; for the other splits (in training all batches are full).
        with_labels: Batches are dictionaries: image, mask, weight, label, slice.
        cache: "auto", "memory", "disk" or "none".
        memory_budget: Bytes of memory that the slices of this split may take.
        cache_folder: For the cache on disk.
        input_context: Of a `tf.distribute` strategy; batches are then a replica's part of the global one.
        check: Compare the files with the manifest's hashes first.

    Returns:
        (image, mask): float32 in [0, 1], (batch, size, size, channels), and float32 of 0 and 1, (batch, size, size, 1).
        With class weights or `pad`, (image, mask, weight).

    Raises:
        DataError: Shards that are missing, damaged or do not fit their manifest; an empty split; a missing class.
        UsageError: An unknown split, or an option that cannot be used.
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
    if split == "train":
        training = TrainingData(
            shards,
            batch_size=batch_size,
            channels=channels,
            balance=balance,
            augmentation=augmentation,
            seed=seed,
            cache=cache,
            memory_budget=memory_budget,
            cache_folder=cache_folder,
            positives_only=positives_only,
            class_weight=class_weight,
            with_labels=with_labels,
            worker=worker,
            check=check,
        )
        return training.epochs(first_epoch, epochs, input_context=input_context)
    evaluation = EvaluationData(
        shards,
        split,
        batch_size=batch_size,
        channels=channels,
        pad=pad,
        cache=cache,
        memory_budget=memory_budget,
        cache_folder=cache_folder,
        with_labels=with_labels,
        worker=worker,
        check=check,
    )
    return evaluation.dataset(input_context=input_context)


@dataclass(frozen=True, slots=True)
class _Share:
    """What one input pipeline gives of each global batch: `replicas` parts of `size`, from replica `offset` on."""

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
        """Where in the global batch the part of this pipeline's replica begins."""
        return (self.offset + replica) * self.size


@dataclass(frozen=True, slots=True)
class _Shape:
    """Static shape of a batch; `batch` is None where the last one is smaller."""

    height: int
    width: int
    channels: int
    batch: int | None


def _batches(
    places: tf.data.Dataset,
    make: Callable[..., tuple[Any, ...]],
    shape: _Shape,
    *,
    weighted: bool,
    with_labels: bool,
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
    # Workers take their parts by `input_context`; the files are not TensorFlow's to divide.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    parallel = min(available_cpus(), _PARALLEL)
    return places.map(element, num_parallel_calls=parallel, deterministic=True).prefetch(2).with_options(options)


def _as_tuple(batch: Batch) -> tuple[Any, ...]:
    return batch.image, batch.mask, batch.weight, batch.label, batch.slice
