"""Configurations of Keras 2 that the golden files do not hold, rewritten and built; and those that cannot be."""

from __future__ import annotations

import copy
import json
from typing import Any

import keras
import numpy as np
import pytest

from kerasseg.checkpoints.allowed import build, check_config, operation_module, parse_config
from kerasseg.checkpoints.keras2.translate import translate
from kerasseg.checkpoints.operations import Expression
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


def translated(config: dict[str, Any], *, writer: str = "") -> tuple[dict[str, Any], tuple[str, ...]]:
    result = translate(config, writer=writer)
    return result.config, result.notes


def rebuilt(config: dict[str, Any], writer: str = "2.3.1") -> keras.Model:
    before = copy.deepcopy(config)
    new, _ = translated(config, writer=writer)
    assert config == before  # pure
    check_config(new)
    return build(new)


PADS = [[0, 0], [1, 2], [0, 1], [0, 0]]


def blocks(x: np.ndarray) -> np.ndarray:
    """Pixels in blocks of 2 x 2: (batch, rows, 2, columns, 2, channels)."""
    return x.reshape(len(x), 2, 2, 2, 2, 2)


def to_depth(x: np.ndarray) -> np.ndarray:
    return blocks(x).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 2, 2, 8)


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
        ("math.sqrt", ["a", 0, 0, {}], np.sqrt),
        ("math.square", ["a", 0, 0, {}], np.square),
        ("math.abs", ["a", 0, 0, {}], np.abs),
        ("math.pow", ["a", 0, 0, {"y": 2.0}], np.square),
        ("zeros_like", ["a", 0, 0, {}], np.zeros_like),
        ("compat.v1.ones_like", ["a", 0, 0, {"dtype": None}], np.ones_like),
        ("expand_dims", ["a", 0, 0, {"axis": 1}], lambda x: x[:, None]),
        ("compat.v1.squeeze", [["a", 0, 0, {"axis": None}]][0], lambda x: x),
        ("tile", ["a", 0, 0, {"multiples": [1, 2, 1, 3]}], lambda x: np.tile(x, (1, 2, 1, 3))),
        (
            "image.per_image_standardization",
            ["a", 0, 0, {}],
            lambda x: (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True),
        ),
        ("roll", ["a", 0, 0, {"shift": [1, -1], "axis": [1, 2]}], lambda x: np.roll(x, (1, -1), (1, 2))),
        ("compat.v1.transpose", ["a", 0, 0, {"perm": [0, 3, 1, 2]}], lambda x: x.transpose(0, 3, 1, 2)),
        ("split", ["a", 0, 0, {"num_or_size_splits": [1, 1], "axis": -1}], lambda x: x[..., :1]),
        ("unstack", ["a", 0, 0, {"axis": 3}], lambda x: x[..., 0]),
        ("stack", [["a", 0, 0, {"axis": 1}], ["a", 0, 0, {"axis": 1}]], lambda x: np.stack([x, x], 1)),
        ("linalg.matmul", ["a", 0, 0, {"b": ["a", 0, 0], "transpose_b": True}], lambda x: x @ x.swapaxes(2, 3)),
        ("math.l2_normalize", ["a", 0, 0, {"axis": -1}], lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True))),
        ("nn.max_pool2d", ["a", 0, 0, {"ksize": 2, "strides": 2, "padding": "VALID"}], lambda x: blocks(x).max((2, 4))),
        (
            "nn.avg_pool2d",
            ["a", 0, 0, {"ksize": [2], "strides": 2, "padding": "SAME"}],
            lambda x: blocks(x).mean((2, 4)),
        ),
        ("compat.v1.nn.space_to_depth", ["a", 0, 0, {"block_size": 2}], to_depth),
        ("nn.bias_add", ["a", 0, 0, {"bias": [1.0, 2.0]}], lambda x: x + np.array([1, 2])),
        ("math.truediv", ["a", 0, 0, {"y": [[[2.0, 4.0]]]}], lambda x: x / np.array([2, 4])),
        ("math.squared_difference", ["a", 0, 0, {"y": ["a", 0, 0]}], np.zeros_like),
        ("slice", ["a", 0, 0, {"begin": [0, 1, 0, 1], "size": [-1, 2, -1, 1]}], lambda x: x[:, 1:3, :, 1:]),
        ("compat.v1.gather", ["a", 0, 0, {"indices": [1, 0], "axis": -1}], lambda x: x[..., ::-1]),
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
    x = np.abs(X) if function == "math.sqrt" else X
    np.testing.assert_allclose(np.asarray(model(x)), expected(x), rtol=1e-5, atol=1e-6)
    assert all(operation_module(op.class_name) or op.module == "keras.layers" for op in expressions(function, call))


