"""Files of Keras 2, tf.keras and TensorFlow Addons against what their own libraries say (fixtures/make_legacy.py)."""

from __future__ import annotations

import json
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from kerasseg.checkpoints import legacy
from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import provenance
from kerasseg.checkpoints.stored import leaves

FOLDER = Path(__file__).parents[2] / "fixtures" / "legacy"
# tf1.13.2 forgot to write down how UpSampling2D interpolates: it has a test of its own.
WHOLE = sorted(
    p for p in FOLDER.iterdir() if p.suffix in {".h5", ".keras"} and "weights" not in p.name and "1.13" not in p.name
)


def golden(path: Path) -> tuple[np.ndarray, np.ndarray]:
    name = max((p for p in FOLDER.glob("*.npz") if path.name.startswith(p.stem)), key=lambda p: len(p.stem))
    with np.load(name) as data:
        return data["input"], data["output"]


def stored_arrays(path: Path) -> list[np.ndarray]:
    """Every weight in a file, read without any of kerasseg's code."""
    arrays: list[np.ndarray] = []

    def note(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            arrays.append(item[()])

    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive, h5py.File(BytesIO(archive.read("model.weights.h5"))) as file:
            file["layers"].visititems(note)
    else:
        with h5py.File(path) as file:
            file["model_weights"].visititems(note)
    return arrays


def test_there_are_files_of_every_writer() -> None:
    names = " ".join(p.name for p in WHOLE)
    assert all(w in names for w in ("keras2.2.4", "keras2.3.1", "tf1.15.5", "tf2.15.1", "addons0.23.0"))


@pytest.mark.parametrize("path", WHOLE, ids=lambda p: p.name)
def test_outputs_equal_those_of_the_writing_library(path: Path) -> None:
    images, expected = golden(path)
    model = open_checkpoint(path)
    answer = np.asarray(model(images))  # the bare tensor, no list of one
    assert expected.std() > 1e-3  # a network that answers the same everywhere would prove nothing
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [p for p in WHOLE if "addons" not in p.name], ids=lambda p: p.name)
def test_every_weight_is_in_the_file_bit_for_bit(path: Path) -> None:
    stored = {(a.shape, a.tobytes()) for a in stored_arrays(path)}
    ours = [np.asarray(w) for _, layer in leaves(open_checkpoint(path)) for w in layer.weights]
    assert all((a.shape, a.tobytes()) in stored for a in ours)
    assert len({a.tobytes() for a in ours}) == len({blob for _, blob in stored})  # none left behind, none used twice


@pytest.mark.parametrize("path", WHOLE, ids=lambda p: p.name)
def test_layers_are_native_wherever_keras_has_them(path: Path) -> None:
    foreign = {
        type(la).__name__ for _, la in leaves(open_checkpoint(path)) if not type(la).__module__.startswith("keras.")
    }
    assert foreign == ({"FilterResponseNormalization", "TLU"} if "addons" in path.name else set())


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("keras2.2.4-unet.h5", "Keras 2.2.4"),
        ("keras2.3.1-unet.h5", "Keras 2.3.1"),
        ("tf1.15.5-bilinear.h5", "tf-keras 2.2.4-tf"),
        ("tf2.15.1-unet.keras", "tf-keras 2.15.0"),
    ],
)
def test_the_writer_is_named(name: str, writer: str) -> None:
    record = provenance(open_checkpoint(FOLDER / name))
    assert record is not None
    assert record.writer == writer
    assert record.path == str(FOLDER / name)


def test_what_was_translated_is_said() -> None:
    record = provenance(open_checkpoint(FOLDER / "addons0.23.0.keras"))
    assert record is not None
    assert "Addons>InstanceNormalization became GroupNormalization(groups=-1)" in record.translated
    record = provenance(open_checkpoint(FOLDER / "tf2.15.1-unet.h5"))
    assert record is not None
    assert "Conv2DTranspose: groups=1 dropped" in record.translated
    assert any("hard_sigmoid" in note for note in record.translated)


def test_upsampling_that_the_file_does_not_describe_is_said() -> None:
    record = provenance(open_checkpoint(FOLDER / "tf1.13.2-bilinear.h5"))
    assert record is not None
    assert any("does not say how UpSampling2D interpolates" in note for note in record.translated)


