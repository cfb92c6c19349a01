"""SavedModels that Keras did not write: TensorFlow 1 with variables or frozen, modules by hand with their preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L  # noqa: N812

import kerasseg
from kerasseg.checkpoints.savedmodel.open import open_savedmodel
from kerasseg.checkpoints.savedmodel.signatures import choose_signature
from kerasseg_tfrecords.errors import CheckpointError
from tests.savedmodels import edited

v1 = tf.compat.v1


def tensorflow_1(folder: Path, *, frozen: bool, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A small U-Net as TensorFlow 1 wrote it; returns an input and what the session gave for it."""
    rng = np.random.default_rng(0)

    def weight(name: str, shape: tuple[int, ...], *, positive: bool = False):
        value = rng.normal(1 if positive else 0, 0.2, shape).astype("f")
        value = abs(value) if positive else value
        if frozen:
            return tf.constant(value, name=name)
        return v1.get_variable(name, initializer=value, use_resource=False)

    def network(x):
        with v1.variable_scope("net/conv1"):
            y = tf.nn.bias_add(tf.nn.conv2d(x, weight("weights", (3, 3, 3, 4)), 1, "SAME"), weight("biases", (4,)))
        with v1.variable_scope("net/bn1"):
            scale, mean = weight("gamma", (4,), positive=True), weight("moving_mean", (4,))
            shift, variance = weight("beta", (4,)), weight("moving_variance", (4,), positive=True)
            y = tf.nn.relu(v1.nn.fused_batch_norm(y, scale, shift, mean, variance, 1e-3, is_training=False)[0])
        d = tf.nn.max_pool2d(y, 2, 2, "SAME")
        with v1.variable_scope("net/up"):
            s = tf.shape(y)  # the skip's size, as was usual
            d = tf.nn.conv2d_transpose(d, weight("weights", (2, 2, 4, 4)), tf.stack([s[0], s[1], s[2], 4]), 2)
        with v1.variable_scope("net/bn2"):
            mean, variance = weight("moving_mean", (4,)), weight("moving_variance", (4,), positive=True)
            beta, gamma = weight("beta", (4,)), weight("gamma", (4,), positive=True)
            d = tf.nn.batch_normalization(d, mean, variance, beta, gamma, 1e-3)
        small = tf.image.resize(tf.nn.max_pool2d(d, 2, 2, "SAME"), tf.shape(y)[1:3], "nearest")
        with v1.variable_scope("net/head"):
            joined = tf.concat([y, d, small], -1)
            y = tf.nn.conv2d(joined, weight("weights", (1, 1, 12, 1)), 1, "VALID") + weight("biases", (1,))
        return tf.sigmoid(y)

    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, size, size, 3), name="x")
        y = network(x)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
        values = rng.normal(0, 1, (2, 16, 16, 3)).astype("f")
        return values, session.run(y, {x: values})


@pytest.mark.filterwarnings("ignore")  # TensorFlow calls its first version deprecated, in several ways
@pytest.mark.parametrize("frozen", [False, True], ids=["variables", "frozen"])
@pytest.mark.parametrize("size", [16, None], ids=["fixed", "free"])
def test_tensorflow_1(frozen: bool, size: int | None, tmp_path: Path) -> None:
    x, y = tensorflow_1(tmp_path / "m", frozen=frozen, size=size)
    opened = open_savedmodel(tmp_path / "m")
    np.testing.assert_allclose(np.asarray(opened.model(x, training=False)), y, rtol=0, atol=1e-5)
    kinds = [type(layer) for layer in opened.model.layers]
    assert kinds.count(L.BatchNormalization) == 2
    assert kinds.count(L.Conv2DTranspose) == kinds.count(L.UpSampling2D) == 1
    # 4 + 2 convolutions' weights and biases but for the transposed bias, and gamma and beta of each normalisation.
    assert len(opened.model.trainable_variables) == 9
    assert {"conv1", "bn1", "up", "bn2", "head"} <= {layer.name for layer in opened.model.layers}


