"""Arrays in, fit out."""

import keras
import numpy as np
import pytest

from kerasseg.data.augmentation import SafeAugmentation
from kerasseg.data.py_dataset import SliceBatches
from kerasseg.data.sampling import stratified_batches
from kerasseg.losses import DiceBCELoss
from kerasseg.metrics import DiceScore
from kerasseg_tfrecords.errors import UsageError


def arrays(n=20):
    rng = np.random.default_rng(0)
    masks = (rng.random((n, 16, 16, 1)) > 0.8).astype(np.uint8)
    return (rng.random((n, 16, 16, 1)) * 255).astype(np.uint8), masks, rng.integers(0, 3, n)


def test_gives_the_stratified_slices_augmented_as_their_number_says():
    images, masks, labels = arrays()
    data = SliceBatches(images, masks, labels, 6, seed=3, channels=3)
    for epoch in range(2):
        batches = stratified_batches(labels, 6, seed=3, epoch=epoch)
        table = SafeAugmentation().parameters(3, epoch, np.arange(20))
        assert len(data) == len(batches)
        for i in reversed(range(len(data))):
            rows = batches[i]
            expected = SafeAugmentation().apply_numpy(images[rows], masks[rows], table[rows], 3)
            for a, b in zip(data[i], expected, strict=True):
                np.testing.assert_array_equal(a, b)
        data.on_epoch_end()


def test_without_augmentation_slices_are_as_they_were():
    images, masks, labels = arrays()
    data = SliceBatches(images, masks, labels, 5, augmentation=None)
    rows = stratified_batches(labels, 5)[0]
    np.testing.assert_allclose(data[0][0], images[rows] / np.float32(255), atol=1e-6)
    np.testing.assert_array_equal(data[0][1], masks[rows])


@pytest.mark.rest
@pytest.mark.slow
def test_fit_goes_through_the_epochs_and_can_go_on_in_the_middle():
    images, masks, labels = arrays()

    def weights(*runs):
        keras.utils.set_random_seed(0)
        source = keras.Input((16, 16, 1))
        model = keras.Model(source, keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(source))
        model.compile("adam", DiceBCELoss(), metrics=[DiceScore()])
        for first, last in runs:
            data = SliceBatches(images, masks, labels, 8)
            data.epoch = first
            model.fit(data, initial_epoch=first, epochs=last, shuffle=False, verbose=0)
        return model.get_weights()

    for a, b in zip(weights((0, 3)), weights((0, 1), (1, 3)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_refuses_arrays_that_do_not_fit():
    images, masks, labels = arrays()
    with pytest.raises(UsageError, match="20 images, 19 masks, 20 labels"):
        SliceBatches(images, masks[:-1], labels)