@pytest.mark.rest
@pytest.mark.slow
def test_saved_copies_open_without_kerasseg(tmp_path: Path, python: str) -> None:
    names = ["tf2.15.1-unet.h5", "keras2.3.1-bilinear.h5", "tf2.15.1-operations.h5", "tf2.15.1-nested.h5"]
    for name in names:
        images, expected = golden(FOLDER / name)
        open_checkpoint(FOLDER / name).save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.npz", input=images, expected=expected)
    program = (
        "import sys, numpy, keras\n"
        f"for name in {names}:\n"
        "    data = numpy.load(name + '.npz')\n"
        "    answer = keras.saving.load_model(name + '.keras').predict(data['input'], verbose=0)\n"
        "    assert abs(answer - data['expected']).max() <= 1e-6, name\n"
        "assert not [m for m in sys.modules if m.startswith('kerasseg')]\n"
    )
    done = subprocess.run([python, "-c", program], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The one with several outputs has a test of its own, with the other SavedModels.
SAVED = [path for path in sorted(FOLDER.glob("*-savedmodel")) if "layers" not in path.name]


@pytest.mark.parametrize("path", SAVED, ids=lambda p: p.name)
def test_saved_models_of_keras_2_answer_as_they_did(path: Path) -> None:
    images, expected = golden(path)
    model = open_checkpoint(path)
    np.testing.assert_allclose(np.asarray(model(images)), expected, rtol=0, atol=1e-6)
    assert all(type(layer).__module__.startswith("keras.") for _, layer in leaves(model))


def test_a_frozen_part_opens_trainable_and_says_so() -> None:
    model = open_checkpoint(FOLDER / "tf2.15.1-nested.h5")
    assert all(layer.trainable for _, layer in leaves(model))
    record = provenance(model)
    assert record is not None
    assert "1 layers were saved frozen and are trainable now" in record.translated
    assert len(model.trainable_weights) == sum(
        1 for _, la in leaves(model) for w in la.weights if "moving" not in w.name
    )


def test_gradients_reach_every_layer() -> None:
    model = open_checkpoint(FOLDER / "tf2.15.1-bilinear.keras")
    kernels = [w for w in model.trainable_weights if w.name == "kernel"]
    before = [np.array(w) for w in kernels]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(np.random.default_rng(0).random((4, 16, 16, 3), "float32"), np.zeros((4, 16, 16, 1)), verbose=0)
    assert len(kernels) == 6
    assert all((np.array(w) != old).any() for w, old in zip(kernels, before, strict=True))


# --- the Addons' names for those who open such files with Keras itself ------------------------------------------------


def test_plain_keras_opens_addons_layers_once_their_names_are_registered(tmp_path: Path) -> None:
    x = inputs = keras.Input((8, 8, 4))
    for layer in (
        legacy.InstanceNormalization(),
        legacy.GroupNormalization(groups=2),
        legacy.WeightNormalization(keras.layers.Conv2D(4, 3, padding="same")),
        legacy.FilterResponseNormalization(learned_epsilon=True),
        legacy.TLU(affine=True),
        keras.layers.Activation(legacy.snake),
        keras.layers.Activation(legacy.rrelu),
    ):
        x = layer(x)
    model = keras.Model(inputs, legacy.StochasticDepth(0.8)([x, inputs]))
    model.save(tmp_path / "m.keras")
    images = np.random.default_rng(1).random((2, 8, 8, 4), "float32")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model.predict(images, verbose=0), again.predict(images, verbose=0))
    names = json.loads(zipfile.ZipFile(tmp_path / "m.keras").read("config.json"))["config"]["layers"]
    assert "Addons>InstanceNormalization" in {entry["registered_name"] for entry in names}


def test_weight_normalization_is_g_v_over_its_length() -> None:
    layer = legacy.WeightNormalization(keras.layers.Dense(3, use_bias=False))
    layer.build((None, 5))
    rng = np.random.default_rng(2)
    v, g, x = rng.normal(size=(5, 3)), rng.normal(size=3), rng.normal(size=(2, 5))
    layer.v.assign(v)
    layer.g.assign(g)
    expected = x @ (v / np.linalg.norm(v, axis=0) * g)
    np.testing.assert_allclose(np.asarray(layer(x.astype("float32"))), expected, rtol=1e-5)


def test_weight_normalization_trains_g_and_v() -> None:
    inputs = keras.Input((5,))
    model = keras.Model(inputs, legacy.WeightNormalization(keras.layers.Dense(3))(inputs))
    before = [np.array(w) for w in model.trainable_weights]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(np.random.default_rng(3).random((8, 5)), np.ones((8, 3)), verbose=0)
    assert len(before) == 3
    assert all((np.array(w) != old).any() for w, old in zip(model.trainable_weights, before, strict=True))


def test_sparsemax_is_the_nearest_point_of_the_simplex() -> None:
    z = np.random.default_rng(4).normal(size=(50, 4)).astype("float32")
    ours = np.asarray(legacy.sparsemax(z))
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-6)
    for row, answer in zip(z, ours, strict=True):  # no point of a fine grid on the simplex is nearer
        grid = np.random.default_rng(5).dirichlet(np.full(4, 0.4), 2000)
        assert ((answer - row) ** 2).sum() <= ((grid - row) ** 2).sum(-1).min() + 1e-6


def test_addons_adamw_decays_by_the_decay_and_not_by_decay_times_rate() -> None:
    weight = keras.Variable(np.full(3, 2.0, "float32"), name="kernel")
    spared = keras.Variable(np.full(3, 2.0, "float32"), name="norm_gamma")
    optimizer = legacy.AdamW(weight_decay=0.1, learning_rate=1e-3, exclude_from_weight_decay=["norm"])
    optimizer.apply([np.zeros(3, "float32"), np.zeros(3, "float32")], [weight, spared])
    np.testing.assert_allclose(np.array(weight), 1.8, rtol=1e-6)
    np.testing.assert_allclose(np.array(spared), 2.0, rtol=1e-6)
    config = keras.optimizers.serialize(optimizer)
    assert config["registered_name"] == "Addons>AdamW"
    assert keras.optimizers.deserialize(config).excluded == ["norm"]
