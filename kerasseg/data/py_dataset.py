"""Stratified, augmented batches from arrays for `model.fit`, on every Keras backend."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg.data.augmentation import SafeAugmentation
from kerasseg.data.sampling import stratified_batches
from kerasseg_tfrecords.errors import UsageError


class SliceBatches(keras.utils.PyDataset):
    """Data set for `model.fit` from slices in memory, with stratified batches and new augmentation each epoch.

    Use it for arrays without shards. The appearance of a slice in an epoch depends only on (seed, epoch, slice).

    Args:
        images: (slices, height, width, channels), uint8 or float in [0, 1], 1 or 3 channels.
        masks: (slices, height, width, 1), 0 and 1.
        labels: (slices,) class of each slice; None for a single class.
        batch_size: Slices in a batch.
        mode: "proportional" or "balanced"; see `stratified_batches`.
        augmentation: Augmentation; None for none.
        channels: 3 repeats grey, as the last step. None keeps the channels.
        seed: Integer >= 0.
        **kwargs: `workers` and so on, as in `keras.utils.PyDataset`.

    Attributes:
        epoch: Epoch of the batches, from 0; set it to resume. Keras advances it after each epoch.

    Raises:
        UsageError: The arrays differ in shape.

    Example:
        >>> images, masks = np.zeros((20, 16, 16, 1), "uint8"), np.zeros((20, 16, 16, 1), "uint8")
        >>> data = SliceBatches(images, masks, labels=[0, 1] * 10, channels=3)
        >>> len(data), data[0][0].shape, data[0][1].shape
        (3, (8, 16, 16, 3), (8, 16, 16, 1))
    """

    def __init__(
        self,
        images: NDArray[Any],
        masks: NDArray[Any],
        labels: ArrayLike | None = None,
        batch_size: int = 8,
        mode: Literal["proportional", "balanced"] = "proportional",
        augmentation: SafeAugmentation | None = SafeAugmentation(),  # noqa: B008 - it has no state
        channels: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.images, self.masks = images, masks
        self.labels = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels)
        if not len(images) == len(masks) == len(self.labels):
            found = f"{len(images)} images, {len(masks)} masks, {len(self.labels)} labels"
            raise UsageError("arrays have different shapes", found=found, expected="one mask and one label per image")
        self.batch_size, self.mode, self.channels, self.seed = batch_size, mode, channels, seed
        self.augmentation = augmentation
        self.epoch = 0

    @property
    def epoch(self) -> int:
        """Current epoch, from 0."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        batches = stratified_batches(self.labels, self.batch_size, self.mode, seed=self.seed, epoch=value)
        # Amounts of 0 augment nothing, but still convert types and channels.
        augmentation = self.augmentation or SafeAugmentation(0, 0, 0, 0)
        table = augmentation.parameters(self.seed, value, np.arange(len(self.images)))
        self._epoch, self._batches, self._table, self._apply = value, batches, table, augmentation.apply_numpy

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return images (batch, height, width, channels) in [0, 1] and masks (batch, height, width, 1) of a batch."""
        rows = self._batches[index]
        return self._apply(self.images[rows], self.masks[rows], self._table[rows], channels=self.channels)

    def on_epoch_end(self) -> None:
        """Advance to the next epoch; called by Keras."""
        self.epoch += 1
