"""Intervals against a bootstrap written from its definition, and against the truth they are to hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasseg.evaluation.bootstrap import Interval, bootstrap_interval, group_numbers, paired_interval
from kerasseg_tfrecords.errors import UsageError

RNG = np.random.default_rng(5)


def plain_bootstrap(values, groups, draws, rng):
    """Draw patients, take all of their slices, mean; nothing shared with the code under test."""
    by_patient = [[v for v, g in zip(values, groups, strict=True) if g == name] for name in sorted(set(groups))]
    means = []
    for _ in range(draws):
        drawn = [by_patient[i] for i in rng.integers(0, len(by_patient), len(by_patient))]
        means.append(np.mean(np.concatenate(drawn)))
    return np.percentile(means, [2.5, 97.5])


def patients(many=25):
    """Slices of patients of very different sizes, alike within one."""
    sizes = RNG.integers(1, 12, many)
    groups = np.repeat([f"p{i}" for i in range(many)], sizes)
    values = np.repeat(RNG.uniform(0.3, 0.9, many), sizes) + RNG.normal(0, 0.02, len(groups))
    return values, groups


def test_equals_the_plain_bootstrap():
    values, groups = patients()
    found = bootstrap_interval(values, groups)
    low, high = plain_bootstrap(values, groups, 3000, np.random.default_rng(1))
    width = high - low
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.06 * width)
    assert found.high == pytest.approx(high, abs=0.06 * width)
    assert (found.slices, found.groups, found.few) == (len(values), 25, False)
    by_slice = bootstrap_interval(values)
    assert by_slice.high - by_slice.low < 0.7 * width, "slices of one head are no independent witnesses"
    assert by_slice.groups == len(values)


def test_the_same_values_give_the_same_interval_in_chunks_too(monkeypatch):
    values, groups = patients()
    first = bootstrap_interval(values, groups, seed=3)
    assert bootstrap_interval(values, groups, seed=3) == first
    assert bootstrap_interval(values, groups, seed=4) != first
    monkeypatch.setattr("kerasseg.evaluation.bootstrap._CHUNK", 100)
    chunked = bootstrap_interval(values, groups, seed=3)
    # The same draws, added up in another order.
    assert (chunked.low, chunked.high) == pytest.approx((first.low, first.high), rel=1e-12)
    assert chunked.estimate == first.estimate


def test_a_gain_that_two_intervals_hide():
    values, groups = patients()
    better = values + 0.02 + RNG.normal(0, 0.005, len(values))
    gain = paired_interval(values, better, groups)
    assert gain == bootstrap_interval(better - values, groups)
    assert gain.above_zero
    assert bootstrap_interval(values, groups).high > bootstrap_interval(better, groups).low
    assert paired_interval(values, values, groups).above_zero is False


def test_slices_without_a_value_are_left_out():
    values, groups = patients()
    holes = values.copy()
    holes[::3] = np.nan
    kept = ~np.isnan(holes)
    assert bootstrap_interval(holes, groups) == bootstrap_interval(values[kept], groups[kept])
    other = values + 0.1
    other[1::3] = np.nan
    both = kept & ~np.isnan(other)
    assert paired_interval(holes, other, groups) == paired_interval(holes[both], other[both], groups[both])


def test_unknown_patients_are_each_their_own():
    values = np.linspace(0, 1, 12)
    assert bootstrap_interval(values, [""] * 12) == bootstrap_interval(values)
    assert bootstrap_interval(values, ["a"] * 6 + [""] * 6).groups == 7


@given(names=st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=20))
@settings(max_examples=40)
def test_groups_are_numbered(names):
    numbers = group_numbers(names)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            assert (numbers[i] == numbers[j]) == (i == j or (one == other != ""))
    assert sorted(set(numbers)) == list(range(len(set(numbers))))


def test_too_little_to_say_anything():
    nothing = bootstrap_interval([np.nan, np.nan], ["a", "b"])
    assert np.isnan([nothing.estimate, nothing.low, nothing.high]).all()
    assert (nothing.slices, nothing.groups) == (0, 0)
    assert np.isnan(bootstrap_interval([]).estimate)
    alone = bootstrap_interval([0.2, 0.4], ["a", "a"])
    assert alone.estimate == pytest.approx(0.3)
    assert np.isnan([alone.low, alone.high]).all()
    assert not alone.above_zero
    assert alone.few
    assert str(Interval(0.71234, 0.69, 0.7333)) == "0.712 (95 % 0.690 to 0.733)"


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (([[0.5]],), {}),
        (([0.5, 0.6], ["a"]), {}),
        (([0.5],), {"confidence": 1.0}),
        (([0.5],), {"resamples": 0}),
    ],
)
def test_what_cannot_be_computed_is_refused(arguments, options):
    with pytest.raises(UsageError):
        bootstrap_interval(*arguments, **options)
    with pytest.raises(UsageError, match="paired values do not fit"):
        paired_interval([0.5], [0.5, 0.6])


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Forty patients, slices alike within a patient, true mean 0.6; drawing slices instead would hold it far less often."""
    rng = np.random.default_rng(11)
    held = {"patients": 0, "slices": 0}
    tries = 250
    for _ in range(tries):
        sizes = rng.integers(2, 9, 40)
        values = np.repeat(rng.normal(0.6, 0.15, 40), sizes) + rng.normal(0, 0.03, sizes.sum())
        groups = np.repeat(np.arange(40), sizes)
        for name, found in (
            ("patients", bootstrap_interval(values, groups, resamples=500)),
            ("slices", bootstrap_interval(values, resamples=500)),
        ):
            held[name] += found.low <= 0.6 <= found.high
    assert 0.89 <= held["patients"] / tries <= 0.985
    assert held["slices"] / tries < 0.8
