"""Intervals and tests against their definitions, and against the truth that intervals should contain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm as normal
from scipy.stats import t as student

from kerasseg.evaluation.bootstrap import Interval, bootstrap_interval, group_numbers, paired_interval, sign_flip_p
from kerasseg.evaluation.figures import USUAL, as_mean
from kerasseg_tfrecords.errors import UsageError

RNG = np.random.default_rng(5)


def patients(many=25):
    """Slices of patients of very different sizes, alike within one."""
    sizes = RNG.integers(1, 12, many)
    groups = np.repeat([f"p{i}" for i in range(many)], sizes)
    values = np.repeat(RNG.uniform(0.3, 0.9, many), sizes) + RNG.normal(0, 0.02, len(groups))
    return values, groups


def by_matrices(values, groups):
    """CR2 standard error of a mean over slices and its degrees of freedom, from (patients x patients) matrices."""
    names, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.array([values[members == i].mean() for i in range(len(names))])
    share = sizes / sizes.sum()
    residual = np.eye(len(names)) - np.outer(np.ones(len(names)), share)
    form = residual.T @ np.diag(share**2 / (1 - share)) @ residual
    return np.sqrt(means @ form @ means), np.trace(form) ** 2 / np.trace(form @ form)


@pytest.mark.parametrize("many", [2, 3, 7, 25])
def test_equals_the_cluster_robust_interval_from_matrices(many):
    values, groups = patients(many)
    found = bootstrap_interval(values, groups)
    error, freedom = by_matrices(values, groups)
    reach = student.ppf(0.975, freedom) * error
    assert found.estimate == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert (found.slices, found.groups, found.few) == (len(values), many, many < 5)


def test_patients_of_equal_size_give_the_usual_t_interval():
    found = bootstrap_interval([0.1, 0.2, 0.6, 0.7, 0.4])
    low, high = student.interval(0.95, 4, 0.4, np.std([0.1, 0.2, 0.6, 0.7, 0.4], ddof=1) / np.sqrt(5))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_slices_of_a_patient_are_no_independent_observations():
    values, groups = patients()
    by_patient, by_slice = bootstrap_interval(values, groups), bootstrap_interval(values)
    assert by_slice.high - by_slice.low < 0.7 * (by_patient.high - by_patient.low)
    assert by_slice.groups == len(values)


def test_the_sign_flip_test_counts_every_pattern_of_signs():
    sums = RNG.normal(0.3, 1, 9)
    flipped = [abs(np.dot(signs, sums)) for signs in itertools.product((1, -1), repeat=9)]
    assert sign_flip_p(sums) == pytest.approx(np.mean(np.array(flipped) >= abs(sums.sum()) - 1e-12))
    assert sign_flip_p(np.zeros(4)) == 1
    # Drawn flips and the normal limit agree with one another.
    many = RNG.normal(0.1, 1, 400)
    assert sign_flip_p(many) == pytest.approx(2 * normal.sf(abs(many.sum()) / np.sqrt((many**2).sum())), abs=0.02)
    assert sign_flip_p(np.concatenate([many, np.zeros(200)])) == pytest.approx(sign_flip_p(many), abs=0.02)


def test_a_difference_is_clear_only_with_enough_patients_and_where_the_sign_flip_test_agrees():
    same = paired_interval(np.zeros(5), np.array([0.1, 0.101, 0.102, 0.1, 0.101]))
    # Five patients have 32 patterns of signs, so that p cannot be below 1 / 16, however narrow the interval.
    assert same.low > 0
    assert (same.p, same.clear, same.above_zero) == (0.0625, False, False)
    six = paired_interval(np.zeros(6), np.array([-0.1, -0.099, -0.098, -0.1, -0.099, -0.1]))
    assert (six.p, six.clear, six.above_zero) == (0.03125, True, False)
    assert not paired_interval(np.zeros(4), np.array([0.1, 0.101, 0.102, 0.1])).clear
    assert as_mean(same).clear is False
    assert as_mean(six).clear is True
    assert as_mean(bootstrap_interval(np.full(6, 0.3))).clear is None


def test_with_fewer_than_five_patients_reports_show_no_limits():
    values = [0.2, 0.3, 0.5, 0.4]
    assert not np.isnan(bootstrap_interval(values).low)
    assert as_mean(bootstrap_interval(values)).low is None
    assert as_mean(bootstrap_interval([*values, 0.1])).low is not None


def test_reports_show_no_dice_or_gain_that_cannot_be():
    groups, before, after = list("abcdeee"), np.zeros(7), np.array([1.0, 0.9, 0, 0, 0, 0, 0])
    plain = paired_interval(before, after, groups)
    assert plain.low < -plain.estimate
    cut = plain.cut(-0.1, 0.2)
    assert (cut.low, cut.high, cut.estimate, cut.p, cut.clear) == (-0.1, 0.2, plain.estimate, plain.p, plain.clear)
    assert np.isnan(bootstrap_interval([0.5], ["a"]).cut(0, 1).low)
    wide = np.array([1.0, -1, 1, -1, 1])
    assert (USUAL.paired(0 * wide, wide, None).low, USUAL.of(wide > 0, None, 1.0).high) == (-1, 1)


def test_a_gain_that_two_intervals_hide():
    values, groups = patients()
    better = values + 0.02 + RNG.normal(0, 0.005, len(values))
    gain = paired_interval(values, better, groups)
    alone = bootstrap_interval(better - values, groups)
    assert (gain.estimate, gain.low, gain.high) == (alone.estimate, alone.low, alone.high)
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


@pytest.mark.parametrize(("many", "least"), [(3, 0.9), (5, 0.93), (12, 0.93)])
def test_intervals_contain_the_truth_as_often_as_they_say(many, least):
    """Patients with 1 to 20 slices, alike within a patient, a tenth of the slices missed."""
    rng = np.random.default_rng(11)
    tries, held = 600, 0
    for _ in range(tries):
        sizes = rng.integers(1, 21, many)
        values = np.repeat(rng.normal(0.6, 0.15, many), sizes) + rng.normal(0, 0.03, sizes.sum())
        missed = rng.random(len(values)) < 0.1
        found = bootstrap_interval(np.where(missed, 0, values), np.repeat(np.arange(many), sizes))
        held += found.low <= 0.54 <= found.high
    assert least - 0.015 <= held / tries <= 0.99
