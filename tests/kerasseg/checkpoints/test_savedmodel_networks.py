"""Whole networks as SavedModels: outputs, names, training, and what the user is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as L  # noqa: N812

from kerasseg import unet
from kerasseg.checkpoints.savedmodel.open import open_savedmodel
from tests import architectures
from tests.savedmodels import all_weights, export, images, outputs, trainable

pytestmark = pytest.mark.slow

LEGACY = Path(__file__).parents[2] / "fixtures" / "legacy"


def check(model: keras.Model, folder: Path) -> keras.Model:
    """Export, open, and hold outputs, names and weights against the original."""
    opened = open_savedmodel(export(model, folder))
    assert opened.largest_difference is not None
    assert opened.largest_difference <= 1e-5
    assert opened.writer.startswith("Keras 3 export (TensorFlow ")
    values = images(model, 64)
    for ours, theirs in zip(outputs(opened.model, values), outputs(model, values), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    before, after = all_weights(model), all_weights(opened.model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert trainable(model).keys() == trainable(opened.model).keys()
    return opened.model


NETWORKS = {
    "bilinear": lambda: architectures.unet(2, up="bilinear"),
    "any size": lambda: architectures.unet(2, size=None),
    "depth to space": lambda: architectures.shuffled(1),
    "residual": lambda: architectures.residual(2),
    "attention": lambda: architectures.attention(2),
    "U-Net++": lambda: architectures.plus_plus(2),
    "UNet 3+": architectures.full_scale,
    "squeeze and excitation": lambda: architectures.squeezed(1),
    "atrous pyramid": architectures.aspp,
    "unpadded": lambda: architectures.valid(1),
    "nested": architectures.nested,
    "several outputs": architectures.many_outputs,
    "layers used twice": architectures.shared,
}


@pytest.mark.rest
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_many_kinds(name: str, tmp_path: Path) -> None:
    keras.backend.clear_session()
    check(NETWORKS[name]()[0], tmp_path / "m")


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.parametrize("name", ["VGG16", "ResNet50", "MobileNetV2", "EfficientNetB0"])
def test_networks_on_encoders_of_keras_applications(name: str, tmp_path: Path) -> None:
    keras.backend.clear_session()
    model = architectures.on_application(name, size=64)[0]
    opened = open_savedmodel(export(model, tmp_path / "m"))
    values = images(model)
    theirs = outputs(model, values)[0]
    np.testing.assert_allclose(outputs(opened.model, values)[0], theirs, atol=1e-5 * max(1, np.abs(theirs).max()))
    before, after = trainable(model), trainable(opened.model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)


@pytest.mark.rest
@settings(max_examples=6)
@given(
    depth=st.integers(1, 2),
    filters=st.integers(1, 3),
    classes=st.integers(1, 3),
    channels=st.integers(1, 3),
    normalization=st.sampled_from(["batch", "group", "instance", "none"]),
    upsampling=st.sampled_from(["transposed", "bilinear"]),
    dropout=st.sampled_from([0.0, 0.2]),
    activation=st.sampled_from(["relu", "silu", "leaky_relu", "elu", "gelu"]),
)
def test_our_own_networks(tmp_path_factory, depth, channels, dropout, **options) -> None:
    keras.backend.clear_session()
    model = unet((8, 12, channels), depth=depth, dropout=dropout, **options)
    opened = check(model, tmp_path_factory.mktemp("m"))
    # Which layers there are, and what they are called, but for dropout: it leaves no trace in an inference graph.
    names = [layer.name for layer in model.layers if not isinstance(layer, (L.Dropout, L.SpatialDropout2D))]
    assert [layer.name for layer in opened.layers] == names


def test_several_inputs_and_whole_numbers(tmp_path: Path) -> None:
    keras.backend.clear_session()
    first, second = keras.Input((8, 8, 1), name="t1", dtype="uint8"), keras.Input((8, 8, 1), name="flair")
    both = L.Concatenate()([second, L.Rescaling(1 / 255)(first)])
    model = keras.Model([first, second], L.Conv2D(1, 3)(both))
    opened = open_savedmodel(export(model, tmp_path / "m"))
    values = images(model)
    ours = outputs(opened.model, {"t1": values[0], "flair": values[1]})
    np.testing.assert_allclose(ours[0], outputs(model, values)[0], atol=1e-5)
    assert {t.name: str(t.dtype) for t in opened.model.inputs} == {"t1": "uint8", "flair": "float32"}


def test_a_layer_that_was_saved_frozen_is_trainable_and_reported(tmp_path: Path) -> None:
    keras.backend.clear_session()
    model = unet((8, 8, 1), depth=1, filters=2)
    model.get_layer("encoder_1_conv_1").trainable = False
    opened = open_savedmodel(export(model, tmp_path / "m"))
    assert opened.translated == ("saved frozen, trainable now: encoder_1_conv_1",)
    assert opened.model.get_layer("encoder_1_conv_1").trainable


def test_one_variable_in_two_different_layers_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    from kerasseg_tfrecords.errors import CheckpointError

    class Tied(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.random.normal((3, 3, 2, 2)), name="tied/kernel")

        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 2))])
        def serve(self, x):
            return tf.nn.conv2d(tf.nn.conv2d(x, self.kernel, 1, "SAME"), self.kernel, 2, "SAME")

    module = Tied()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    with pytest.raises(CheckpointError, match="its variables also belong to layer 'tied'"):
        open_savedmodel(tmp_path / "m")


# Keras reads TensorFlow's variables by np.array() when it saves; their __array__ is NumPy 1's.
@pytest.mark.rest
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_saved_copy_opens_without_kerasseg(tmp_path: Path, python: str) -> None:
    keras.backend.clear_session()
    model = architectures.attention(2)[0]
    opened = open_savedmodel(export(model, tmp_path / "m")).model
    opened.save(tmp_path / "copy.keras")
    values = images(model)
    np.savez(tmp_path / "values.npz", x=values, y=outputs(model, values)[0])
    code = (
        "import sys, keras, numpy as np; d = np.load('values.npz');"
        "y = keras.saving.load_model('copy.keras')(d['x'], training=False);"
        "assert np.abs(np.asarray(y) - d['y']).max() < 1e-5; assert 'kerasseg' not in sys.modules"
    )
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.rest
@pytest.mark.slow
def test_it_opens_on_jax_too(python: str, child_environment: dict[str, str]) -> None:
    pytest.importorskip("jax")
    code = (
        "import sys, keras; from kerasseg.checkpoints.savedmodel.open import open_savedmodel;"
        "from pathlib import Path; opened = open_savedmodel(Path(sys.argv[1])); assert keras.backend.backend() == 'jax';"
        "assert 0 <= opened.largest_difference <= 1e-5"
    )
    command = [python, "-c", code, str(LEGACY / "tf2.15.1-layers-savedmodel")]
    subprocess.run(command, check=True, env={**child_environment, "KERAS_BACKEND": "jax"})


# -- Files that other libraries wrote.


def test_a_savedmodel_by_real_keras_2() -> None:
    golden = np.load(LEGACY / "tf2.15.1-small.npz")
    opened = open_savedmodel(LEGACY / "tf2.15.1-small-savedmodel")
    assert opened.writer == "Keras 2 SavedModel (TensorFlow 2.15.1)"
    np.testing.assert_allclose(outputs(opened.model, golden["input"])[0], golden["output"], rtol=0, atol=1e-5)


def test_layers_as_keras_2_and_addons_spell_them() -> None:
    golden = np.load(LEGACY / "tf2.15.1-layers-savedmodel.npz")
    model = open_savedmodel(LEGACY / "tf2.15.1-layers-savedmodel").model
    # By the metadata: the names of the outputs sort the other way round.
    for ours, name in zip(outputs(model, golden["input"]), ["first", "second"], strict=True):
        np.testing.assert_allclose(ours, golden[name], rtol=0, atol=1e-5)
    kinds = {layer.name: type(layer) for layer in model.layers}
    assert kinds["instance_normalization"] is kinds["group_normalization"] is L.GroupNormalization
    assert kinds["layer_normalization"] is L.LayerNormalization
    assert kinds["separable_conv2d"] is L.SeparableConv2D
    assert kinds["p_re_lu"] is L.PReLU
    assert model.get_layer("instance_normalization").groups == 4  # each channel by itself
    assert [layer.activation.__name__ for layer in model.layers if type(layer) is L.Activation] == ["gelu", "mish"]
    theirs = {k.removesuffix(":0"): golden[k] for k in golden.files if k.endswith(":0")}
    theirs = {
        k.replace("conv2d/depthwise_kernel", "conv2d/kernel") if k.startswith("d") else k: v for k, v in theirs.items()
    }
    ours = {"/".join(k): v for k, v in trainable(model).items()}
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[k].ravel(), theirs[k].ravel()) for k in ours)


@pytest.mark.real
def test_the_file_that_users_start_from(real: Path) -> None:
    opened = open_savedmodel(real / "checkpoints" / "unet-lgg-savedmodel")
    original = keras.saving.load_model(real / "checkpoints" / "unet-lgg.keras", compile=False)
    assert opened.largest_difference is not None
    assert opened.largest_difference <= 1e-5
    assert [layer.name for layer in opened.model.layers] == [layer.name for layer in original.layers]
    before, after = all_weights(original), all_weights(opened.model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    values = images(original)[:1]
    np.testing.assert_allclose(outputs(opened.model, values)[0], outputs(original, values)[0], rtol=0, atol=1e-5)


@pytest.mark.real
def test_the_keras_2_file(real: Path) -> None:
    opened = open_savedmodel(real / "checkpoints" / "unet-keras2-savedmodel")
    assert opened.largest_difference is not None
    assert opened.largest_difference <= 1e-5
    assert opened.writer.startswith("Keras 2 SavedModel")
    assert [layer.name for layer in opened.model.layers][1:] == [
        *("conv2d", "max_pooling2d", "up_sampling2d", "concatenate", "conv2d_1", "conv2d_2")
    ]


@pytest.mark.rest
@pytest.mark.real
@pytest.mark.slow
def test_it_trains_and_what_is_frozen_by_prefix_stays(real: Path) -> None:
    """The reason for all this: freezing `conv2d_*` must freeze that and nothing else, and training must train the rest."""
    model = open_savedmodel(real / "checkpoints" / "unet-lgg-savedmodel", compare=False).model
    frozen = {f"conv2d_{i}" for i in range(1, 4)} | {f"batch_normalization_{i}" for i in range(1, 4)}
    for layer in model.layers:
        layer.trainable = layer.name not in frozen
    rng = np.random.default_rng(0)
    x = rng.random((2, 256, 256, 3), np.float32)
    y = (x[..., :1] > 0.8).astype("float32")
    before = {v.path: np.asarray(v) for v in model.weights}
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    losses = model.fit(x, y, batch_size=2, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for variable in model.weights:
        same = np.array_equal(before[variable.path], np.asarray(variable))
        assert same == (variable.path.split("/")[0] in frozen), variable.path
