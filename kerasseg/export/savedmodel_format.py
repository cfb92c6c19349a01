"""`--format savedmodel`: stored slices of any size in, masks of that size out; usable without kerasseg.

| signature | takes | gives |
| --- | --- | --- |
| `serving_default` | uint8 (batch, height, width, channels), as stored | `mask`, `probability` (batch, height, width) |
| `stored_values` | the same as float32: 16-bit or floating-point values | the same |
| `volume` | the same; the batch is one volume, with one window | the same |
| `kerasseg_network` | float32 in [0, 1] (batch, size, size, channels) | `probability` (batch, size, size, 1) |

The argument is always `image`. `open_checkpoint` rebuilds the last signature as a trainable network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasseg.checkpoints.savedmodel import NETWORK_SIGNATURE
from kerasseg.export.intensity_graph import fit_images, restore_all
from kerasseg.export.mask_graph import postprocess_all
from kerasseg.export.serving import Network
from kerasseg.postprocessing import MaskRule
from kerasseg_tfrecords.errors import KerassegError
from kerasseg_tfrecords.intensity import IntensityRule

__all__ = ["FromStored", "RawNetwork", "open_savedmodel_export", "open_savedmodel_raw", "write_savedmodel"]

RawNetwork = Callable[[NDArray[Any]], tuple[NDArray[np.bool_], NDArray[np.float32]]]
"""One stored slice (height, width, channels) -> mask and probabilities (height, width)."""


@dataclass(frozen=True, slots=True)
class FromStored:
    """Steps before and after the network.

    Attributes:
        intensity: Intensity rule.
        size: Side of the network's input.
        channels: Channels of a stored slice, 1 or 3.
        rule: Rule of the masks; class thresholds are ignored.
    """

    intensity: IntensityRule
    size: int
    channels: int
    rule: MaskRule


def write_savedmodel(model: keras.Model, folder: Path, around: FromStored) -> None:
    """Write the SavedModel to a folder.

    Raises:
        KerassegError: It cannot be written.
    """
    wanted = int(model.inputs[0].shape[-1])

    def from_stored(image: Any, *, one_window: bool = False) -> dict[str, Any]:
        shape = tf.shape(image)
        seen = fit_images(image, around.intensity, around.size, one_window=one_window) / 255.0
        if around.channels != wanted:
            seen = tf.tile(seen, [1, 1, 1, wanted])
        seen = tf.ensure_shape(seen, [None, around.size, around.size, wanted])
        found = model(seen, training=False)[..., 0]
        # Clipped like every network output in kerasseg.
        probability = restore_all(tf.minimum(tf.maximum(found, 0.0), 1.0), shape[1], shape[2])
        mask = tf.cast(probability >= tf.constant(around.rule.threshold, tf.float32), tf.int32)
        return {"mask": tf.cast(postprocess_all(mask, around.rule), tf.uint8), "probability": probability}

    # Not Keras' own archive, which saves every variable twice.
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    stored = [None, None, None, around.channels]
    whole, values = (tf.TensorSpec(stored, dtype, "image") for dtype in (tf.uint8, tf.float32))
    seen = tf.TensorSpec([None, around.size, around.size, wanted], tf.float32, "image")
    calls = {
        "serving_default": (from_stored, whole),
        "stored_values": (from_stored, values),
        "volume": (lambda image: from_stored(image, one_window=True), values),
        NETWORK_SIGNATURE: (lambda image: {"probability": model(image, training=False)}, seen),
    }
    signatures = {
        name: tf.function(call, autograph=False).get_concrete_function(image) for name, (call, image) in calls.items()
    }
    try:
        tf.saved_model.save(module, str(folder), signatures)
    except tf.errors.OpError as error:
        first = str(error).splitlines()[0][:200]
        raise KerassegError(
            "the SavedModel cannot be written", path=folder, found=first, remedy="Check the free space of the disk."
        ) from error


def open_savedmodel_export(folder: Path) -> Network:
    """Open the network signature with TensorFlow."""
    signature = _signature(folder, NETWORK_SIGNATURE)

    def call(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {"probability": signature(image=tf.constant(images))["probability"].numpy()[..., 0]}

    return call


def open_savedmodel_raw(folder: Path) -> RawNetwork:
    """Open the signatures for stored slices with TensorFlow."""
    whole, values = _signature(folder, "serving_default"), _signature(folder, "stored_values")

    def call(image: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        if image.dtype == np.uint8:
            found = whole(image=tf.constant(image[np.newaxis]))
        else:
            found = values(image=tf.constant(image[np.newaxis].astype(np.float32)))
        return found["mask"].numpy()[0] > 0, found["probability"].numpy()[0]

    return call


def _signature(folder: Path, name: str) -> Any:
    # The loaded object is kept with the function, because it owns the variables.
    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures[name]
    function._kerasseg_keep = loaded
    return function
