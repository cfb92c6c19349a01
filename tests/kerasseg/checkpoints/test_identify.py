"""Whatever is not a checkpoint is told by its bytes, with what to do; nothing of it is loaded."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasseg.checkpoints.identify import Kind, explain, kind_of
from kerasseg.checkpoints.open import open_checkpoint
from kerasseg_tfrecords.errors import CheckpointError

HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 4


class Canary:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("a pickle was loaded",)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return buffer.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0\0\0"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123995312\n"
PICKLE = pickle.dumps(Canary())
TORCH_OLD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + PICKLE

TABLE = [
    ("empty.h5", b"", ["empty"]),
    ("unet.h5", POINTER, ["Git LFS pointer", "123,995,312 bytes", 'git lfs pull --include="unet.h5"']),
    ("unet.keras", POINTER, ["Git LFS pointer", 'git lfs pull --include="unet.keras"']),
    ("utf8.h5", HDF5.decode("latin-1").replace("\x89", "\ufffd").encode(), ["damaged", "read as text"]),
    ("unix.h5", HDF5.replace(b"\r\n", b"\n"), ["damaged", "line ends"]),
    ("dos.h5", HDF5.replace(b"\n", b"\r\n"), ["damaged", "line ends"]),
    ("model.pt", zipped(model__data_dot_pkl=PICKLE, model__version=b"3"), ["PyTorch", "does not unpickle"]),
    ("model.pth", TORCH_OLD, ["PyTorch", "does not unpickle"]),
    ("model.h5", PICKLE, ["pickle", "does not unpickle"]),
    ("model.safetensors", safetensors(), ["safetensors"]),
    ("model.onnx", b"\x08\x08\x12\x07pytorch\x1a\x052.0.0" + b"\0" * 50, ["ONNX"]),
    ("renamed.h5", b"\x08\x08\x12\x07pytorch\x1a\x052.0.0" + b"\0" * 50, ["ONNX"]),
    ("model.h5", b"\x1c\0\0\0TFL3" + b"\0" * 50, ["TensorFlow Lite"]),
    ("model.ckpt.index", b"\0\0\0\0\1\2\3" * 9, ["TensorFlow 1 checkpoint"]),
    ("checkpoint", b'model_checkpoint_path: "model.ckpt-9"', ["TensorFlow checkpoint"]),
    ("frozen.pb", b"\x0a\x30\x0a\x05image\x12\x0bPlaceholder" + b"\0" * 60, ["frozen TensorFlow graph"]),
    ("unet.h5", b"<!DOCTYPE html>\n<html><body>404</body>", ["web page"]),
    ("unet.keras", b"\n <html lang=en>", ["web page"]),
    ("unet.keras", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ["XML message"]),
    ("unet.h5", b'{"error": "Repository not found"}', ["JSON"]),
    ("unet.json", b'{"class_name": "Functional", "config": {}}', ["configuration without weights"]),
    ("unet.h5", b"Entry not found", ["text file", "`Entry not found`"]),
    ("a.zip", zipped(readme_dot_txt=b"hello"), ["zip archive", "readme.txt"]),
    ("a.zip", zipped(model__unet_dot_keras=b"x"), ["zip archive", "model/unet.keras", "Unpack"]),
    ("w.npz", zipped(w_dot_npy=b"x"), ["NumPy archive"]),
    ("cut.keras", zipped(config_dot_json=b"{}" * 99)[:120], ["damaged zip"]),
    ("a.tar.gz", gzip.compress(b"x" * 99), ["gzip"]),
    ("a.tar", b"\0" * 257 + b"ustar" + b"\0" * 300, ["tar archive"]),
    ("slice.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 30, ["image"]),
    ("noise.bin", b"\xfe\x01\x80\xff" * 20, ["not a checkpoint that kerasseg can open", "80 bytes"]),
]


@pytest.mark.parametrize(("name", "data", "words"), TABLE, ids=[f"{n}-{w[0]}" for n, _, w in TABLE])
def test_everything_else_is_explained(name: str, data: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    for word in words:
        assert word in text, text
    assert "\n" not in text


@given(st.binary(max_size=600))
def test_any_bytes_get_an_answer(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.h5"
    path.write_bytes(data)
    if kind_of(path) is Kind.OTHER:
        assert str(explain(path)).startswith(str(path))


def test_the_name_says_nothing_the_bytes_do(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    model.save(tmp_path / "a.keras")
    (tmp_path / "a.keras").rename(tmp_path / "a.h5")
    assert open_checkpoint(tmp_path / "a.h5").count_params() == 2


def test_a_missing_file_brings_suggestions(tmp_path: Path) -> None:
    (tmp_path / "unet-best.keras").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"Did you mean .*unet-best\.keras"):
        open_checkpoint(tmp_path / "unet_best.keras")
    with pytest.raises(CheckpointError, match=r"Did you mean .*unet-best\.keras"):
        open_checkpoint(tmp_path / "unet-best.h5")
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(tmp_path / "nowhere" / "x.keras")


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe: this is a pipe or a device"):
        open_checkpoint(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="it cannot be read .*too long"):
        open_checkpoint("x" * 5000)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.keras").touch()
    monkeypatch.setattr("kerasseg.checkpoints.open.kind_of", refuse)
    with pytest.raises(CheckpointError, match="secret.keras: it cannot be read .*Permission denied"):
        open_checkpoint(tmp_path / "secret.keras")


def test_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the folder is empty"):
        open_checkpoint(tmp_path)
    (tmp_path / "variables").mkdir()
    with pytest.raises(CheckpointError, match=r"part of a SavedModel: its saved_model\.pb is missing"):
        open_checkpoint(tmp_path)
    (tmp_path / "variables").rmdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "unet.keras").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"notes\.txt, unet\.keras.* Give .*unet\.keras"):
        open_checkpoint(tmp_path)


def test_an_unpacked_archive_opens(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    model.save(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        archive.extractall(tmp_path / "folder")
    x = np.ones((1, 8, 8, 1), "float32")
    np.testing.assert_array_equal(np.asarray(open_checkpoint(tmp_path / "folder")(x)), np.asarray(model(x)))


# --- networks, but not for this ----------------------------------------------------------------------------------------


def test_classifiers_and_3d_networks_are_named(tmp_path: Path) -> None:
    image, volume = keras.Input((8, 8, 1)), keras.Input((8, 8, 8, 1))
    for model, words in (
        (
            keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(image))),
            "this is a classifier",
        ),
        (keras.Model(volume, keras.layers.Conv3D(1, 1)(volume)), "this is a 3-D network"),
        (keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)]), "does not take images"),
    ):
        model.save(tmp_path / "m.keras")
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(tmp_path / "m.keras")


def test_hdf5_files_that_are_no_networks(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["cjdata/image"] = np.zeros((4, 4))
    with pytest.raises(CheckpointError, match=r"holds no whole network \(found cjdata"):
        open_checkpoint(tmp_path / "data.h5")


def test_a_truncated_hdf5_is_called_truncated(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros(10_000)
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"the HDF5 file is truncated: [\d,]+ of [\d,]+ bytes"):
        open_checkpoint(tmp_path / "a.h5")


def test_networks_of_keras_1_and_subclassed_models_are_named(tmp_path: Path) -> None:
    for version, config, words in (
        ("1.2.2", {"class_name": "Model", "config": {}}, "written by Keras 1"),
        ("2.4.0", {"class_name": "MyNet", "config": {}}, "neither a functional nor a sequential network"),
        ("2.4.0", {"class_name": "Model", "config": {"name": "m"}}, "subclassed model"),
    ):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.attrs["keras_version"] = version
            file.attrs["model_config"] = json.dumps(config)
            file.create_group("model_weights")
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(tmp_path / "a.h5")
