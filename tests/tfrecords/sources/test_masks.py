"""Masks become binary by the rule that `binarise` states."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.formats.images import Picture, decode_picture
from kerasseg_tfrecords.sources.masks import binarise, mask_of_picture

DISK = cv2.circle(np.zeros((40, 48), np.uint8), (20, 18), 9, 1, -1).astype(bool)


def picture(values: NDArray[Any]) -> Picture:
    return Picture(values, None, lossy=False)


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.uint8, 1), (np.uint8, 255), (np.uint16, 65535), (np.uint16, 1), (np.bool_, 1)]
)
def test_plain_masks_need_no_note(dtype: type, value: int) -> None:
    mask, notes = binarise((DISK * value).astype(dtype), "m")
    np.testing.assert_array_equal(mask, DISK)
    assert mask.dtype == np.bool_
    assert notes == ()


@pytest.mark.parametrize("value", [2, 7, 128, 200, 254])
def test_one_value_of_any_size_is_tumour_and_said(value: int) -> None:
    mask, notes = binarise((DISK * value).astype(np.uint8), "m")
    np.testing.assert_array_equal(mask, DISK)
    assert str(value) in notes[0]


@given(arrays(np.bool_, (6, 7)).filter(lambda a: not a.all()), st.integers(1, 65535))
def test_two_values_are_always_background_and_tumour(truth: NDArray[np.bool_], value: int) -> None:
    np.testing.assert_array_equal(binarise(truth * np.uint16(value), "m")[0], truth)


@given(truth=arrays(np.bool_, (12, 13)).filter(lambda a: a.any() and not a.all()), seed=st.integers(0, 2**32 - 1))
def test_noise_near_black_and_white_is_taken_away(truth: NDArray[np.bool_], seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 8, truth.shape)
    noise.flat[np.flatnonzero(~truth)[0]] = 0
    noise.flat[np.flatnonzero(truth)[0]] = 0
    noisy = np.where(truth, 255 - noise, noise).astype(np.uint8)
    mask, notes = binarise(noisy, "m")
    np.testing.assert_array_equal(mask, truth)
    assert notes == () if set(np.unique(noisy)) == {0, 255} else "cut at 128" in notes[0] or "inverted" in notes[-1]


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_a_mask_that_went_through_jpeg(quality: int) -> None:
    data = cv2.imencode(".jpg", DISK.astype(np.uint8) * 255, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    mask, notes = mask_of_picture(decode_picture(data, "m", 10**6), "m")
    assert np.count_nonzero(mask != DISK) <= 0.02 * DISK.size
    assert "cut at" in notes[0]


def test_soft_edges_are_cut_at_half() -> None:
    soft = cv2.resize(DISK.astype(np.uint8) * 255, (480, 400), interpolation=cv2.INTER_LINEAR)
    mask, notes = binarise(soft, "m")
    np.testing.assert_array_equal(mask, soft >= 128)
    assert "cut at 128" in notes[0]
    np.testing.assert_array_equal(binarise(soft.astype(np.float32) / 255, "m")[0], soft >= 127.5)


def test_labels_are_all_tumour_unless_the_user_says_which() -> None:
    labels = DISK.astype(np.uint8)
    labels[18, 18:22] = (1, 2, 3, 4)
    mask, notes = binarise(labels, "m")
    np.testing.assert_array_equal(mask, labels > 0)
    assert "labels 1, 2, 3, 4" in notes[0]
    mask, notes = binarise(labels, "m", foreground=(1, 4))
    np.testing.assert_array_equal(mask, (labels == 1) | (labels == 4))
    assert "1, 4 are tumour" in notes[0]


def test_regions_in_shades_of_grey_are_labels() -> None:
    regions = DISK.astype(np.uint8) * 85
    regions[18, 18:24] = 170
    regions[19, 18:24] = 255
    np.testing.assert_array_equal(binarise(regions, "m")[0], DISK)
    np.testing.assert_array_equal(binarise(regions, "m", foreground=(255,))[0], regions == 255)


def test_an_empty_mask_is_a_mask() -> None:
    mask, notes = binarise(np.zeros((3, 4), np.uint8), "m")
    assert not mask.any()
    assert notes == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((4, 4), 255, np.uint8), "no background"),
        (np.array([[1, 2], [2, 1]], np.uint8), "no background"),
        (np.array([[100, 255], [120, 250]], np.uint8), "no background"),
        (np.array([[-1, 0], [1, 0]], np.int16), "negative"),
        (np.array([[np.nan, 0], [1, 0]], np.float32), "NaN"),
        (np.arange(256, dtype=np.uint8).reshape(16, 16), "not a mask"),
    ],
)
def test_what_is_no_mask(values: NDArray[Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        binarise(values, "m.png")
    assert caught.value.path == "m.png"
    assert caught.value.kind in {"bad-mask", "not-finite"}


def test_a_dark_jpeg_is_refused_for_nobody_can_tell() -> None:
    values = np.array([[0, 1], [2, 3]], np.uint8)
    with pytest.raises(DataError, match="nearly black"):
        binarise(values, "m", lossy=True)
    with pytest.raises(DataError, match="nearly black"):
        binarise(values // 2, "m", lossy=True)


def test_a_mask_of_most_of_the_image_is_suspicious() -> None:
    mask, notes = binarise((~DISK).astype(np.uint8) * 255, "m")
    np.testing.assert_array_equal(mask, ~DISK)
    assert "inverted" in notes[0]


def test_colour_masks_count_by_their_brightest_channel() -> None:
    colour = np.zeros((*DISK.shape, 3), np.uint8)
    colour[DISK] = (255, 0, 0)
    colour[18, 20] = (0, 255, 0)
    mask, notes = mask_of_picture(picture(colour), "m")
    np.testing.assert_array_equal(mask, DISK)
    assert "in colour" in notes[0]


def test_transparency_is_background_or_the_mask_itself() -> None:
    alpha = DISK.astype(np.uint8) * 255
    black = np.zeros(DISK.shape, np.uint8)
    np.testing.assert_array_equal(mask_of_picture(Picture(black, alpha, False), "m")[0], DISK)
    painted = np.where(np.arange(48) < 40, 255, 0).astype(np.uint8) * np.ones((40, 1), np.uint8)
    np.testing.assert_array_equal(mask_of_picture(Picture(painted, alpha, False), "m")[0], DISK)


@given(arrays(np.uint8, (5, 6)))
def test_any_array_gives_a_mask_or_a_reason(values: NDArray[np.uint8]) -> None:
    for lossy in (False, True):
        try:
            mask, _ = binarise(values, "m", lossy=lossy)
        except DataError:
            continue
        assert mask.shape == values.shape
        if values.any():
            assert mask[values == values.max()].all()
            assert not mask[values == 0].any()


def test_a_mask_with_one_label_is_still_one_of_labels() -> None:
    values = DISK.astype(np.uint8) * 2
    assert not binarise(values, "m", foreground=(1, 4))[0].any()
    np.testing.assert_array_equal(binarise(values, "m", foreground=(2,))[0], DISK)
    # 255 is white, no label: `--foreground` of the volumes in the same data set does not empty it.
    np.testing.assert_array_equal(binarise(DISK.astype(np.uint8) * 255, "m", foreground=(1,))[0], DISK)
