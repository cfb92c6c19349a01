"""Masks become binary by the rule that `binarise` states."""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

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


def palette_file(labels: NDArray[np.uint8], colours: list[int], kind: str) -> bytes:
    picture = Image.fromarray(labels)
    picture.putpalette(colours)
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


LABELS = np.zeros((40, 48), np.uint8)
LABELS[5:20, 5:20], LABELS[10:15, 10:15], LABELS[30:35, 30:40] = 1, 2, 3
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_places_in_a_palette_are_labels(kind: str) -> None:
    picture = decode_picture(palette_file(LABELS, VOC, kind), "m", 10**6)
    np.testing.assert_array_equal(mask_of_picture(picture, "m", foreground=(2,))[0], LABELS == 2)
    np.testing.assert_array_equal(mask_of_picture(picture, "m")[0], LABELS > 0)


def test_a_palette_that_does_not_begin_with_black_counts_by_its_colours() -> None:
    picture = decode_picture(
        palette_file(1 - (LABELS > 0).astype(np.uint8), [255, 255, 255, 0, 0, 0], "PNG"), "m", 10**6
    )
    np.testing.assert_array_equal(mask_of_picture(picture, "m")[0], LABELS > 0)


def test_colours_are_labels_where_they_are_those_of_pascal_voc() -> None:
    colours = np.array(VOC, np.uint8).reshape(-1, 3)[LABELS]
    for foreground in ((1,), (2, 3)):
        mask, notes = mask_of_picture(picture(colours), "m", foreground=foreground)
        np.testing.assert_array_equal(mask, np.isin(LABELS, foreground))
        assert "colours of the mask were read as labels" in notes[0]
    channel = np.zeros((*LABELS.shape, 3), np.uint8)
    channel[..., 1] = LABELS
    np.testing.assert_array_equal(mask_of_picture(picture(channel), "m", foreground=(3,))[0], LABELS == 3)
    other = np.array([[0, 0, 0], [12, 200, 7], [99, 4, 50], [1, 1, 200]], np.uint8)[LABELS]
    with pytest.raises(DataError, match="are not labels.*--foreground"):
        mask_of_picture(picture(other), "m", foreground=(1,))
    np.testing.assert_array_equal(mask_of_picture(picture(other), "m")[0], LABELS > 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("meant", [True, False])
def test_a_mask_in_which_zero_is_white_is_never_inverted(dtype: type, meant: bool) -> None:
    """Some programs write the tag and mean it, others write it and store the mask as usual."""
    top = np.iinfo(dtype).max
    stored = np.where(DISK, 0 if meant else top, top if meant else 0).astype(dtype)
    data = bytearray(cv2.imencode(".tif", stored, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes())
    place = data.find(struct.pack("<HHI", 262, 3, 1))
    data[place + 8] = 0
    mask, notes = mask_of_picture(decode_picture(bytes(data), "m", 10**6), "m")
    np.testing.assert_array_equal(mask, DISK)
    assert "0 as white" in notes[0]


@pytest.mark.parametrize("factor", [2, 3])
def test_few_levels_at_edges_alone_are_soft_edges(factor: int) -> None:
    large = np.kron(DISK, np.ones((factor, factor))).astype(np.float32)
    soft = cv2.resize(large, DISK.shape[::-1], interpolation=cv2.INTER_AREA)
    soft = cv2.blur(soft, (2, 2))
    levels = np.rint(soft * 4).astype(np.uint8) * 63  # at most 5 levels
    mask, notes = binarise(levels, "m")
    np.testing.assert_array_equal(mask, levels > 126)
    assert "cut at" in notes[0]
