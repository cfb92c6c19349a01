"""Each layer of Keras that a U-Net may hold, exported and opened again: same layer, same weights, same outputs."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L  # noqa: N812
from keras import ops
from keras.src.activations import ALL_OBJECTS_DICT

from kerasseg.checkpoints.savedmodel.open import open_savedmodel
from tests.savedmodels import all_weights, export, images, outputs, trainable

pytestmark = pytest.mark.slow


def network(*parts, shape=(8, 10, 4)) -> keras.Model:
    """Layers side by side on one input: each output shows one of them, and one export serves them all."""
    keras.backend.clear_session()
    inputs = keras.Input(shape)
    return keras.Model(inputs, [part(inputs) for part in parts])


# Name -> layers (or functions), and the classes that are expected back, in order, where that is certain.
TABLE = {
    "convolutions": (
        [
            L.Conv2D(6, 3, padding="same", activation="relu"),
            L.Conv2D(6, (1, 3), strides=2, use_bias=False),
            L.Conv2D(6, 3, dilation_rate=2, padding="same", activation="silu"),
            L.Conv2D(6, 3, dilation_rate=(1, 2), padding="valid"),
            L.Conv2D(1, 1, activation="sigmoid"),
        ],
        [L.Conv2D] * 5,
    ),
    "groups": (
        [
            L.Conv2D(8, 3, groups=2, padding="same", activation="tanh"),
            L.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
            L.DepthwiseConv2D(3, strides=2, use_bias=False),
            L.SeparableConv2D(6, 3, padding="same", activation="elu"),
            L.SeparableConv2D(6, 3, dilation_rate=2, use_bias=False),
        ],
        [L.Conv2D, L.DepthwiseConv2D, L.DepthwiseConv2D, L.SeparableConv2D, L.SeparableConv2D],
    ),
    "transposed": (
        [
            L.Conv2DTranspose(5, 2, strides=2),
            L.Conv2DTranspose(5, 3, strides=2, padding="same", activation="relu"),
            L.Conv2DTranspose(5, 3, strides=2, padding="valid", use_bias=False),
            L.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=0),
            L.Conv2DTranspose(5, 3, strides=(3, 2), padding="valid", output_padding=1),
            L.Conv2DTranspose(5, 4, strides=1, padding="same"),
        ],
        [L.Conv2DTranspose] * 6,
    ),
    "normalisations": (
        [
            L.BatchNormalization(),
            L.BatchNormalization(scale=False, epsilon=1e-5),
            L.BatchNormalization(center=False),
            L.BatchNormalization(center=False, scale=False),
            L.GroupNormalization(2),
            L.GroupNormalization(-1, epsilon=1e-5),
            L.GroupNormalization(2, scale=False),
            L.GroupNormalization(2, center=False, scale=False),
            L.LayerNormalization(),
            L.LayerNormalization(center=False),
            L.RMSNormalization(),
        ],
        [L.BatchNormalization] * 4 + [L.GroupNormalization] * 4 + [L.LayerNormalization] * 2 + [L.RMSNormalization],
    ),
    "activations": (
        [
            L.ReLU(),
            L.ReLU(max_value=6),
            L.ReLU(max_value=2.5),
            L.LeakyReLU(negative_slope=0.2),
            L.LeakyReLU(negative_slope=0.01),
            L.ELU(),
            L.ELU(alpha=0.4),
            L.PReLU(shared_axes=[1, 2]),
            L.PReLU(),
            L.Softmax(),
            L.Softmax(axis=1),
        ],
        [L.ReLU] * 3 + [L.LeakyReLU] * 2 + [L.ELU] * 2 + [L.PReLU] * 2 + [L.Activation, L.Softmax],
    ),
    "pooling": (
        [
            L.MaxPooling2D(),
            L.MaxPooling2D(3, strides=2, padding="same"),
            L.AveragePooling2D((1, 2)),
            L.AveragePooling2D(3, strides=1, padding="same"),
            L.GlobalAveragePooling2D(keepdims=True),
            L.GlobalAveragePooling2D(),
            L.GlobalMaxPooling2D(keepdims=True),
        ],
        [L.MaxPooling2D] * 2 + [L.AveragePooling2D] * 2 + [L.GlobalAveragePooling2D] * 2 + [L.GlobalMaxPooling2D],
    ),
    "resizing": (
        [
            L.UpSampling2D(2),
            L.UpSampling2D((3, 2)),
            L.UpSampling2D(2, interpolation="bilinear"),
            L.Resizing(12, 7),
            L.Resizing(5, 20, interpolation="nearest"),
            L.Resizing(12, 12, interpolation="bicubic"),
        ],
        [L.UpSampling2D] * 3 + [L.Resizing] * 3,
    ),
    "shapes": (
        [
            L.ZeroPadding2D(((1, 2), (0, 3))),
            L.Cropping2D(((1, 2), (0, 1))),
            L.Permute((2, 1, 3)),
            L.Reshape((4, 20, 4)),
            L.Flatten(),
            L.Rescaling(1 / 127.5, offset=-1),
            L.Dense(3, activation="relu"),
            L.EinsumDense("abcd,de->abce", output_shape=(None, None, 5), bias_axes="e"),
        ],
        [L.ZeroPadding2D, L.Cropping2D, L.Permute, L.Reshape, L.Reshape, L.Rescaling, L.Dense, L.Dense],
    ),
}


@pytest.mark.rest
@pytest.mark.parametrize("name", TABLE)
def test_a_layer_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    parts, classes = TABLE[name]
    parts = [type(p).from_config(p.get_config() | {"name": None}) for p in parts]
    model = network(*parts)
    opened = open_savedmodel(export(model, tmp_path / "m"))

    layers = [tensor._keras_history.operation for tensor in opened.model.outputs]
    assert [type(layer) for layer in layers] == classes
    assert len(opened.model.layers) == 1 + len(layers)
    assert opened.largest_difference is not None
    assert opened.largest_difference <= 1e-6
    values = images(model)
    for ours, theirs in zip(outputs(opened.model, values), outputs(model, values), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    before, after = all_weights(model), all_weights(opened.model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert trainable(model).keys() == trainable(opened.model).keys()
    for theirs, ours in zip(parts, layers, strict=True):
        mine = ours.get_config()
        for key in ("epsilon", "groups", "dilation_rate", "strides", "padding", "negative_slope", "max_value"):
            if key in mine and key in theirs.get_config():
                wanted = theirs.get_config()[key]
                assert mine[key] == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), key


# All that Keras knows by name, but for those that need arguments, and for sparsemax, which sorts.
ACTIVATIONS = sorted({f.__name__ for f in ALL_OBJECTS_DICT.values()} - {"threshold", "sparsemax"})


def test_every_activation_by_name(tmp_path: Path) -> None:
    model = network(*(L.Activation(name) for name in ACTIVATIONS), lambda x: ops.gelu(x, approximate=True))
    opened = open_savedmodel(export(model, tmp_path / "m"))
    values = images(model)
    for name, ours, theirs in zip(
        [*ACTIVATIONS, ""], outputs(opened.model, values), outputs(model, values), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6, err_msg=name)
    found = {layer.activation.__name__ for layer in opened.model.layers if isinstance(layer, L.Activation)}
    assert {"gelu", "hard_sigmoid", "hard_silu", "mish", "selu", "sigmoid", "silu", "softmax", "softplus"} <= found


def test_an_activation_returns_to_the_layer_that_wrote_it(tmp_path: Path) -> None:
    names = ["gelu", "hard_silu", "mish", "relu", "relu6", "sigmoid", "silu", "softmax"]
    model = network(*(L.Conv2D(2, 1, activation=name) for name in names))
    opened = open_savedmodel(export(model, tmp_path / "m"))
    found = [tensor._keras_history.operation.activation.__name__ for tensor in opened.model.outputs]
    assert found == names


def test_dropout_and_noise_vanish_and_branches_merge(tmp_path: Path) -> None:
    def merged(x):
        y = L.GaussianNoise(0.1)(L.SpatialDropout2D(0.2)(L.Dropout(0.5)(x)))
        y = L.Average()([L.Add()([x, y, y]), L.Multiply()([x, y])])
        y = L.Minimum()([L.Maximum()([y, x]), L.Subtract()([x, y])])
        gate = L.Reshape((1, 1, 4))(L.Dense(4, activation="sigmoid")(L.GlobalAveragePooling2D()(y)))
        return L.Concatenate()([L.Multiply()([y, gate]), x])

    model = network(merged)
    opened = open_savedmodel(export(model, tmp_path / "m"))
    kinds = {type(layer) for layer in opened.model.layers}
    assert {L.Add, L.Multiply, L.Minimum, L.Maximum, L.Subtract, L.Concatenate, L.Dense} <= kinds
    values = images(model)
    np.testing.assert_allclose(outputs(opened.model, values)[0], outputs(model, values)[0], atol=1e-6)


def test_arithmetic_slices_and_blocks_become_operations_of_keras(tmp_path: Path) -> None:
    def made(x):
        y = ops.concatenate([x[:, 1:] * 2.0 - 1.0, x[:, :-1]], -1)
        y = ops.nn.depth_to_space(ops.pad(y, [[0, 0], [1, 0], [0, 0], [0, 0]], mode="reflect"), 2)
        y = ops.where(y > 0.1, ops.sqrt(ops.abs(y)), ops.exp(-y)) / (
            1.0 + ops.max(ops.square(y), axis=-1, keepdims=True)
        )
        a, b = ops.split(y, 2, axis=-1)
        return ops.maximum(a, 0.2) - ops.mean(b, axis=1, keepdims=True) + ops.transpose(b, (0, 1, 2, 3))

    model = network(made)
    opened = open_savedmodel(export(model, tmp_path / "m"))
    values = images(model)
    np.testing.assert_allclose(outputs(opened.model, values)[0], outputs(model, values)[0], atol=1e-5)


def test_constants_before_the_network_become_one_rescaling(tmp_path: Path) -> None:
    normalise = L.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 4, 9, 16])
    model = network(lambda x: L.Conv2D(1, 1)(normalise(L.Rescaling(2.0)(x))))
    opened = open_savedmodel(export(model, tmp_path / "m"))
    rescalings = [layer for layer in opened.model.layers if isinstance(layer, L.Rescaling)]
    assert len(rescalings) == 2
    np.testing.assert_allclose(rescalings[1].scale, [1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(rescalings[1].offset, [-1, -1, -1, -1], rtol=1e-6)


@pytest.mark.rest
def test_sizes_that_are_free_stay_free(tmp_path: Path) -> None:
    def made(x):
        y = L.Conv2D(4, 3, dilation_rate=2, padding="same")(x)
        y = L.GroupNormalization(2)(L.MaxPooling2D()(y))
        y = L.Conv2DTranspose(4, 3, strides=2, padding="same")(L.UpSampling2D()(L.MaxPooling2D()(y)))
        return L.Conv2DTranspose(4, 3, strides=2, padding="valid")(L.Conv2D(3, 3, dilation_rate=2)(y))

    model = network(made, shape=(None, None, 4))
    opened = open_savedmodel(export(model, tmp_path / "m"))
    assert opened.model.input_shape == (None, None, None, 4)
    for size in (32, 48):
        values = images(model, size)
        np.testing.assert_allclose(outputs(opened.model, values)[0], outputs(model, values)[0], atol=1e-5)


@pytest.mark.rest
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_half_precision_is_rebuilt_in_float32(policy: str, tmp_path: Path) -> None:
    parts = [L.Conv2D(4, 3, dtype=policy), L.BatchNormalization(dtype=policy), L.Conv2D(1, 1, dtype="float32")]
    model = network(keras.Sequential(parts))
    opened = open_savedmodel(export(model, tmp_path / "m"))
    assert {str(v.dtype) for v in opened.model.weights} == {"float32"}
    assert any("float16" in note for note in opened.translated)
    before, after = all_weights(model), all_weights(opened.model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    values = images(model)
    np.testing.assert_allclose(outputs(opened.model, values)[0], outputs(model, values)[0], atol=0.05)
