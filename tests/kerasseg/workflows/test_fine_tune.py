"""`fine_tune` against the run of the command line, for every form of slices; what it leaves of a network, and refuses."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasseg
from children import Children
from factories import write_figshare
from kerasseg.models.layers import fresh_part
from kerasseg.runs.history import read_history
from kerasseg.runs.settings import TrainSettings, parse_settings
from kerasseg.training.events import Evaluated, Step
from kerasseg.training.trainer import BrokenTrainingError
from kerasseg.workflows.train import train
from kerasseg_tfrecords import prepare, read_records
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.records.manifest import PrepareOptions

TIMES = {"seconds", "slices_per_second", "memory_mb"}
OPTIONS = {
    "epochs": 2,
    "learning_rate": 0.003,
    "loss": {"positive_weight": 20.0},
    "precision": "float32",
    "devices": ("CPU:0",),
    "seed": 7,
}
RNG = np.random.default_rng(0)
IMAGES = RNG.random((8, 16, 16, 1)).astype("float32")
MASKS = (IMAGES > 0.6).astype("uint8")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """27 training and 9 validation slices of three classes, 16 x 16."""
    folder = tmp_path_factory.mktemp("tiny")
    raw = write_figshare(folder / "raw", patients=15, slices_each=3, size=24)
    prepare(raw, folder / "shards", PrepareOptions(size=16, split="60/20/20"), jobs=1)
    return folder / "shards"


def network():
    return kerasseg.unet((16, 16, 1), filters=2, depth=2, seed=3)


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def lines(history, classes=True):
    """The rows without what a clock measures; NaN as text, so that it equals itself."""
    rows = []
    for row in history:
        cells = {key: value for key, value in asdict(row).items() if key not in TIMES | {"classes"}}
        cells |= {f"class {name}": score for name, score in row.classes.items()} if classes else {}
        rows.append({k: "nan" if isinstance(v, float) and math.isnan(v) else v for k, v in cells.items()})
    return rows


def assert_same(one, other, classes=True):
    for a, b in zip(lines(one, classes), lines(other, classes), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


@pytest.fixture(scope="module")
def session(shards, tmp_path_factory):
    """The same training as typed: from a checkpoint, in a run directory."""
    folder = tmp_path_factory.mktemp("session")
    network().save(folder / "net.keras")
    settings = parse_settings(shards=str(shards), checkpoint=str(folder / "net.keras"), batch_size=4, **OPTIONS)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.chdir(folder)
        ended, run = train(settings, folder / "run")
    return ended, run


def given(kind, shards):
    """The slices of the shards in each form, with the options that belong to it."""
    if kind == "shards":
        return shards, None, {"batch_size": 4}
    if kind == "data":
        own = {"batch_size": 4, "seed": 7}
        return kerasseg.TrainingData(shards, **own), kerasseg.EvaluationData(shards, "val", batch_size=5), {}
    if kind == "dataset":
        train = kerasseg.load_split(shards, "train", batch_size=4, seed=7)
        return train, kerasseg.load_split(shards, "val", batch_size=5), {}
    arrays = []
    for split in ("train", "val"):
        records = list(read_records(shards, [split]))
        names = kerasseg.TrainingData(shards).manifest.classes
        images, masks = (np.stack([getattr(r, name) for r in records]) for name in ("image", "mask"))
        # Names that sort as the manifest's order does: the order of the classes draws the batches.
        labels = [f"{r.label} {names[r.label]}" for r in records]
        arrays.append((images, masks, labels, [r.group for r in records]))
    return *arrays, {"batch_size": 4}


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shards", "data", "arrays", "dataset"])
def test_trains_as_the_command_line_does_whatever_the_slices_come_in(kind, shards, session):
    ended, run = session
    train, validation, options = given(kind, shards)
    model = network()
    done = kerasseg.fine_tune(model, train, validation, **OPTIONS, **options)
    assert_same(done.history, ended.history, classes=kind in ("shards", "data"))
    assert done.best.epoch == ended.best.epoch > 0
    best = kerasseg.open_checkpoint(run.model_file).get_weights()
    for a, b in zip(weights(model), best, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert done.frozen == ("encoder_1",)
    assert done.run is None
    assert done.gain.slices == 9
    # A tf.data.Dataset says nothing of patients and classes.
    assert done.gain.groups == (9 if kind == "dataset" else 3)
    assert set(done.best.classes) == {
        "dataset": {"all"},
        "arrays": {"0 meningioma", "1 glioma", "2 pituitary"},
    }.get(kind, {"meningioma", "glioma", "pituitary"})
    if kind != "dataset":
        assert list(done.best.classes.values()) == pytest.approx(list(ended.best.classes.values()), abs=1e-6)
        assert (done.gain.low, done.gain.high) == pytest.approx((ended.gain.low, ended.gain.high), abs=1e-6)
    assert f"{done.first.val_dice:.3f} -> {done.best.val_dice:.3f}" in str(done)


@pytest.mark.slow
def test_frozen_blocks_stay_and_the_network_comes_back_as_it_was():
    model = network()
    model.get_layer("decoder_1_conv_1").trainable = False  # the strategy trains it all the same
    model.get_layer("encoder_2_conv_1").dtype_policy = "mixed_float16"
    kerasseg.set_l2(model, 0.5)
    flags = [(layer.trainable, layer.dtype_policy.name) for layer in model.layers]
    before, during = weights(model), []
    names = [v.path for v in model.weights]

    def listen(event):
        if isinstance(event, Evaluated) and event.row.epoch == 1:
            during.append(weights(model))
            assert model.get_layer("encoder_2_conv_1").compute_dtype == "bfloat16"

    options = {**OPTIONS, "precision": "mixed_bfloat16", "epochs": 1, "batch_size": 4, "l2": 1e-3}
    done = kerasseg.fine_tune(model, (IMAGES, MASKS), (IMAGES, MASKS), observers=[listen], **options)
    moved = {n for n, a, b in zip(names, before, during[0], strict=True) if not np.array_equal(a, b)}
    assert moved
    assert not {name for name in moved if "encoder_1" in name}
    assert any("decoder_1_conv_1" in name for name in moved)
    assert done.precision == "mixed_bfloat16"
    assert [(layer.trainable, layer.dtype_policy.name) for layer in model.layers] == flags
    assert model.get_layer("head").kernel.regularizer.l2 == pytest.approx(0.5)
    assert not model.compiled


@pytest.mark.slow
def test_the_untouched_network_is_a_candidate(caplog):
    model = network()
    before = weights(model)
    with caplog.at_level(logging.WARNING, "kerasseg"):
        done = kerasseg.fine_tune(
            model, (IMAGES, MASKS), (IMAGES, MASKS), **{**OPTIONS, "learning_rate": 1e-12, "epochs": 1}
        )
    assert done.best is done.first
    assert "no epoch gained" in str(done)
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), before, strict=True))


@pytest.mark.rest
@pytest.mark.slow
def test_errors_in_the_middle_leave_the_best_weights():
    model = network()
    before = weights(model)
    with pytest.raises(BrokenTrainingError, match=r"NaN"):
        kerasseg.fine_tune(model, (IMAGES, MASKS), (IMAGES, MASKS), **{**OPTIONS, "learning_rate": 1e30})
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), before, strict=True))

    def stop(event):
        if isinstance(event, Step) and event.kind == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kerasseg.fine_tune(model, (IMAGES, MASKS), (IMAGES, MASKS), observers=[stop], **OPTIONS)
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), before, strict=True))


@pytest.mark.slow
def test_a_run_directory_is_one_like_others(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = network()
    done = kerasseg.fine_tune(model, shards, out="run", **{**OPTIONS, "epochs": 0, "batch_size": 4})
    assert done.run.root.name == "run"
    assert lines(read_history(done.run.history_file)) == lines(done.history)
    config = done.run.config()
    assert config.settings.checkpoint == "run/baseline.keras"
    assert config.settings.shards == str(shards)
    saved = kerasseg.open_checkpoint(done.run.baseline_file).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), saved, strict=True))


@pytest.mark.slow
def test_any_loss_of_keras_that_gives_one_value_a_slice():
    model = network()
    loss = keras.losses.Dice(axis=(1, 2, 3))
    done = kerasseg.fine_tune(model, (IMAGES, MASKS), (IMAGES, MASKS), **{**OPTIONS, "epochs": 0, "loss": loss})
    expected = loss(MASKS.astype("float32"), model.predict(IMAGES, verbose=0))
    assert done.first.val_loss == pytest.approx(float(expected), abs=1e-5)


def test_datasets_in_all_their_forms():
    """Weights, dictionaries, colour, bytes, batches of other sizes: what reaches the network, against plain slicing."""
    from kerasseg.training.tf_datasets import DatasetTraining, DatasetValidation

    images, masks = (255 * IMAGES).astype("uint8"), MASKS[..., 0]
    labels, fill = np.arange(8) % 2, np.array([1, 1, 0, 1, 1, 1, 1, 0], "float32")
    slices = {"image": images, "mask": masks, "label": labels, "weight": fill}
    data = DatasetValidation(tf.data.Dataset.from_tensor_slices(slices).batch(3), channels=3, batch_size=4)
    real = fill > 0
    assert data.labels.tolist() == labels[real].tolist()
    rows = [{name: part.numpy() for name, part in batch.items()} for batch in data.dataset()]
    assert [row["image"].shape for row in rows] == [(4, 16, 16, 3)] * 2
    assert data.steps == 2
    whole = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    assert whole["slice"].tolist() == [0, 1, -1, 2, 3, 4, 5, -1]
    np.testing.assert_allclose(whole["image"], np.repeat(images / 255, 3, axis=-1), atol=1e-6)
    np.testing.assert_array_equal(whole["mask"][..., 0], masks)

    data = DatasetValidation(tf.data.Dataset.from_tensor_slices((IMAGES[:5], MASKS[:5])).batch(2), 1, batch_size=4)
    assert [batch["slice"].numpy().tolist() for batch in data.dataset()] == [[0, 1, 2, 3], [4, -1, -1, -1]]

    training = DatasetTraining(tf.data.Dataset.from_tensor_slices((IMAGES, MASKS)).batch(3), channels=1)
    assert (training.batch_size, training.steps, training.count) == (3, 2, 8)
    got = [batch["image"].numpy() for batch in training.epoch(0)]
    np.testing.assert_array_equal(np.concatenate(got), IMAGES[:6])
    endless = tf.data.Dataset.from_tensor_slices((IMAGES, MASKS)).repeat().batch(3, drop_remainder=True)
    assert DatasetTraining(endless, 1, steps=5).steps == 5


def logits():
    source = keras.Input((16, 16, 1))
    return keras.Model(source, keras.layers.Conv2D(1, 3, padding="same")(source))


def pairs(images=IMAGES, masks=MASKS, batch=4):
    data = tf.data.Dataset.from_tensor_slices((images, masks))
    return data.batch(batch) if batch else data


@pytest.mark.parametrize(
    ("train", "validation", "options", "kind", "message"),
    [
        ((IMAGES, MASKS[:, :8]), None, {}, DataError, r"training slices have different shapes.*\(8, 8, 16, 1\)"),
        ((IMAGES, MASKS), (IMAGES[:0], MASKS[:0]), {}, DataError, "validation slices are empty"),
        ((IMAGES, MASKS), None, {}, UsageError, "validation cannot be used .found NoneType"),
        ((IMAGES, MASKS, [0, 1]), (IMAGES, MASKS), {}, UsageError, r"labels of the training slices do not fit"),
        ((IMAGES, MASKS), (IMAGES, MASKS, None, [1]), {}, UsageError, r"groups of the validation slices do not fit"),
        ((IMAGES,), (IMAGES, MASKS), {}, UsageError, "found 1 arrays"),
        ((IMAGES * 255, MASKS), (IMAGES, MASKS), {}, DataError, "out of range"),
        ((IMAGES, IMAGES), (IMAGES, MASKS), {}, DataError, "masks of the training slices"),
        ((IMAGES, MASKS), (IMAGES, 0 * MASKS), {}, DataError, "no slice of the validation split has a tumour"),
        (
            (IMAGES[:, :8], MASKS[:, :8]),
            (IMAGES, MASKS),
            {},
            UsageError,
            "training slices have a different size.*found 8 x 16",
        ),
        ((IMAGES, MASKS), (IMAGES, MASKS), {"batch_size": 9}, UsageError, "larger than the training split"),
        ((IMAGES, MASKS), (IMAGES, MASKS), {"learning_rate": 0}, UsageError, "learning_rate cannot be used"),
        ((IMAGES, MASKS), (IMAGES, MASKS), {"strategy": "timid"}, UsageError, "strategy cannot be used"),
        ((IMAGES, MASKS), (IMAGES, MASKS), {"rate": 1}, UsageError, "unknown option 'rate'"),
        ((IMAGES, MASKS), (IMAGES, MASKS), {"freeze": "encoder_9"}, UsageError, "encoder_9"),
        ((IMAGES, MASKS), (IMAGES, MASKS), {"cache": "disk"}, UsageError, "cache has no effect here"),
        ((IMAGES, MASKS), (IMAGES, MASKS), {"out": "run"}, UsageError, "needs a shard directory"),
        ((IMAGES, MASKS), (IMAGES, MASKS), {"class_weight": {"x": 2}}, UsageError, "unknown class"),
        ((IMAGES, MASKS), (IMAGES, MASKS), {"loss": keras.losses.Dice()}, UsageError, "one value per batch"),
        (pairs(), pairs(), {"batch_size": 4}, UsageError, "batch_size has no effect"),
        (pairs(batch=0), pairs(), {}, UsageError, "training dataset cannot be used"),
        (pairs().repeat(), pairs(), {}, UsageError, "is infinite"),
        (pairs(), pairs().repeat(), {}, UsageError, "is infinite"),
        (pairs().take(0), pairs(), {}, DataError, "contains no batch"),
        (pairs(), pairs().take(0), {}, DataError, "no slice of the validation"),
        (pairs(), pairs(IMAGES * 2), {}, DataError, "out of range"),
        (pairs(IMAGES * 255), pairs(), {}, DataError, "images of the training dataset are out of range"),
        (pairs(), pairs(IMAGES[:, :8], MASKS[:, :8]), {}, UsageError, "validation slices have a different size"),
        ("nowhere", None, {}, DataError, "nowhere"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_trained(train, validation, options, kind, message):
    with pytest.raises(kind, match=message):
        kerasseg.fine_tune(network(), train, validation, **options)


def test_networks_that_put_out_something_else(monkeypatch):
    slices = (IMAGES, MASKS)
    with pytest.raises(UsageError, match=r"found logits.*fit_to_task"):
        kerasseg.fine_tune(logits(), slices, slices)
    source = keras.Input((16, 16, 1))
    three = keras.Model(source, keras.layers.Conv2D(3, 3, padding="same", activation="sigmoid")(source))
    with pytest.raises(UsageError, match="found 3 channels"):
        kerasseg.fine_tune(three, slices, slices)
    with pytest.raises(UsageError, match="not a network that can be fine-tuned"):
        kerasseg.fine_tune(keras.layers.Dense(1), slices, slices)
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(UsageError, match="TF_CONFIG names several"):
        kerasseg.fine_tune(network(), slices, slices)


def test_the_options_are_those_of_the_recipe():
    """What is missing is what a network in memory has no use for."""
    from kerasseg.workflows.fine_tune import Recipe

    own = {"shards", "checkpoint", "architecture", "head", "network", "strategy", "encoder", "encoder_weights"}
    assert set(Recipe.__annotations__) == set(TrainSettings.model_fields) - own


TWO_DEVICES = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import kerasseg  # noqa: E402
images = np.random.default_rng(0).random((12, 16, 16, 1), "float32")
data = tf.data.Dataset.from_tensor_slices((images, (images > 0.6).astype("float32"))).batch(4)
results = []
for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
    model = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=1)
    options = {"epochs": 1, "learning_rate": 1e-3, "precision": "float32", "loss": {"positive_weight": 5.0}, "ema": 0.9}
    done = kerasseg.fine_tune(model, data, data, devices=devices, recalibrate_batchnorm=True, **options)
    assert done.best.epoch == 1
    assert done.history[-1].val_dice_ema >= 0
    results.append((done, model))
(one, a), (two, b) = results
assert two.devices.startswith("2 devices")
assert abs(one.history[1].val_loss - two.history[1].val_loss) < 1e-6
assert max(np.abs(x - y).max() for x, y in zip(a.get_weights(), b.get_weights(), strict=True)) < 1e-6
"""


