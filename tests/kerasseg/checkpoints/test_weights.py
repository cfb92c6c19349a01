"""Files of weights alone: our U-Net read off the shapes, other networks filled by name, and reports layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.checkpoints.provenance import provenance
from kerasseg.checkpoints.stored import match, read_by_name
from kerasseg.checkpoints.variants import named_arguments
from kerasseg.models.unet import unet
from kerasseg_tfrecords.errors import CheckpointError, UsageError

FOLDER = Path(__file__).parents[2] / "fixtures" / "legacy"
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


def filled(model: keras.Model, seed: int = 0) -> keras.Model:
    """The same network with a different number in every weight."""
    rng = np.random.default_rng(seed)
    model.set_weights([(0.1 + rng.random(w.shape) * 0.3).astype("float32") for w in model.get_weights()])
    return model


def old_layout(model: keras.Model, path: Path) -> Path:
    """What `save_weights("x.h5")` of Keras 2 wrote, without any of kerasseg's code: Keras 3 cannot write it any more."""
    model.save(path.with_suffix(".whole.h5"))
    with h5py.File(path.with_suffix(".whole.h5")) as whole, h5py.File(path, "w") as file:
        for key in whole["model_weights"]:
            whole.copy(f"model_weights/{key}", file)
        for key, value in whole["model_weights"].attrs.items():
            file.attrs[key] = value
    return path


def same_weights(a: keras.Model, b: keras.Model) -> bool:
    return all((x == y).all() for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


VARIANTS = [(n, u) for n in ("batch", "group", "instance", "none") for u in ("transposed", "bilinear")]


@pytest.mark.rest
@pytest.mark.parametrize(("normalization", "upsampling"), VARIANTS)
@pytest.mark.parametrize("layout", ["new", "old"])
def test_our_unet_is_read_off_the_shapes(normalization: Any, upsampling: Any, layout: str, tmp_path: Path) -> None:
    shape = (32, 32, 3)
    model = filled(
        unet(shape, filters=[4, 6, 10], depth=2, classes=2, normalization=normalization, upsampling=upsampling)
    )
    path = tmp_path / "w.weights.h5"
    model.save_weights(path) if layout == "new" else old_layout(model, path)
    asked = "unet(input_shape=(32, 32, 3)" + (
        "" if normalization in {"batch", "none"} else f", normalization={normalization}"
    )
    opened = open_checkpoint(path, architecture=asked + ")")
    x = np.random.default_rng(1).random((1, *shape), "float32")
    np.testing.assert_array_equal(np.asarray(opened(x)), np.asarray(model(x)))
    record = provenance(opened)
    assert record is not None
    assert record.translated[0].startswith("the architecture was read off the shapes: unet(")


@pytest.mark.parametrize("filters", [(4, 4, 4), (6, 4, 3)])
def test_levels_may_be_equally_wide(filters: tuple[int, ...], tmp_path: Path) -> None:
    model = filled(unet((32, 32, 1), filters=filters, depth=2))
    opened = open_checkpoint(old_layout(model, tmp_path / "w.h5"))
    assert same_weights(opened, model)


def test_what_shapes_cannot_tell_is_said(tmp_path: Path) -> None:
    path = tmp_path / "w.weights.h5"
    filled(unet((32, 32, 1), filters=4, depth=1)).save_weights(path)
    model = open_checkpoint(path)
    assert model.input_shape == (None, 256, 256, 1)
    record = provenance(model)
    assert record is not None
    assert "the weights do not determine the image size: 256x256 is assumed" in record.translated
    assert "the weights do not determine the activation: relu is assumed" in record.translated


def test_what_shapes_leave_open_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "w.weights.h5"
    filled(unet((32, 32, 1), filters=4, depth=1, normalization="instance")).save_weights(path)
    with pytest.raises(CheckpointError, match=r"`group` or `instance`.*--architecture 'unet\(normalization=group\)'"):
        open_checkpoint(path)


@pytest.mark.slow
@settings(max_examples=12)
@given(
    depth=st.integers(1, 3),
    filters=st.integers(1, 6),
    classes=st.integers(1, 3),
    channels=st.integers(1, 4),
    bias=st.booleans(),
    upsampling=st.sampled_from(["transposed", "bilinear"]),
)
def test_every_member_of_the_family_is_recognised(
    tmp_path_factory: pytest.TempPathFactory,
    depth: int,
    filters: int,
    classes: int,
    channels: int,
    bias: bool,
    upsampling: Any,
) -> None:
    path = tmp_path_factory.mktemp("family") / "w.weights.h5"
    model = filled(
        unet((None, None, channels), depth=depth, filters=filters, classes=classes, bias=bias, upsampling=upsampling)
    )
    model.save_weights(path)
    assert same_weights(open_checkpoint(path), model)


# --- other networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tf2.15.1-unet.weights.h5", "tf2.15.1-unet-old-weights.h5"])
def test_weights_of_keras_2_fill_the_network_that_is_named(name: str) -> None:
    with np.load(FOLDER / "tf2.15.1-unet.npz") as data:
        images, expected = data["input"], data["output"]
    for architecture in (FOLDER / "tf2.15.1-unet.keras", FOLDER / "tf2.15.1-unet.h5"):
        model = open_checkpoint(FOLDER / name, architecture=str(architecture))
        np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=0, atol=1e-6)


