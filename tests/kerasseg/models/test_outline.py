"""What is read from a file without Keras is what the opened network shows."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import architectures
import kerasseg
from kerasseg.checkpoints.open import open_checkpoint
from kerasseg.models.inspection import inspect_checkpoint, inspect_model
from kerasseg.models.outline import read_outline
from kerasseg_tfrecords.errors import CheckpointError, DataError

NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "unet": lambda: kerasseg.unet((32, 32, 1), filters=4, depth=3),
    "any size": lambda: kerasseg.unet((None, None, 3), filters=2, depth=2),
    "upsampling": lambda: architectures.unet(2, up="resize")[0],
    "U-Net++": lambda: architectures.plus_plus(2)[0],
    "U-Net 3+": lambda: architectures.full_scale()[0],
}


def test_a_file_that_ends_its_reader_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = tmp_path / "net.h5", []
    kerasseg.unet((32, 32, 1), filters=2, depth=2).save(file)

    def send_weights(source: Path, *_: object) -> None:
        read.append(source)
        raise DataError("reading it takes too long", kind="crashed")

    monkeypatch.setattr("kerasseg.checkpoints.hdf5.send_weights", send_weights)
    with pytest.raises(CheckpointError, match="takes too long"):
        inspect_checkpoint(file)
    assert read == [file]


@pytest.mark.rest
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_what_keras_opens(name: str, suffix: str, tmp_path: Path) -> None:
    network = NETWORKS[name]()
    network.layers[1].trainable = False
    file = tmp_path / f"net{suffix}"
    network.save(file)
    assert read_outline(file) is not None
    for what in (None, ["conservative"], ["aggressive"]):
        expected = inspect_model(open_checkpoint(file), path=file, what=what).to_json()
        assert inspect_checkpoint(file, what).to_json() == expected


def test_a_device_is_left_to_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerasseg.models.outline.kind_of", lambda path: pytest.fail(f"{path} was read"))
    assert read_outline(Path("/dev/null")) is None


def test_the_record_of_an_opened_network_is_kept(tmp_path: Path) -> None:
    kerasseg.unet((16, 16, 1), filters=2, depth=1).save(tmp_path / "first.keras")
    open_checkpoint(tmp_path / "first.keras").save(tmp_path / "second.keras")
    found = inspect_checkpoint(tmp_path / "second.keras").provenance
    assert found is not None
    assert (found.path, found.file) == (str(tmp_path / "first.keras"), str(tmp_path / "second.keras"))
    assert found == inspect_model(open_checkpoint(tmp_path / "second.keras")).provenance


@pytest.mark.parametrize("name", ["nested", "attention", "channels_first", "shared", "residual", "squeezed"])
def test_other_networks_are_left_to_keras(name: str, tmp_path: Path) -> None:
    getattr(architectures, name)()[0].save(tmp_path / "net.keras")
    assert read_outline(tmp_path / "net.keras") is None


def edited(source: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of an archive with another configuration."""
    target = source.with_name("edited.keras")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                change(config["config"]["layers"][1])
                data = json.dumps(config).encode()
            new.writestr(name, data)
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer["config"].update(filters=3),
        lambda layer: layer["config"].update(kernel_size=[5, 5]),
        lambda layer: layer.update(class_name="Lambda"),
        lambda layer: layer.update(module="os"),
        lambda layer: layer["config"]["kernel_initializer"].update(module="os"),
        lambda layer: layer["config"].update(dtype="float16"),
        lambda layer: layer["inbound_nodes"][0]["args"].append(2),
        lambda layer: layer["inbound_nodes"][0]["args"][0]["config"].update(keras_history=["head", 0, 0]),
    ],
)
def test_what_does_not_fit_is_left_to_keras(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    kerasseg.unet((16, 16, 1), filters=2, depth=1).save(tmp_path / "net.keras")
    assert read_outline(tmp_path / "net.keras") is not None
    assert read_outline(edited(tmp_path / "net.keras", change)) is None


def test_damaged_weights_and_files_are_left_to_keras(tmp_path: Path) -> None:
    network = kerasseg.unet((16, 16, 1), filters=2, depth=1)
    network.layers[1].set_weights([np.full_like(weight, np.nan) for weight in network.layers[1].get_weights()])
    network.save(tmp_path / "net.keras")
    assert read_outline(tmp_path / "net.keras") is None
    (tmp_path / "half.keras").write_bytes((tmp_path / "net.keras").read_bytes()[:5000])
    (tmp_path / "text.keras").write_text("{}")
    assert read_outline(tmp_path / "half.keras") is read_outline(tmp_path / "text.keras") is None
