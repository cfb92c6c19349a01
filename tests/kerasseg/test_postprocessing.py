"""Post-processing on a bounding box with OpenCV against a plain reference on the whole plane with SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

import kerasseg
from kerasseg import MaskRule, apply_rule, postprocess
from kerasseg_tfrecords.errors import UsageError

EIGHT = np.ones((3, 3), bool)


def plain(mask: NDArray[np.bool_], rule: MaskRule) -> NDArray[np.bool_]:
    """The same steps in a plane that is large enough for nothing to reach its edge."""
    width, room = max(mask.shape), max(mask.shape) + 2
    out = np.pad(mask, room)

    def disk(radius: float) -> NDArray[np.bool_]:
        reach = math.ceil(radius)
        rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        return np.asarray(rows**2 + columns**2 <= radius**2)

    labels, count = ndimage.label(out, EIGHT)
    for i in range(1, count + 1):
        if (labels == i).sum() < math.pi / 4 * (rule.min_diameter * width) ** 2:
            out = out & (labels != i)
    out = ndimage.binary_closing(out, disk(rule.close_radius * width))
    if rule.fill_holes:
        out = ndimage.binary_fill_holes(out)
    if rule.keep_largest:
        labels, count = ndimage.label(out, EIGHT)
        if count:
            out = labels == 1 + np.argmax([(labels == i).sum() for i in range(1, count + 1)])
    out = ndimage.binary_opening(out, disk(rule.open_radius * width))
    return np.asarray(out[room:-room, room:-room])


rules = st.builds(
    MaskRule,
    min_diameter=st.sampled_from([0.0, 0.1, 0.2, 0.4]),
    close_radius=st.sampled_from([0.0, 0.05, 0.1, 0.125, 0.2]),
    fill_holes=st.booleans(),
    keep_largest=st.booleans(),
    open_radius=st.sampled_from([0.0, 0.05, 0.1, 0.125]),
)
sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))


@given(sizes.flatmap(lambda size: arrays(bool, size)), rules)
def test_it_is_what_plain_morphology_gives(mask: NDArray[np.bool_], rule: MaskRule) -> None:
    assert np.array_equal(postprocess(mask, rule), plain(mask, rule))


@pytest.mark.parametrize("seed", range(8))
def test_on_blobs_too(seed: int) -> None:
    """What noise alone would rarely make: large objects, holes, gaps, objects at the edge."""
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(0, 1, (60, 80)), 2) > 0.03
    changed = 0
    for rule in (
        MaskRule(min_diameter=0.05),
        MaskRule(close_radius=0.03),
        MaskRule(fill_holes=True),
        MaskRule(keep_largest=True),
        MaskRule(open_radius=0.03),
        MaskRule(min_diameter=0.1, close_radius=0.04, fill_holes=True, keep_largest=True, open_radius=0.05),
    ):
        found = postprocess(mask, rule)
        assert np.array_equal(found, plain(mask, rule))
        changed += not np.array_equal(found, mask)
    assert changed >= 5


def test_objects_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((10, 10), bool)
    mask[[2, 3, 4], [2, 3, 4]] = True
    mask[8, 8] = True
    assert postprocess(mask, MaskRule(keep_largest=True)).sum() == 3
    # A ring that closes over corners holds its hole.
    ring = np.zeros((5, 5), bool)
    ring[[1, 2, 2, 3], [2, 1, 3, 2]] = True
    assert postprocess(ring, MaskRule(fill_holes=True))[2, 2]


def test_of_equal_objects_the_first_in_reading_order_stays() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1:3, 6:8] = mask[1:3, 0:2] = mask[6:8, 3:5] = True
    kept = postprocess(mask, MaskRule(keep_largest=True))
    assert kept.sum() == 4
    assert kept[1, 0]


def test_a_gap_to_the_edge_of_the_slice_is_no_gap() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:15, 2:10] = True
    assert not postprocess(mask, MaskRule(close_radius=0.2))[10, 0]


def test_the_order_of_the_steps() -> None:
    """Small objects go before they could be joined to others; the largest is chosen after gaps were closed."""
    mask = np.zeros((40, 40), bool)
    mask[5:11, 5:11] = mask[5:11, 13:19] = True
    mask[25:34, 5:13] = True
    joined = postprocess(mask, MaskRule(close_radius=0.05, keep_largest=True))
    assert joined[8, 12]
    assert not joined[30, 8]
    mask[8, 12] = True
    mask[20, 20] = True
    assert not postprocess(mask, MaskRule(min_diameter=0.06, close_radius=0.025))[20, 20]


def test_lengths_are_shares_of_the_longer_side() -> None:
    """The same rule at twice the size, and on a slice that lies on its side."""
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(0, 1, (40, 60)), 2) > 0.1
    rule = MaskRule(min_diameter=0.12)
    tidy = postprocess(mask, rule)
    assert 0 < tidy.sum() < mask.sum()
    assert np.array_equal(postprocess(mask.T, rule), tidy.T)
    assert np.array_equal(postprocess(mask.repeat(2, 0).repeat(2, 1), rule), tidy.repeat(2, 0).repeat(2, 1))
    # A part of the slice needs the width of the whole.
    assert np.array_equal(
        postprocess(mask[:, :30], rule, width=60), postprocess(np.pad(mask[:, :30], ((0, 0), (0, 30))), rule)[:, :30]
    )


def test_the_given_mask_stays_as_it_is() -> None:
    mask = np.eye(8, dtype=bool)
    before = mask.copy()
    out = postprocess(mask, MaskRule(open_radius=0.2))
    assert not out.any()
    assert np.array_equal(mask, before)
    assert postprocess(mask, MaskRule()) is not mask


def test_masks_of_numbers_and_empty_ones() -> None:
    assert postprocess(np.array([[0.2, 0.7]]), MaskRule()).tolist() == [[False, True]]
    everything = MaskRule(min_diameter=0.1, close_radius=0.2, fill_holes=True, keep_largest=True, open_radius=0.2)
    assert not postprocess(np.zeros((8, 8), bool), everything).any()
    assert postprocess(np.zeros((0, 0), bool), everything).shape == (0, 0)


def test_apply_rule_compares_as_float32_and_knows_the_class() -> None:
    rule = MaskRule(threshold=0.3, class_thresholds={"glioma": 0.6})
    found = np.full((2, 2), np.float32(0.3))
    # As float64 the float32 of 0.3 is above 0.3, and that of 0.7 below 0.7.
    assert apply_rule(found, rule).all()
    assert apply_rule(np.full((2, 2), np.float32(0.7)), MaskRule(threshold=0.7)).all()
    assert not apply_rule(found, rule, "glioma").any()
    assert apply_rule(found, rule, "pituitary").all()


def test_sizes_that_do_not_fit_are_said() -> None:
    with pytest.raises(UsageError, match="two dimensions"):
        postprocess(np.zeros((2, 4, 4), bool), MaskRule(fill_holes=True))
    with pytest.raises(UsageError, match="two dimensions"):
        kerasseg.apply_rule(np.zeros(4), MaskRule())