class ByHand(tf.Module):
    """Raw bytes in, several results out, with variables that no layer of Keras is named after."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.first = tf.Variable(rng.normal(0, 0.2, (3, 3, 3, 4)).astype("f"))
        self.bias = tf.Variable(np.linspace(-1, 1, 4, dtype="f"))
        self.head = tf.Variable(rng.normal(0, 0.2, (1, 1, 4, 2)).astype("f"), name="head/kernel")
        self.scale = tf.Variable(np.array([0.5, 2], "f"), name="scale/s")

    @tf.function(input_signature=[tf.TensorSpec((None, 20, 24, 3), tf.uint8, name="image")])
    def serve(self, image):
        x = tf.image.resize(tf.cast(image, tf.float32) / 255.0, (16, 16))
        x = (x - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.2]
        x = tf.nn.relu(tf.nn.conv2d(x, self.first, 1, "SAME") + self.bias)
        x = tf.nn.conv2d(x, self.head, 1, "SAME") * self.scale
        probability = tf.nn.softmax(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT"))
        return {"probability": probability, "logit": x, "tumour": 1.0 - probability[..., :1]}


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    module = ByHand()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"predict": module.serve})
    return tmp_path / "m"


def test_a_module_by_hand(by_hand: Path) -> None:
    opened = open_savedmodel(by_hand)
    assert opened.writer.startswith("TensorFlow SavedModel")
    assert str(opened.model.inputs[0].dtype) == "uint8"
    images = np.random.default_rng(3).integers(0, 256, (2, 20, 24, 3)).astype("uint8")
    theirs = tf.saved_model.load(str(by_hand)).signatures["predict"](image=images)
    ours = opened.model(images, training=False)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(np.asarray(ours[name]), theirs[name].numpy(), rtol=0, atol=1e-5)
    # The scale is trainable, as it was, in the native layer that can hold it.
    assert any("depthwise" in note for note in opened.translated)
    assert len(opened.model.trainable_variables) == 4
    np.testing.assert_array_equal(np.ravel(opened.model.get_layer("scale").kernel), [0.5, 2])


def test_a_kernel_that_is_computed_becomes_its_value(tmp_path: Path) -> None:
    """Weight normalisation: kernel = direction / |direction| * length."""

    class Normalised(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = tf.Variable(tf.random.normal((3, 3, 2, 4), seed=0), name="conv/v")
            self.g = tf.Variable(tf.range(1.0, 5.0), name="conv/g")

        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 2))])
        def serve(self, x):
            return tf.nn.conv2d(x, tf.nn.l2_normalize(self.v, [0, 1, 2]) * self.g, 1, "SAME")

    module = Normalised()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    opened = open_savedmodel(tmp_path / "m")
    assert opened.translated == (
        "conv/kernel was computed from conv/g, conv/v; the result is stored as a plain weight",
    )
    norms = np.sqrt(np.square(np.asarray(opened.model.get_layer("conv").kernel)).sum((0, 1, 2)))
    np.testing.assert_allclose(norms, [1, 2, 3, 4], rtol=1e-5)


def test_which_signature(by_hand: Path) -> None:
    with edited(by_hand) as message:
        signatures = message.meta_graphs[0].signature_def
        signatures["other"].CopyFrom(signatures["predict"])
    with pytest.raises(CheckpointError, match=r"several signatures \(found other, predict"):
        open_savedmodel(by_hand)
    with edited(by_hand) as message:
        signatures = message.meta_graphs[0].signature_def
        signatures["serving_default"].CopyFrom(signatures["predict"])
        assert choose_signature(message.meta_graphs[0]).name == "serving_default"
    open_savedmodel(by_hand, compare=False)
    with edited(by_hand) as message:
        message.meta_graphs[0].signature_def.clear()
    with pytest.raises(CheckpointError, match=r"has no signature to call"):
        open_savedmodel(by_hand)


def test_which_graph(by_hand: Path) -> None:
    with edited(by_hand) as message:
        message.meta_graphs.add().CopyFrom(message.meta_graphs[0])
        for i, graph in enumerate(message.meta_graphs):
            graph.meta_info_def.tags[:] = [f"train{i}"]
    with pytest.raises(CheckpointError, match="several graphs and none for inference"):
        open_savedmodel(by_hand)
    with edited(by_hand) as message:
        del message.meta_graphs[:]
    with pytest.raises(CheckpointError, match="holds no graph"):
        open_savedmodel(by_hand)


def saved(folder: Path, function, *specification) -> Path:
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((3, 3, 2, 2)), name="conv/kernel")
    module.serve = tf.function(lambda *x: function(module, *x), input_signature=specification, autograph=False)
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return folder


IMAGE = tf.TensorSpec((None, 8, 8, 2))

REFUSED = {
    "corners": (
        lambda _, x: v1.image.resize_bilinear(x, (13, 13), align_corners=True),
        [IMAGE],
        "ResizeBilinear at .* samples at the corners of pixels",
    ),
    "encoded": (
        lambda *_: tf.zeros((1, 8, 8, 1)),
        [tf.TensorSpec((None,), tf.string)],
        "does not have the shape|takes string",
    ),
    "constant": (lambda *_: tf.zeros((1, 8, 8, 1)) + 1.0, [IMAGE], "does not depend on its input"),
    "kernel from data": (
        lambda m, x: tf.nn.conv2d(x, m.kernel * tf.reduce_mean(x), 1, "SAME"),
        [IMAGE],
        "Mul at .*the variable 'conv/kernel' is used as data",
    ),
    "3-D": (
        lambda _, x: tf.nn.conv3d(x, tf.ones((3, 3, 3, 2, 2)), [1] * 5, "SAME"),
        [tf.TensorSpec((None, 8, 8, 8, 2))],
        "Conv3D at .*belongs to a 3-D network",
    ),
    "slices mixed": (lambda _, x: tf.reshape(x, (4, -1, 8, 2)), [IMAGE], "it mixes slices with each other"),
    "unknown": (lambda _, x: tf.linalg.svd(x)[1], [IMAGE], "Svd at .*the network"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_layer_is_refused_by_name_and_place(name: str, tmp_path: Path) -> None:
    function, specification, words = REFUSED[name]
    with pytest.raises(CheckpointError, match=words):
        open_savedmodel(saved(tmp_path / "m", function, *specification))


def test_statistics_move_when_the_opened_network_trains(tmp_path: Path) -> None:
    keras.backend.clear_session()
    inputs = keras.Input((8, 8, 1))
    x = L.BatchNormalization()(L.Conv2D(2, 3, padding="same")(inputs))
    keras.Model(inputs, L.Conv2D(1, 1)(x)).export(str(tmp_path / "m"), verbose=False)
    model = open_savedmodel(tmp_path / "m").model
    norm = model.get_layer("batch_normalization")
    before = np.asarray(norm.moving_mean)
    model(np.ones((2, 8, 8, 1), "f"), training=True)
    assert not np.array_equal(before, np.asarray(norm.moving_mean))
    norm.trainable = False
    before = np.asarray(norm.moving_mean)
    model(np.full((2, 8, 8, 1), 5, "f"), training=True)
    np.testing.assert_array_equal(before, np.asarray(norm.moving_mean))


class Wrapped(tf.Module):
    """A Keras 3 network in somebody's own module, as people wrap one to serve it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = kerasseg.unet((32, 32, 3), filters=2, depth=1, seed=0)

    @tf.function(input_signature=[tf.TensorSpec([None, 32, 32, 3], name="picture")])
    def serve(self, picture: Any) -> dict[str, Any]:
        return {"tumour": self.network(picture / 255.0)}


def test_a_keras_network_saved_inside_a_module(tmp_path: Path) -> None:
    """Its restore function fills variables of its own; the ones that are served are found by their names."""
    wrapped = Wrapped()
    tf.saved_model.save(wrapped, str(tmp_path / "model"), signatures={"serving_default": wrapped.serve})
    opened = open_savedmodel(tmp_path / "model")
    assert {w.path: w.shape for w in opened.model.trainable_weights} == {
        w.path: w.shape for w in wrapped.network.trainable_weights
    }
    picture = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    given = opened.model(picture)
    given = given["tumour"] if isinstance(given, dict) else given
    np.testing.assert_allclose(given, wrapped.serve(picture)["tumour"], atol=1e-5)
