"""Folded networks give what the unfolded ones give, and what cannot be folded is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kerasseg
from kerasseg_tfrecords.errors import UsageError

SHAPE = (16, 16, 3)


def restless_norms(model: keras.Model, seed: int = 0) -> keras.Model:
    """`model` with statistics, scales and shifts as training leaves them: fresh ones fold to next to nothing."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.5, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.2, 3, layer.moving_variance.shape))
            for variable in (layer.gamma, layer.beta):
                if variable is not None:
                    variable.assign(rng.normal(0.5, 0.5, variable.shape))
    return model


def norms(model: keras.Model) -> int:
    return sum(
        isinstance(layer, layers.BatchNormalization)
        for layer in model._flatten_layers(include_self=False, recursive=True)
    )


def difference(model: keras.Model, folded: keras.Model, seed: int = 1) -> float:
    shape = [size or 64 for size in model.inputs[0].shape[1:]]
    images = np.random.default_rng(seed).random((2, *shape)).astype("float32")
    before, after = model.predict_on_batch(images), folded.predict_on_batch(images)
    pairs = zip(keras.tree.flatten(before), keras.tree.flatten(after), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def chain(*steps: Any) -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = inputs
    for step in steps:
        x = step(x)
    return restless_norms(keras.Model(inputs, x))


@pytest.mark.parametrize(
    "convolution",
    [
        lambda: layers.Conv2D(4, 3, padding="same", use_bias=False),
        lambda: layers.Conv2D(4, 3, strides=2, padding="same"),
        lambda: layers.Conv2D(6, 3, groups=3, dilation_rate=2, bias_initializer="random_normal"),
        lambda: layers.Conv2DTranspose(5, 2, strides=2, bias_initializer="random_normal"),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        lambda: layers.SeparableConv2D(4, 3, bias_initializer="random_normal"),
    ],
    ids=["conv", "strided", "groups", "transposed", "depthwise", "separable"],
)
@pytest.mark.parametrize("norm", [{}, {"scale": False}, {"center": False}, {"epsilon": 0.1}], ids=str)
def test_every_convolution_takes_its_batchnorm(convolution: Callable[[], Any], norm: dict[str, Any]) -> None:
    model = chain(convolution(), layers.BatchNormalization(**norm), layers.ReLU())
    folded = kerasseg.fold_batchnorm(model)
    assert norms(folded) == 0
    assert difference(model, folded) < 1e-5


def _behind_activation() -> keras.Model:
    return chain(layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization())


def _behind_pooling() -> keras.Model:
    return chain(layers.Conv2D(4, 3), layers.MaxPooling2D(), layers.BatchNormalization())


def _output_used_twice() -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3)(inputs)
    return restless_norms(keras.Model(inputs, layers.Add()([x, layers.BatchNormalization()(x)])))


def _output_of_the_network() -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3)(inputs)
    return restless_norms(keras.Model(inputs, [x, layers.BatchNormalization()(x)]))


def _convolution_used_twice() -> keras.Model:
    inputs = keras.Input(SHAPE)
    shared = layers.Conv2D(3, 3, padding="same")
    return restless_norms(keras.Model(inputs, layers.BatchNormalization()(shared(shared(inputs)))))


def _norm_used_twice() -> keras.Model:
    inputs = keras.Input(SHAPE)
    shared = layers.BatchNormalization()
    one, other = layers.Conv2D(4, 3)(inputs), layers.Conv2D(4, 3)(inputs)
    return restless_norms(keras.Model(inputs, layers.Add()([shared(one), shared(other)])))


def _model_used_twice() -> keras.Model:
    block = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()])
    inputs = keras.Input(SHAPE)
    return restless_norms(keras.Model(inputs, block(block(inputs))))


def _another_axis() -> keras.Model:
    return chain(layers.Conv2D(14, 3), layers.BatchNormalization(axis=1))


def _measuring() -> keras.Model:
    inputs = keras.Input(SHAPE)
    return restless_norms(keras.Model(inputs, layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs), training=True)))


@pytest.mark.parametrize(
    "make",
    [
        _behind_activation,
        _behind_pooling,
        _output_used_twice,
        _output_of_the_network,
        _convolution_used_twice,
        _norm_used_twice,
        _model_used_twice,
        _another_axis,
        _measuring,
    ],
)
def test_what_cannot_be_folded_is_left(make: Callable[[], keras.Model]) -> None:
    model = make()
    folded = kerasseg.fold_batchnorm(model)
    assert norms(folded) == norms(model)
    assert difference(model, folded) < 1e-5


def test_nested_models_are_folded_within_and_across() -> None:
    within = keras.Sequential(
        [keras.Input(SHAPE), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()], name="within"
    )
    ends = keras.Sequential([keras.Input((14, 14, 4)), layers.Conv2D(5, 3)], name="ends_with_a_convolution")
    model = chain(within, ends, layers.BatchNormalization(), layers.Conv2D(1, 1, activation="sigmoid"))
    folded = kerasseg.fold_batchnorm(model)
    assert norms(folded) == 0
    assert [layer.name for layer in folded.layers[1:3]] == ["within", "ends_with_a_convolution"]
    assert difference(model, folded) < 1e-5


def test_the_given_network_stays_as_it_is() -> None:
    model = restless_norms(kerasseg.unet((32, 32, 3), filters=2, depth=2, seed=3))
    before = [w.copy() for w in model.get_weights()]
    folded = kerasseg.fold_batchnorm(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert norms(folded) == 0
    assert folded.count_params() < model.count_params()
    assert difference(model, folded) < 1e-5
    folded.layers[1].set_weights([np.zeros_like(w) for w in folded.layers[1].get_weights()])
    assert difference(model, folded) > 1e-5


def test_several_inputs_are_refused() -> None:
    a, b = keras.Input(SHAPE), keras.Input(SHAPE)
    with pytest.raises(UsageError, match="2 inputs"):
        kerasseg.fold_batchnorm(keras.Model([a, b], layers.Add()([a, b])))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "unet-lgg-savedmodel",
        "braintumour-128-keras3.h5",
        "afm-keras3.keras",
        "unet-bn-transpose-keras2.3.h5",
        "unet-keras2-savedmodel",
    ],
)
def test_published_checkpoints(real: Path, name: str) -> None:
    model = kerasseg.open_checkpoint(real / "checkpoints" / name, compare=False)
    folded = kerasseg.fold_batchnorm(model)
    assert norms(folded) <= norms(model)
    if name == "unet-lgg-savedmodel":
        assert norms(model) > 0
        assert norms(folded) == 0
    assert difference(model, folded) <= 1e-5
