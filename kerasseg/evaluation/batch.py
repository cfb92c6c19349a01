"""Probabilities of one batch of slices, with or without flip averaging: the same for `predict`, `evaluate` and tuning."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.predictions import check_probabilities

__all__ = ["predict_batch"]


def predict_batch(
    model: keras.Model, images: NDArray[np.float32], *, flip_average: bool = False
) -> NDArray[np.float32]:
    """Predict a batch of slices.

    Args:
        model: Takes (batch, height, width, channels) in [0, 1] and returns probabilities (batch, height, width, 1).
        images: (batch, height, width, channels) float32.
        flip_average: Whether to average the prediction with that of the mirrored image (left and right exchanged), which
            doubles the time.

    Returns:
        (batch, height, width) float32 in [0, 1].

    Raises:
        UsageError: The network returns another shape, or values outside of [0, 1].
        KerassegError: The network returns NaN.

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
