"""All thresholds at once are what one threshold after the other is, to the last pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ttest_rel

import kerasseg
from kerasseg.evaluation.predictions import ArrayPredictions
from kerasseg.metrics import slice_scores
from kerasseg.tuning.thresholds import THRESHOLDS, best_of_resamples, best_threshold, choose, required_errors
from kerasseg_tfrecords.errors import UsageError


def by_hand(probability: NDArray[np.float32], mask: NDArray[np.bool_], threshold: float) -> float:
    """Dice at one threshold, from whole numbers; NumPy compares float32 with a Python number as float32."""
    found = probability >= threshold
    sizes = int(found.sum()) + int(mask.sum())
    return 2 * int((found & mask).sum()) / sizes if sizes else 1.0


def near_an_edge(k: int, steps: int) -> float:
    """The float32 that stands for k / 1000, or one of its neighbours."""
    value = np.float32(k / 1000)
    for _ in range(abs(steps)):
        value = np.nextafter(value, np.float32(np.sign(steps)), dtype=np.float32)
    return float(min(max(value, np.float32(0)), np.float32(1)))


probabilities = st.one_of(
    st.floats(0, 1, width=32),
    st.builds(near_an_edge, st.integers(0, 1000), st.integers(-2, 2)),
)


@given(st.lists(st.tuples(probabilities, st.booleans()), min_size=1, max_size=30))
def test_every_threshold_is_what_it_is_alone(pixels: list[tuple[float, bool]]) -> None:
    probability = np.array([[p for p, _ in pixels]], np.float32)
    mask = np.array([[m for _, m in pixels]])
    sweep = kerasseg.sweep_thresholds(probability[None], mask[None])
    expected = [by_hand(probability, mask, k / 1000) for k in range(1, 1001)]
    assert sweep.mean.tolist() == expected
    assert sweep.dice is not None
    assert sweep.dice[0].tolist() == np.float32(expected).tolist()


@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_every_edge_and_its_neighbours(steps: int) -> None:
    """All thousand of them: a pixel counts from its own threshold downwards and not above."""
    values = np.array([near_an_edge(k, steps) for k in range(1, 1001)], np.float32)
    for k, value in enumerate(values, 1):
        sweep = kerasseg.sweep_thresholds(np.full((1, 1, 1), value), np.ones((1, 1, 1), bool))
        last = k if steps >= 0 else k - 1
        assert sweep.mean.sum() == last
        assert sweep.mean[:last].all()


def test_it_is_the_dice_that_training_reports() -> None:
    rng = np.random.default_rng(0)
    found = rng.random((3, 16, 16)).astype(np.float32)
    masks = rng.random((3, 16, 16)) < 0.3
    masks[1] = False
    sweep = kerasseg.sweep_thresholds(found, masks)
    assert sweep.dice is not None
    for threshold in (0.2, 0.5, 0.999):
        scores = slice_scores(masks[..., None].astype("float32"), found[..., None], threshold).dice
        assert np.allclose(np.asarray(scores), sweep.dice[:, round(threshold * 1000) - 1], atol=1e-6)
        assert sweep.at(threshold) == pytest.approx(float(np.mean(scores)), abs=1e-6)


def test_the_edge_cases() -> None:
    nothing, tumour = np.zeros((4, 4)), np.ones((4, 4))
    sweep = kerasseg.sweep_thresholds(
        [nothing, nothing + 0.3, nothing, nothing + 0.3], [nothing, nothing, tumour, tumour]
    )
    assert sweep.dice is not None
    assert sweep.dice[:, 299].tolist() == [1, 0, 0, 1]
    assert sweep.dice[:, 300].tolist() == [1, 1, 0, 0]


def test_the_mean_alone_and_slices_of_several_sizes() -> None:
    rng = np.random.default_rng(1)
    found = [rng.random((8, 8)), rng.random((4, 12)), rng.random((5, 5, 1))]
    masks = [f > 0.6 for f in found]
    full = kerasseg.sweep_thresholds(found, masks)
    lean = kerasseg.sweep_thresholds(ArrayPredictions(found, masks), keep_slices=False)
    assert lean.dice is None
    assert lean.mean.tolist() == full.mean.tolist()
    assert full.slices == 3
    assert full.best_dice == full.mean.max() == 1
    assert full.best <= 0.6
    assert all(((f >= full.best) == m).all() for f, m in zip(found, masks, strict=True))


def test_of_several_best_the_nearest_to_a_half() -> None:
    assert best_threshold(np.array([0.1, 0.3, 0.9]), np.array([0.8, 0.8, 0.8])) == 1
    # 0.4 and 0.6: the lower, as the first.
    assert best_threshold(np.array([0.4, 0.6]), np.array([0.8, 0.8])) == 0


@pytest.mark.parametrize(
    ("found", "masks", "message"),
    [
        (np.full((1, 4, 4), 3.0), np.ones((1, 4, 4)), "these are not probabilities .*3 to 3 in slice 0.*sigmoid"),
        (np.full((1, 4, 4), -0.1), np.ones((1, 4, 4)), "these are not probabilities"),
        (np.full((1, 4, 4), np.nan), np.ones((1, 4, 4)), "these are not probabilities"),
        (np.zeros((1, 4, 4)), np.ones((2, 4, 4)), "1 and 2 slices"),
        (np.zeros((1, 4, 4)), np.ones((1, 4, 5)), "slice 0 do not fit"),
        (np.zeros((4, 4)), np.ones((4, 4)), "two dimensions"),
        (np.zeros((0, 4, 4)), np.ones((0, 4, 4)), "no slice"),
        (np.zeros((1, 4, 4)), None, "no masks"),
    ],
)
def test_what_cannot_be_swept_is_said(
    found: NDArray[np.float64], masks: NDArray[np.float64] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        kerasseg.sweep_thresholds(found, masks)


# --- which threshold a curve speaks for -----------------------------------------------------------------------------------


def test_a_flat_optimum_takes_a_point_near_a_half() -> None:
    """Between 0.1 and 0.4 the patients disagree by more than the curve differs; above 0.4 all lose."""
    rng = np.random.default_rng(0)
    curve = np.where(THRESHOLDS <= 0.4, 0.8 - 0.001 * np.abs(THRESHOLDS - 0.2), 0.5)
    sums = curve + rng.normal(0, 0.02, (20, 1)) * (THRESHOLDS - 0.2)
    choice = choose(THRESHOLDS, sums, np.ones(20), errors=1.7)
    assert 0.3 < THRESHOLDS[choice.chosen] <= 0.4
    assert THRESHOLDS[choice.high] == 0.4
    assert THRESHOLDS[choice.low] < 0.15


def test_a_sharp_optimum_is_taken_as_it_is() -> None:
    sums = np.tile(0.8 - np.abs(THRESHOLDS - 0.2), (20, 1))
    choice = choose(THRESHOLDS, sums, np.ones(20), errors=1.7)
    assert choice.chosen == choice.best == choice.low == choice.high == 199


def test_a_gain_is_kept_where_a_one_sided_t_test_over_patients_rejects() -> None:
    """Against SciPy's paired test, where every patient has one slice."""
    rng = np.random.default_rng(3)
    thresholds = np.array([0.3, 0.5])
    kept = 0
    for patients in (8, 12, 30):
        for _ in range(100):
            sums = np.tile(rng.normal(0.8, 0.1, (patients, 1)), 2)
            sums[:, 0] += rng.normal(0.003, 0.01, patients)
            expected = ttest_rel(sums[:, 0], sums[:, 1], alternative="greater").pvalue < 0.05
            chosen = choose(thresholds, sums, np.ones(patients), errors=required_errors(patients)).chosen
            assert (chosen == 0) == expected
            kept += expected
    assert 30 < kept < 270


