"""Networks that rescale grey levels themselves are fed what they expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasseg import fit_to_task, open_checkpoint, provenance, unet
from kerasseg.evaluation.arrays import _images
from kerasseg.models.input_scaling import read_input_scaling
from kerasseg.models.inspection import inspect_model
from kerasseg_tfrecords.errors import UsageError


def behind(first: Any, channels: int = 3) -> keras.Model:
    image = keras.Input((16, 16, channels))
    body = unet((16, 16, channels), filters=2, depth=1, seed=0, name="body")
    return keras.Model(image, body(first(image)))


def normalization(mean: float, deviation: float) -> layers.Layer:
    return layers.Normalization(mean=[mean] * 3, variance=[deviation**2] * 3)


def trained_norm(mean: float) -> Any:
    layer = layers.BatchNormalization(name="norm")

    def call(x: Any) -> Any:
        y = layer(x)
        layer.set_weights([np.ones(3), np.zeros(3), np.full(3, mean), np.full(3, 50.0)])
        return y

    return call


CAFFE = np.array([103.939, 116.779, 123.68], "float32")


@pytest.mark.parametrize(
    ("first", "white"),
    [
        (layers.Rescaling(1 / 255), 255),
        (layers.Rescaling(1 / 127.5, -1), 255),
        (layers.Rescaling(1 / 256), 255),
        (layers.Rescaling(1 / 65535), 65535),
        (normalization(110.0, 60.0), 255),
        (lambda x: x / 255.0, 255),
        (lambda x: x[..., ::-1] - CAFFE, 255),
        (lambda x: ops.multiply(x, 1 / 255.0) - 0.5, 255),
        (lambda x: normalization(0.48, 0.22)(layers.Rescaling(1 / 255)(x)), 255),
        (lambda x: layers.Rescaling(1 / 255)(layers.GaussianNoise(0.1)(layers.ZeroPadding2D(0)(x))), 255),
        (trained_norm(80.0), 255),
        (layers.Rescaling(2.0, -1.0), 1),
        (layers.Rescaling(255.0), 1),
        (lambda x: layers.Rescaling(1 / 255)(layers.Rescaling(255.0)(x)), 1),
        (lambda x: (x * 255.0)[..., ::-1] - CAFFE, 1),
        (normalization(0.45, 0.22), 1),
        (lambda x: 1.0 - x, 1),
        (trained_norm(0.3), 1),
        (lambda x: x, 1),
    ],
)
def test_what_the_network_expects_is_fed(first: Any, white: float) -> None:
    model = behind(first)
    scaling = read_input_scaling(model)
    assert (scaling.white if scaling else 1) == white
    fitted = fit_to_task(model)
    x = np.random.default_rng(0).random((1, 16, 16, 3), "float32")
    expected = np.asarray(model(x * white, training=False))
    np.testing.assert_allclose(np.asarray(fitted.model(x, training=False)), expected, atol=2e-6)
    assert bool(white != 1) == any("grey levels" in change for change in fitted.changes)
    assert fit_to_task(fitted.model).model is fitted.model  # once


def test_a_backbone_that_rescales_inside() -> None:
    base = keras.applications.MobileNetV3Small(
        (32, 32, 3), include_top=False, weights=None, minimalistic=True, include_preprocessing=True
    )
    scaling = read_input_scaling(base)
    assert scaling is not None
    assert scaling.white == 255


def test_it_is_shown_and_recorded_and_files_keep_it(tmp_path: Path) -> None:
    behind(layers.Rescaling(1 / 255, name="to_unit")).save(tmp_path / "x.keras")
    model = open_checkpoint(tmp_path / "x.keras")
    found = inspect_model(model)
    assert found.to_json()["scaling"] == {"white": 255.0, "layers": ("to_unit",)}
    fitted = fit_to_task(model).model
    record = provenance(fitted)
    assert record is not None
    assert "expects grey levels 0 to 255" in record.changes[0]
    fitted.save(tmp_path / "y.keras")
    assert read_input_scaling(open_checkpoint(tmp_path / "y.keras")) is None


def test_savedmodels_too(tmp_path: Path) -> None:
    behind(layers.Rescaling(1 / 255)).export(tmp_path / "saved", verbose=False)
    scaling = read_input_scaling(open_checkpoint(tmp_path / "saved"))
    assert scaling is not None
    assert scaling.white == 255


def test_python_calls_feed_it_too() -> None:
    grey = np.full((4, 16, 16, 1), 51, "uint8")
    assert _images(grey, behind(layers.Rescaling(1 / 255))).max() == 51
    assert _images(grey, behind(layers.Identity())).max() == np.float32(0.2)


def test_fine_tune_names_the_remedy() -> None:
    from kerasseg.workflows.fine_tune import _check_model

    with pytest.raises(UsageError, match="fit_to_task"):
        _check_model(behind(layers.Rescaling(1 / 255)))
