"""A `tf.data.Dataset` with the interfaces of `TrainingData` and `EvaluationData`, for `fine_tune`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError, UsageError

_RANGE = "images of the training dataset are out of range"
_BINARY = "masks of the training dataset hold other values than 0 and 1"
_KEYS = ("image", "mask", "weight", "label")


def is_dataset(value: Any) -> bool:
    return isinstance(value, tf.data.Dataset)


class DatasetTraining:
    """A dataset of training batches, iterated once per epoch.

    Batches are used unchanged, except that a smaller last batch is dropped, since its slices would count more. Shuffling
    and augmentation are up to the dataset; `kerasseg.load_split` does both.

    Args:
        dataset: Batches (image, mask), (image, mask, weight), or dictionaries with these names: (batch, height, width,
            channels) in [0, 1], (batch, height, width, 1) of 0 and 1, (batch,).
        channels: Channels of the network; grey images are repeated.
        steps: Batches per epoch, for an infinite dataset.

    Attributes:
        batch_size: Slices in a batch; the largest if batches differ, for which the dataset is iterated once.
        steps: Batches in an epoch.
        count: Slices in an epoch.
        shape: (height, width, channels) of a slice; None if unknown.

    Raises:
        UsageError: The elements have another form, or the dataset is infinite and `steps` is missing.
        DataError: There is no full batch.
    """

    def __init__(self, dataset: tf.data.Dataset, channels: int, steps: int | None = None) -> None:
        self._dataset, self._channels = dataset, channels
        self.shape, size = _form(dataset, "training")
        known = int(dataset.cardinality())
        if known == tf.data.INFINITE_CARDINALITY and steps is None:
            raise UsageError(
                "the training dataset is infinite",
                expected="a finite one",
                remedy="Set steps= to the batches per epoch.",
            )
        if known == tf.data.INFINITE_CARDINALITY and size is None:
            raise UsageError(
                "the training dataset is infinite, and its batch size is unknown",
                remedy="Batch it with drop_remainder=True.",
            )
        if size is not None and known >= 0:
            self.batch_size, self.steps, self.count = size, known, size * known
        elif size is not None and known == tf.data.INFINITE_CARDINALITY:
            self.batch_size, self.steps, self.count = size, int(steps or 0), size * int(steps or 0)
        else:
            sizes = [int(_parts(element)["image"].shape[0]) for element in dataset]
            self.batch_size, self.count = max(sizes, default=0), sum(sizes)
            self.steps = self.count // self.batch_size if self.batch_size else 0
        if not self.steps:
            raise DataError("the training dataset contains no batch")
        # Batches of one size need no rebatching.
        even = dataset if size is not None else dataset.rebatch(self.batch_size, drop_remainder=True)
        self._rows = even.enumerate().map(self._row, num_parallel_calls=1)

    def _row(self, step: Any, element: Any) -> dict[str, Any]:
        parts = _tensors(element, self._channels)
        # Checked during iteration: checking beforehand would use up an epoch of a dataset that counts its epochs.
        inside = tf.reduce_all((parts["image"] >= 0) & (parts["image"] <= 1))
        binary = tf.reduce_all((parts["mask"] == 0) | (parts["mask"] == 1))
        with tf.control_dependencies([tf.debugging.Assert(inside, [_RANGE]), tf.debugging.Assert(binary, [_BINARY])]):
            parts = {name: tf.identity(tensor) for name, tensor in parts.items()}
        numbers = step * self.batch_size + tf.range(self.batch_size, dtype=tf.int64)
        return {**parts, "slice": numbers}

    def epoch(
        self,
        epoch: int,  # noqa: ARG002 - the dataset counts epochs itself
        start_step: int = 0,
        *,
        input_context: tf.distribute.InputContext | None = None,
    ) -> tf.data.Dataset:
        """Return the next epoch, from a step on, as dictionaries; see `TrainingData.epoch`."""
        rows = self._rows.skip(start_step) if start_step else self._rows
        return _shared(rows, self.batch_size, input_context).prefetch(1)

    def slice_ids(self, numbers: NDArray[np.int64]) -> list[str]:
        return [f"slice {number} of the epoch" for number in np.asarray(numbers).tolist()]

    @property
    def slices(self) -> DatasetTraining:
        return self


class DatasetValidation:
    """A dataset of validation batches: all its slices, in order.

    It is iterated once here, to count and check the slices, and once per epoch.

    Args:
        dataset: As in `DatasetTraining`, finite. Rows of weight 0 are padding and are left out; other weights have no
            effect.
        channels: Channels of the network; grey images are repeated.
        batch_size: Slices in a batch for evaluation.

    Attributes:
        steps: Number of batches.
        labels: (slices,) int64; 0 if the dataset has none.
        has_tumour: Whether any mask has a pixel.
        shape: As in `DatasetTraining`.

    Raises:
        UsageError: The elements have another form, or the dataset is infinite.
        DataError: Values are out of range.
    """

    def __init__(self, dataset: tf.data.Dataset, channels: int, batch_size: int) -> None:
        self._channels, self.batch_size = channels, batch_size
        self.shape, _ = _form(dataset, "validation")
        if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
            raise UsageError("the validation dataset is infinite", expected="a finite one")
        labels, rows, self.has_tumour = [np.zeros(0, np.int64)], 0, False
        for element in dataset:
            parts = {name: part.numpy() for name, part in _tensors(element, channels).items()}
            real = parts["weight"] > 0
            rows += len(real)
            labels.append(parts["label"][real])
            self.has_tumour |= bool(parts["mask"][real].any())
            _check_values(parts["image"], parts["mask"])
        self.labels = np.concatenate(labels)
        self.steps = -(-rows // batch_size)
        self._rows = (
            dataset.rebatch(batch_size, drop_remainder=False)
            .scan(np.int64(0), self._row)
            .map(self._filled, num_parallel_calls=1)
        )

    def _row(self, before: Any, element: Any) -> tuple[Any, dict[str, Any]]:
        parts = _tensors(element, self._channels)
        real = tf.cast(parts["weight"] > 0, tf.int64)
        numbers = tf.where(real > 0, before + tf.cumsum(real) - 1, -1)
        return before + tf.reduce_sum(real), {**parts, "slice": numbers}

    def _filled(self, row: dict[str, Any]) -> dict[str, Any]:
        missing = self.batch_size - tf.shape(row["slice"])[0]

        def fill(name: str, tensor: Any) -> Any:
            edges = [[0, missing], *[[0, 0]] * (len(tensor.shape) - 1)]
            filled = tf.pad(tensor, edges, constant_values=tf.constant(-1 if name == "slice" else 0, tensor.dtype))
            return tf.ensure_shape(filled, (self.batch_size, *tensor.shape[1:]))

        return {name: fill(name, tensor) for name, tensor in row.items()}

    def dataset(self, *, input_context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        """Return all slices once, as dictionaries in batches of one size; see `EvaluationData.dataset`."""
        return _shared(self._rows, self.batch_size, input_context).prefetch(1)


def _parts(element: Any) -> dict[str, Any]:
    if isinstance(element, dict):
        return {name: element[name] for name in _KEYS if name in element}
    parts = tuple(element) if isinstance(element, tuple | list) else (element,)
    return dict(zip(_KEYS, parts, strict=False)) if 2 <= len(parts) <= 3 else {}


def _form(dataset: tf.data.Dataset, what: str) -> tuple[tuple[int | None, int | None, int | None] | None, int | None]:
    """Return the shape of a slice and the size of a batch, where known."""
    parts = _parts(dataset.element_spec)
    ranks = {name: spec.shape.rank for name, spec in parts.items() if isinstance(spec, tf.TensorSpec)}
    if ranks.get("image", 0) not in (4, None) or ranks.get("mask", 0) not in (3, 4, None):
        raise UsageError(
            f"elements of the {what} dataset cannot be used",
            found=str(dataset.element_spec),
            expected="batches (image, mask) or (image, mask, weight): (batch, height, width, channels), "
            "(batch, height, width, 1), (batch,)",
            remedy="Call .batch(8) on a dataset of single slices.",
        )
    shape = parts["image"].shape
    return (None, None) if shape.rank is None else (tuple(shape[1:]), shape[0])


def _tensors(element: Any, channels: int) -> dict[str, Any]:
    """Return image, mask, weight and label of a batch in the types that the engine expects."""
    parts = _parts(element)
    image = parts["image"]
    scale = 1.0 if image.dtype.is_floating else 255.0
    image = tf.cast(image, tf.float32) / scale
    if image.shape[-1] == 1 and channels != 1:
        image = tf.repeat(image, channels, axis=-1)
    mask = tf.cast(parts["mask"], tf.float32)
    mask = mask[..., None] if mask.shape.rank == 3 else mask
    many = tf.shape(image)[0]
    weight = parts.get("weight")
    label = parts.get("label")
    return {
        "image": image,
        "mask": mask,
        "weight": tf.ones([many]) if weight is None else tf.reshape(tf.cast(weight, tf.float32), [-1]),
        "label": tf.zeros([many], tf.int64) if label is None else tf.cast(label, tf.int64),
    }


def _shared(rows: tf.data.Dataset, batch_size: int, context: tf.distribute.InputContext | None) -> tf.data.Dataset:
    """Return batches for one device: the parts of each global batch in turn."""
    replicas = 1 if context is None else context.num_replicas_in_sync
    return rows if replicas == 1 else rows.rebatch(batch_size // replicas)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Translate errors in training batches while the block runs."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        for what in (_RANGE, _BINARY):
            if what in str(error):
                raise DataError(what, expected="0 to 1") from None
        raise


def _check_values(image: NDArray[np.float32], mask: NDArray[np.float32]) -> None:
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise DataError(
            "images of the validation dataset are out of range", found=f"{low:g} to {high:g}", expected="0 to 1"
        )
    if not np.isin(mask, (0, 1)).all():
        raise DataError("masks of the validation dataset hold other values than 0 and 1")
