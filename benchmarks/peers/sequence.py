"""A `keras.utils.PyDataset` (formerly `Sequence`) on NumPy arrays, augmented with OpenCV slice by slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import keras
import numpy as np

from benchmarks.measure import Cost, costs


class Slices(keras.utils.PyDataset):
    def __init__(self, count: int, size: int, channels: int, batch: int) -> None:
        super().__init__(workers=2, max_queue_size=10)
        self.images, self.masks = arrays(count, size, channels)
        self.batch, self.random = batch, np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rows = range(number * self.batch, (number + 1) * self.batch)
        pairs = [self.augmented(self.images[row], self.masks[row]) for row in rows]
        return np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])

    def augmented(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flip, brightness, contrast, zoom = self.random.random(4)
        size = image.shape[0]
        image = image.astype(np.float32) / 255
        if flip < 0.5:
            image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
        matrix = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), 0, 0.95 + 0.1 * zoom)
        image = cv2.warpAffine(image, matrix, (size, size))
        mask = cv2.warpAffine(mask, matrix, (size, size), flags=cv2.INTER_NEAREST)
        image = (image - image.mean()) * (0.9 + 0.2 * contrast) + image.mean() + 0.2 * brightness - 0.1
        image = np.clip(image, 0, 1)
        image = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image
        return image, mask[..., None].astype(np.float32)


def arrays(count: int, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, size, size[, 3]) uint8 and masks (count, size, size) uint8."""
    random = np.random.default_rng(0)
    shape = (count, size, size) if channels == 1 else (count, size, size, channels)
    masks = np.zeros((count, size, size), np.uint8)
    masks[:, size // 3 : size // 2, size // 3 : size // 2] = 1
    return random.integers(0, 256, shape, np.uint8), masks


def sequence_epochs(count: int, size: int, channels: int, batch: int, epochs: int) -> Callable[[], Cost]:
    """Cost per slice when epochs are read as `fit` reads them."""
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    adapter = PyDatasetAdapter(Slices(count, size, channels, batch), shuffle=True)

    def read() -> Any:
        for _ in range(epochs):
            adapter.on_epoch_begin()
            for _batch in adapter.get_tf_dataset():
                pass
            adapter.on_epoch_end()

    read()
    return lambda: costs(read).each(len(adapter.py_dataset) * batch * epochs)
