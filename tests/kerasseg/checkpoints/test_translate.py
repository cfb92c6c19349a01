"""Configurations of Keras 2 that the golden files do not hold, rewritten and built; and those that cannot be."""

from __future__ import annotations

import copy
from typing import Any

import keras
import numpy as np
import pytest

from kerasseg.checkpoints.allowed import build, check_config
from kerasseg.checkpoints.keras2.translate import translate, translate_config
from kerasseg_tfrecords.errors import CheckpointError

CONV = {"filters": 2, "kernel_size": [1, 1], "use_bias": False, "name": "conv"}


def node(*names: str, **kwargs: Any) -> list[Any]:
    return [[name, 0, 0, kwargs] for name in names]


def functional(*layers: tuple[str, str, dict[str, Any], list[Any]], output: str | None = None) -> dict[str, Any]:
    entries = [
        {
            "class_name": "InputLayer",
            "name": "a",
            "config": {"batch_input_shape": [None, 4, 4, 2], "dtype": "float32", "name": "a"},
            "inbound_nodes": [],
        }
    ]
    entries += [
        {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": [calls]}
        for kind, name, config, calls in layers
    ]
    last = [output or layers[-1][1], 0, 0]
    return {
        "class_name": "Model",
        "config": {"name": "m", "layers": entries, "input_layers": [["a", 0, 0]], "output_layers": [last]},
    }


def rebuilt(config: dict[str, Any], writer: str = "2.3.1") -> keras.Model:
    before = copy.deepcopy(config)
    new, _ = translate_config(config, writer=writer)
    assert config == before  # pure
    check_config(new, "test")
    return build(new, "test")


PADS = [[0, 0], [1, 2], [0, 1], [0, 0]]
X = np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype("float32")


@pytest.mark.parametrize(
    ("function", "call", "expected"),
    [
        ("math.multiply", ["_CONSTANT_VALUE", -1, 3.0, {"y": ["a", 0, 0]}], lambda x: 3 * x),
        ("math.subtract", ["_CONSTANT_VALUE", -1, 1.0, {"y": ["a", 0, 0]}], lambda x: 1 - x),
        ("math.subtract", ["a", 0, 0, {"y": 1.0}], lambda x: x - 1),
        ("math.maximum", ["a", 0, 0, {"y": ["a", 0, 0]}], lambda x: x),
        ("math.reduce_max", ["a", 0, 0, {"axis": -1, "keepdims": True}], lambda x: x.max(-1, keepdims=True)),
        ("math.reduce_mean", ["a", 0, 0, {"axis": [-1], "keepdims": True}], lambda x: x.mean(-1, keepdims=True)),
        ("math.reduce_mean", ["a", 0, 0, {"axis": [1, 2]}], lambda x: x.mean((1, 2))),
        ("math.exp", ["a", 0, 0, {}], np.exp),
        ("nn.relu6", ["a", 0, 0, {}], lambda x: x.clip(0, 6)),
        ("reshape", ["a", 0, 0, {"shape": [-1, 16, 2]}], lambda x: x.reshape(-1, 16, 2)),
        ("cast", ["a", 0, 0, {"dtype": "float32"}], lambda x: x),
        ("compat.v1.pad", ["a", 0, 0, {"paddings": PADS}], lambda x: np.pad(x, PADS)),
        ("pad", ["a", 0, 0, {"paddings": PADS, "mode": "REFLECT"}], lambda x: np.pad(x, PADS, mode="reflect")),
        ("image.resize", ["a", 0, 0, {"size": [8, 8], "method": "nearest"}], lambda x: x.repeat(2, 1).repeat(2, 2)),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_operations_compute_what_tensorflow_did(function: str, call: list[Any], expected: Any) -> None:
    model = rebuilt(functional(("TFOpLambda", "tf.op", {"function": function}, call)), "2.9.0")
    np.testing.assert_allclose(np.asarray(model(X)), expected(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "call", "words"),
    [
        ("io.read_file", ["a", 0, 0, {}], r"does not translate the TensorFlow operation `tf\.io\.read_file`"),
        ("numpy_function", ["a", 0, 0, {}], "does not translate the TensorFlow operation"),
        ("py_function", ["a", 0, 0, {}], "does not translate the TensorFlow operation"),
        ("image.resize", ["a", 0, 0, {"size": ["a", 0, 0]}], "computed by other operations"),
        ("image.resize", ["a", 0, 0, {"size": [8, 8], "antialias": True}], "no Keras layer"),
        ("cast", ["a", 0, 0, {"dtype": "int32"}], "other than floating-point numbers"),
        ("math.truediv", ["a", 0, 0, {"y": 0}], "divides by zero"),
        ("nn.silu", ["a", 0, 0, {"beta": 2.0}], "differs from the Keras activation"),
    ],
)
def test_operations_that_cannot_be_translated_are_named(function: str, call: list[Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        translate(functional(("TFOpLambda", "tf.op", {"function": function}, call)), path="old.h5")
    assert "old.h5: the layer `tf.op` (TFOpLambda)" in str(caught.value)


def test_the_old_hard_sigmoid_is_kept() -> None:
    model = rebuilt(functional(("Activation", "act", {"activation": "hard_sigmoid"}, node("a"))))
    np.testing.assert_allclose(np.asarray(model(3 * X)), np.clip(0.2 * 3 * X + 0.5, 0, 1), atol=1e-6)
    assert not np.allclose(
        np.asarray(keras.activations.hard_sigmoid(3 * X)), np.clip(0.2 * 3 * X + 0.5, 0, 1), atol=1e-3
    )


@pytest.mark.parametrize("size", [[2, 2], [4, 4], [2, 1], [1, 1], [8, 2]])
def test_upsampling_at_corners_is_kept(size: list[int]) -> None:
    model = rebuilt(functional(("UpSampling2D", "up", {"size": size, "interpolation": "bilinear"}, node("a"))))

    def along(x: np.ndarray, axis: int, factor: int) -> np.ndarray:
        at = np.arange(x.shape[axis] * factor) / factor
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        return x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight

    np.testing.assert_allclose(np.asarray(model(X)), along(along(X, 1, size[0]), 2, size[1]), atol=1e-6)


def test_corners_by_three_have_no_counterpart() -> None:
    with pytest.raises(CheckpointError, match="sampled at corners"):
        translate(
            functional(("UpSampling2D", "up", {"size": [3, 3], "interpolation": "bilinear"}, node("a"))), writer="2.3.1"
        )


def test_layers_as_activations_follow_their_layer() -> None:
    activation = {"class_name": "LeakyReLU", "config": {"name": "leaky", "alpha": 0.5}}
    model = rebuilt(functional(("Conv2D", "conv", {**CONV, "activation": activation}, node("a"))))
    kernel = np.array([[[[1.0, -1.0], [2.0, 0.5]]]], "float32")
    model.set_weights([kernel])
    linear = X @ kernel[0, 0]
    np.testing.assert_allclose(np.asarray(model(X)), np.where(linear > 0, linear, 0.5 * linear), rtol=1e-5, atol=1e-6)


def test_a_chain_in_the_middle_is_referred_to_by_its_end() -> None:
    model = rebuilt(
        functional(
            ("Activation", "act", {"activation": "hard_sigmoid"}, node("a")),
            ("Add", "sum", {}, node("act", "a")),
        )
    )
    np.testing.assert_allclose(np.asarray(model(X)), np.clip(0.2 * X + 0.5, 0, 1) + X, atol=1e-6)


def test_names_of_other_times_and_packages() -> None:
    model = rebuilt(
        functional(
            ("Convolution2D", "conv", CONV, node("a")),
            ("BatchNormalizationV1", "norm", {"axis": [3], "fused": True, "renorm": False}, node("conv")),
            ("FixedDropout", "drop", {"rate": 0.2, "noise_shape": [None, 1, 1, 1]}, node("norm")),
        )
    )
    assert [type(layer).__name__ for layer in model.layers] == ["InputLayer", "Conv2D", "BatchNormalization", "Dropout"]


def test_custom_parts_that_only_training_needs_are_dropped_and_said() -> None:
    mine, theirs = {"class_name": "Mine", "config": {}}, {"class_name": "L2", "config": {"l2": 0.1}}
    config = {**CONV, "kernel_initializer": mine, "kernel_regularizer": theirs}
    new, notes = translate_config(functional(("Conv2D", "conv", config, node("a"))))
    inner = new["config"]["layers"][1]["config"]
    assert "kernel_initializer" not in inner
    assert inner["kernel_regularizer"]["class_name"] == "L2"
    assert notes == ("Conv2D: a custom initializer was dropped, which only training would use",)


def test_arguments_that_mean_something_are_not_dropped() -> None:
    with pytest.raises(CheckpointError, match=r"groups=2 has no counterpart"):
        translate(functional(("Conv2DTranspose", "up", {**CONV, "groups": 2}, node("a"))))
    with pytest.raises(CheckpointError, match=r"strange=3 has no counterpart"):
        translate(functional(("ReLU", "relu", {"strange": 3}, node("a"))))


def test_unknown_layers_pass_the_translation_and_fall_at_the_gate() -> None:
    new, _ = translate_config(functional(("Mystery", "x", {}, node("a"))))
    with pytest.raises(CheckpointError, match=r"unknown class `Mystery` \(in `x`\)"):
        check_config(new, "old.h5")


@pytest.mark.parametrize(
    "config", [{}, {"class_name": "Model"}, {"class_name": "Model", "config": {"layers": 3, "output_layers": 1}}]
)
def test_configurations_of_nothing_are_errors_not_crashes(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        translate(config)


def test_a_list_of_layers_as_keras_2_0_wrote_sequential_networks() -> None:
    config = {
        "class_name": "Sequential",
        "config": [
            {"class_name": "Conv2D", "config": {**CONV, "batch_input_shape": [None, 4, 4, 2]}},
            {"class_name": "Activation", "config": {"name": "act", "activation": "tanh"}},
        ],
    }
    model = rebuilt(config, "2.0.8")
    assert model.output_shape == (None, 4, 4, 2)
    assert [layer.name for layer in model.layers] == ["conv", "act"]
