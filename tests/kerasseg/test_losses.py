"""The loss against plain NumPy, one slice at a time."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kerasseg.losses import DiceBCELoss, class_weights
from kerasseg_tfrecords.errors import UsageError


def plain(mask, p, dice=1.0, bce=1.0, smooth=1.0, positive=1.0, squared=False):
    """One slice in float64, written from the formula."""
    g, p = mask.astype(float).ravel(), p.astype(float).ravel()
    sizes = (p**2).sum() + (g**2).sum() if squared else p.sum() + g.sum()
    overlap = (2 * (g * p).sum() + smooth) / (sizes + smooth)
    p = np.clip(p, 1e-7, 1 - 1e-7)
    entropy = -(positive * g * np.log(p) + (1 - g) * np.log(1 - p)).mean()
    return dice * (1 - overlap) + bce * entropy


def batch(seed=0, n=4, size=12, channels=1):
    rng = np.random.default_rng(seed)
    masks = (rng.random((n, size, size, channels)) < rng.random((n, 1, 1, 1)) * 0.5).astype("float32")
    masks[0] = 0
    return masks, rng.random((n, size, size, channels), np.float32)


@given(
    seed=st.integers(0, 1000),
    dice=st.floats(0, 2),
    bce=st.floats(0.1, 2),
    smooth=st.floats(0.01, 10),
    positive=st.floats(0.1, 10),
    squared=st.booleans(),
)
def test_equals_the_formula_slice_by_slice(seed, dice, bce, smooth, positive, squared):
    masks, p = batch(seed)
    loss = DiceBCELoss(dice, bce, smooth=smooth, positive_weight=positive, squared=squared, reduction="none")
    values = np.asarray(loss(masks, p))
    expected = [plain(m, q, dice, bce, smooth, positive, squared) for m, q in zip(masks, p, strict=True)]
    assert values.shape == (4,)
    np.testing.assert_allclose(values, expected, rtol=2e-5)


def test_reduced_is_the_mean_over_slices_and_one_slice_never_touches_another():
    masks, p = batch()
    alone = [float(DiceBCELoss()(masks[i : i + 1], p[i : i + 1])) for i in range(4)]
    assert float(DiceBCELoss()(masks, p)) == pytest.approx(np.mean(alone), rel=1e-6)


def test_large_perfect_and_missed_single_pixel_is_a_half_not_pooled():
    masks = np.zeros((2, 64, 64, 1), "float32")
    masks[0, 10:50, 10:50] = 1
    masks[1, 5, 5] = 1
    p = masks.copy()
    p[1] = 0
    dice_term = DiceBCELoss(bce_weight=0, smooth=1e-6)
    assert float(dice_term(masks, p)) == pytest.approx(0.5, abs=1e-5)
    assert float(keras.losses.Dice()(masks, p)) < 0.01  # the trap: pooled over the batch


def test_both_empty_costs_nothing_and_an_empty_target_gives_a_gradient():
    empty = tf.zeros((1, 16, 16, 1))
    assert float(DiceBCELoss()(empty, empty)) == pytest.approx(0, abs=1e-6)
    for loss in (DiceBCELoss(), DiceBCELoss(bce_weight=0), DiceBCELoss(dice_weight=0)):
        p = tf.Variable(tf.fill((1, 16, 16, 1), 0.01))
        with tf.GradientTape() as tape:
            value = loss(empty, p)
        assert float(tf.reduce_min(tape.gradient(value, p))) > 0, "every false pixel is pushed down"


def test_gradient_equals_finite_differences():
    masks, p = batch(n=2, size=4)
    p = 0.1 + 0.8 * p
    variable = tf.Variable(p)
    with tf.GradientTape() as tape:
        value = DiceBCELoss()(masks, variable)
    gradient = tape.gradient(value, variable).numpy()
    for place in [(0, 1, 2, 0), (1, 3, 3, 0), (1, 0, 1, 0)]:
        step = np.zeros_like(p, float)
        step[place] = 1e-5
        up, down = (np.mean([plain(m, q) for m, q in zip(masks, p + s, strict=True)]) for s in (step, -step))
        assert gradient[place] == pytest.approx((up - down) / 2e-5, rel=1e-3)


def test_logits_equal_probabilities_and_large_ones_stay_finite():
    masks, p = batch()
    logits = np.log(p / (1 - p)).astype("float32")
    a = np.asarray(DiceBCELoss(from_logits=True, reduction="none")(masks, logits))
    np.testing.assert_allclose(a, np.asarray(DiceBCELoss(reduction="none")(masks, p)), atol=1e-5)
    wrong = np.where(masks > 0, -200.0, 200.0).astype("float32")
    assert np.isfinite(DiceBCELoss(from_logits=True)(masks, wrong))


def test_float16_predictions_are_summed_in_float32():
    masks = np.ones((1, 512, 512, 1), "float32")  # 262,144 pixels: beyond what float16 can count
    value = DiceBCELoss()(masks, tf.fill((1, 512, 512, 1), tf.cast(0.5, tf.float16)))
    assert value.dtype == tf.float32
    assert float(value) == pytest.approx(plain(masks, np.full(masks.shape, 0.5)), rel=1e-5)


def test_stays_float32_under_a_float16_default():
    keras.config.set_floatx("float16")
    try:
        assert DiceBCELoss().dtype == "float32"
    finally:
        keras.config.set_floatx("float32")


def test_masks_without_channel_axis_and_of_any_type():
    masks, p = batch()
    expected = np.asarray(DiceBCELoss(reduction="none")(masks, p))
    for same in (masks[..., 0], masks.astype(bool), masks[..., 0].astype("uint8")):
        np.testing.assert_allclose(np.asarray(DiceBCELoss(reduction="none")(same, p)), expected, rtol=1e-6)


def test_several_channels_are_averaged():
    masks, p = batch(channels=3)
    value = np.asarray(DiceBCELoss(bce_weight=0, reduction="none")(masks, p))
    each = [DiceBCELoss(bce_weight=0, reduction="none")(masks[..., c, None], p[..., c, None]) for c in range(3)]
    np.testing.assert_allclose(value, np.mean(each, axis=0), rtol=1e-5)


@pytest.mark.parametrize("weights", [[1, 0, 2, 0.5], [[1], [0], [2], [0.5]]])
def test_sample_weights(weights):
    masks, p = batch()
    values = np.array([plain(m, q) for m, q in zip(masks, p, strict=True)])
    expected = (values * np.ravel(weights)).mean()
    assert float(DiceBCELoss()(masks, p, np.array(weights, "float32"))) == pytest.approx(expected, rel=1e-5)
    # Rows that only fill up the batch: divided by the slices that count.
    mean = DiceBCELoss(reduction="mean_with_sample_weight")(masks, p, np.array([1, 1, 0, 0], "float32"))
    assert float(mean) == pytest.approx(values[:2].mean(), rel=1e-5)


def test_refuses_weights_a_pixel_and_shapes_that_would_broadcast():
    masks, p = batch()
    with pytest.raises(ValueError, match="one weight per slice"):
        DiceBCELoss()(masks, p, np.ones((4, 12, 12, 1)))
    for y_true in (masks[:, :6], np.ones((4, 12, 12, 2)), np.ones((4, 1, 12, 1)), np.ones((4,))):
        with pytest.raises(ValueError, match=r"one shape.*Received: y_true\.shape"):
            DiceBCELoss()(y_true, p)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dice_weight": -1},
        {"bce_weight": float("nan")},
        {"dice_weight": 0, "bce_weight": 0},
        {"smooth": 0},
        {"positive_weight": 0},
    ],
)
def test_refuses_arguments(arguments):
    with pytest.raises(UsageError):
        DiceBCELoss(**arguments)


def test_serialises_as_json():
    loss = DiceBCELoss(0.3, 0.7, smooth=2.0, positive_weight=4.0, squared=True, from_logits=True, name="mine")
    text = json.dumps(keras.saving.serialize_keras_object(loss))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(again) is DiceBCELoss
    assert again.get_config() == loss.get_config()


def test_trains_in_plain_keras_and_survives_saving(tmp_path):
    keras.utils.set_random_seed(1)
    source = keras.Input((8, 8, 1))
    model = keras.Model(source, keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(source))
    model.compile("adam", DiceBCELoss())
    x = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
    losses = model.fit(x, (x > 0.5).astype("float32"), epochs=4, batch_size=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert isinstance(again.loss, DiceBCELoss)


def test_class_weights_balance_and_keep_the_mean():
    labels = np.array(["a"] * 6 + ["b"] * 3 + ["c"])
    weights = class_weights(labels)
    assert weights.dtype == np.float32
    sums = [weights[labels == c].sum() for c in "abc"]
    np.testing.assert_allclose(sums, [10 / 3] * 3, rtol=1e-6)
    given_ = class_weights([0, 0, 1, 1], {0: 1, 1: 3})
    np.testing.assert_allclose(given_, [0.5, 0.5, 1.5, 1.5])


@pytest.mark.parametrize("weights", [{"a": 1}, {"a": 1, "b": 0}, {"a": 1, "b": float("inf")}, "equal"])
def test_class_weights_refused(weights):
    with pytest.raises(UsageError):
        class_weights(["a", "b"], weights)
