"""The checkpoints that other people published: networks open, what is no network is explained."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import cv2
import h5py
import keras
import numpy as np
import pytest

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import provenance
from kerasseg.checkpoints.stored import leaves
from kerasseg_tfrecords.errors import CheckpointError

pytestmark = [pytest.mark.real, pytest.mark.slow]

NETWORKS = {
    "unet-lgg.keras": ("Keras 3.15.1", (256, 256, 3), (256, 256, 1)),
    "unet-lgg.h5": ("Keras 3.15.1", (256, 256, 3), (256, 256, 1)),
    "afm-keras3.keras": ("Keras 3.12.1", (512, 512, 1), (512, 512, 1)),
    "braintumour-128-keras3.h5": ("Keras 3.7.0", (128, 128, 3), (128, 128, 1)),
    "unet-bn-transpose-keras2.3.h5": ("Keras 2.3.1", (28, 28, 1), (28, 28, 1)),
}
OTHERS = {
    "git-lfs-pointer.h5": ["Git LFS pointer", 'git lfs pull --include="git-lfs-pointer.h5"', "123,995,312 bytes"],
    "mangled.h5": ["damaged", "read as text", "Fetch the file again"],
    "tumour-weights-only.h5": ["holds weights without a network", "21 layers", "--architecture"],
}


@pytest.mark.rest
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_open_as_native_layers_and_equal_what_keras_loads(name: str, real: Path, tmp_path: Path) -> None:
    path = real / "checkpoints" / name
    writer, takes, gives = NETWORKS[name]
    model = open_checkpoint(path)
    assert (model.input_shape[1:], model.output_shape[1:]) == (takes, gives)
    record = provenance(model)
    assert record is not None
    assert (record.writer, record.path) == (writer, str(path))
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(type(layer).__module__.startswith("keras.") and layer.trainable for _, layer in leaves(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = keras.saving.load_model(path, compile=False)
    x = np.random.default_rng(0).random((1, *takes), "float32")
    expected = theirs.predict(x, verbose=0)
    for a, b in zip(model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    y = np.asarray(model(x))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)
    model.save(tmp_path / "copy.keras")
    np.testing.assert_array_equal(np.asarray(keras.saving.load_model(tmp_path / "copy.keras")(x)), y)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_network_is_explained(name: str, real: Path) -> None:
    path = real / "checkpoints" / name
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    for words in (str(path), *OTHERS[name]):
        assert words in str(caught.value)


SAVED_MODELS = {"unet-lgg-savedmodel", "unet-keras2-savedmodel"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAVED_MODELS))
def test_saved_models_open_by_the_same_call(name: str, real: Path, tmp_path: Path) -> None:
    folder = real / "checkpoints" / name
    model = open_checkpoint(folder)
    record = provenance(model)
    assert record is not None
    assert record.path == str(folder)
    assert record.largest_difference is not None
    assert record.largest_difference <= 1e-5
    model.save(tmp_path / "copy.keras")
    again = provenance(open_checkpoint(tmp_path / "copy.keras"))
    assert again is not None
    assert (again.sha256, again.largest_difference) == (record.sha256, record.largest_difference)


def test_every_file_has_its_line_here(real: Path) -> None:
    names = {p.name for p in (real / "checkpoints").iterdir()}
    assert names == set(NETWORKS) | set(OTHERS) | SAVED_MODELS


def pooled_skips() -> keras.Model:
    """The network of `tumour-weights-only.h5`, read off its list of layers: its skips are the *pooled* tensors."""
    layers = keras.layers

    def conv(x: object, filters: int) -> object:
        return layers.Conv2D(filters, 3, padding="same", activation="relu")(x)

    def norm(x: object) -> object:
        return layers.ReLU()(layers.BatchNormalization()(x))

    x = inputs = keras.Input((256, 256, 3))
    skips = []
    for filters, twice in ((8, True), (16, True), (32, True), (64, False)):
        x = layers.Dropout(0.1)(conv(x, filters)) if twice else x
        x = layers.AveragePooling2D(2)(norm(conv(x, filters)))
        skips.append(x)
    x = conv(x, 64)
    for filters, skip in ((32, skips[2]), (16, skips[1]), (8, skips[0]), (4, None)):
        x = layers.Conv2DTranspose(filters, 2, strides=2, padding="same", activation="relu")(x)
        x = norm(x if skip is None else layers.Concatenate()([x, skip]))
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


@pytest.mark.slow
def test_weights_of_another_family_open_once_their_network_is_named(real: Path) -> None:
    """Its BatchNorms saw in training what they see here: wiring, activations and order of the concatenations are right."""
    model = open_checkpoint(real / "checkpoints" / "tumour-weights-only.h5", architecture=pooled_skips())
    files = sorted((real / "figshare-png" / "images").iterdir())[::200]
    grey = np.stack([cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in files]).astype("float32") / 255
    images = np.repeat(grey[..., None], 3, -1)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    seen = keras.Model(model.inputs, [layer.input for layer in norms]).predict(images, verbose=0)
    for layer, values in zip(norms, seen, strict=True):
        mean, variance = (np.asarray(w) for w in (layer.moving_mean, layer.moving_variance))
        assert np.mean(np.abs(values.mean((0, 1, 2)) - mean) / np.sqrt(variance + 1e-3)) < 0.7, layer.name


@pytest.mark.slow
def test_weights_stripped_from_a_real_network_find_their_way_back(real: Path, tmp_path: Path) -> None:
    whole = real / "checkpoints" / "unet-lgg.keras"
    model = open_checkpoint(whole)
    model.save_weights(tmp_path / "new.weights.h5")
    with h5py.File(real / "checkpoints" / "unet-lgg.h5") as source, h5py.File(tmp_path / "old.h5", "w") as file:
        for key in source["model_weights"]:
            source.copy(f"model_weights/{key}", file)
        for key, value in source["model_weights"].attrs.items():
            file.attrs[key] = value
    x = np.random.default_rng(0).random((1, 256, 256, 3), "float32")
    for name in ("new.weights.h5", "old.h5"):
        for architecture in (whole, None):  # named, and read off the shapes
            again = open_checkpoint(tmp_path / name, architecture=architecture)
            np.testing.assert_allclose(np.asarray(again(x)), np.asarray(model(x)), rtol=0, atol=1e-6)
