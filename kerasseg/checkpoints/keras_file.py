"""Whole networks in one file: `.keras` archives, packed or not, and HDF5 files.

Networks of Keras 3 are loaded in safe mode; those of Keras 2 (tf-keras) are translated first.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
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
from kerasseg_tfrecords.files import read_file
from kerasseg_tfrecords.formats.weights import read_members

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_LONGEST = 1 << 26  # bytes


def read_archive(path: Path) -> tuple[dict[str, Any], str | None]:
    """Read the configuration and the version of Keras of a `.keras` archive or folder."""
    names = (_CONFIG, _METADATA)
    members = {name: read_file(path / name, _LONGEST) for name in names} if path.is_dir() else read_members(path, names)
    try:
        metadata = parse_json(members.get(_METADATA, b"{}"), max_bytes=1 << 20)
    except ValueError:
        metadata = {}
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return parse_config(members[_CONFIG]), version if isinstance(version, str) else None


def open_weights_in(path: Path, name: object) -> contextlib.AbstractContextManager[h5py.File]:
    """Open the weights of a `.keras` archive or folder, whatever its network; see `open_hdf5`."""
    return open_hdf5(path / _WEIGHTS, name) if path.is_dir() else open_hdf5(path, name, _WEIGHTS)


def open_keras(path: Path) -> tuple[OpenedModel, Provenance | None]:
    """Open a `.keras` archive, or the folder of an unpacked one, as Keras writes it to the Hugging Face Hub.

    Returns:
        The network, and the provenance that kerasseg recorded in the file, if any.
    """
    config, version = read_archive(path)
    modern, network = is_keras_3(version), without_training(config)
    translation = rewrite(with_bare_ends(network)) if modern else translate(network, writer=version or "")
    with open_weights_in(path, f"{path}!{_WEIGHTS}") as file:
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