@pytest.mark.rest
@pytest.mark.slow
def test_two_devices_train_a_copy_and_give_its_weights_back(tmp_path):
    done = Children(tmp_path).python(TWO_DEVICES)
    assert done.returncode == 0, done.stderr


@pytest.mark.rest
@pytest.mark.parametrize("strategy", [None, "conservative"])
def test_a_fresh_head_is_trained_in_two_stages_unless_a_strategy_is_given(strategy):
    fitted = kerasseg.fit_to_task(
        kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=1, classes=3), head="binary", seed=1
    )
    said = []
    done = kerasseg.fine_tune(
        *(fitted.model, (IMAGES, MASKS), (IMAGES, MASKS)),
        strategy=strategy,
        epochs=2,
        observers=[said.append],
        learning_rate=0.03,
        precision="float32",
        devices=("CPU:0",),
        batch_size=4,
    )
    notes = [event.text for event in said if getattr(event, "kind", "") == "two-stage"]
    if strategy is None:
        assert "The head has fresh weights" in notes[0]
        assert {row.phase for row in done.history} >= {"decoder"}
    else:
        assert not notes
        assert {row.phase for row in done.history} == {"conservative"}
    # Trained weights are not fresh: the next call has one stage.
    assert fresh_part(fitted.model) == (None if done.best.epoch else "head")


def test_the_mark_of_fresh_weights_follows_the_network():
    donor = keras.applications.MobileNetV3Small(
        (32, 32, 3), include_top=False, weights=None, include_preprocessing=False
    )
    model = kerasseg.unet((32, 32, 1), encoder="mobilenetv3small", encoder_weights=donor, decoder_filters=2)
    assert fresh_part(model) == "decoder"
    assert fresh_part(kerasseg.fit_to_task(model, size=64).model) == "decoder"
    assert fresh_part(kerasseg.fit_to_task(network()).model) is None
