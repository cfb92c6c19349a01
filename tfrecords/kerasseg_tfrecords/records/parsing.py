"""Parse records in `tf.data`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasseg_tfrecords.records.schema import FEATURES, values_of

_TYPES = {"bytes_list": tf.string, "int64_list": tf.int64, "float_list": tf.float32}
"""Field of `tf.train.Feature` -> TensorFlow type."""


def parse_batch(serialized: Any, *, size: int, channels: int) -> dict[str, Any]:
    """Parse a batch of serialised records in `tf.data`.

    A damaged record raises `tf.errors.OpError` with the reason. (`tf.data.TFRecordDataset` has checked the CRC of each
    record before.)

    Args:
        serialized: (batch,) string tensor.
        size: Side of the images in pixels, from the manifest.
        channels: 1 or 3, from the manifest.

    Returns:
        `image` (batch, size, size, channels) uint8, `mask` (batch, size, size, 1) uint8 of 0 and 1, and the other features
        (`mask_native` as PNG).

    Example:
        >>> from kerasseg_tfrecords import load_manifest, shard_paths
        >>> manifest = load_manifest("shards")
        >>> records = tf.data.TFRecordDataset([str(path) for path in shard_paths("shards", "train")]).batch(8)
        >>> batch = next(iter(records.map(lambda x: parse_batch(x, size=manifest.size, channels=manifest.channels))))
        >>> batch["image"].shape, batch["mask"].shape
        (TensorShape([8, 32, 32, 1]), TensorShape([8, 32, 32, 1]))
    """
    # Not `tf.io.parse_example`: some damaged records crash it, and the process with it.
    columns = tf.numpy_function(
        lambda batch: _columns(batch, size=size, channels=channels),
        [tf.reshape(serialized, [-1])],
        [_TYPES[kind] for kind in FEATURES.values()],
        stateful=False,
    )
    parsed: dict[str, Any] = dict(zip(FEATURES, columns, strict=True))
    for name, column in parsed.items():
        column.set_shape([*serialized.shape[:1], *_shape(name)])
    image = tf.io.decode_raw(parsed["image"], tf.uint8)
    stride = (size + 7) // 8
    packed = tf.reshape(tf.io.decode_raw(parsed["mask"], tf.uint8), [-1, size, stride, 1])
    bits = tf.bitwise.right_shift(packed, tf.constant([7, 6, 5, 4, 3, 2, 1, 0], tf.uint8))
    mask = tf.reshape(tf.bitwise.bitwise_and(bits, tf.constant(1, tf.uint8)), [-1, size, stride * 8])
    return {**parsed, "image": tf.reshape(image, [-1, size, size, channels]), "mask": mask[:, :, :size, tf.newaxis]}


def _columns(batch: NDArray[np.object_], *, size: int, channels: int) -> list[NDArray[Any]]:
    """Parse serialised records into one array per feature, in the order of `FEATURES`."""
    rows = [values_of(serialized, size=size, channels=channels) for serialized in batch]
    return [
        np.array([row[name] for row in rows], _TYPES[kind].as_numpy_dtype).reshape(len(batch), *_shape(name))
        for name, kind in FEATURES.items()
    ]


def _shape(name: str) -> tuple[int, ...]:
    return (2,) if name == "spacing" else ()
