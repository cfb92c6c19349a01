"""What every format is made of and opened again as: the network with named ends, and a function from images to results."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import KerassegError, UsageError

__all__ = ["BATCH", "Network", "check_backend", "convertible", "need_extra", "serving_model"]

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