def test_the_bar_rises_as_patients_get_fewer() -> None:
    bars = [required_errors(patients) for patients in (100, 30, 15, 8, 5, 3, 2, 1)]
    assert bars == sorted(bars)
    assert bars[-1] == np.inf


def test_one_patient_has_no_noise_and_no_interval() -> None:
    sums = (0.8 - 0.001 * np.abs(THRESHOLDS - 0.2))[None]
    assert choose(THRESHOLDS, sums, np.ones(1), errors=required_errors(1)).chosen == 499
    assert choose(THRESHOLDS, sums, np.ones(1), errors=1).chosen == 199
    nothing = best_of_resamples(THRESHOLDS, sums, np.ones(1), confidence=0.95, resamples=10, seed=0)
    assert nothing == (None, None)


def test_the_interval_of_the_best_threshold_against_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(5)
    thresholds = np.arange(1, 20) / 20
    peaks, counts = rng.uniform(0.2, 0.6, 15), rng.integers(1, 5, 15).astype(float)
    sums = counts[:, None] * (1 - (thresholds - peaks[:, None]) ** 2)
    low, high = best_of_resamples(thresholds, sums, counts, confidence=0.9, resamples=4000, seed=0)
    best = []
    for _ in range(4000):
        drawn = rng.integers(0, 15, 15)
        best.append(thresholds[(sums[drawn].sum(0) / counts[drawn].sum()).argmax()])
    assert low == pytest.approx(np.percentile(best, 5), abs=0.051)
    assert high == pytest.approx(np.percentile(best, 95), abs=0.051)
    assert low is not None
    assert high is not None
    assert low < high
