"""Scores against plain NumPy, and the means that Keras metrics make of them."""

import itertools
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kerasseg.losses import DiceBCELoss
from kerasseg.metrics import (
    MEASURES,
    ClassScores,
    DiceScore,
    IoU,
    Precision,
    Recall,
    SoftDice,
    slice_scores,
)
from kerasseg_tfrecords.errors import UsageError

METRICS = (DiceScore, SoftDice, IoU, Precision, Recall)


def plain(mask, p, threshold=0.5):
    """One slice, with sets of pixels and the table of edge cases."""
    a = {tuple(i) for i in np.argwhere(mask > 0.5)}
    b = {tuple(i) for i in np.argwhere(p >= np.float32(threshold))}
    if not a and not b:
        return {**dict.fromkeys(MEASURES, 1.0), "tumour": 0.0}
    soft = 2 * float(p[mask > 0.5].astype(float).sum()) / (len(a) + float(p.astype(float).sum()))
    return {
        "dice": 2 * len(a & b) / (len(a) + len(b)),
        "soft_dice": soft,
        "iou": len(a & b) / len(a | b),
        "precision": len(a & b) / len(b) if b else 0.0,
        "recall": len(a & b) / len(a) if a else 0.0,
        "tumour": 1.0,
    }


def batch(seed=0, n=6, size=8):
    rng = np.random.default_rng(seed)
    masks = (rng.random((n, size, size, 1)) < rng.choice([0, 0.05, 0.5], (n, 1, 1, 1))).astype("float32")
    p = rng.random((n, size, size, 1), np.float32) * rng.choice([0.3, 0.55, 1.0], (n, 1, 1, 1)).astype("float32")
    return masks, p


@given(seed=st.integers(0, 5000), threshold=st.floats(0.0625, 1, width=32))
def test_scores_equal_sets_of_pixels(seed, threshold):
    masks, p = batch(seed)
    scores = slice_scores(masks, p, threshold)
    for i in range(len(masks)):
        for name, value in plain(masks[i], p[i], threshold).items():
            assert float(getattr(scores, name)[i]) == pytest.approx(value, abs=1e-6), name


def test_table_of_edge_cases():
    mask, p = np.zeros((4, 4, 4, 1), "float32"), np.zeros((4, 4, 4, 1), "float32")
    p[1, 0, 0] = 0.9  # false alarm
    mask[2, 0, 0] = 1  # missed
    mask[3, 0, 0] = 1
    p[3, 0, 0] = 0.5  # at the threshold counts
    scores = slice_scores(mask, p)
    assert scores.dice.numpy().tolist() == [1, 0, 0, 1]
    assert scores.iou.numpy().tolist() == [1, 0, 0, 1]
    assert scores.precision.numpy().tolist() == [1, 0, 0, 1]
    assert scores.recall.numpy().tolist() == [1, 0, 0, 1]
    assert scores.tumour.numpy().tolist() == [0, 1, 1, 1]


def test_perfect_large_and_missed_single_pixel_is_a_half():
    masks = np.zeros((3, 64, 64, 1), "float32")
    masks[0, 8:48, 8:48] = 1
    masks[1, 60, 60] = 1
    p = masks * np.array([1, 0, 1], "float32")[:, None, None, None]
    assert float(DiceScore()(masks[:2], p[:2])) == 0.5
    assert float(DiceScore()(masks, p)) == pytest.approx(2 / 3)  # both empty counts 1 among all slices
    assert float(DiceScore(subset="tumour")(masks, p)) == 0.5  # and does not enter here


def test_nan_is_never_no_tumour():
    p = np.full((2, 4, 4, 1), np.nan, "float32")
    p[1] = 0
    scores = slice_scores(np.zeros((2, 4, 4, 1)), p)
    for name in MEASURES:
        assert np.isnan(getattr(scores, name)[0])
        assert float(getattr(scores, name)[1]) == 1
    assert math.isnan(float(DiceScore(subset="tumour")(np.zeros((2, 4, 4, 1)), p)))


def test_logits():
    masks, p = batch(3)
    p = np.clip(p, 1e-3, 1 - 1e-3)
    logits = np.log(p / (1 - p))
    a, b = slice_scores(masks, p, 0.4), slice_scores(masks, logits, 0.4, from_logits=True)
    for name in MEASURES:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-5)


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("subset", ["all", "tumour"])
def test_mean_over_slices_whatever_the_batches(kind, subset):
    masks, p = batch(7, n=11)
    rows = [plain(m, q) for m, q in zip(masks, p, strict=True)]
    expected = np.mean([r[kind.measure] for r in rows if subset == "all" or r["tumour"]])
    for cuts in ([0, 11], [0, 1, 4, 11], [0, 10, 11]):
        metric = kind(subset=subset)
        for a, b in itertools.pairwise(cuts):
            metric.update_state(masks[a:b], p[a:b])
        assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    metric.reset_state()
    assert math.isnan(float(metric.result()))


