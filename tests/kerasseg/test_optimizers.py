"""The optimizer against a step of AdamW written in plain NumPy."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.optimizers import DecayedAdam, decays, set_l2
from kerasseg_tfrecords.errors import UsageError


def network(seed=0):
    keras.utils.set_random_seed(seed)
    x = source = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(3, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.LayerNormalization(axis=[1, 2, 3], name="ln")(x)
    x = keras.layers.Conv2DTranspose(2, 2, name="up")(x)
    model = keras.Model(source, x)
    rng = np.random.default_rng(seed)
    model.set_weights([w + rng.normal(0, 0.1, w.shape).astype("float32") for w in model.get_weights()])
    return model


def adamw(w, gradients, rate, decay, b1=0.9, b2=0.999, eps=1e-7):
    """Loshchilov and Hutter, algorithm 2, in float64."""
    w = w.astype(float)
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - rate * decay * w
        w = w - rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
    return w


KERNELS = {"conv/kernel", "up/kernel"}


def test_what_decays():
    assert {v.path for v in network().trainable_variables if decays(v)} == KERNELS
    assert not decays(tf.Variable(np.ones(3), name="g"))  # of a weight-normalised or Addons layer


def test_steps_equal_numpy_and_only_kernels_decay():
    model = network()
    before = {v.path: v.numpy() for v in model.trainable_variables}
    optimizer = DecayedAdam(1e-2, weight_decay=0.3)
    rng = np.random.default_rng(1)
    gradients = [[rng.normal(size=v.shape).astype("float32") for v in model.trainable_variables] for _ in range(3)]
    for step in gradients:
        optimizer.apply([tf.constant(g) for g in step], model.trainable_variables)
    for i, v in enumerate(model.trainable_variables):
        decay = 0.3 if v.path in KERNELS else 0.0
        expected = adamw(before[v.path], [step[i] for step in gradients], 1e-2, decay)
        np.testing.assert_allclose(v.numpy(), expected, atol=2e-6, err_msg=v.path)


@pytest.mark.slow
def test_frozen_variables_stay():
    model = network()
    model.get_layer("conv").trainable = False
    before = model.get_layer("conv").kernel.numpy()
    model.compile(DecayedAdam(1e-2, weight_decay=0.5), "mse")
    x = np.ones((2, 8, 8, 2), "float32")
    model.fit(x, np.zeros((2, 7, 7, 2)), verbose=0)
    assert (model.get_layer("conv").kernel.numpy() == before).all()


@pytest.mark.slow
def test_exclusion_survives_saving(tmp_path):
    model = network()
    model.compile(DecayedAdam(1e-3, weight_decay=0.5, global_clipnorm=2.0), "mse")
    x, y = np.ones((2, 8, 8, 2), "float32"), np.zeros((2, 7, 7, 2), "float32")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert type(again.optimizer) is DecayedAdam
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for m in (model, again):
        m.fit(x, y, verbose=0)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {v.path for v in again.trainable_variables if again.optimizer._use_weight_decay(v)} == KERNELS


@pytest.mark.parametrize("limit", [1.0, 1e9])
def test_clips_all_gradients_together(limit):
    model = network()
    before = [v.numpy() for v in model.trainable_variables]
    rng = np.random.default_rng(1)
    large = [[rng.normal(size=v.shape) * 10 ** (2 + t) for v in model.trainable_variables] for t in range(3)]
    optimizer = DecayedAdam(1e-2, 0, global_clipnorm=limit, epsilon=0.1)
    for step in large:
        optimizer.apply([tf.constant(g, tf.float32) for g in step], model.trainable_variables)
    norms = [np.sqrt(sum((g**2).sum() for g in step)) for step in large]
    clipped = [[g * min(1, limit / norm) for g in step] for step, norm in zip(large, norms, strict=True)]
    for i, v in enumerate(model.trainable_variables):
        expected = adamw(before[i], [step[i] for step in clipped], 1e-2, 0, eps=0.1)
        np.testing.assert_allclose(v.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1},
        {"clipnorm": 0},
        {"global_clipnorm": float("inf")},
    ],
)
def test_refuses_arguments(arguments):
    with pytest.raises(UsageError):
        DecayedAdam(**arguments)


def test_takes_a_schedule_and_serialises():
    optimizer = DecayedAdam(keras.optimizers.schedules.CosineDecay(1e-3, 10), clipnorm=1.0)
    data = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    assert keras.saving.deserialize_keras_object(data).get_config() == optimizer.get_config()


def test_l2_on_what_exists_already():
    model = network()
    assert set_l2(model, 0.25) == 2
    kernels = [v.numpy().astype(float) for v in model.trainable_variables if v.path in KERNELS]
    expected = 0.25 * sum((k**2).sum() for k in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)

    model.get_layer("conv").trainable = False
    assert float(sum(model.losses)) == pytest.approx(0.25 * (kernels[1] ** 2).sum(), rel=1e-5)
    model.get_layer("conv").trainable = True
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)

    set_l2(model, 0)
    assert model.losses == []


def test_l2_inside_fit_and_inside_another_model(tmp_path):
    inner = network()
    source = keras.Input((8, 8, 2))
    model = keras.Model(source, inner(source))
    assert set_l2(model, 0.1) == 2
    model.compile("sgd", "mse")
    x, y = np.ones((2, 8, 8, 2), "float32"), np.zeros((2, 7, 7, 2), "float32")
    data_loss = float(np.mean((np.asarray(model(x)) - y) ** 2))
    penalty = float(sum(model.losses))
    assert penalty > 0
    assert model.evaluate(x, y, verbose=0) == pytest.approx(data_loss + penalty, rel=1e-4)
    model.save(tmp_path / "m.keras")
    assert keras.saving.load_model(tmp_path / "m.keras").losses == []  # stays out of the file


def test_l2_refuses():
    with pytest.raises(UsageError):
        set_l2(network(), -1)
    with pytest.raises(UsageError, match="built"):
        set_l2(keras.Sequential([keras.layers.Dense(1)]), 0.1)
