"""`--format litert`: a LiteRT (TensorFlow Lite) file in float32, or with whole numbers of 8 bits inside."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasseg.export.serving import Network, convertible

__all__ = ["FILE", "open_litert", "write_litert"]

FILE = "model.tflite"


def write_litert(serving: keras.Model, folder: Path, calibration: NDArray[np.float32] | None) -> None:
    """Writes the file.

    Args:
        serving: See `serving_model`.
        folder: Where to.
        calibration: (slices, size, size, channels) in [0, 1] to find the ranges of 8 bits on; None writes float32.
            Input and outputs stay float32, so that both are called alike.

    Raises:
        KerassegError: The network holds what LiteRT has no operator for.
    """
    options: dict[str, Any] = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if calibration is not None:

        def ranges() -> Iterator[list[NDArray[np.float32]]]:
            for image in calibration:
                yield [image[np.newaxis]]

        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
        options["representative_dataset"] = ranges
        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]}
    with warnings.catch_warnings():
        # The converter warns that float inputs remain, which is meant.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        with convertible("LiteRT"):
            serving.export(folder / FILE, format="litert", verbose=False, **options)


def open_litert(folder: Path) -> Network:
    """Opens it with the interpreter that comes with TensorFlow."""
    with warnings.catch_warnings():
        # It is to move into a package of its own, ai-edge-litert; it is the same interpreter.
        warnings.filterwarnings("ignore", r"(?s).*tf\.lite\.Interpreter is deprecated", UserWarning)
        with convertible("LiteRT"):
            runner = tf.lite.Interpreter(str(folder / FILE)).get_signature_runner()

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        # Some networks are converted and then refused by the runtime.
        with convertible("LiteRT"):
            found = runner(image=images)
        return {name: values[..., 0].copy() for name, values in found.items()}

    return call