@given(seed=st.integers(0, 1000), weights=st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=6, max_size=6))
def test_weights(seed, weights):
    masks, p = batch(seed)
    p[np.array(weights) == 0] = np.nan  # what fills a batch up may be anything
    metric = DiceScore()
    metric.update_state(masks, p, np.array(weights, "float32")[:, None])
    rows = [(w, plain(m, q)["dice"]) for w, m, q in zip(weights, masks, p, strict=True) if w]
    if rows:
        expected = sum(w * d for w, d in rows) / sum(w for w, _ in rows)
        assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    else:
        assert math.isnan(float(metric.result()))


def test_float16_predictions_count_large_tumours_exactly():
    masks = np.ones((1, 300, 300, 1), "float32")
    assert float(DiceScore()(masks, tf.ones((1, 300, 300, 1), tf.float16))) == 1.0
    keras.config.set_dtype_policy("mixed_float16")
    try:
        assert {v.dtype for v in DiceScore().variables} == {"float32"}
    finally:
        keras.config.set_dtype_policy("float32")


def test_classes():
    masks, p = batch(11, n=8)
    labels = np.array([0, 1, 0, 2, 1, -1, 0, 7])
    metric = ClassScores(["glioma", "meningioma", "pituitary", "none"], MEASURES)
    for rows in (slice(0, 3), slice(3, 8)):
        metric.update_state(masks[rows], p[rows], labels=labels[rows])
    found = metric.result()
    for c, name in enumerate(metric.classes[:3]):
        for measure in MEASURES:
            expected = np.mean([plain(m, q)[measure] for m, q, k in zip(masks, p, labels, strict=True) if k == c])
            assert float(found[f"{measure}_{name}"]) == pytest.approx(expected, abs=1e-6)
    assert all(math.isnan(float(found[f"{measure}_none"])) for measure in MEASURES)


def test_a_nan_stays_in_its_class_and_weight_0_keeps_it_out():
    masks, p = batch(11, n=4)
    p[0] = np.nan
    metric = ClassScores(["a", "b"], ["dice"])
    metric.update_state(masks, p, labels=[0, 1, 1, 0])
    assert math.isnan(float(metric.result()["dice_a"]))
    assert not math.isnan(float(metric.result()["dice_b"]))
    metric.reset_state()
    metric.update_state(masks, p, np.array([0, 1, 1, 1.0]), labels=[0, 1, 1, 0])
    assert float(metric.result()["dice_a"]) == pytest.approx(plain(masks[3], p[3])["dice"], abs=1e-6)


@pytest.mark.parametrize("kind", METRICS)
def test_names_and_direction(kind):
    assert [kind().name, kind().name] == [kind.measure] * 2, "no counting through within a process"
    assert kind(subset="tumour").name == f"{kind.measure}_tumour"
    assert kind()._direction == "up"


@pytest.mark.parametrize(
    "metric",
    [
        DiceScore(0.3, "tumour", "mine", from_logits=True),
        IoU(0.7),
        ClassScores(["a", "b"], ["iou", "dice"], 0.2, "tumour"),
    ],
)
def test_serialises_as_json(metric):
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(metric))))
    assert type(again) is type(metric)
    assert again.get_config() == metric.get_config()


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiceScore(0),
        lambda: DiceScore(float("nan")),
        lambda: DiceScore(1.5),
        lambda: DiceScore(subset="some"),
        lambda: ClassScores([]),
        lambda: ClassScores(["a", "a"]),
        lambda: ClassScores(["a"], ["hd95"]),
    ],
)
def test_refuses_arguments(make):
    with pytest.raises(UsageError):
        make()


def test_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="one weight per slice"):
        DiceScore().update_state(np.ones((2, 4, 4, 1)), np.ones((2, 4, 4, 1)), np.ones((2, 4, 4, 1)))
    with pytest.raises(ValueError, match="one shape"):
        slice_scores(np.ones((2, 4, 4, 1)), np.ones((3, 4, 4, 1)))


def test_in_plain_keras_with_mode_auto_and_padded_rows(tmp_path):
    source = keras.Input((8, 8, 1))
    model = keras.Model(source, keras.layers.Activation("linear")(source))
    masks, p = batch(2, n=8)
    weights = np.array([1] * 5 + [0] * 3, "float32")
    model.compile(loss=DiceBCELoss(), weighted_metrics=[DiceScore(), DiceScore(subset="tumour")])
    found = model.evaluate(p, masks, sample_weight=weights, batch_size=4, verbose=0, return_dict=True)
    rows = [plain(m, q) for m, q in zip(masks[:5], p[:5], strict=True)]
    assert found["dice"] == pytest.approx(np.mean([r["dice"] for r in rows]), abs=1e-6)
    assert found["dice_tumour"] == pytest.approx(np.mean([r["dice"] for r in rows if r["tumour"]]), abs=1e-6)
    source = keras.Input((8, 8, 1))
    model = keras.Model(source, keras.layers.Conv2D(1, 1, activation="sigmoid")(source))
    model.compile("adam", "mse", weighted_metrics=[DiceScore()])
    best = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras", monitor="val_dice", mode="auto", save_best_only=True)
    model.fit(p, masks, validation_data=(p, masks), verbose=0, callbacks=[best])
    assert best.monitor_op is keras.ops.greater
