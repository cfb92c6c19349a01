"""Fitting a network to the task: what comes out computes what went in, in another shape, and says what changed."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import layers, ops

import kerasseg
from kerasseg.models.adapt import Fitted, fit_to_task
from kerasseg.models.unet import unet
from kerasseg_tfrecords.errors import CheckpointError, KerassegError, UsageError


def small(**options: Any) -> keras.Model:
    model = unet(options.pop("shape", (16, 16, 3)), **{"filters": 4, "depth": 2, "seed": 0, **options})
    # Statistics as after training: with zeros and ones a lost BatchNorm would go unnoticed.
    rng = np.random.default_rng(1)
    for v in model.weights:
        if "moving" in v.path:
            v.assign(rng.uniform(0.2, 0.8, v.shape))
    return model


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype="float32")


def run(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(model(x, training=False)))


def tailed(make: Any, channels: int = 1, **options: Any) -> keras.Model:
    """The small network with a linear head of `channels`, and `make` behind it."""
    keras.utils.set_random_seed(0)  # a head of chance may give values of one sign alone
    body = small(**options)
    x = body.get_layer("decoder_1_act_2").output
    logits = layers.Conv2D(channels, 1, name="logits")
    out = logits(x)
    # Both signs for sure: what comes in is positive, after a ReLU.
    kernel, bias = logits.get_weights()
    signs = np.where(np.arange(kernel.shape[2]) % 2, -1.0, 1.0)[None, None, :, None]
    logits.set_weights([np.abs(kernel) * signs, bias])
    return keras.Model(body.input, make(out), name="tailed")


# --- nothing to do -------------------------------------------------------------------------------------------------------


def test_a_network_that_fits_is_returned_itself() -> None:
    model = small()
    for options in ({}, {"size": 16}, {"size": (16, 16), "channels": 3}, {"head": "auto"}):
        fitted = fit_to_task(model, **options)  # type: ignore[arg-type]
        assert fitted == Fitted(model, ())
        assert fitted.model is model
    assert str(fitted) == "nothing was changed"


# --- size ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, (8, 24), (4, 4)])
@pytest.mark.parametrize("normalization", ["batch", "instance"])
def test_another_size_computes_the_same_function(size: Any, normalization: str) -> None:
    given_model = small(normalization=normalization, dropout=0.1)
    height, width = (size, size) if isinstance(size, int) else size
    fitted = fit_to_task(given_model, size=size)
    assert fitted.model.input_shape == (None, height, width, 3)
    assert fitted.model.output_shape == (None, height, width, 1)
    assert fitted.changes == (f"input size 16x16 changed to {height}x{width}",)
    # An independent way to another size: the same weights in a network that was never bound to one.
    free = unet((None, None, 3), filters=4, depth=2, normalization=normalization, dropout=0.1)  # type: ignore[arg-type]
    free.set_weights(given_model.get_weights())
    x = images(2, height, width, 3)
    np.testing.assert_allclose(run(fitted.model, x), run(free, x), atol=1e-6)
    assert [layer.name for layer in fitted.model.layers] == [layer.name for layer in given_model.layers]


def test_the_result_shares_nothing_with_the_given_model() -> None:
    model = small()
    x = images(2, 16, 16, 3)
    before = run(model, x)
    fitted = fit_to_task(model, size=32).model
    fitted.compile("sgd", "binary_crossentropy", jit_compile=False)
    fitted.fit(images(2, 32, 32, 3), np.ones((2, 32, 32, 1)), verbose=0)
    kerasseg.freeze(fitted, ["*"])
    np.testing.assert_array_equal(run(model, x), before)
    assert all(v.trainable for v in model.weights if "moving" not in v.path)


def test_an_open_size_is_bound() -> None:
    fitted = fit_to_task(small(shape=(None, None, 3)), size=(8, 16))
    assert fitted.model.output_shape == (None, 8, 16, 1)
    assert fitted.changes == ("input size (any) changed to 8x16",)


@pytest.mark.parametrize("size", [30, (32, 2), 1])
def test_a_size_that_cannot_be_halved_is_said(size: Any) -> None:
    with pytest.raises(UsageError, match=r"images of .* cannot be halved .*expected multiples of 4\). Take "):
        fit_to_task(small(), size=size)


def with_bottleneck(make: Any) -> keras.Model:
    image = keras.Input((16, 16, 3), name="image")
    a = layers.Conv2D(4, 3, padding="same", name="fine")(image)
    b = layers.Conv2D(4, 3, padding="same", name="deep")(layers.MaxPooling2D()(a))
    c = layers.UpSampling2D()(make(b))
    c = layers.Concatenate()([c, a])
    return keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid", name="mask")(c))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda x: layers.Reshape((8, 8, 4))(layers.Dense(256, name="wall")(layers.Flatten()(x))),
            "Dense 'wall' works only at",
        ),
        (lambda x: layers.Reshape((8, 8, 4), name="wall")(x), "Reshape 'wall' works only at the shape"),
        (
            lambda x: layers.PReLU(name="wall")(x),
            r"PReLU 'wall' .* \[\(8, 8, 4\)\] would become \[\(16, 16, 4\)\]",
        ),
        (lambda x: layers.Resizing(8, 8, name="wall")(x), "Concatenate 'concatenate.*' works only at the shape"),
        (lambda x: ops.reshape(x, (-1, 8, 8, 4)), "contains a fixed size|does not run on|Concatenate"),
    ],
)
def test_a_layer_that_works_at_one_size_only_is_named(make: Any, says: str) -> None:
    model = with_bottleneck(make)
    assert fit_to_task(model).model is model
    with pytest.raises(CheckpointError, match=says):
        fit_to_task(model, size=32)


def test_a_network_that_resizes_its_input_itself_cannot_get_another_size() -> None:
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, small()(layers.Resizing(16, 16)(image)))
    with pytest.raises(CheckpointError, match=r"does not follow the size of the input.*\(2, 16, 16, 1\)"):
        fit_to_task(model, size=32)


# --- channels ------------------------------------------------------------------------------------------------------------


def test_grey_is_repeated_by_the_pipeline_and_said() -> None:
    model = small()
    fitted = fit_to_task(model, channels=1)
    assert fitted.model.input_shape == (None, 16, 16, 3)
    assert fitted.repeat_channels == 3
    assert fitted.changes == ("grey images are repeated to the 3 channels that the network takes",)
    assert fit_to_task(small(shape=(16, 16, 1)), channels=1).repeat_channels == 1


@pytest.mark.parametrize("normalization", ["batch", "none"])
@pytest.mark.parametrize("channels", [3, 4])
def test_summed_kernels_give_from_grey_what_repeated_grey_gave(normalization: str, channels: int) -> None:
    model = small(shape=(16, 16, channels), normalization=normalization)
    fitted = fit_to_task(model, channels=1, channel_rule="sum")
    assert fitted.model.input_shape == (None, 16, 16, 1)
    assert fitted.repeat_channels == 1
    assert fitted.changes == (
        f"kernels of 'encoder_1_conv_1' summed over their {channels} channels: the network takes grey images",
    )
    grey = images(2, 16, 16, 1)
    np.testing.assert_allclose(run(fitted.model, grey), run(model, np.repeat(grey, channels, -1)), atol=1e-6)
    assert model.count_params() - fitted.model.count_params() == 9 * (channels - 1) * 4


def test_a_grey_network_sees_the_mean_of_several_channels() -> None:
    model = small(shape=(16, 16, 1))
    fitted = fit_to_task(model, channels=3)
    x = images(2, 16, 16, 3)
    np.testing.assert_allclose(run(fitted.model, x), run(model, x.mean(-1, keepdims=True)), atol=1e-6)
    assert fitted.changes == ("kernels of 'encoder_1_conv_1' spread over 3 channels: the network sees their mean",)


def test_every_convolution_that_sees_the_input_is_summed_also_behind_scaling() -> None:
    image = keras.Input((16, 16, 3))
    x = layers.ZeroPadding2D(1)(layers.Rescaling(2.0, offset=-0.5)(image))
    one, two = layers.Conv2D(4, 3, name="one")(x), layers.Conv2D(4, 3, use_bias=False, name="two")(x)
    model = keras.Model(image, small(shape=(16, 16, 8))(layers.Concatenate()([one, two])))
    fitted = fit_to_task(model, channels=1, channel_rule="sum")
    assert "'one'" in fitted.changes[0]
    assert "'two'" in fitted.changes[0]
    grey = images(2, 16, 16, 1)
    np.testing.assert_allclose(run(fitted.model, grey), run(model, np.repeat(grey, 3, -1)), atol=1e-5)


@pytest.mark.parametrize(
    "first",
    [
        lambda: layers.BatchNormalization(name="looks"),
        lambda: layers.Rescaling([1.0, 2.0, 3.0], name="looks"),
        lambda: layers.DepthwiseConv2D(3, padding="same", name="looks"),
        lambda: layers.Conv2D(6, 3, padding="same", groups=3, name="looks"),
    ],
)
def test_what_else_looks_at_the_channels_is_named(first: Any) -> None:
    image = keras.Input((16, 16, 3))
    x = first()(image)
    model = keras.Model(image, small(shape=(16, 16, x.shape[-1]))(x))
    with pytest.raises(CheckpointError, match=r"cannot be changed: .* 'looks' depends on them"):
        fit_to_task(model, channels=1, channel_rule="sum")
    assert fit_to_task(model, channels=1).repeat_channels == 3


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match=r"3 channels do not fit a network for 4 \(expected 4 channels, or 1"):
        fit_to_task(small(shape=(16, 16, 4)), channels=3)
    with pytest.raises(UsageError, match="not a number of channels"):
        fit_to_task(small(), channels=0)


# --- the output ----------------------------------------------------------------------------------------------------------


def test_logits_get_a_sigmoid() -> None:
    model = tailed(lambda x: x)
    fitted = fit_to_task(model)
    assert fitted.changes == ("output 'logits' holds logits: sigmoid appended",)
    x = images(2, 16, 16, 3)
    np.testing.assert_allclose(run(fitted.model, x), 1 / (1 + np.exp(-run(model, x))), atol=1e-6)
    assert fitted.model.layers[-1].name == "probability"


@pytest.mark.parametrize(
    "make",
    [
        lambda x: layers.Activation("sigmoid", name="p")(x),
        lambda x: ops.sigmoid(x),
        lambda x: layers.Activation("hard_sigmoid", name="p")(x),
        lambda x: layers.Dropout(0.1)(layers.Activation("sigmoid", name="p")(x)),
        lambda x: layers.Average()([ops.sigmoid(x), layers.Activation("sigmoid")(x)]),
    ],
)
def test_probabilities_are_recognised_in_the_graph(make: Any) -> None:
    model = tailed(make)
    assert fit_to_task(model).model is model


def test_tanh_is_mapped() -> None:
    model = tailed(lambda x: layers.Activation("tanh", name="t")(x))
    fitted = fit_to_task(model)
    x = images(2, 16, 16, 3)
    np.testing.assert_allclose(run(fitted.model, x), (run(model, x) + 1) / 2, atol=1e-6)
    assert "tanh" in fitted.changes[0]


@pytest.mark.parametrize(
    ("make", "says", "function"),
    [
        (lambda x: 10 * x, "holds logits", lambda z: 1 / (1 + np.exp(-z))),
        (lambda x: 1 / (1 + ops.exp(-x)), "holds probabilities", lambda p: p),
    ],
)
def test_where_the_graph_does_not_tell_a_run_does(make: Any, says: str, function: Any) -> None:
    model = tailed(make)
    fitted = fit_to_task(model)
    assert says in fitted.changes[0]
    assert "as a run on random input shows" in fitted.changes[0]
    x = images(2, 16, 16, 3)
    np.testing.assert_allclose(run(fitted.model, x), function(run(model, x)), atol=1e-6)


def test_values_that_are_neither_are_refused_or_replaced() -> None:
    model = tailed(lambda x: 100 + ops.abs(x))
    with pytest.raises(CheckpointError, match=r"neither probabilities nor logits \(found values 1\d\d"):
        fit_to_task(model)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("how", ["head", "layer", "operation", "logits"])
def test_softmax_is_read_as_one_minus_background(classes: int, how: str) -> None:
    x = images(2, 16, 16, 3)
    if how == "head":
        model = small(classes=classes)
    else:
        makes = {"layer": layers.Softmax(), "operation": ops.softmax, "logits": lambda z: z}
        model = tailed(makes[how], channels=classes)
    fitted = fit_to_task(model)
    p = run(model, x)
    if how == "logits":
        assert fitted.changes[0] == "output 'logits' holds logits: softmax appended"
        p = np.exp(p) / np.exp(p).sum(-1, keepdims=True)
    assert f"the {classes} softmax channels" in fitted.changes[-1]
    np.testing.assert_allclose(run(fitted.model, x), 1 - p[..., :1], atol=1e-6)


def test_another_background_and_chosen_classes() -> None:
    model = small(classes=4)
    x = images(2, 16, 16, 3)
    p = run(model, x)
    np.testing.assert_allclose(run(fit_to_task(model, background=-1).model, x), 1 - p[..., 3:], atol=1e-6)
    np.testing.assert_allclose(run(fit_to_task(model, foreground=2).model, x), p[..., 2:3], atol=1e-6)
    both = fit_to_task(model, foreground=(1, 3))
    np.testing.assert_allclose(run(both.model, x)[..., 0], p[..., 1] + p[..., 3], atol=1e-6)
    assert both.changes == ("the sum of channels 1, 3 of 'head' is read as tumour",)
    for wrong in ({"background": 4}, {"foreground": (1, 9)}, {"foreground": ()}):
        with pytest.raises(UsageError, match="is not a channel of the output"):
            fit_to_task(model, **wrong)  # type: ignore[arg-type]


def test_independent_channels_need_to_be_told() -> None:
    model = tailed(layers.Activation("sigmoid", name="regions"), channels=3)
    with pytest.raises(CheckpointError, match="3 channels that do not exclude each other"):
        fit_to_task(model)
    x = images(2, 16, 16, 3)
    fitted = fit_to_task(model, foreground=(0, 2))
    np.testing.assert_allclose(run(fitted.model, x)[..., 0], run(model, x)[..., [0, 2]].max(-1), atol=1e-6)
    replaced = fit_to_task(model, head="auto", seed=1)
    assert replaced.model.output_shape == (None, 16, 16, 1)
    assert "do not exclude each other" in replaced.changes[0]
    assert "replaced by a new binary head" in replaced.changes[1]


def test_a_softmax_over_one_channel_is_refused() -> None:
    with pytest.raises(CheckpointError, match="a single channel, which is 1 everywhere"):
        fit_to_task(tailed(layers.Softmax(), channels=1))


@given(hnp.arrays(np.float32, (1, 4, 4, 3), elements=st.floats(-40, 40, width=32)))
def test_whatever_comes_in_a_probability_comes_out(x: np.ndarray) -> None:
    y = run(of_three_classes(), x)
    assert ((y >= 0) & (y <= 1)).all()


@cache
def of_three_classes() -> keras.Model:
    return fit_to_task(unet((4, 4, 3), filters=2, depth=1, classes=3, seed=0)).model


# --- a fresh head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        lambda: small(),
        lambda: small(classes=4),
        lambda: tailed(lambda z: layers.Softmax()(layers.BatchNormalization()(z)), channels=5),
        lambda: tailed(lambda z: ops.softmax(z), channels=5),
    ],
)
def test_a_fresh_binary_head(model: Any) -> None:
    model = model()
    fitted = fit_to_task(model, head="binary", seed=7)
    head = fitted.model.layers[-1]
    assert (type(head), head.name, head.filters, head.activation.__name__) == (layers.Conv2D, "head", 1, "sigmoid")
    assert fitted.model.output is head.output
    # All else is as it was: the features that the head sees are the same.
    x = images(2, 16, 16, 3)
    old, new = (keras.Model(m.input, m.get_layer("decoder_1_act_2").output) for m in (model, fitted.model))
    np.testing.assert_allclose(run(new, x), run(old, x), atol=1e-6)
    again, other = (fit_to_task(model, head="binary", seed=seed).model.layers[-1].kernel for seed in (7, 8))
    np.testing.assert_array_equal(np.asarray(head.kernel), np.asarray(again))
    assert (np.asarray(head.kernel) != np.asarray(other)).any()
    assert np.asarray(head.kernel).any()


def test_a_head_that_upsamples_keeps_its_place() -> None:
    image = keras.Input((16, 16, 3))
    a = layers.MaxPooling2D()(layers.Conv2D(4, 3, padding="same")(image))
    b = layers.UpSampling2D()(layers.Conv2D(4, 3, padding="same")(layers.MaxPooling2D()(a)))
    c = layers.Concatenate()([a, b])
    transposed = layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="softmax", name="last")(c)
    resized = layers.Softmax()(layers.UpSampling2D(interpolation="bilinear")(layers.Conv2D(6, 1, name="last")(c)))
    for end in (transposed, resized):
        fitted = fit_to_task(keras.Model(image, end), head="binary")
        assert fitted.model.output_shape == (None, 16, 16, 1)
        y = run(fitted.model, images(2, 16, 16, 3))
        assert ((y > 0) & (y < 1)).all()
        assert fitted.changes == ("head 'last' (6 channels) replaced by a new binary head 'head'",)


def test_a_sequential_model_gets_one_too() -> None:
    x, y = layers.Conv2D(4, 3, padding="same"), layers.Conv2D(3, 3, padding="same", name="head")
    model = keras.Sequential([keras.Input((16, 16, 3)), x, layers.MaxPooling2D(), layers.UpSampling2D(), y])
    fitted = fit_to_task(model, head="binary")
    assert fitted.model.output_shape == (None, 16, 16, 1)
    assert fitted.changes == ("head 'head' (3 channels) replaced by a new binary head 'head'",)


def sequential(head: str, *, kind: str) -> keras.Model:
    """An autoencoder as a Sequential: with its input, built or called without one, or made of nested ones."""
    down = [layers.Conv2D(4, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
    up = [layers.UpSampling2D(), layers.Conv2D(1, 3, padding="same", activation=head, name="last")]
    image = keras.Input((16, 16, 3))
    if kind == "nested":
        return keras.Sequential([image, keras.Sequential(down), keras.Sequential(up)])
    model = keras.Sequential([image, *down, *up] if kind == "input" else [*down, *up])
    if kind == "built":
        model.build((None, 16, 16, 3))
    elif kind == "called":
        model(np.zeros((1, 16, 16, 3), "float32"))
    return model


@pytest.mark.parametrize("kind", ["input", "built", "called", "nested"])
def test_a_sequential_model_becomes_functional_with_the_same_outputs(kind: str, tmp_path: Path) -> None:
    model = sequential("sigmoid", kind=kind)
    fitted = fit_to_task(model)
    assert fitted.changes == ()
    x = images(2, 16, 16, 3)
    np.testing.assert_allclose(run(fitted.model, x), run(model, x), atol=1e-6)
    kerasseg.freeze(fitted.model, "conservative")
    fitted.model.save(tmp_path / "fitted.keras")
    opened = kerasseg.open_checkpoint(tmp_path / "fitted.keras")
    np.testing.assert_allclose(run(opened, x), run(model, x), atol=1e-6)


@pytest.mark.parametrize("kind", ["input", "built", "nested"])
def test_the_relu_head_of_a_sequential_model_is_refused_or_replaced(kind: str) -> None:
    model = sequential("relu", kind=kind)
    model.set_weights([np.abs(w) for w in model.get_weights()])
    with pytest.raises(CheckpointError, match="neither probabilities nor logits"):
        fit_to_task(model)
    assert fit_to_task(model, head="auto").model.output_shape == (None, 16, 16, 1)


def test_a_sequential_model_that_was_never_built_says_what_to_do() -> None:
    with pytest.raises(CheckpointError, match="never built.*Call it on an image first"):
        fit_to_task(sequential("sigmoid", kind="unbuilt"))


def test_a_head_that_cannot_be_found_is_said() -> None:
    model = tailed(lambda z: layers.Average()([ops.sigmoid(z), layers.Activation("sigmoid")(z)]))
    with pytest.raises(CheckpointError, match="no convolution to replace was found"):
        fit_to_task(model, head="binary")


# --- which output --------------------------------------------------------------------------------------------------------


def deep_supervision() -> keras.Model:
    body = small()
    side = layers.Conv2D(1, 1, activation="sigmoid", name="side_2")(body.get_layer("decoder_2_act_2").output)
    early = layers.Conv2D(1, 1, activation="sigmoid", name="early")(body.get_layer("encoder_1_act_2").output)
    return keras.Model(body.input, [early, side, body.output])


def test_of_several_outputs_the_one_that_most_of_the_network_works_for() -> None:
    model = deep_supervision()
    fitted = fit_to_task(model)
    assert fitted.changes == ("of 3 outputs 'head' is taken, without early, side_2",)
    assert not {"early", "side_2"} & {layer.name for layer in fitted.model.layers}
    x = images(2, 16, 16, 3)
    np.testing.assert_allclose(run(fitted.model, x), np.asarray(model(x)[2]), atol=1e-6)
    for wanted in ("early", 0, -3):
        np.testing.assert_allclose(run(fit_to_task(model, output=wanted).model, x), np.asarray(model(x)[0]), atol=1e-6)
    with pytest.raises(UsageError, match=r"no output 'mask' \(expected early, side_2, head\)"):
        fit_to_task(model, output="mask")
    with pytest.raises(CheckpointError, match="it is of lower resolution"):
        fit_to_task(model, output="side_2")


def test_outputs_of_a_nested_model() -> None:
    inner = deep_supervision()
    image = keras.Input((16, 16, 3), name="pixels")
    model = keras.Model(image, inner(layers.Rescaling(0.5)(image)))
    fitted = fit_to_task(model, size=32, channels=1, channel_rule="sum")
    assert fitted.model.output_shape == (None, 32, 32, 1)
    grey = images(2, 32, 32, 1)
    free = fit_to_task(inner, size=32).model
    np.testing.assert_allclose(run(fitted.model, grey), run(free, np.repeat(grey / 2, 3, -1)), atol=1e-6)
    assert inner.name in {layer.name for layer in fitted.model.layers}


# --- what cannot fit -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_made_to_fit_is_said() -> None:
    image = keras.Input((16, 16, 3))
    a = layers.Conv2D(4, 3, name="a")(image)
    valid = layers.Conv2D(1, 3, activation="sigmoid")(layers.UpSampling2D()(layers.MaxPooling2D()(a)))
    half = layers.Conv2D(1, 3, padding="same")(layers.MaxPooling2D()(image))
    vector = layers.Dense(2)(layers.GlobalAveragePooling2D()(a))
    for output, says in ((valid, "do not pad"), (half, "of lower resolution"), (vector, "output is not a map")):
        with pytest.raises(CheckpointError, match=says):
            fit_to_task(keras.Model(image, output))
    first = keras.Input((3, 16, 16))
    x = layers.Conv2D(4, 3, padding="same", data_format="channels_first")(first)
    x = layers.Conv2D(1, 1, data_format="channels_first", activation="sigmoid")(x)
    with pytest.raises(CheckpointError, match="channels first"):
        fit_to_task(keras.Model(first, x))
    with pytest.raises(CheckpointError, match="takes 2 inputs"):
        fit_to_task(keras.Model([image, keras.Input((4,))], half))
    for wrong in ({"head": "new"}, {"channel_rule": "mean"}, {"size": 0}, {"size": True}, {"size": "256"}):
        with pytest.raises(KerassegError):
            fit_to_task(small(), **wrong)  # type: ignore[arg-type]


# --- precision, inputs, shared layers ------------------------------------------------------------------------------------


def test_the_head_computes_in_float32_though_the_network_does_not() -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        body = small()
        x = body.get_layer("decoder_1_act_2").output
        model = keras.Model(body.input, layers.Softmax()(layers.Conv2D(3, 1, name="mask")(x)))
        fitted = fit_to_task(model)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.output.dtype == "bfloat16"
    y = run(fitted.model, images(2, 16, 16, 3))
    assert y.dtype == np.float32
    assert (y.view(np.uint32) & 0xFFFF).any()
    assert fitted.model.get_layer("mask").compute_dtype == "float32"
    assert fitted.model.get_layer("encoder_1_conv_1").compute_dtype == "bfloat16"


def test_inputs_of_bytes_or_in_lists_become_plain_float32() -> None:
    body = small()
    of_bytes = keras.Input((16, 16, 3), dtype="uint8", name="bytes")
    model = keras.Model(of_bytes, body(layers.Rescaling(1 / 255)(of_bytes)))
    fitted = fit_to_task(model).model
    assert fitted.input.dtype == "float32"
    x = images(2, 16, 16, 3)  # a network that divides by 255 itself is fed 0 to 255 by what is put in front of it
    np.testing.assert_allclose(run(fitted, x), run(body, x), atol=1e-6)
    listed = keras.Model([body.input], [body.output])
    np.testing.assert_allclose(run(fit_to_task(listed).model, x), run(body, x), atol=1e-6)


def test_layers_that_are_used_twice_stay_one() -> None:
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, small()(shared(shared(image))))
    fitted = fit_to_task(model, size=8)
    assert fitted.model.count_params() == model.count_params()
    x = images(2, 8, 8, 3)
    expected = run(fit_to_task(model.layers[-1], size=8).model, np.asarray(shared(shared(x))))
    np.testing.assert_allclose(run(fitted.model, x), expected, atol=1e-6)


def test_blocks_are_found_and_frozen_in_what_was_fitted() -> None:
    fitted = fit_to_task(small(classes=4), size=32, channels=1, channel_rule="sum").model
    assert kerasseg.freeze(fitted, "conservative").frozen_blocks == ("encoder_1",)
    before = {v.path: np.array(v) for v in fitted.weights}
    fitted.compile("sgd", "binary_crossentropy", jit_compile=False)
    x = images(4, 32, 32, 1)
    fitted.fit(x, (x > 0.5).astype("float32"), batch_size=2, verbose=0)
    still = {v.path for v in fitted.weights if np.array(v).tobytes() == before[v.path].tobytes()}
    assert still == {path for path in before if path.startswith("encoder_1_")}


# --- saving --------------------------------------------------------------------------------------------------------------


@pytest.mark.rest
@pytest.mark.slow
def test_what_was_fitted_opens_where_kerasseg_is_not_imported(
    tmp_path: Path, python: str, child_environment: dict[str, str]
) -> None:
    variants = {
        "softmax": fit_to_task(small(classes=4), size=32),
        "regions": fit_to_task(tailed(layers.Activation("sigmoid"), channels=3), size=32, foreground=(0, 2)),
        "sum": fit_to_task(small(classes=4), size=32, foreground=(1, 2)),
        "logits": fit_to_task(tailed(lambda z: z), size=32),
        "tanh": fit_to_task(tailed(ops.tanh), size=32),
        "binary": fit_to_task(small(classes=4), size=32, head="binary"),
    }
    x = images(2, 32, 32, 3)
    np.save(tmp_path / "x.npy", x)
    for name, fitted in variants.items():
        fitted.model.save(tmp_path / f"{name}.keras")
    code = (
        "import sys, pathlib, keras, numpy as np\n"
        "x = np.load('x.npy')\n"
        "for path in pathlib.Path().glob('*.keras'):\n"
        "    np.save(path.with_suffix('.npy'), np.asarray(keras.saving.load_model(path, safe_mode=True)(x)))\n"
        "assert not [name for name in sys.modules if name.startswith('kerasseg')]\n"
    )
    environment = {k: v for k, v in child_environment.items() if k != "PYTHONPATH"}
    subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    for name, fitted in variants.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), run(fitted.model, x), atol=1e-6)


def test_names_do_not_depend_on_what_was_built_before() -> None:
    names = [[o.name for o in fit_to_task(small(classes=3), size=32).model.operations] for _ in range(2)]
    assert names[0] == names[1]
    assert names[0][-2:] == ["background", "foreground"]


def test_the_record_of_its_origin_goes_with_it() -> None:
    from kerasseg.checkpoints.provenance import Provenance, attach, provenance

    model = attach(small(classes=3), Provenance("unet.keras", "00", "Keras 3.15.1", "Keras 3 archive"))
    fitted = fit_to_task(model, size=32, channels=1)
    record = provenance(fitted.model)
    assert record is not None
    assert (record.path, record.changes) == ("unet.keras", fitted.changes)
    assert provenance(model).changes == ()  # type: ignore[union-attr]


# --- checkpoints of other people -----------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet-lgg.keras", "braintumour-128-keras3.h5", "afm-keras3.keras"])
def test_published_checkpoints_are_fitted(name: str, real: Path) -> None:
    model = keras.saving.load_model(real / "checkpoints" / name, compile=False)
    channels = model.inputs[0].shape[-1]
    fitted = fit_to_task(model, size=64, channels=1, channel_rule="sum")
    assert fitted.model.input_shape == (None, 64, 64, 1)
    assert fitted.model.output_shape == (None, 64, 64, 1)
    assert fitted.changes[0].endswith("changed to 64x64")
    # Independent: each layer by itself at the other size, by Keras' own cloning.
    image = keras.Input((64, 64, channels))
    free = keras.models.clone_model(model, input_tensors=keras.tree.pack_sequence_as(model.input, [image]))
    free.set_weights(model.get_weights())
    grey = images(2, 64, 64, 1)
    repeated = keras.tree.pack_sequence_as(model.input, [np.repeat(grey, channels, -1)])
    expected = np.asarray(keras.tree.flatten(free(repeated))[0])
    np.testing.assert_allclose(run(fitted.model, grey), expected, atol=2e-6)


def test_a_sequential_network_that_rescales_by_itself_fits() -> None:
    model = keras.Sequential(
        [keras.Input((16, 16, 1)), layers.Rescaling(1 / 255), layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )
    x = np.random.default_rng(0).random((2, 16, 16, 1), dtype="float32")
    fitted = fit_to_task(model)
    np.testing.assert_allclose(np.asarray(fitted.model(x)), np.asarray(model(255 * x)), atol=1e-5)


def test_lists_of_pixels_become_maps() -> None:
    inputs = keras.Input((8, 12, 1))
    x = layers.Reshape((96, 3))(layers.Conv2D(3, 3, padding="same")(inputs))
    model = keras.Model(inputs, layers.Softmax()(x))
    image = np.random.default_rng(0).random((2, 8, 12, 1), dtype="float32")
    fitted = fit_to_task(model)
    expected = 1 - np.asarray(model(image))[..., :1].reshape(2, 8, 12, 1)
    np.testing.assert_allclose(np.asarray(fitted.model(image)), expected, atol=1e-6)
    assert "reshaped to (8, 12, 3)" in str(fitted)


@pytest.mark.parametrize("part", [np.s_[..., 1], np.s_[..., 1:2]])
def test_one_class_of_a_softmax_is_a_probability(part: Any) -> None:
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Conv2D(3, 3, padding="same", activation="softmax")(inputs)[part])
    image = np.random.default_rng(0).random((2, 8, 8, 1), dtype="float32")
    expected = np.asarray(model(image)).reshape(2, 8, 8, 1)
    np.testing.assert_allclose(np.asarray(fit_to_task(model).model(image)), expected, atol=1e-6)
