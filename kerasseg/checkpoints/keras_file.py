"""Whole networks in one file: `.keras` archives, packed or not, and HDF5 files.

Networks of Keras 3 are loaded in safe mode; those of Keras 2 (tf-keras) are translated first.
"""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import h5py

from kerasseg.checkpoints import legacy  # noqa: F401 - registers the names of TensorFlow Addons
from kerasseg.checkpoints.allowed import (
    LAYERS,
    NETWORKS,
    build,
    check_config,
    check_size,
    operation_module,
    parse_config,
    without_training,
)
from kerasseg.checkpoints.hdf5 import open_hdf5, text_attribute
from kerasseg.checkpoints.identify import is_keras_3, writer_name
from kerasseg.checkpoints.keras2.rewrites import rewrite
from kerasseg.checkpoints.keras2.translate import build_translated, translate, with_bare_ends
from kerasseg.checkpoints.provenance import OpenedModel, Provenance, recorded
from kerasseg.checkpoints.stored import read_by_class, read_by_name, stored_numbers
from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import CheckpointError

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_ALWAYS_FINE = 1 << 26  # bytes
_MOST_EXPANSION = 200  # times the stored bytes; Keras stores without compression, float32 weights compress to 90 %
_MOST_MEMBERS = 10_000


def check_archive(archive: zipfile.ZipFile) -> None:
    """Refuse archives with paths outside their folder, links, duplicate members or an excessive unpacked size."""
    names: set[str] = set()
    if len(archive.infolist()) > _MOST_MEMBERS:
        raise CheckpointError("refused: too many members in the archive")
    for info in archive.infolist():
        name = info.orig_filename
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name:
            what = "refused: a member of the archive has a path outside its folder"
            raise CheckpointError(what, found=name, remedy="The file may be malicious: get it from a trusted source.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise CheckpointError("refused: a member of the archive is a link", found=name)
        if info.filename in names:
            raise CheckpointError("refused: the archive names a member twice", found=name)
        if info.flag_bits & 1:
            raise CheckpointError("the archive is encrypted", found=name)
        names.add(info.filename)
        if info.file_size > max(_ALWAYS_FINE, _MOST_EXPANSION * info.compress_size):
            found = f"{name}: {info.file_size} bytes from {info.compress_size}"
            raise CheckpointError("refused: a member of the archive unpacks to far more than it stores", found=found)


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    with archive.open(name) as member:
        data = member.read(size + 1)  # at most one byte more than declared
    if len(data) != size:
        raise zipfile.BadZipFile(f"{name} has another size than declared")
    return data


def _members(path: Path, *wanted: str) -> dict[str, bytes]:
    if path.is_dir():
        files = [path / name for name in wanted]
        if any(file.stat().st_size > _ALWAYS_FINE for file in files if file.name != _WEIGHTS):
            raise CheckpointError("the network's configuration is too long")
        return {file.name: file.read_bytes() for file in files}
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            check_archive(archive)
            names = set(archive.namelist())
            if _CONFIG not in names or _WEIGHTS not in names:
                found, expected = ", ".join(sorted(names)[:8]), f"{_CONFIG}, {_METADATA} and {_WEIGHTS}"
                what = "the archive is not a `.keras` file"
                raise CheckpointError(what, found=found or "nothing in it", expected=expected)
            return {name: _read(archive, name) for name in wanted if name in names}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError, zlib.error) as error:
        remedy = "Fetch it again and compare its size."
        raise CheckpointError("the archive is damaged", found=str(error), remedy=remedy) from error


def read_weights(path: Path) -> bytes:
    """Read the weights (an HDF5 file) of a `.keras` archive or folder, whatever its network."""
    return _members(path, _WEIGHTS)[_WEIGHTS]


def read_archive(path: Path) -> tuple[dict[str, Any], str | None, bytes]:
    """Read the configuration, the version of Keras and the weights (an HDF5 file) of a `.keras` archive or folder."""
    members = _members(path, _CONFIG, _METADATA, _WEIGHTS)
    try:
        metadata = parse_json(members.get(_METADATA, b"{}"), max_bytes=1 << 20)
    except ValueError:
        metadata = {}
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return parse_config(members[_CONFIG]), version if isinstance(version, str) else None, members[_WEIGHTS]


