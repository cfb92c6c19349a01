"""BatchNorm by the fused kernel against Keras' own, in outputs, gradients and moving statistics."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.training.batchnorm import fused_batchnorm


def network(dtype: str = "float32", *, trainable: bool = True, **options: Any) -> keras.Model:
    image = keras.Input((8, 6, 3))
    layer = keras.layers.BatchNormalization(name="norm", dtype=dtype, **options)
    model = keras.Model(image, layer(image))
    draw = np.random.default_rng(1)
    layer.set_weights([draw.uniform(0.5, 2, v.shape).astype(np.float32) for v in layer.weights])
    layer.trainable = trainable
    return model


def step(model: keras.Model, training: bool, *, fused: bool) -> list[np.ndarray]:
    """What comes out, the gradients of input and weights, and all weights afterwards."""
    image = tf.constant(np.random.default_rng(0).normal(3, 2, (4, 8, 6, 3)).astype(np.float32))
    upstream = tf.constant(np.random.default_rng(2).normal(0, 1, (4, 8, 6, 3)).astype(np.float32))
    before = model.get_weights()

    def run() -> list[Any]:
        sources = [image, *(v.value for v in model.trainable_variables)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            out = tf.cast(model(image, training=training), tf.float32)
            total = tf.reduce_sum(out * upstream)
        return [out, *tape.gradient(total, sources)]

    if fused:
        with fused_batchnorm(model):
            values = run()
    else:
        values = run()
    found = [np.asarray(v) for v in values] + model.get_weights()
    model.set_weights(before)
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("options", [{}, {"scale": False, "center": False}, {"momentum": 0.5, "epsilon": 0.1}])
def test_results_are_those_of_keras(training: bool, trainable: bool, options: dict[str, Any]) -> None:
    model = network(trainable=trainable, **options)
    for ours, theirs in zip(step(model, training, fused=True), step(model, training, fused=False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_bfloat16_goes_in_and_out_and_statistics_stay_float32() -> None:
    model = network("mixed_bfloat16")
    ours, theirs = (step(model, True, fused=fused) for fused in (True, False))
    # One digit of bfloat16 is 1/256 of the value.
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1 / 128, atol=1 / 128)
    for a, b in zip(ours[-2:], theirs[-2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_frozen_layer_keeps_its_statistics() -> None:
    model = network(trainable=False)
    after = step(model, True, fused=True)[-4:]
    for before, now in zip(model.get_weights(), after, strict=True):
        np.testing.assert_array_equal(before, now)


def test_it_is_really_used_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    kernel = tf.raw_ops.FusedBatchNormV3
    monkeypatch.setattr(tf.raw_ops, "FusedBatchNormV3", lambda **k: calls.append(k["is_training"]) or kernel(**k))
    model = network()
    step(model, True, fused=False)
    assert calls == []
    step(model, True, fused=True)
    step(model, False, fused=True)
    assert calls == [True, False]
    assert "call" not in vars(model.get_layer("norm"))


@pytest.mark.parametrize("trainable", [True, False])
def test_what_is_broken_stays_broken_behind_a_relu(trainable: bool) -> None:
    image = keras.Input((16, 16, 8))
    layer = keras.layers.BatchNormalization()
    model = keras.Model(image, keras.layers.ReLU()(layer(image)))
    layer.trainable = trainable

    @tf.function
    def run(x: Any) -> Any:
        with fused_batchnorm(model), tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(model(x, training=True))
        return total, tape.gradient(total, x)

    assert np.isnan(run(tf.fill((4, 16, 16, 8), float("nan")))[0])


def test_what_the_kernel_cannot_do_stays_with_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.raw_ops, "FusedBatchNormV3", lambda **_: pytest.fail("not for the kernel"))

    class Own(keras.layers.BatchNormalization):
        """Somebody's own."""

    for layer, shape in (
        (keras.layers.BatchNormalization(axis=1), (8, 6, 3)),
        (keras.layers.BatchNormalization(), (5,)),
        (keras.layers.BatchNormalization(synchronized=True), (8, 6, 3)),
        (Own(), (8, 6, 3)),
    ):
        image = keras.Input(shape)
        model = keras.Model(image, layer(image))
        with fused_batchnorm(model):
            assert model(np.ones((2, *shape), "float32"), training=True).shape == (2, *shape)
