"""Whole-model HDF5 files: the legacy format of Keras 3, and the format of tf.keras and Keras 2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import h5py

from kerasseg.checkpoints import legacy  # noqa: F401 - registers the names of TensorFlow Addons
from kerasseg.checkpoints.allowed import LAYERS, NETWORKS, operation_module, parse_config, without_training
from kerasseg.checkpoints.hdf5 import text_attribute
from kerasseg.checkpoints.identify import is_keras_3, writer_name
from kerasseg.checkpoints.keras2.rewrites import rewrite
from kerasseg.checkpoints.keras2.translate import build_translated, translate, with_bare_ends
from kerasseg.checkpoints.provenance import OpenedModel
from kerasseg.checkpoints.stored import read_by_name, stored_numbers
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["add_modules", "open_h5"]


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
        raise CheckpointError(
            "the file was written by Keras 1, which described networks differently",
            found=writer_name(version),
            expected="Keras 2 or later",
            remedy="Open and save it once with Keras 2.0 to 2.2, which convert such files.",
        )
    config, modern = without_training(parse_config(text)), is_keras_3(version)
    translation = rewrite(with_bare_ends(add_modules(config))) if modern else translate(config, writer=version or "")
    model = build_translated(translation, stored_numbers(weights), read_by_name(weights))
    kind = "Keras 3 HDF5 (legacy)" if modern else "Keras 2 HDF5"
    return OpenedModel(model, writer_name(version), kind, translation.notes)
