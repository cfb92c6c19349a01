"""`--format onnx`: by Keras' own exporter (tf2onnx); opened again and run by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.export.serving import Network, convertible

__all__ = ["FILE", "PACKAGES", "open_onnx", "write_onnx"]

FILE = "model.onnx"
PACKAGES = ("onnx", "tf2onnx", "onnxruntime")
OPSET = 15
"""Of the operators: what tf2onnx takes by default, and runtimes of the last years know."""


def write_onnx(serving: keras.Model, folder: Path, notes: Mapping[str, str]) -> None:
    """Writes the file.

    Args:
        serving: See `serving_model`.
        folder: Where to.
        notes: For `metadata_props`, which every runtime can read.

    Raises:
        KerassegError: The network holds what ONNX has no operator for.
    """
    import onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    path = folder / FILE
    with warnings.catch_warnings():
        # Keras asks NumPy for a name that is gone, to give it to tf2onnx.
        warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)
        with convertible("ONNX"):
            image = keras.InputSpec(shape=serving.inputs[0].shape, dtype="float32", name="image")
            serving.export(path, format="onnx", verbose=False, input_signature=[image], opset_version=OPSET)
    made = onnx.load(path)
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    made.producer_name = "kerasseg"
    onnx.helper.set_model_props(made, dict(notes))
    onnx.checker.check_model(made)
    onnx.save(made, path)


def open_onnx(folder: Path) -> Network:
    """Opens it with ONNX Runtime on the processor."""
    import onnxruntime

    with convertible("ONNX"):
        session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = session.run(names, {"image": images})
        return {name: values[..., 0] for name, values in zip(names, found, strict=True)}

    return call
