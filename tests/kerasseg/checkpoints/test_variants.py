"""Weights alone: what shapes do not tell is said, and `--architecture` decides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import provenance
from kerasseg_tfrecords.errors import UsageError


def network(
    *, skip_first: bool = False, activation_first: bool = False, pooling: str = "max", output: str = "sigmoid"
) -> keras.Model:
    """A U-Net by somebody else, whose weights have the shapes of `kerasseg.unet`."""
    pool = layers.MaxPooling2D if pooling == "max" else layers.AveragePooling2D

    def block(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            parts = [layers.BatchNormalization(momentum=0.8), layers.Activation("relu")]
            for part in reversed(parts) if activation_first else parts:
                x = part(x)
        return x

    image = keras.Input((16, 16, 1))
    one = block(image, 3)
    two = block(pool(2)(one), 6)
    x = block(pool(2)(two), 12)
    for skip, filters in ((two, 6), (one, 3)):
        up = layers.Conv2DTranspose(filters, 2, strides=2, padding="same")(x)
        x = block(layers.Concatenate()([skip, up] if skip_first else [up, skip]), filters)
    model = keras.Model(image, layers.Conv2D(1 if output != "softmax" else 3, 1, activation=output)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.05, 0.6, w.shape) - (w.name == "kernel") * 0.3 for w in model.weights])
    return model


@pytest.mark.rest
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"skip_first": True},
        {"activation_first": True},
        {"pooling": "average"},
        {"output": "linear"},
        {"output": "softmax"},
        {"skip_first": True, "activation_first": True, "pooling": "average"},
    ],
)
def test_the_option_decides_and_the_outputs_are_equal(options: dict[str, Any], tmp_path: Path) -> None:
    model = network(**options)
    model.save_weights(tmp_path / "w.weights.h5")
    named = {"input_shape": (16, 16, 1)} | {k: v for k, v in options.items() if v != "softmax"}
    text = ", ".join(f"{k}={str(v).lower()}" for k, v in named.items())
    opened = open_checkpoint(tmp_path / "w.weights.h5", architecture=f"unet({text})")
    x = np.random.default_rng(1).random((2, 16, 16, 1), "float32")
    np.testing.assert_allclose(np.asarray(opened(x)), np.asarray(model(x)), rtol=1e-4, atol=1e-5)
    said = " ".join(provenance(opened).translated)
    for name in ("skip_first", "activation_first", "pooling", "output"):
        assert (f"({name}=" in said) == (name not in named), said


def decided(options: dict[str, Any], images: np.ndarray) -> keras.Model:
    """A network whose probabilities on these images are near 0 and 1, about half of each."""
    model = network(**options)
    head = model.layers[-1]
    features = np.asarray(keras.Model(model.inputs[0], head.input)(images, training=False))
    logits = features @ head.get_weights()[0][0, 0]
    gain = 12 / logits.std()
    head.set_weights([head.get_weights()[0] * gain, np.array([-np.median(logits) * gain])])
    return model


@pytest.mark.rest
@pytest.mark.parametrize("options", [{}, {"skip_first": True}, {"activation_first": True}])
def test_examples_choose_the_graph_that_fits_the_weights(options: dict[str, Any], tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((24, 16, 16, 1), "float32")
    model = decided(options, images)
    masks = np.asarray(model(images, training=False)) > 0.5
    model.save_weights(tmp_path / "w.weights.h5")
    opened = open_checkpoint(tmp_path / "w.weights.h5", examples=(images, masks))
    said = " ".join(provenance(opened).translated)
    assert "variants were compared by masks on 16 slices" in said
    assert ("is taken" in said) == bool(options), said
    found = np.asarray(fit_size(opened)(images, training=False))
    np.testing.assert_allclose(found, np.asarray(model(images, training=False)), atol=1e-3)


def fit_size(model: keras.Model) -> keras.Model:
    from kerasseg import fit_to_task

    return fit_to_task(model, size=16).model


def test_a_value_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    network().save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(UsageError, match="max or average"):
        open_checkpoint(tmp_path / "w.weights.h5", architecture="unet(pooling=median)")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_structure_from_another_file_for_whole_files_with_a_lambda(suffix: str, tmp_path: Path) -> None:
    def build(*, code: bool) -> keras.Model:
        x = image = keras.Input((8, 8, 1))
        x = layers.Conv2D(2, 3, padding="same", name="conv")(x)
        x = layers.Lambda(lambda t: t * 2.0, name="twice")(x) if code else layers.Rescaling(2.0, name="twice")(x)
        return keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid", name="head")(x))

    model, plain = build(code=True), build(code=False)
    model.save(tmp_path / f"x{suffix}")
    (tmp_path / "plain.json").write_text(plain.to_json())
    with pytest.raises(Exception, match=r"--architecture FILE.*model\.export"):
        open_checkpoint(tmp_path / f"x{suffix}")
    opened = open_checkpoint(tmp_path / f"x{suffix}", architecture=str(tmp_path / "plain.json"))
    x = np.random.default_rng(1).random((2, 8, 8, 1), "float32")
    np.testing.assert_allclose(np.asarray(opened(x)), np.asarray(model(x)), atol=1e-6)