def open_keras(path: Path) -> tuple[OpenedModel, Provenance | None]:
    """Open a `.keras` archive, or the folder of an unpacked one, as Keras writes it to the Hugging Face Hub.

    Returns:
        The network, and the provenance that kerasseg recorded in the file, if any.
    """
    config, version, weights = read_archive(path)
    modern, network = is_keras_3(version), without_training(config)
    translation = rewrite(with_bare_ends(network)) if modern else translate(network, writer=version or "")
    with open_hdf5(weights, f"{path}!{_WEIGHTS}") as file:
        numbers = stored_numbers(file)
        if not modern:
            model = build_translated(translation, numbers, read_by_class(file, network))
            return OpenedModel(model, writer_name(version), "Keras 2 archive (.keras)", translation.notes), None
        check_config(translation.config)
        check_size(translation.config, numbers)
        model = build(translation.config)
        try:
            model.load_weights(file.filename)  # Keras' own reader, because layers may define their own layout
        except (ValueError, KeyError, OSError, TypeError) as error:
            found = " ".join(str(error).split())[:300]
            raise CheckpointError("the weights do not fit the network that the file describes", found=found) from error
    opened = OpenedModel(model, writer_name(version), "Keras 3 archive (.keras)", translation.notes)
    return opened, recorded(config)


def add_modules(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a network or layer from Keras 3's legacy format to its native format.

    Example:
        >>> add_modules({"class_name": "Conv2D", "config": {"name": "c", "trainable": True}})["module"]
        'keras.layers'
    """
    if "module" in entry:
        return dict(entry)
    name, config = str(entry["class_name"]), entry["config"]
    result = {**entry, "registered_name": name if ">" in name else None, "module": None}
    if name in NETWORKS:
        result["module"] = "keras.src.models.functional" if name == "Functional" else "keras"
        result["config"] = {**config, "layers": [add_modules(inner) for inner in config["layers"]]}
    elif name == "InputLayer" or (name in LAYERS and "trainable" in config):
        result["module"] = "keras.layers"
    else:  # an operation of keras.ops, which has no `trainable`, or a class that `check_config` refuses
        result["module"] = operation_module(name) or ("keras.layers" if name in LAYERS else None)
        result["class_name"] = name.rpartition(">")[2]
    return result


def open_h5(file: h5py.File) -> OpenedModel:
    """Open a whole-model HDF5 file, as yielded by `open_hdf5`."""
    text, weights = text_attribute(file, "model_config"), file.get("model_weights")
    if any(re.fullmatch(r"layer_\d+", k) and isinstance(g, h5py.Group) and "param_0" in g for k, g in file.items()):
        what = "these are weights of Keras 0.x (2015 to 2016), which stored no layer names"
        remedy = "Load them into their network with Keras 0.3 or 1.x and save the whole network with Keras 2."
        raise CheckpointError(what, expected="a file of Keras 2 or later", remedy=remedy)
    if text is None or not isinstance(weights, h5py.Group):
        found = ", ".join([*file.keys(), *(f"attribute {a}" for a in file.attrs)][:8]) or "nothing"
        expected = "the attribute model_config and the group model_weights"
        raise CheckpointError("the HDF5 file holds no whole network", found=found, expected=expected)
    version = text_attribute(file, "keras_version") or text_attribute(weights, "keras_version")
    if (version or "1").startswith("1."):
        problem = "the file was written by Keras 1, which described networks differently"
        how = "Open and save it once with Keras 2.0 to 2.2, which convert such files."
        raise CheckpointError(problem, found=writer_name(version), expected="Keras 2 or later", remedy=how)
    config, modern = without_training(parse_config(text)), is_keras_3(version)
    translation = rewrite(with_bare_ends(add_modules(config))) if modern else translate(config, writer=version or "")
    model = build_translated(translation, stored_numbers(weights), read_by_name(weights))
    kind = "Keras 3 HDF5 (legacy)" if modern else "Keras 2 HDF5"
    return OpenedModel(model, writer_name(version), kind, translation.notes)
