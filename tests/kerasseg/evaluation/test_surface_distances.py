"""Distances against published figures and plain geometry; overlap against the scores that training shows."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

import kerasseg
from kerasseg.evaluation.overlap import dice
from kerasseg.evaluation.scoring import mask_scores
from kerasseg.evaluation.surface_distances import hd95, surface_distances
from kerasseg_tfrecords.errors import UsageError

FIGURES = ("hd95", "hd", "assd", "masd")


def disk(radius, row, column, size=256):
    rows, columns = np.ogrid[:size, :size]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def square(rows, columns, size=14):
    mask = np.zeros((size, size), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def figures(prediction, reference, spacing=(1.0, 1.0)):
    found = surface_distances(prediction, reference, spacing)
    return [getattr(found, name) for name in FIGURES]


def plain(prediction, reference, spacing):
    """HD95, HD, ASSD, MASD pixel by pixel: neighbours looked up, every border pixel against every other."""

    def border(mask):
        inside = {tuple(p) for p in np.argwhere(mask)}
        near = [tuple(sign * (i == axis) for i in range(mask.ndim)) for axis in range(mask.ndim) for sign in (1, -1)]
        return [p for p in inside if any(tuple(a + b for a, b in zip(p, n, strict=True)) not in inside for n in near)]

    def directed(sources, targets):
        return [min(math.dist(scaled(p), scaled(q)) for q in targets) for p in sources]

    def scaled(pixel):
        return [a * step for a, step in zip(pixel, spacing, strict=True)]

    a, b = border(prediction), border(reference)
    there, back = directed(a, b), directed(b, a)
    return [
        max(np.percentile(there, 95), np.percentile(back, 95)),
        max(there + back),
        np.mean(there + back),
        (np.mean(there) + np.mean(back)) / 2,
    ]


steps = st.sampled_from([0.25, 0.4883, 0.7, 1.0, 1.5, 6.0])


@st.composite
def mask_pairs(draw, shape=None):
    """Two masks of one size, both with something in them."""
    shape = shape or draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    pair = []
    for _ in range(2):
        mask = draw(arrays.arrays(bool, shape))
        mask[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True
        pair.append(mask)
    return pair


# Published figures


def test_stray_pixel_of_metrics_reloaded():
    """Figure 5c: the definitions of other libraries give 2.26 or 11.31 here."""
    reference = square((9, 12), (9, 12))
    prediction = reference.copy()
    prediction[1, 1] = True
    found = surface_distances(prediction, reference)
    assert found.hd95 == pytest.approx(0.6 * math.sqrt(128), abs=1e-12)  # 6.788: rank 7.6 of nine, eight of them 0
    assert found.hd == pytest.approx(11.31, abs=0.005)
    assert (found.to_reference.count, found.to_prediction.count) == (9, 8)
    assert found.to_prediction.largest == 0
    assert hd95(reference, prediction) == found.hd95


def test_cross_of_metrics_reloaded():
    """Figure 10: a square of 5x5 and the same with a cross of length 9."""
    reference = square((3, 8), (3, 8), 11)
    prediction = reference.copy()
    prediction[5, 1:10] = prediction[1:10, 5] = True
    found = surface_distances(prediction, reference)
    assert dice(prediction, reference) == pytest.approx(0.862, abs=0.0005)
    assert overlap(prediction, reference)[1] == pytest.approx(0.76, abs=0.005)
    assert found.assd == pytest.approx(0.44, abs=0.005)
    assert found.masd == pytest.approx(0.425, abs=0.0005)


@pytest.mark.parametrize(
    ("prediction", "masd", "assd"), [(square((6, 8), (6, 8)), 1.07, 1.10), (square((4, 10), (4, 10)), 1.04, 1.05)]
)
def test_squares_of_metrics_reloaded(prediction, masd, assd):
    """Supplementary figure 2.10 of the pitfalls: the same width of error inwards and outwards."""
    found = surface_distances(prediction, square((5, 9), (5, 9)))
    assert found.hd == pytest.approx(1.41, abs=0.005)
    assert found.masd == pytest.approx(masd, abs=0.005)
    assert found.assd == pytest.approx(assd, abs=0.005)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (disk(36, 128, 128), disk(40, 128, 131), 7.000),
        (disk(30, 80, 80) | disk(4, 168, 168), disk(30, 80, 80), 94.967),
        # Eight of 176 border pixels are under 5 %: this definition does not see the blob at all, HD and Dice do.
        (disk(30, 80, 80) | disk(2, 168, 168), disk(30, 80, 80), 0.000),
    ],
    ids=["shifted disk", "blob of radius 4", "blob of radius 2"],
)
def test_values_on_which_libraries_disagree(prediction, reference, expected):
    assert hd95(prediction, reference) == pytest.approx(expected, abs=0.0005)
    assert hd95(reference, prediction) == pytest.approx(expected, abs=0.0005)


def sphere(radius, centre, spacing=(1.0, 1.0, 1.0)):
    axes = np.ogrid[:99, :99, :99]
    return sum((axis * step - c) ** 2 for axis, step, c in zip(axes, spacing, centre, strict=True)) <= radius**2


def test_spheres_of_monai():
    """MONAI's own test values, volumes cut off by the image's edge included."""
    small, large = sphere(20, (20, 33, 22)), sphere(40, (20, 33, 22))
    found = surface_distances(small, large, (1, 1, 1))
    assert found.to_reference.largest == pytest.approx(20.09975124224178, abs=1e-12)
    assert found.hd == pytest.approx(20.223748416156685, abs=1e-12)
    assert found.to_reference.p95 == pytest.approx(19.924858845171276, abs=1e-12)
    assert found.hd95 == pytest.approx(20.09975124224178, abs=1e-12)


def test_spheres_of_monai_with_unequal_spacing():
    spacing = (0.85, 1.2, 0.9)
    found = surface_distances(sphere(20, (20, 20, 20), spacing), sphere(20, (19, 19, 19), spacing), spacing)
    assert found.to_reference.largest == pytest.approx(2.0808651447296143, rel=1e-6)
    assert found.hd == pytest.approx(2.2671568, rel=1e-6)


# Plain geometry


@given(pair=mask_pairs(), spacing=st.tuples(steps, steps))
def test_figures_equal_plain_geometry(pair, spacing):
    assert figures(*pair, spacing) == pytest.approx(plain(*pair, spacing), abs=1e-12)


@given(pair=mask_pairs((3, 4, 3)), spacing=st.tuples(steps, steps, steps))
def test_volumes_equal_plain_geometry(pair, spacing):
    assert figures(*pair, spacing) == pytest.approx(plain(*pair, spacing), abs=1e-12)


@pytest.mark.parametrize("shape", [(256, 256), (1024, 1024), (64, 1300), (1024, 1026)])
def test_both_distance_maps_are_exact(shape):
    """Square pixels go through OpenCV in single precision, others and larger ones through SciPy: the same to the bit."""
    rng = np.random.default_rng(0)
    pair = [rng.random(shape) < 2e-5 for _ in range(2)]
    for mask in pair:
        mask[tuple(rng.integers(0, shape))] = True
    pair[0][0, 0] = pair[1][-1, -1] = True  # the union is as large as the image
    found = surface_distances(*pair)
    # Specks have no inside: the mask is its border.
    there = ndimage.distance_transform_edt(~pair[1])[pair[0]]
    assert found.to_reference.largest == there.max()
    assert found.to_reference.mean == np.sort(there).mean()


def test_border_at_the_edge_of_the_image():
    """Beyond the image there is no mask, so that a tumour cut off there has its border on the edge."""
    whole, half = np.ones((6, 6), bool), np.ones((6, 6), bool)
    half[:, 3:] = False
    found = surface_distances(whole, half)
    assert found.to_reference.count == 20
    assert found.to_prediction.count == 14
    assert figures(whole, half) == pytest.approx(plain(whole, half, (1, 1)))


# What must not change the figures


@given(pair=mask_pairs(), spacing=st.tuples(steps, steps))
def test_swapping_swaps_the_directions_alone(pair, spacing):
    one, other = surface_distances(*pair, spacing), surface_distances(*pair[::-1], spacing)
    assert one.to_reference == other.to_prediction
    assert one.to_prediction == other.to_reference
    assert figures(*pair, spacing) == pytest.approx(figures(*pair[::-1], spacing), rel=1e-12)


@given(pair=mask_pairs(), spacing=st.tuples(steps, steps))
def test_mirrored_and_transposed_slices_have_the_same_figures(pair, spacing):
    expected = pytest.approx(figures(*pair, spacing), rel=1e-12)
    assert figures(*(mask[::-1] for mask in pair), spacing) == expected
    assert figures(*(mask[:, ::-1] for mask in pair), spacing) == expected
    assert figures(*(mask.T for mask in pair), spacing[::-1]) == expected


@given(pair=mask_pairs(), before=st.tuples(*[st.integers(0, 5)] * 2), after=st.tuples(*[st.integers(0, 5)] * 2))
def test_where_in_the_image_does_not_matter(pair, before, after):
    moved = [np.pad(mask, list(zip(before, after, strict=True))) for mask in pair]
    assert figures(*moved) == figures(*pair)


@given(pair=mask_pairs(), spacing=st.tuples(steps, steps), factor=st.sampled_from([0.5, 2.0, 0.1]))
def test_distances_scale_with_the_spacing(pair, spacing, factor):
    scaled = figures(*pair, [factor * step for step in spacing])
    assert scaled == pytest.approx([factor * value for value in figures(*pair, spacing)], rel=1e-12)


@given(mask=mask_pairs())
def test_a_mask_is_at_no_distance_from_itself(mask):
    assert figures(mask[0], mask[0]) == [0, 0, 0, 0]


@given(pair=mask_pairs())
def test_figures_keep_their_order(pair):
    found = surface_distances(*pair)
    assert 0 <= found.assd <= found.hd
    assert 0 <= found.hd95 <= found.hd < found.diagonal
    assert (found.hd95_or_diagonal, found.assd_or_diagonal) == (found.hd95, found.assd)


# The table of edge cases, row by row

EMPTY, TUMOUR = square((0, 0), (0, 0)), square((4, 8), (5, 9))
DIAGONAL = math.hypot(14 * 0.5, 14 * 2)


@pytest.mark.parametrize(
    ("reference", "prediction", "outcome", "distance", "finite"),
    [
        (EMPTY, EMPTY, "no_tumour", 0, 0),
        (EMPTY, TUMOUR, "false_alarm", math.inf, DIAGONAL),
        (TUMOUR, EMPTY, "missed", math.inf, DIAGONAL),
        (TUMOUR, TUMOUR, "compared", 0, 0),
    ],
)
def test_table_of_edge_cases(reference, prediction, outcome, distance, finite):
    spacing = (0.5, 2)
    found = surface_distances(prediction, reference, spacing)
    assert found.outcome == outcome
    assert figures(prediction, reference, spacing) == [distance] * 4
    assert hd95(prediction, reference, spacing) == distance
    assert (found.hd95_or_diagonal, found.assd_or_diagonal) == (finite, finite)
    assert found.diagonal == DIAGONAL
    assert (found.to_reference.count > 0, found.to_prediction.count > 0) == (prediction.any(), reference.any())


@pytest.mark.parametrize("value", [True, False])
def test_an_empty_volume_is_an_edge_case_too(value):
    found = surface_distances(np.zeros((2, 3, 4), bool), np.full((2, 3, 4), value), (1, 1, 1))
    assert found.outcome == ("missed" if value else "no_tumour")


def test_a_missed_tumour_cannot_leave_the_mean():
    """Where a miss is NaN, the mean over [missed, perfect] is 0: better than any network that finds both."""
    values = [hd95(EMPTY, TUMOUR), hd95(TUMOUR, TUMOUR)]
    assert np.nanmean(values) == math.inf
    assert np.isinf(values).sum() == 1


def test_no_hit_ranks_behind_a_miss():
    corners = [np.zeros((14, 14), bool) for _ in range(2)]
    corners[0][0, 0] = corners[1][-1, -1] = True
    found, missed = surface_distances(*corners), surface_distances(EMPTY, TUMOUR)
    assert found.hd95 == math.hypot(13, 13)
    assert found.hd95_or_diagonal < missed.hd95_or_diagonal


# Arguments


def test_masks_of_numbers_are_masks():
    stray = TUMOUR.copy()
    stray[1, 1] = True
    expected = surface_distances(stray, TUMOUR)
    for kind in ("uint8", "int64", "float32"):
        assert surface_distances(stray.astype(kind), TUMOUR.astype(kind)) == expected
    assert surface_distances(stray.tolist(), np.asfortranarray(TUMOUR)) == expected
    before = stray.copy(), TUMOUR.copy()
    surface_distances(stray, TUMOUR)
    assert np.array_equal(stray, before[0])
    assert np.array_equal(TUMOUR, before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": TUMOUR * 0.4}, r"the prediction is not a mask \(found 0.4.*threshold"),
        ({"prediction": TUMOUR * np.uint8(255)}, r"the prediction is not a mask \(found 255"),
        ({"reference": np.where(TUMOUR, np.nan, 0)}, r"the reference is not a mask \(found nan"),
        ({"reference": TUMOUR.astype(str)}, "the reference is not a mask"),
        ({"reference": TUMOUR[:-1]}, r"differ in size \(found \(14, 14\) and \(13, 14\)"),
        ({"spacing": (0.5, 0)}, r"invalid spacing \(found \(0.5, 0.0\).*in pixels"),
        ({"spacing": (0.5, math.nan)}, "invalid spacing"),
        ({"spacing": (0.5, -1)}, "invalid spacing"),
        ({"spacing": (0.5,)}, r"do not fit \(found a mask \(14, 14\) and 1 numbers"),
        ({"spacing": (1, 1, 1)}, "do not fit"),
        ({"prediction": TUMOUR[None], "reference": TUMOUR[None]}, r"do not fit .* one by one"),
        ({"prediction": TUMOUR[:0], "reference": TUMOUR[:0]}, "do not fit"),
        ({"prediction": TUMOUR[0], "reference": TUMOUR[0], "spacing": (1,)}, "do not fit"),
    ],
)
def test_arguments_that_cannot_be_meant(change, message):
    with pytest.raises(UsageError, match=message):
        surface_distances(**{"prediction": TUMOUR, "reference": TUMOUR, **change})


def test_results_are_values():
    found = surface_distances(TUMOUR, TUMOUR)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.outcome = "missed"
    assert all(type(value) is float for value in (*figures(TUMOUR, TUMOUR), found.diagonal, found.to_reference.mean))
    assert kerasseg.surface_distances(TUMOUR, TUMOUR) == found
    assert isinstance(found, kerasseg.SurfaceDistances)


# Overlap

SCORES = ("dice", "iou", "precision", "recall")


def overlap(prediction, reference):
    scores = mask_scores(prediction, reference, (0.0, 0.0))
    return [getattr(scores, name) for name in SCORES]


def batch_of_masks(seed, count=6, size=8):
    rng = np.random.default_rng(seed)
    return [rng.random((count, size, size)) < rng.choice([0, 0.05, 0.5], (count, 1, 1)) for _ in range(2)]


def test_overlap_equals_the_scores_of_training():
    """To the last bit of single precision: both divide the same whole numbers."""
    prediction, reference = batch_of_masks(0, 600)
    filled = zip(prediction.any((1, 2)).tolist(), reference.any((1, 2)).tolist(), strict=True)
    assert set(filled) == set(itertools.product([False, True], repeat=2))
    scores = kerasseg.slice_scores(reference[..., None].astype("float32"), prediction[..., None].astype("float32"))
    found = np.array([overlap(p, r) for p, r in zip(prediction, reference, strict=True)], "float32")
    for name, column in zip(SCORES, found.T, strict=True):
        assert np.array_equal(column, np.asarray(getattr(scores, name))), name
    assert np.array_equal(dice(prediction, reference).astype("float32"), found[:, 0])


@given(seed=st.integers(0, 5000))
def test_overlap_of_a_batch_is_that_of_its_slices(seed):
    prediction, reference = batch_of_masks(seed)
    whole = dice(prediction, reference)
    assert whole.shape == (6,)
    assert whole.dtype == np.float64
    assert whole.tolist() == [float(dice(p, r)) for p, r in zip(prediction, reference, strict=True)]
    assert whole.tolist() == dice(prediction[..., None], reference).tolist()


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        (EMPTY, EMPTY, (1, 1, 1, 1)),
        (EMPTY, TUMOUR, (0, 0, 0, 0)),
        (TUMOUR, EMPTY, (0, 0, 0, 0)),
        (TUMOUR, square((4, 8), (5, 13)), (2 / 3, 1 / 2, 1 / 2, 1)),
        (TUMOUR, square((10, 12), (0, 4)), (0, 0, 0, 0)),
    ],
)
def test_table_of_overlaps(reference, prediction, expected):
    assert overlap(prediction, reference) == pytest.approx(expected, abs=1e-15)
    assert float(dice(prediction, reference)) == pytest.approx(expected[0], abs=1e-15)


def test_overlap_of_no_slices_is_none():
    assert dice(np.zeros((0, 4, 4)), np.zeros((0, 4, 4))).shape == (0,)


@pytest.mark.parametrize("shape", [(16,), (4, 4, 1), (2, 4, 4, 3), (1, 2, 4, 4, 1)])
def test_overlap_of_no_slice_at_all(shape):
    with pytest.raises(UsageError, match="invalid shape of masks"):
        dice(np.zeros(shape), np.zeros(shape))


def test_overlap_takes_masks_alone():
    with pytest.raises(UsageError, match=r"the prediction is not a mask \(found 0.5"):
        dice(np.full((2, 4, 4), 0.5), np.ones((2, 4, 4)))
    with pytest.raises(UsageError, match="differ in size"):
        dice(np.ones((2, 4, 4)), np.ones((3, 4, 4)))