def test_weights_of_another_network_ask_for_it() -> None:
    with pytest.raises(CheckpointError, match=r"holds weights without a network.*Name the network with --architecture"):
        open_checkpoint(FOLDER / "tf2.15.1-unet.weights.h5")


def small(name: str = "a", filters: int = 2) -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(filters, 3, padding="same", name=f"{name}_conv")(inputs)
    x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
    return keras.Model(inputs, keras.layers.Conv2D(1, 1, name=f"{name}_head")(x))


@pytest.mark.parametrize("layout", ["new", "old"])
def test_a_network_can_be_given_and_is_not_changed(layout: str, tmp_path: Path) -> None:
    source, target = filled(small("a"), 1), filled(small("b"), 2)  # other layer names: matched in order
    path = tmp_path / "w.weights.h5"
    source.save_weights(path) if layout == "new" else old_layout(source, path)
    before = target.get_weights()
    opened = open_checkpoint(path, architecture=target)
    assert same_weights(opened, source)
    assert all((a == b).all() for a, b in zip(before, target.get_weights(), strict=True))


def test_a_configuration_can_be_given_as_json(tmp_path: Path) -> None:
    source = filled(small(), 1)
    source.save_weights(tmp_path / "w.weights.h5")
    (tmp_path / "net.json").write_text(source.to_json())
    opened = open_checkpoint(tmp_path / "w.weights.h5", architecture=str(tmp_path / "net.json"))
    assert same_weights(opened, source)
    config = json.loads(source.to_json())
    config["config"]["layers"][1]["config"]["filters"] = 1_000_000_000
    for entry in config["config"]["layers"]:
        entry.pop("build_config", None)  # it repeats the shapes
    (tmp_path / "net.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="larger than the weights"):
        open_checkpoint(tmp_path / "w.weights.h5", architecture=str(tmp_path / "net.json"))


# --- partial matches -------------------------------------------------------------------------------------------------


def test_a_partial_match_is_reported_layer_by_layer(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(2, 3, padding="same", name="a_conv")(inputs)
    x = keras.layers.BatchNormalization(name="a_norm")(x)
    x = keras.layers.Conv2D(3, 3, padding="same", name="extra")(x)
    other = keras.Model(inputs, keras.layers.Conv2D(1, 1, name="a_head")(x))
    path = old_layout(filled(small("a"), 1), tmp_path / "w.h5")
    with h5py.File(path, "r+") as file:  # and one layer that the network does not have
        file.copy("a_norm", "gone")
        file.attrs["layer_names"] = [*map(str, file.attrs["layer_names"]), "gone"]
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, architecture=other)
    for words in (
        "the weights do not fit the network",
        "2 layers loaded",
        "1 missing, 1 unexpected, 1 of wrong shape",
        "missing in the file: extra",
        "unexpected in the file: gone",
        "wrong shape: a_head (network 1x1x3x1, 1, file 1x1x2x1, 1",
        "--allow-partial",
    ):
        assert words in str(caught.value)
    opened = open_checkpoint(path, architecture=other, allow_partial=True)
    record = provenance(opened)
    assert record is not None
    assert "missing in the file: extra" in record.translated
    source = small("a")
    with h5py.File(path) as file:
        match(source, read_by_name(file)).apply()
    for name in ("a_conv", "a_norm"):
        for ours, theirs in zip(opened.get_layer(name).weights, source.get_layer(name).weights, strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_nothing_that_fits_is_an_error_even_where_partial_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "w.weights.h5"
    filled(small("a", filters=2)).save_weights(path)
    inputs = keras.Input((8, 8, 3))
    other = keras.Model(inputs, keras.layers.Conv2D(7, 5, name="other")(inputs))
    with pytest.raises(CheckpointError, match="no layer of the network has its weights in the file"):
        open_checkpoint(path, architecture=other, allow_partial=True)


def test_a_file_of_no_weights_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = np.array([b"a"])
        file.create_group("a").attrs["weight_names"] = np.array([], "S1")
    with pytest.raises(CheckpointError, match="the file holds no weights"):
        open_checkpoint(tmp_path / "w.h5")


def test_listed_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = old_layout(small("a"), tmp_path / "w.h5")
    with h5py.File(path, "r+") as file:
        inner = file["a_head"]
        del inner[next(n for n in inner.attrs["weight_names"] if "kernel" in str(n))]
    with pytest.raises(CheckpointError, match=r"`.*kernel.*` of layer `a_head` are listed but missing"):
        open_checkpoint(path, architecture=small("a"))


def test_kernels_of_theano_are_mirrored(tmp_path: Path) -> None:
    source = filled(small("a"), 3)
    path = old_layout(source, tmp_path / "w.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["backend"] = b"theano"
    opened = open_checkpoint(path, architecture=small("a"))
    ours, theirs = (np.asarray(m.get_layer("a_conv").kernel) for m in (opened, source))
    np.testing.assert_array_equal(ours, theirs[::-1, ::-1])


def test_names_in_pieces_are_put_together(tmp_path: Path) -> None:
    source = filled(small("a"), 3)
    path = old_layout(source, tmp_path / "w.h5")
    with h5py.File(path, "r+") as file:  # Keras splits lists of names that exceed an HDF5 header
        names = [str(n) for n in file.attrs["layer_names"]]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:2], names[2:]
    assert same_weights(open_checkpoint(path, architecture=small("a")), source)


# --- how an architecture is named ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "unet(depth=",
        "unet(3)",
        "unet(depth=__import__('os').system('x'))",
        "unet(depth=3, no_such=1)",
        "unet(**{})",
        "unet(depth=3)()",
    ],
)
def test_architectures_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError):
        named_arguments(text)


def test_architectures_are_read_not_evaluated() -> None:
    assert named_arguments("unet") == {}
    assert named_arguments("unet(depth=3, filters=[4, 8], normalization='group', dropout=0.1)") == {
        "depth": 3,
        "filters": [4, 8],
        "normalization": "group",
        "dropout": 0.1,
    }
    assert named_arguments("models/unet.keras") is None


def test_an_adapted_normalization_works_with_the_weights_of_the_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(40, 90, (8, 8, 8, 2)).astype("f")
    norm = keras.layers.Normalization()
    norm.adapt(x)
    inputs = keras.Input((8, 8, 2))
    keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(norm(inputs))).save(
        tmp_path / "net.h5"
    )
    expected = keras.models.load_model(tmp_path / "net.h5", compile=False)
    expected.layers[1].finalize_state()
    model = open_checkpoint(tmp_path / "net.h5")
    np.testing.assert_allclose(np.asarray(model(x)), np.asarray(expected(x)), atol=1e-6)
