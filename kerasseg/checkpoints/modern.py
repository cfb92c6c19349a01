"""Configurations in the legacy `.h5` files of Keras 3: all there, only the modules are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kerasseg.checkpoints.allowed import LAYERS, NETWORKS, operation_module

__all__ = ["add_modules"]


def add_modules(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A network or layer of Keras 3's legacy format as Keras 3's own format describes it.

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
    else:  # an operation of keras.ops, which has no `trainable`, or a class that the gate will refuse
        result["module"] = operation_module(name) or ("keras.layers" if name in LAYERS else None)
        result["class_name"] = name.rpartition(">")[2]
    return result
