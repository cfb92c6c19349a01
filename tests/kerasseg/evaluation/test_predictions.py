"""One batch of slices, with and without the mirror image."""

from __future__ import annotations

import numpy as np

import kerasseg
from kerasseg.evaluation.predictions import predict_batch


def test_flip_average_is_the_mean_of_both_predictions() -> None:
    network = kerasseg.unet((16, 24, 1), filters=2, depth=2, seed=3)
    images = np.random.default_rng(1).random((3, 16, 24, 1), np.float32)
    plain, mirrored = predict_batch(network, images), predict_batch(network, images[:, :, ::-1])[:, :, ::-1]
    assert not np.allclose(plain, mirrored)
    averaged = predict_batch(network, images, flip_average=True)
    np.testing.assert_allclose(averaged, (plain + mirrored) / 2, atol=1e-6)
    assert averaged.shape == (3, 16, 24)