def expressions(function: str, call: list[Any]) -> list[Expression]:
    """All that one call is translated to."""
    new, _ = translated(functional(("TFOpLambda", "tf.op", {"function": function}, call)), writer="2.9.0")
    entries = [e for e in new["config"]["layers"] if e["class_name"] != "InputLayer"]
    return [Expression(e["class_name"], (), module=e["module"]) for e in entries]


@pytest.mark.parametrize(
    ("function", "call", "words"),
    [
        ("io.read_file", ["a", 0, 0, {}], r"does not translate the TensorFlow operation `tf\.io\.read_file`"),
        ("numpy_function", ["a", 0, 0, {}], "does not translate the TensorFlow operation"),
        ("py_function", ["a", 0, 0, {}], "does not translate the TensorFlow operation"),
        ("image.resize", ["a", 0, 0, {"size": ["a", 0, 0]}], "computed by other operations"),
        ("image.resize", ["a", 0, 0, {"size": [8, 8], "antialias": True}], "no Keras layer"),
        ("cast", ["a", 0, 0, {"dtype": "complex64"}], "other than floating point"),
        ("math.truediv", ["a", 0, 0, {"y": 0}], "divides by zero"),
        ("nn.silu", ["a", 0, 0, {"beta": 2.0}], "differs from the Keras activation"),
    ],
)
def test_operations_that_cannot_be_translated_are_named(function: str, call: list[Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        translate(functional(("TFOpLambda", "tf.op", {"function": function}, call)))
    assert "the layer `tf.op` (TFOpLambda)" in str(caught.value)


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
    new, notes = translated(functional(("Conv2D", "conv", config, node("a"))))
    inner = new["config"]["layers"][1]["config"]
    assert "kernel_initializer" not in inner
    assert inner["kernel_regularizer"]["class_name"] == "L2"
    assert notes == ("Conv2D: a custom initializer was dropped (used only in training)",)


def test_arguments_that_mean_something_are_not_dropped() -> None:
    with pytest.raises(CheckpointError, match=r"groups=2 has no counterpart"):
        translate(functional(("Conv2DTranspose", "up", {**CONV, "groups": 2}, node("a"))))
    with pytest.raises(CheckpointError, match=r"strange=3 has no counterpart"):
        translate(functional(("ReLU", "relu", {"strange": 3}, node("a"))))


def test_unknown_layers_pass_the_translation_and_fall_at_the_gate() -> None:
    new, _ = translated(functional(("Mystery", "x", {}, node("a"))))
    with pytest.raises(CheckpointError, match=r"unknown class `Mystery` \(in `x`\)"):
        check_config(new)


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


def operation(name: str, function: str, call: list[Any]) -> tuple[str, str, dict[str, Any], list[Any]]:
    return "SlicingOpLambda" if "getitem" in function else "TFOpLambda", name, {"function": function}, call


@pytest.mark.parametrize("rows", [4, None])
def test_sizes_are_worked_out(rows: int | None) -> None:
    """A map is enlarged to the size of another, as decoders do, and a tensor is reshaped by its own sizes."""
    spec = {"slice_spec": {"start": 1, "stop": 3, "step": None}}
    old = functional(
        ("MaxPooling2D", "pool", {"pool_size": [2, 2]}, node("a")),
        operation("shape", "compat.v1.shape", ["a", 0, 0, {"out_type": "int32"}]),
        operation("size", "__operators__.getitem", ["shape", 0, 0, spec]),
        operation("up", "image.resize", ["pool", 0, 0, {"size": ["size", 0, 0], "method": "nearest"}]),
        operation("batch", "__operators__.getitem", ["shape", 0, 0, {"slice_spec": 0}]),
        operation("flat", "reshape", ["up", 0, 0, {"shape": [["batch", 0, 0], 16, 2]}]),
    )
    old["config"]["layers"][0]["config"]["batch_input_shape"] = [None, rows, rows, 2]
    model = rebuilt(old, "2.9.0")
    expected = blocks(X).max((2, 4)).repeat(2, 1).repeat(2, 2).reshape(2, 16, 2)
    np.testing.assert_allclose(np.asarray(model(X)), expected, rtol=1e-6)


ENDINGS = [
    ["ArgMax"],
    ["softmax", "ArgMax", "cast", "expand"],
    ["threshold", "cast"],
    ["softmax", "ArgMax", "one_hot"],
    ["ArgMax", "new_axis", "byte"],
    ["threshold", "choice"],
    ["threshold", "cast", "white"],
]


@pytest.mark.parametrize("endings", ENDINGS)
def test_a_final_decision_is_removed_and_said(endings: list[str]) -> None:
    calls = {
        "softmax": ("nn.softmax", {"axis": -1}),
        "ArgMax": ("math.argmax", {"axis": -1}),
        "cast": ("cast", {"dtype": "float32"}),
        "expand": ("expand_dims", {"axis": -1}),
        "threshold": ("math.greater", {"y": 0.5}),
        "one_hot": ("one_hot", {"depth": 2}),
        "new_axis": (
            "__operators__.getitem",
            {"slice_spec": [{"start": None, "stop": None, "step": None}] * 3 + [None]},
        ),
        "byte": ("cast", {"dtype": "uint8"}),
        "choice": ("where", {"x": 1.0, "y": 0.0}),
        "white": ("math.multiply", {"y": 255.0}),
    }
    layers, last = [], "a"
    for name in endings:
        layers.append(operation(name, calls[name][0], [last, 0, 0, calls[name][1]]))
        last = name
    new, notes = translated(functional(*layers), writer="2.9.0")
    check_config(new)
    model = build(new)
    expected = np.asarray(keras.ops.softmax(X)) if "softmax" in endings else X
    np.testing.assert_allclose(np.asarray(model(X)), expected, atol=1e-6)
    assert any(note.startswith("the final ") and "was removed" in note for note in notes)


def test_names_with_slashes_are_replaced_everywhere() -> None:
    inner = functional(("Conv2D", "block/conv", CONV, node("a")), ("ReLU", "block_conv", {}, node("block/conv")))
    inner["config"]["name"] = "part/one"
    outer = functional(("Conv2D", "stem/conv", {**CONV, "name": "stem/conv"}, node("a")))
    entry = {**inner, "name": "part/one", "inbound_nodes": [node("stem/conv")]}
    outer["config"]["layers"].append(entry)
    outer["config"]["output_layers"] = [["part/one", 1, 0]]
    found = translate(outer)
    model = build(found.config)
    assert [layer.name for layer in model.layers] == ["a", "stem_conv", "part_one"]
    assert found.renamed["stem/conv"] == "stem_conv"
    assert found.renamed["part/one/block/conv"] == "part_one/block_conv_1"
    assert any("allows no `/`" in note for note in found.notes)


FIRST = {"data_format": "channels_first"}


def test_channels_first_becomes_channels_last() -> None:
    old = functional(
        ("Conv2D", "conv", {**CONV, "filters": 3, **FIRST}, node("a")),
        ("BatchNormalization", "norm", {"axis": 1}, node("conv")),
        ("MaxPooling2D", "pool", {"pool_size": [2, 1], **FIRST}, node("norm")),
        ("UpSampling2D", "up", {"size": [2, 1], "interpolation": "nearest", **FIRST}, node("pool")),
        ("Concatenate", "join", {"axis": 1}, node("up", "conv")),
        ("Softmax", "soft", {"axis": 1}, node("join")),
    )
    old["config"]["layers"][0]["config"]["batch_input_shape"] = [None, 2, 4, 6]
    model = rebuilt(old, "2.9.0")
    assert (model.input_shape, model.output_shape) == ((None, 4, 6, 2), (None, 4, 6, 6))
    kernel = np.asarray(model.get_layer("conv").kernel)[0, 0]
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 2)).astype("float32")
    conv = x @ kernel
    up = (conv / np.sqrt(1.001)).reshape(2, 2, 2, 6, 3).max(2).repeat(2, 1)
    joined = np.concatenate([up, conv], -1)
    expected = np.exp(joined) / np.exp(joined).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(model(x)), expected, atol=1e-6)


