"""What a SavedModel does around the network, against OpenCV and NumPy: windows, both resizes, post-processing."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from kerasseg import MaskRule, postprocess
from kerasseg.export.savedmodel_format import fit_images, postprocess_all, restore_all
from kerasseg_tfrecords.intensity import IntensityRule, fit_image, intensity_window, restore

SIZE = 32
SHAPES = [(64, 64), (32, 32), (40, 30), (17, 51), (100, 7), (1, 1), (33, 33), (20, 24)]


def by_hand(image: NDArray[Any], rule: IntensityRule, window_of: NDArray[Any] | None = None) -> NDArray[np.float64]:
    window = intensity_window(image if window_of is None else window_of, rule)
    return fit_image(image, window, SIZE).astype(np.float64)


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    spec = [tf.TensorSpec([None, None, None, None], tf.float32)]
    return {
        rule: tf.function(lambda x, rule=rule: fit_images(x, rule, SIZE), spec)  # type: ignore[misc]
        for rule in ("minmax", "percentile", "zscore")
    }


@pytest.mark.parametrize("rule", ["minmax", "percentile", "zscore"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_slices_are_fitted_as_by_prepare(shape: tuple[int, int], rule: IntensityRule, fitted: dict[str, Any]) -> None:
    random = np.random.default_rng(sum(shape))
    for image in (
        random.integers(0, 256, (*shape, 1)).astype(np.uint8),
        random.integers(-900, 30_000, (*shape, 3)).astype(np.int16),
        random.normal(size=(*shape, 1)).astype(np.float32),
    ):
        expected = by_hand(image, rule)
        found = fitted[rule](image[np.newaxis].astype(np.float32)).numpy()[0]
        # Where a value lies in the middle between two grey levels, another order of additions may round it otherwise.
        assert np.abs(found - expected).max() <= 1
        assert (found != expected).mean() < 0.002


@pytest.mark.parametrize("rule", ["minmax", "percentile", "zscore"])
def test_each_slice_of_a_batch_has_its_window_and_a_volume_one(rule: IntensityRule, fitted: dict[str, Any]) -> None:
    volume = np.random.default_rng(0).integers(0, 4000, (3, 45, 60, 1)).astype(np.float32)
    volume[1] *= 0.3
    own = np.stack([by_hand(image, rule) for image in volume])
    whole = np.stack([by_hand(image, rule, volume) for image in volume])
    assert np.abs(own - whole).max() > 50
    assert np.array_equal(fitted[rule](volume).numpy(), own)
    assert np.array_equal(fit_images(volume, rule, SIZE, one_window=True).numpy(), whole)


def test_a_flat_slice_is_black(fitted: dict[str, Any]) -> None:
    for rule in fitted:
        assert not fitted[rule](np.full((2, 9, 9, 1), 7, np.float32)).numpy().any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probabilities_go_back_to_native_size(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random((3, SIZE, SIZE)).astype(np.float32)
    found = restore_all(tf.constant(values), *shape).numpy()
    expected = np.stack([restore(value, *shape) for value in values])
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-6


RULES = [
    MaskRule(min_diameter=0.08),
    MaskRule(close_radius=0.05),
    MaskRule(fill_holes=True),
    MaskRule(keep_largest=True),
    MaskRule(open_radius=0.04),
    MaskRule(min_diameter=0.06, close_radius=0.03, fill_holes=True, keep_largest=True, open_radius=0.03),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_masks_are_tidied_as_by_postprocess(rule: MaskRule) -> None:
    random = np.random.default_rng(1)
    call = tf.function(lambda masks: postprocess_all(masks, rule), [tf.TensorSpec([None] * 3, tf.int32)])
    changed = False
    for shape in ((48, 48), (60, 33), (20, 70), (1, 1)):
        masks = [np.zeros(shape, bool), np.ones(shape, bool)]
        for blur in (0.8, 1.5, 3.0):
            noise = cv2.GaussianBlur(random.random(shape), (0, 0), blur)
            masks += [np.asarray(noise > np.quantile(noise, share)) for share in (0.35, 0.6, 0.85)]
        batch = np.stack(masks)
        expected = np.stack([postprocess(mask, rule) for mask in batch])
        assert np.array_equal(call(batch.astype(np.int32)).numpy() > 0, expected)
        changed |= bool((expected != batch).any())
    assert changed  # the rule had something to do


def test_of_two_largest_objects_the_first_stays() -> None:
    masks = np.zeros((1, 12, 12), np.int32)
    masks[0, 8:10, 1:3] = masks[0, 2:4, 7:9] = 1
    found = postprocess_all(tf.constant(masks), MaskRule(keep_largest=True)).numpy()
    assert found[0, 2:4, 7:9].all()
    assert found.sum() == 4


def test_an_object_that_winds_is_one() -> None:
    """A spiral, longer than the slice is wide many times."""
    mask = np.zeros((41, 41), bool)
    low, high = 0, 40
    while high - low > 3:
        mask[low, low : high + 1] = mask[low : high + 1, high] = mask[high, low : high + 1] = True
        mask[low + 2 : high + 1, low] = True
        mask[low + 2, low : low + 2] = True
        low, high = low + 2, high - 2
    rule = MaskRule(min_diameter=0.5, keep_largest=True)
    found = postprocess_all(tf.constant(mask[np.newaxis].astype(np.int32)), rule).numpy()[0] > 0
    assert np.array_equal(found, postprocess(mask, rule))
    assert np.array_equal(found, mask)
