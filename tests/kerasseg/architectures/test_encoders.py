"""U-Nets on encoders of keras.applications: their function, their blocks, and where their weights come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import applications

import kerasseg

RNG = np.random.default_rng(0)
IMAGES = RNG.random((2, 32, 32, 3), "float32")


def build(encoder: str, weights: object = None, shape: tuple[int | None, int | None, int] = (32, 32, 3), **options):
    settings = {"decoder_filters": 2, "seed": 1} | options
    return kerasseg.unet(shape, encoder=encoder, encoder_weights=weights, **settings)  # type: ignore[arg-type]


def lively(model: keras.Model) -> keras.Model:
    """Weights that no layer is born with: statistics, offsets and scales included."""
    rng = np.random.default_rng(3)
    for layer in model.layers:
        layer.set_weights([w + 0.1 * rng.random(w.shape, "float32") for w in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def mobilenet() -> keras.Model:
    return lively(applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3)))


@pytest.fixture(scope="module")
def vgg16() -> keras.Model:
    return lively(applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3)))


def map_of(model: keras.Model, layer: str, images: np.ndarray) -> np.ndarray:
    return np.asarray(keras.Model(model.inputs[0], model.get_layer(layer).output)(images))


def test_the_encoder_computes_what_the_application_does(vgg16: keras.Model) -> None:
    network = build("vgg16", vgg16)
    expected = map_of(vgg16, "block5_conv3", applications.vgg16.preprocess_input(255 * IMAGES.copy()))
    np.testing.assert_allclose(map_of(network, "block5_conv3", IMAGES), expected, rtol=1e-4, atol=1e-3)


def test_a_grey_image_is_repeated_inside(mobilenet: keras.Model) -> None:
    grey = IMAGES[..., :1]
    one, three = build("mobilenetv2", mobilenet, (32, 32, 1)), build("mobilenetv2", mobilenet)
    expected = map_of(mobilenet, "out_relu", 2 * np.repeat(grey, 3, -1) - 1)
    np.testing.assert_allclose(map_of(one, "out_relu", grey), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.asarray(one(grey)), np.asarray(three(np.repeat(grey, 3, -1))), atol=1e-6)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda model, path: model.save_weights(path / "m.weights.h5"), id="weights"),
        pytest.param(lambda model, path: model.save(path / "m.keras"), id="keras"),
        pytest.param(lambda model, path: model.save(path / "m.h5"), id="h5"),
    ],
)
def test_weights_from_a_file(
    mobilenet: keras.Model, tmp_path: Path, write: Callable[[keras.Model, Path], None]
) -> None:
    write(mobilenet, tmp_path)
    (file,) = tmp_path.iterdir()
    network = build("mobilenetv2", file)
    for layer in mobilenet.layers:
        for ours, theirs in zip(
            network.get_layer(layer.name).get_weights() if layer.weights else [], layer.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
