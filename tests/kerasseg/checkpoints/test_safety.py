"""Hostile files: each is refused by name, and nothing in it runs. The canary is a file that its code would create."""

from __future__ import annotations

import base64
import contextlib
import json
import marshal
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from kerasseg.checkpoints.allowed import check_config, check_maps
from kerasseg.checkpoints.open import open_checkpoint
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.isolation import call

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What must not come into being; the working directory is the test's folder, so relative code finds it."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists(), "code of the file was run"


def network() -> keras.Model:
    x = inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(2, 3, padding="same", activation="relu", name="conv")(x)
    return keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid", name="head")(x), name="net")


def parts(model: keras.Model, folder: Path) -> tuple[dict[str, Any], bytes]:
    """Configuration and weights of a harmless `.keras` file, to be spoiled."""
    model.save(folder / "harmless.keras")
    with zipfile.ZipFile(folder / "harmless.keras") as archive:
        config, weights = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    for entry in config["config"]["layers"]:
        entry.pop("build_config", None)  # it repeats the shapes that the tests change
    return config, weights


def write(path: Path, config: Any, weights: bytes, version: str = "3.15.1") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    return path


def layer(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in config["config"]["layers"] if entry["name"] == name)


def refused(path: Path, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert str(path) in text
    for word in words:
        assert word in text, text
    return text


def byte_code() -> str:
    code = (lambda x: __import__("pathlib").Path("canary").touch() or x).__code__
    return base64.b64encode(marshal.dumps(code)).decode()


def lambda_network() -> keras.Model:
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(1, 1)(x)
    x = keras.layers.Lambda(lambda x: __import__("pathlib").Path("canary").touch() or x, name="innocent")(x)
    return keras.Model(inputs, x)


# --- code ------------------------------------------------------------------------------------------------------------


def test_the_canary_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lambda_network().save("lambda.keras")
    Path("canary").unlink(missing_ok=True)
    keras.saving.load_model("lambda.keras", safe_mode=False)
    assert Path("canary").exists()  # so the tests below would notice


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_lambda_layers_are_refused_by_name(suffix: str, canary: Path) -> None:
    path = canary.with_name("lambda" + suffix)
    lambda_network().save(path)
    canary.unlink(missing_ok=True)
    refused(path, "Lambda", "innocent", "byte code")


def test_lambda_layers_of_keras_2_are_refused(canary: Path) -> None:
    config = {
        "class_name": "Model",
        "config": {
            "name": "m",
            "layers": [
                {
                    "class_name": "InputLayer",
                    "name": "a",
                    "config": {"batch_input_shape": [None, 8, 8, 1], "name": "a"},
                    "inbound_nodes": [],
                },
                {
                    "class_name": "Lambda",
                    "name": "b",
                    "config": {"name": "b", "function": [byte_code(), None, None], "function_type": "lambda"},
                    "inbound_nodes": [[["a", 0, 0, {}]]],
                },
            ],
            "input_layers": [["a", 0, 0]],
            "output_layers": [["b", 0, 0]],
        },
    }
    path = canary.with_name("old.h5")
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.3.1"
        file.attrs["model_config"] = json.dumps(config)
        file.create_group("model_weights").attrs["layer_names"] = np.array([], "S1")
    refused(path, "Lambda", "in `b`")


FUNCTION = {"class_name": "__lambda__", "config": {"code": "CODE", "defaults": None, "closure": None}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"module": "os", "class_name": "system", "registered_name": None}, ["os.system"]),
        ({"module": "builtins", "class_name": "exec", "registered_name": None}, ["builtins.exec"]),
        ({"module": "subprocess", "class_name": "Popen", "registered_name": "Popen"}, ["subprocess.Popen"]),
        ({"module": "keras.layers", "class_name": "TFSMLayer", "registered_name": None}, ["TFSMLayer"]),
        ({"module": "keras.layers", "class_name": "StringLookup", "registered_name": None}, ["StringLookup"]),
        ({"module": "keras.utils", "class_name": "get_file", "registered_name": None}, ["keras.utils.get_file"]),
        ({"module": "keras.src.utils.python_utils", "class_name": "func_load", "registered_name": None}, ["func_load"]),
        ({"module": "keras.layers", "class_name": "Conv2D", "registered_name": "os>system"}, ["os>system"]),
        ({"module": "keras.layers", "class_name": "Conv2D", "registered_name": "evil"}, ["evil"]),
        ({"module": None, "class_name": "Mystery", "registered_name": "acme>Mystery"}, ["acme>Mystery"]),
        ({"module": ["os"], "class_name": "system"}, ["other than a text"]),
        ({"module": "keras.layers", "class_name": {"a": 1}}, ["malformed"]),
    ],
)
def test_foreign_classes_are_refused_by_name(change: dict[str, Any], words: list[str], canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    layer(config, "conv").update(change)
    refused(write(canary.with_name("x.keras"), config, weights), "refused", *words)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("activation", FUNCTION, ["Python code", "`conv`"]),
        (
            "activation",
            {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
            ["os.system"],
        ),
        (
            "activation",
            {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "eval"},
            ["eval"],
        ),
        (
            "activation",
            {"module": "keras.activations", "class_name": "function", "config": "deserialize"},
            ["deserialize"],
        ),
        (
            "kernel_initializer",
            {"module": "os", "class_name": "system", "config": {"command": "touch canary"}},
            ["os.system"],
        ),
        (
            "kernel_initializer",
            {"module": "keras.initializers", "class_name": "get", "config": {}},
            ["keras.initializers.get"],
        ),
        ("kernel_regularizer", {"class_name": "__typespec__", "config": [], "module": "os"}, ["Python code"]),
        ("filters", 1 << 40, ["out of range"]),
        ("safe_mode", False, ["safe_mode"]),
    ],
)
def test_poisoned_arguments_are_refused_by_name(key: str, value: Any, words: list[str], canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    value = json.loads(json.dumps(value).replace("CODE", byte_code()))
    layer(config, "conv")["config"][key] = value
    refused(write(canary.with_name("x.keras"), config, weights), "refused", *words)


def test_a_file_cannot_switch_safe_mode_off(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    config["safe_mode"] = False
    refused(write(canary.with_name("x.keras"), config, weights), "safe_mode")


def test_unsafe_mode_of_the_process_makes_no_difference(canary: Path) -> None:
    path = canary.with_name("lambda.keras")
    lambda_network().save(path)
    canary.unlink(missing_ok=True)
    keras.config.enable_unsafe_deserialization()
    try:
        refused(path, "Lambda")
    finally:
        from keras.src.backend.common import global_state  # there is no public way back

        global_state.set_global_attribute("safe_mode_saving", None)


def test_what_only_training_needs_is_not_even_read(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    poison = json.loads(json.dumps(FUNCTION).replace("CODE", byte_code()))
    config["compile_config"] = {"optimizer": {"module": "os", "class_name": "system", "config": {}}, "loss": poison}
    model = open_checkpoint(write(canary.with_name("x.keras"), config, weights))
    assert not model.compiled


def test_a_layer_called_on_constants_would_compute_while_reading(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    constant = {"class_name": "__numpy__", "config": {"value": [[[[1.0]]]], "dtype": "float32"}}
    layer(config, "conv")["inbound_nodes"] = [{"args": [constant], "kwargs": {}}]
    refused(write(canary.with_name("x.keras"), config, weights), "only on constants")


def test_nesting_without_end_is_refused(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    layer(config, "conv")["config"]["strides"] = deep
    refused(write(canary.with_name("x.keras"), config, weights), "nested more than")
    with zipfile.ZipFile(canary.with_name("y.keras"), "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "[" * 200_000 + "]" * 200_000)
        archive.writestr("model.weights.h5", weights)
    refused(canary.with_name("y.keras"), "nested more than")


def test_classes_that_this_program_registered_itself_are_welcome(canary: Path) -> None:
    @keras.saving.register_keras_serializable(package="tests")
    class Doubler(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return 2 * x

    inputs = keras.Input((8, 8, 1))
    keras.Model(inputs, keras.layers.Conv2D(1, 1)(Doubler()(inputs))).save("own.keras")
    assert open_checkpoint("own.keras").output_shape == (None, 8, 8, 1)


def test_all_that_keras_itself_calls_non_modelling_is_off_the_list() -> None:
    for name in (
        "Lambda",
        "TorchModuleWrapper",
        "JaxLayer",
        "FlaxLayer",
        "TextVectorization",
        "IntegerLookup",
        "Hashing",
    ):
        with pytest.raises(CheckpointError, match=name):
            check_config({"module": "keras.layers", "class_name": name, "config": {"name": "x"}})


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_a_network_larger_than_its_file_is_refused_before_it_is_built(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    layer(config, "conv")["config"]["filters"] = 1_000_000_000  # 36 GB, were it built
    refused(write(canary.with_name("x.keras"), config, weights), "larger than the weights", "23 numbers")


def test_two_honest_sizes_that_multiply_to_an_absurd_one(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    for name in ("conv", "head"):
        layer(config, name)["config"]["filters"] = 3_000_000  # 3e6 x 3e6 between them
    refused(write(canary.with_name("x.keras"), config, weights), "larger than the weights")


def test_a_refused_size_leaves_nothing_behind_that_would_be_allocated_later(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    layer(config, "conv")["config"]["filters"] = 1_000_000_000
    refused(write(canary.with_name("x.keras"), config, weights))
    with keras.StatelessScope():
        pass  # on leaving, Keras allocates whatever is on this thread's list
    assert network().count_params() == 23


def test_h5_files_are_weighed_too(canary: Path) -> None:
    network().save("x.h5")
    with h5py.File("x.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layer(config, "conv")["config"]["filters"] = 1_000_000_000
        file.attrs["model_config"] = json.dumps(config)
    refused(Path("x.h5"), "larger than the weights")


# --- archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../canary", "/canary", "a/../../canary", "..\\canary", "C:\\canary"])
def test_archives_that_climb_out_are_refused(name: str, canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    path = write(canary.with_name("x.keras"), config, weights)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"boo")
    refused(path, "outside its folder", "canary")


def test_archives_with_links_twins_and_bombs_are_refused(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    path = write(canary.with_name("link.keras"), config, weights)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("assets/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    refused(path, "link")
    path = write(canary.with_name("twin.keras"), config, weights)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("config.json", "{}")
    refused(path, "twice", "config.json")
    path = canary.with_name("bomb.keras")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", b" " * (80 << 20))
        archive.writestr("model.weights.h5", weights)
    assert path.stat().st_size < 1 << 20
    refused(path, "unpacks to far more", "config.json")


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_a_member_that_lies_about_its_size_gains_nothing(canary: Path, member: str) -> None:
    config, weights = parts(network(), canary.parent)
    path = canary.with_name("lies.keras")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    data = bytearray(path.read_bytes())
    entry = data.rindex(member.encode(), data.index(b"PK\x01\x02")) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    struct.pack_into("<I", data, entry + 24, 10)  # declared: 10 bytes
    path.write_bytes(data)
    refused(path, "archive is damaged")


def test_truncated_archives_are_called_damaged(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    path = write(canary.with_name("x.keras"), config, weights)
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, "damaged zip archive")


# --- HDF5 ------------------------------------------------------------------------------------------------------------


def spoil_h5(path: Path, spoil: Any) -> Path:
    network().save(path)
    with h5py.File(path, "r+") as file:
        spoil(
            file,
            file["model_weights/conv/net/conv"]
            if "net" in file["model_weights/conv"]
            else file["model_weights/conv/conv"],
        )
    return path


def test_external_links_are_refused(canary: Path) -> None:
    with h5py.File("secret.h5", "w") as file:
        file["kernel"] = np.ones((3, 3, 1, 2), "float32")

    def spoil(_: h5py.File, conv: h5py.Group) -> None:
        del conv["kernel"]
        conv["kernel"] = h5py.ExternalLink("secret.h5", "/kernel")

    refused(spoil_h5(Path("x.h5"), spoil), "external link", "kernel", "secret.h5")


def test_soft_links_are_refused(canary: Path) -> None:
    def spoil(_: h5py.File, conv: h5py.Group) -> None:
        conv["copy"] = h5py.SoftLink("/model_weights")

    refused(spoil_h5(Path("x.h5"), spoil), "soft link", "copy")


def test_virtual_data_sets_are_refused(canary: Path) -> None:
    with h5py.File("secret.h5", "w") as file:
        file["kernel"] = np.ones((3, 3, 1, 2), "float32")

    def spoil(_: h5py.File, conv: h5py.Group) -> None:
        del conv["kernel"]
        layout = h5py.VirtualLayout((3, 3, 1, 2), "float32")
        layout[...] = h5py.VirtualSource("secret.h5", "kernel", (3, 3, 1, 2))
        conv.create_virtual_dataset("kernel", layout)

    refused(spoil_h5(Path("x.h5"), spoil), "virtual data set", "kernel")


def test_external_storage_is_refused(canary: Path) -> None:
    Path("secret.bin").write_bytes(b"\0" * 72)

    def spoil(_: h5py.File, conv: h5py.Group) -> None:
        del conv["kernel"]
        conv.create_dataset("kernel", (3, 3, 1, 2), "float32", external=[("secret.bin", 0, 72)])

    refused(spoil_h5(Path("x.h5"), spoil), "another file", "secret.bin")


def test_data_sets_that_declare_terabytes_are_refused(canary: Path) -> None:
    def spoil(_: h5py.File, conv: h5py.Group) -> None:
        conv.create_dataset("bomb", (1 << 20, 1 << 20), "float32", chunks=(1024, 1024))

    path = spoil_h5(Path("x.h5"), spoil)
    assert path.stat().st_size < 1 << 20
    refused(path, "declares far more", "bomb")


def test_an_archive_of_tens_of_thousands_of_members_is_refused_before_they_are_read(canary: Path) -> None:
    path = canary.with_name("many.keras")
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(36_000):
            archive.writestr(zipfile.ZipInfo(f"{number:06}"), b"")
    refused(path, "too many files", "at most 10000")


def test_a_large_archive_of_10_001_members_is_refused(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    path = write(canary.with_name("many.keras"), config, weights)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("large", bytes(2 << 20))
        for number in range(9_997):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    refused(path, "too many members")


@pytest.mark.parametrize("architecture", [None, "itself"])
def test_an_archive_with_weights_in_parts_is_no_keras_file(canary: Path, architecture: str | None) -> None:
    config, _ = parts(network(), canary.parent)
    path = canary.with_name("parts.keras")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.json", "model_00000.weights.h5"):
            archive.writestr(name, json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"not a `\.keras` file \(found config.json, metadata.json, model.weights.json"
    ):
        open_checkpoint(path, architecture=architecture and network())


def test_many_small_bombs_are_counted_together(canary: Path) -> None:
    def spoil(_: h5py.File, conv: h5py.Group) -> None:
        for n in range(40):
            conv.create_dataset(f"bomb{n}", (1 << 24,), "float32", chunks=(1 << 16,))

    refused(spoil_h5(Path("x.h5"), spoil), "far more")


def test_groups_that_contain_themselves_are_refused(canary: Path) -> None:
    def spoil(file: h5py.File, conv: h5py.Group) -> None:
        conv["again"] = file["model_weights"]

    refused(spoil_h5(Path("x.h5"), spoil), "twice")


def test_the_weights_inside_an_archive_are_looked_over_as_well(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    Path("w.h5").write_bytes(weights)
    with h5py.File("w.h5", "r+") as file:
        file["layers/link"] = h5py.ExternalLink("/etc/hostname", "/")
    refused(write(canary.with_name("x.keras"), config, Path("w.h5").read_bytes()), "external link")


def test_bytes_at_random_never_do_worse_than_an_error(canary: Path) -> None:
    network().save("x.h5")
    whole = Path("x.h5").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 6):
            data[at] = rng.integers(0, 256)
        Path("y.h5").write_bytes(data)
        with contextlib.suppress(CheckpointError):  # and nothing else
            open_checkpoint("y.h5")


# --- one process parses, under limits --------------------------------------------------------------------------------


def short_chunk(values: np.ndarray, keep: int) -> Any:
    """Replaces the kernel by one whose only chunk inflates to `keep` bytes."""

    def spoil(_: h5py.File, conv: h5py.Group) -> None:
        del conv["kernel"]
        data = conv.create_dataset("kernel", values.shape, "float32", chunks=values.shape, compression="gzip")
        data.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(values.tobytes()[:keep]))

    return spoil


@pytest.mark.parametrize("keep", [0, 4, 71])
def test_chunks_that_inflate_to_too_little_are_no_weights(keep: int, canary: Path) -> None:
    spoiled = spoil_h5(Path("x.h5"), short_chunk(np.ones((3, 3, 1, 2), "float32"), keep))
    refused(spoiled, "damaged", "instead of 72")


def doubled(x: Any, steps: int) -> Any:
    for _ in range(steps):
        x = keras.layers.Add()([x, keras.layers.Dropout(0.1)(x)])
    return x


@pytest.mark.parametrize("nested", [False, True])
def test_sums_that_double_at_each_layer_are_refused(nested: bool, canary: Path) -> None:
    """TensorFlow would write out all terms before it runs the network."""
    inputs = keras.Input((8, 8, 1))
    if nested:
        inner = keras.Model(part := keras.Input((8, 8, 1)), doubled(part, 4))
        x = inputs
        for _ in range(10):
            x = inner(x)
    else:
        x = doubled(inputs, 17)
    keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid")(x)).save("x.keras")
    refused(Path("x.keras"), "refused", "makes a sum of")


@pytest.mark.parametrize("stored", [b"not deflated", zlib.compress(bytes(72))[:-6], b"x" * 1000])
def test_chunks_that_do_not_inflate_are_no_weights(stored: bytes, canary: Path) -> None:
    def spoil(_: h5py.File, conv: h5py.Group) -> None:
        del conv["kernel"]
        data = conv.create_dataset("kernel", (3, 3, 1, 2), "float32", chunks=(3, 3, 1, 2), compression="gzip")
        data.id.write_direct_chunk((0, 0, 0, 0), stored)

    refused(spoil_h5(Path("x.h5"), spoil), "damaged")


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"fletcher32": True, "shuffle": True}])
def test_compressed_weights_open_where_they_are_whole(options: dict[str, Any], canary: Path) -> None:
    kernel = np.random.default_rng(0).random((3, 3, 1, 2), "float32")

    def spoil(_: h5py.File, conv: h5py.Group) -> None:
        del conv["kernel"]
        conv.create_dataset("kernel", data=kernel, chunks=(2, 2, 1, 2), compression="gzip", **options)

    opened = open_checkpoint(spoil_h5(Path("x.h5"), spoil))
    np.testing.assert_array_equal(opened.get_layer("conv").get_weights()[0], kernel)


@pytest.mark.parametrize("kind", [0, 3])
def test_attributes_that_are_no_text_are_left_alone(kind: int, canary: Path) -> None:
    """HDF5 ends the process when it reads one whose type is damaged: neither a list (0) nor a text (1)."""
    spoiled = spoil_h5(canary.with_name("odd.h5"), lambda file, _: file.attrs.create("note", "a text"))
    data = spoiled.read_bytes()
    at = data.rindex(b"\x19\x01\x01\x00", 0, data.index(b"note\0") + 64)
    spoiled.write_bytes(data[: at + 1] + bytes([kind]) + data[at + 2 :])
    assert [layer.name for layer in open_checkpoint(spoiled).layers] == ["image", "conv", "head"]


def test_what_crashes_the_reader_is_one_bad_file(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerasseg.checkpoints.hdf5.send_weights", lambda *_: call(os.abort))
    network().save("x.h5")
    refused(Path("x.h5"), "ended the reader process", "signal 6")


def test_a_cut_off_file_says_how_much_is_there(canary: Path) -> None:
    network().save("x.h5")
    whole = Path("x.h5").read_bytes()
    Path("x.h5").write_bytes(whole[:9000])
    refused(Path("x.h5"), "truncated", "9,000 of", f"{len(whole):,} bytes")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: layer(config, "conv").update(inbound_nodes=5),
        lambda config: layer(config, "conv").update(config=5),
        lambda config: config["config"].update(layers=7),
        lambda config: config["config"].update(layers=[{}] * 1000),
        lambda config: config["config"].update(input_layers=3),
        lambda config: layer(config, "head").update(inbound_nodes=[{"args": 3}]),
        lambda config: config.update(config=None),
        lambda config: layer(config, "conv")["config"].update(kernel_size={"a": []}),
    ],
)
@pytest.mark.parametrize("version", ["3.15.1", "2.15.0"])
def test_malformed_configurations_are_bad_files(spoil: Any, version: str, canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    spoil(config)
    refused(write(canary.with_name("x.keras"), config, weights, version))


def test_configurations_that_grow_when_parsed_are_refused_before(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    config["config"]["layers"] += [{}] * 2_000_000
    refused(write(canary.with_name("x.keras"), config, weights), "cannot be read", "2,000,0", "values")


def test_deep_lists_are_refused(canary: Path) -> None:
    config, weights = parts(network(), canary.parent)
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    layer(config, "conv")["config"]["extra"] = deep
    refused(write(canary.with_name("x.keras"), config, weights), "nested")


@pytest.mark.parametrize("size", [8, None])
def test_a_map_of_gigabytes_is_refused(size: int | None, canary: Path) -> None:
    image = keras.Input((size, size, 1))
    x = keras.layers.Conv2D(1, 3, padding="same")(image)
    x = keras.layers.UpSampling2D(64, name="more")(keras.layers.UpSampling2D(64)(x))
    x = keras.layers.UpSampling2D(64, name="most")(x)
    keras.Model(image, keras.layers.MaxPooling2D(64**3)(x)).save("x.keras")
    refused(Path("x.keras"), "GB from one image")


@pytest.mark.parametrize("size", [256, None])
@pytest.mark.parametrize("together", [True, False])
def test_many_large_maps_are_refused_only_if_they_are_needed_together(
    size: int | None, together: bool, canary: Path
) -> None:
    image = keras.Input((size, size, 1))
    maps, x = [], image
    for _ in range(24):
        wide = keras.layers.Conv2D(2048, 1)(image if together else x)
        x = keras.layers.Conv2D(1, 1)(wide)
        maps.append(wide if together else x)
    model = keras.Model(image, keras.layers.Conv2D(1, 1)(keras.layers.Average()(maps)))
    if together:
        model.save("x.keras")
        refused(Path("x.keras"), "one image takes 9 GB")
    else:
        check_maps(model)


@pytest.mark.parametrize(
    "part",
    [
        lambda x: keras.layers.MultiHeadAttention(1, 1)(*[keras.layers.Reshape((65536, 1))(x)] * 2),
        lambda x: keras.layers.SeparableConv2D(1, 1, depth_multiplier=8192)(x),
        lambda x: keras.layers.Resizing(1, 1 << 20, pad_to_aspect_ratio=True)(x),
    ],
)
def test_a_layer_with_gigabytes_of_intermediate_results_is_refused(part: Any, canary: Path) -> None:
    image = keras.Input((256, 256, 1))
    y = part(image)
    keras.Model(image, keras.layers.Conv2D(1, 1)(y) if len(y.shape) == 4 else y).save("x.keras")
    refused(Path("x.keras"), "GB from one image")


def test_a_network_that_takes_too_long_to_build_is_refused(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = image = keras.Input((8, 8, 1))
    for _ in range(300):
        x = keras.layers.Identity()(x)
    keras.Model(image, keras.layers.Conv2D(1, 1)(x)).save("x.keras")
    monkeypatch.setattr("kerasseg.checkpoints.allowed._BUILD_SECONDS", 0.02)
    refused(Path("x.keras"), "takes more than 0.02 s")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value: float, canary: Path) -> None:
    model = network()
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([kernel * value, bias])
    model.save("x.keras")
    refused(Path("x.keras"), "head/kernel", "earlier checkpoint")


def test_weights_of_keras_0_name_their_age(canary: Path) -> None:
    with h5py.File("old.h5", "w") as file:
        file.attrs["nb_layers"] = 1
        file.create_group("layer_0").create_dataset("param_0", data=np.ones((2, 2), "float32"))
    refused(Path("old.h5"), "Keras 0.x")
