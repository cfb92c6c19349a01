"""Write and open the formats that contain only the network: Keras, LiteRT and ONNX."""

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
from kerasseg_tfrecords.files import system_error

Network = Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]
"""Images (batch, size, size, channels) in [0, 1] -> "probability" (batch, size, size) float32 and, if the export makes it,
"mask" of that shape."""

BATCH = 4
"""Batch size in comparisons."""


def serving_model(model: keras.Model, size: int, threshold: float | None) -> keras.Model:
    """Build the network with an input "image" and outputs "probability" and, with a threshold, "mask" (uint8)."""
    image = keras.Input((size, size, int(model.inputs[0].shape[-1])), name="image", dtype="float32")
    probability = model(image, training=False)
    outputs = {"probability": probability}
    if threshold is not None:
        # In float32, as `apply_rule` compares.
        outputs["mask"] = keras.ops.cast(probability >= float(np.float32(threshold)), "uint8")
    return keras.Model(image, outputs)


@contextlib.contextmanager
def convertible(form: str) -> Iterator[None]:
    """Turn errors of a converter into one sentence."""
    try:
        yield
    except OSError:
        raise  # the disk, not the network
    except Exception as error:  # converters raise many types
        if (known := system_error(error)) is not None:
            raise known from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise KerassegError(
            f"this network cannot be written as {form}",
            found=f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": "),
            remedy="Use --format savedmodel or keras, and please report this.",
        ) from error


def check_backend() -> None:
    """Check that Keras runs on TensorFlow, which exports other than `.keras` need."""
    found = keras.backend.backend()
    if found != "tensorflow":
        raise UsageError(
            "this export needs Keras on TensorFlow",
            found=f"KERAS_BACKEND={found}",
            expected="tensorflow",
            remedy="Export with KERAS_BACKEND=tensorflow, or --format keras.",
        )


def need_extra(extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"this export needs {' and '.join(missing)}",
            found="not installed",
            remedy=f'Install the extra: pip install "kerasseg[{extra}]"',
        )


KERAS_FILE = "model.keras"


def write_keras(model: keras.Model, folder: Path) -> None:
    RunDirectory(folder).save_model(model, folder / KERAS_FILE)


def open_keras_export(folder: Path) -> Network:
    model = keras.saving.load_model(folder / KERAS_FILE, compile=False)

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = keras.ops.convert_to_numpy(model(images, training=False))
        return {"probability": np.asarray(found, np.float32)[..., 0]}

    return call


LITERT_FILE = "model.tflite"


def write_litert(serving: keras.Model, folder: Path, calibration: NDArray[np.float32] | None) -> None:
    """Write a LiteRT file.

    Args:
        serving: See `serving_model`.
        folder: Output folder.
        calibration: (slices, size, size, channels) in [0, 1] for calibrating 8-bit ranges; None writes float32. Input and
            outputs are float32 in both cases.
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
        # The converter warns about float inputs, which are intended.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        with convertible("LiteRT"):
            serving.export(folder / LITERT_FILE, format="litert", verbose=False, **options)


def open_litert(folder: Path) -> Network:
    """Open the file with the interpreter in TensorFlow."""
    with warnings.catch_warnings():
        # The same interpreter will move to the package ai-edge-litert.
        warnings.filterwarnings("ignore", r"(?s).*tf\.lite\.Interpreter is deprecated", UserWarning)
        with convertible("LiteRT"):
            runner = tf.lite.Interpreter(str(folder / LITERT_FILE)).get_signature_runner()

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        # Some networks are converted but refused by the runtime.
        with convertible("LiteRT"):
            found = runner(image=images)
        return {name: values[..., 0].copy() for name, values in found.items()}

    return call


ONNX_FILE = "model.onnx"
ONNX_PACKAGES = ("onnx", "tf2onnx", "onnxruntime")
ONNX_OPSET = 15
"""Operator set: the default of tf2onnx, which most runtimes support."""


def write_onnx(serving: keras.Model, folder: Path, notes: Mapping[str, str]) -> None:
    import onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    path = folder / ONNX_FILE
    with warnings.catch_warnings():
        # Keras uses a name that NumPy has removed.
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
    """Open the file with ONNX Runtime on the CPU."""
    import onnxruntime

    with convertible("ONNX"):
        session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = session.run(names, {"image": images})
        return {name: values[..., 0] for name, values in zip(names, found, strict=True)}

    return call