def test_what_cannot_be_moved_is_refused_with_a_remedy() -> None:
    old = functional(("Conv2D", "conv", {**CONV, **FIRST}, node("a")), ("Dense", "dense", {"units": 2}, node("conv")))
    with pytest.raises(CheckpointError, match=r"`dense` \(Dense\) cannot be converted.*set_image_data_format"):
        translate(old)


def test_attention_of_keras_2_opens() -> None:
    shapes = {"query_shape": [None, 4, 4, 2], "key_shape": [None, 4, 4, 2], "value_shape": [None, 4, 4, 2]}
    config = {"num_heads": 2, "key_dim": 3, "attention_axes": [1, 2], **shapes}
    found = translate(functional(("MultiHeadAttention", "mha", config, [["a", 0, 0, {"value": ["a", 0, 0]}]])))
    model = build(found.config)
    parts = ["query", "key", "value", "attention_output"]
    values = {f"mha/{p}/{r}:0": f"{p} {r}" for p in sorted(parts) for r in ("bias", "kernel")}
    assert found.adapters["mha"](values) == [f"{p} {r}" for p in parts for r in ("kernel", "bias")]
    assert model.output_shape == (None, 4, 4, 2)


def test_thousands_of_layers_are_refused_at_once() -> None:
    chain = [("Activation", f"l{i}", {"activation": "relu"}, node(f"l{i - 1}" if i else "a")) for i in range(20_000)]
    with pytest.raises(CheckpointError, match=r"too many layers \(expected at most 5,000"):
        parse_config(json.dumps(functional(*chain)))


def test_spatial_dropout_is_translated() -> None:
    old = functional(("SpatialDropout2D", "drop", {"rate": 0.2, "trainable": True, "dtype": "float32"}, node("a")))
    assert rebuilt(old).get_layer("drop").rate == 0.2
