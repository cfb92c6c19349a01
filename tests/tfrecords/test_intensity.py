"""Intensity rules and resizing against plain computations, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.intensity import Window, fit_image, fit_mask, fitted_spacing, intensity_window, restore

TYPES = [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64]


def disk(height: int, width: int, y: float, x: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@pytest.mark.parametrize("dtype", TYPES)
def test_minmax_spans_the_whole_range_at_equal_size(dtype: type) -> None:
    image = np.arange(64 * 64).reshape(64, 64).astype(dtype)
    low, high = float(image.min()), float(image.max())
    plain = np.rint((image.astype(np.float64) - low) * 255 / (high - low))
    fitted = fit_image(image, intensity_window(image, "minmax"), 64)
    assert fitted.shape == (64, 64, 1)
    assert fitted.dtype == np.uint8
    assert np.abs(fitted[..., 0] - plain).max() <= 1  # float32 may round a half the other way
    assert (fitted.min(), fitted.max()) == (0, 255)


def test_sixteen_bit_values_do_not_overflow() -> None:
    image = np.zeros((32, 32), np.int16)
    image[8:24, 8:24] = 12_728
    image[0, 0] = -5
    fitted = fit_image(image, intensity_window(image, "minmax"), 32)
    assert fitted[16, 16, 0] == 255
    assert fitted[0, 0, 0] == 0
    assert fitted[2, 2, 0] == 0


def test_percentile_ignores_a_few_bright_pixels() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 100, (100, 100)).astype(np.int16)
    image[0, :3] = 20_000
    window = intensity_window(image, "percentile")
    low, high = np.percentile(image, [0.5, 99.5])
    assert (window.low, window.high) == (low, high)
    fitted = fit_image(image, window, 100)
    assert fitted[0, 0, 0] == 255
    assert np.median(fitted) > 100


def test_zscore_window_is_three_deviations() -> None:
    image = np.random.default_rng(1).normal(50, 10, (64, 64))
    window = intensity_window(image, "zscore")
    assert window.low == pytest.approx(image.mean() - 3 * image.std())
    assert window.high == pytest.approx(image.mean() + 3 * image.std())


def test_volume_statistics_keep_slices_comparable() -> None:
    volume = np.stack([np.full((32, 32), 10.0), np.full((32, 32), 20.0), np.full((32, 32), 30.0)])
    window = intensity_window(volume, "minmax")
    assert [int(fit_image(piece, window, 32)[0, 0, 0]) for piece in volume] == [0, 128, 255]


@pytest.mark.parametrize("rule", ["minmax", "percentile", "zscore"])
def test_a_constant_image_becomes_black(rule: str) -> None:
    image = np.full((20, 30), 7, np.int16)
    assert not fit_image(image, intensity_window(image, rule), 16).any()  # type: ignore[arg-type]


def test_an_unknown_rule_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="minmax, percentile, zscore"):
        intensity_window(np.zeros((2, 2)), "histogram")  # type: ignore[arg-type]


def test_area_interpolation_is_the_mean_of_what_a_pixel_covers() -> None:
    image = np.random.default_rng(2).integers(0, 4000, (512, 512)).astype(np.int16)
    window = intensity_window(image, "minmax")
    means = image.reshape(256, 2, 256, 2).mean(axis=(1, 3))
    plain = (means - window.low) * 255 / (window.high - window.low)
    assert np.abs(fit_image(image, window, 256)[..., 0] - plain).max() <= 0.51


def test_padding_is_black_and_keeps_the_aspect() -> None:
    image = np.full((100, 50), 200, np.uint8)
    fitted = fit_image(image, Window(0, 255), 64)[..., 0]
    assert not fitted[:, :16].any()
    assert not fitted[:, 48:].any()
    assert (fitted[:, 17:47] == 200).all()


def test_padding_is_black_where_the_lowest_value_is_negative() -> None:
    image = np.linspace(-1000, 3000, 40 * 20).reshape(40, 20)
    fitted = fit_image(image, intensity_window(image, "minmax"), 40)
    assert not fitted[:, :10].any()


def test_colour_keeps_its_proportions() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0], image[..., 1], image[0, 0, 2] = 50, 100, 200
    fitted = fit_image(image, intensity_window(image, "minmax"), 16)
    assert fitted.shape == (16, 16, 3)
    assert tuple(fitted[8, 8]) == (64, 128, 0)


def test_mask_pixel_is_tumour_where_more_than_half_is() -> None:
    mask = np.zeros((8, 8), bool)
    mask[0:2, 0:2] = True  # all four
    mask[0, 2:4] = True  # exactly half: no
    mask[4:6, 4:6] = True
    mask[4, 4] = False  # three of four: yes
    fitted = fit_mask(mask, 4)
    expected = np.zeros((4, 4), bool)
    expected[0, 0] = expected[2, 2] = True
    assert np.array_equal(fitted, expected)


@given(
    st.integers(40, 300),
    st.integers(40, 300),
    st.floats(0.3, 0.7),
    st.floats(0.3, 0.7),
    st.floats(0.15, 0.3),
)
def test_masks_come_back_at_native_size(height: int, width: int, y: float, x: float, radius: float) -> None:
    mask = disk(height, width, y * height, x * width, radius * min(height, width))
    back = restore(fit_mask(mask, 128).astype(np.float32), height, width) > 0.5
    assert back.shape == mask.shape
    if mask.sum() >= 200:
        dice = 2 * (back & mask).sum() / (back.sum() + mask.sum())
        assert dice > 0.9


@given(st.integers(1, 60), st.integers(1, 60))
def test_restore_undoes_the_padding_exactly_where_nothing_is_scaled(height: int, width: int) -> None:
    rng = np.random.default_rng(height * 100 + width)
    mask = rng.random((height, width)) > 0.5
    assert np.array_equal(restore(fit_mask(mask, max(height, width)).astype(np.float32), height, width) > 0.5, mask)


@given(st.integers(8, 90), st.integers(8, 90), st.integers(0, 2**32 - 1))
def test_image_and_mask_move_together(height: int, width: int, seed: int) -> None:
    """A picture that is its own mask: bright pixels of the fitted image lie where the fitted mask is."""
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    image = fit_image(mask.astype(np.uint8) * 255, Window(0, 255), 48)[..., 0].astype(float)
    fitted = fit_mask(mask, 48)
    assert (image[fitted] > 126).all()
    assert (image[~fitted] < 129).all()


@pytest.mark.parametrize(
    ("height", "width", "spacing"), [(40, 160, (7.0, 1.6)), (200, 50, (0.4, 3.0)), (64, 64, (1, 2))]
)
def test_pixels_that_are_not_square_are_resampled_and_restored(
    height: int, width: int, spacing: tuple[float, float]
) -> None:
    """A round tumour is round for the network, and its mask comes back to where it was."""
    rows, columns = np.mgrid[:height, :width]
    tall, wide = spacing
    radius = 0.3 * min(height * tall, width * wide)
    distance = np.hypot((rows + 0.5 - height / 2) * tall, (columns + 0.5 - width / 2) * wide)
    mask = distance < radius
    fitted = fit_mask(mask, 256, spacing)
    seen = np.argwhere(fitted)
    sides = seen.max(axis=0) - seen.min(axis=0) + 1
    assert abs(sides[0] - sides[1]) <= 256 * max(spacing) / max(height * tall, width * wide) + 1
    image = fit_image(mask * 100.0, Window(0, 100), 256, spacing)[..., 0]
    assert (np.abs(image.astype(float) - 255 * fitted) > 128).mean() < 0.002
    back = restore(fitted.astype(np.float32), height, width, spacing) > 0.5
    assert back.shape == mask.shape
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.97
    used = fitted_spacing(height, width, 256, spacing)
    assert used[0] == used[1]
    assert fitted.sum() * used[0] * used[1] == pytest.approx(np.pi * radius**2, rel=0.06)


def test_pixels_that_are_square_but_for_rounding_keep_their_bytes() -> None:
    image = np.random.default_rng(0).random((60, 48))
    window = intensity_window(image, "minmax")
    plain = fit_image(image, window, 32)
    assert np.array_equal(plain, fit_image(image, window, 32, (0.9375, 0.938)))
    assert np.array_equal(plain, fit_image(image, window, 32, (0.0, 3.0)))
    extreme = fit_image(image, window, 32, (1e-30, 1e30))
    assert extreme.shape == plain.shape
