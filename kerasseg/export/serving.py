"""What every format is made of and opened again as: the network with named ends, and a function from images to results."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasseg.runs.directory import RunDirectory
from kerasseg_tfrecords.errors import KerassegError, UsageError

__all__ = [
    "BATCH",
    "KERAS_FILE",
    "LITERT_FILE",
    "ONNX_FILE",
    "ONNX_PACKAGES",
    "Network",
    "check_backend",
    "convertible",
    "need_extra",
    "open_keras_export",
    "open_litert",
    "open_onnx",
    "serving_model",
    "write_keras",
    "write_litert",
    "write_onnx",
]

Network = Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]
"""Images (batch, size, size, channels) in [0, 1] -> "probability" (batch, size, size) float32 and, where the export makes
it, "mask" of that shape."""

BATCH = 4
"""Slices at once in comparisons."""


def serving_model(model: keras.Model, size: int, threshold: float | None) -> keras.Model:
    """The same network with an input "image" and outputs "probability" and, with a threshold, "mask" (uint8).

    Args:
        model: The network.
        size: Of its input, which it may leave open: runtimes are quicker, and some work only, where it is known.
        threshold: None for no mask.
    """
    image = keras.Input((size, size, int(model.inputs[0].shape[-1])), name="image", dtype="float32")
    probability = model(image, training=False)
    outputs = {"probability": probability}
    if threshold is not None:
        # In float32, as `apply_rule` compares.
        outputs["mask"] = keras.ops.cast(probability >= float(np.float32(threshold)), "uint8")
    return keras.Model(image, outputs)


@contextlib.contextmanager
def convertible(form: str) -> Iterator[None]:
    """Makes one sentence of what a converter says of a network that it cannot convert.

    Raises:
        KerassegError: With the converter's first line.
    """
    try:
        yield
    except OSError:
        raise  # the disk, not the network
    except Exception as error:  # converters raise what they please
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise KerassegError(
            f"this network cannot be written as {form}",
            found=f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": "),
            remedy="Take --format savedmodel or keras, and please report it.",
        ) from error


def check_backend() -> None:
    """Exports other than `.keras` go through TensorFlow.

    Raises:
        UsageError: Keras runs on something else.
    """
    found = keras.backend.backend()
    if found != "tensorflow":
        raise UsageError(
            "this export needs Keras on TensorFlow",
            found=f"KERAS_BACKEND={found}",
            expected="tensorflow",
            remedy="Export with KERAS_BACKEND=tensorflow, or --format keras.",
        )


def need_extra(extra: str, *packages: str) -> None:
    """Whether the packages of an extra are installed.

    Raises:
        UsageError: Naming those that are missing, and how to get them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"this export needs {' and '.join(missing)}",
            found="not installed",
            remedy=f'Install the extra: pip install "kerasseg[{extra}]"',
        )


KERAS_FILE = "model.keras"


def write_keras(model: keras.Model, folder: Path) -> None:
    """Writes the file; its provenance goes along.

    Raises:
        KerassegError: It cannot be written.
    """
    RunDirectory(folder).save_model(model, folder / KERAS_FILE)


def open_keras_export(folder: Path) -> Network:
    """Opens it as anybody would, by Keras alone."""
    model = keras.saving.load_model(folder / KERAS_FILE, compile=False)

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = keras.ops.convert_to_numpy(model(images, training=False))
        return {"probability": np.asarray(found, np.float32)[..., 0]}

    return call


LITERT_FILE = "model.tflite"


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
            serving.export(folder / LITERT_FILE, format="litert", verbose=False, **options)


def open_litert(folder: Path) -> Network:
    """Opens it with the interpreter that comes with TensorFlow."""
    with warnings.catch_warnings():
        # It is to move into a package of its own, ai-edge-litert; it is the same interpreter.
        warnings.filterwarnings("ignore", r"(?s).*tf\.lite\.Interpreter is deprecated", UserWarning)
        with convertible("LiteRT"):
            runner = tf.lite.Interpreter(str(folder / LITERT_FILE)).get_signature_runner()

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        # Some networks are converted and then refused by the runtime.
        with convertible("LiteRT"):
            found = runner(image=images)
        return {name: values[..., 0].copy() for name, values in found.items()}

    return call


ONNX_FILE = "model.onnx"
ONNX_PACKAGES = ("onnx", "tf2onnx", "onnxruntime")
ONNX_OPSET = 15
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
    path = folder / ONNX_FILE
    with warnings.catch_warnings():
        # Keras asks NumPy for a name that is gone, to give it to tf2onnx.
        warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)
        with convertible("ONNX"):
            image = keras.InputSpec(shape=serving.inputs[0].shape, dtype="float32", name="image")
            serving.export(path, format="onnx", verbose=False, input_signature=[image], opset_version=ONNX_OPSET)
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
        session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = session.run(names, {"image": images})
        return {name: values[..., 0] for name, values in zip(names, found, strict=True)}

    return call
