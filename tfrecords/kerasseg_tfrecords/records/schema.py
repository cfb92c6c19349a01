"""Encode and decode records: `tf.train.Example` in format version 1.

| feature | type | meaning |
| --- | --- | --- |
| `image` | bytes | uint8, row-major, size x size x channels, after the intensity rule |
| `mask` | bytes | size x size bits, row-major, most significant first, each row padded to a byte |
| `mask_native` | bytes | PNG of 1 bit at the original height and width |
| `label`, `height`, `width`, `slice_index` | int64 | class index; original size; place in its volume or -1 |
| `slice_id`, `patient`, `group`, `volume` | bytes | UTF-8; "" where unknown |
| `spacing` | 2 float32 | millimetres per pixel, rows then columns; 0 where unknown |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.records.record import Payload, SliceFacts

__all__ = ["FEATURES", "FORMAT_VERSION", "decode_pixels", "encode", "parse_batch"]

FORMAT_VERSION = 1

FEATURES: dict[str, Any] = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "mask": tf.io.FixedLenFeature([], tf.string),
    "mask_native": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
    "height": tf.io.FixedLenFeature([], tf.int64),
    "width": tf.io.FixedLenFeature([], tf.int64),
    "slice_index": tf.io.FixedLenFeature([], tf.int64),
    "slice_id": tf.io.FixedLenFeature([], tf.string),
    "patient": tf.io.FixedLenFeature([], tf.string),
    "group": tf.io.FixedLenFeature([], tf.string),
    "volume": tf.io.FixedLenFeature([], tf.string),
    "spacing": tf.io.FixedLenFeature([2], tf.float32),
}

_LISTS = {tf.string: "bytes_list", tf.int64: "int64_list", tf.float32: "float_list"}
"""TensorFlow type -> field of `tf.train.Feature`."""


def _bytes(value: bytes | str) -> Any:
    data = value.encode() if isinstance(value, str) else value
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))


def _ints(value: int) -> Any:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def encode(payload: Payload, facts: SliceFacts, *, label: int, group: str) -> bytes:
    """Serialise a record; equal input gives equal bytes (features are in the order of their names)."""
    example = tf.train.Example(
        features=tf.train.Features(
            feature={
                "image": _bytes(payload.image),
                "mask": _bytes(payload.mask),
                "mask_native": _bytes(payload.mask_native),
                "label": _ints(label),
                "height": _ints(facts.height),
                "width": _ints(facts.width),
                "slice_index": _ints(facts.slice_index),
                "slice_id": _bytes(facts.slice_id),
                "patient": _bytes(facts.patient),
                "group": _bytes(group),
                "volume": _bytes(facts.volume),
                "spacing": tf.train.Feature(float_list=tf.train.FloatList(value=facts.spacing)),
            }
        )
    )
    return bytes(example.SerializeToString(deterministic=True))


def decode_pixels(serialized: bytes, *, size: int, channels: int) -> tuple[bytes, bytes, int]:
    """Return image (size * size * channels bytes), packed mask (size * ceil(size / 8) bytes) and label of a record.

    Raises:
        DataError: A feature is missing or has another length.
    """
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
        image: bytes = feature["image"].bytes_list.value[0]
        mask: bytes = feature["mask"].bytes_list.value[0]
        label = int(feature["label"].int64_list.value[0])
    except Exception as error:  # protobuf raises its own DecodeError, missing features an IndexError
        raise DataError("a damaged record, or not one of kerasseg", found=type(error).__name__) from error
    found, expected = (len(image), len(mask)), (size * size * channels, size * ((size + 7) // 8))
    if found != expected:
        raise DataError("image or mask has the wrong length", found=f"{found} bytes", expected=f"{expected} bytes")
    return image, mask, label


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
    kinds = [FEATURES[name].dtype for name in FEATURES]
    # Not `tf.io.parse_example`: some damaged records crash it, and the process with it.
    columns = tf.numpy_function(
        lambda batch: _columns(batch, size=size, channels=channels),
        [tf.reshape(serialized, [-1])],
        kinds,
        stateful=False,
    )
    parsed: dict[str, Any] = dict(zip(FEATURES, columns, strict=True))
    for name, feature in FEATURES.items():
        parsed[name].set_shape([*serialized.shape[:1], *feature.shape])
    image = tf.io.decode_raw(parsed["image"], tf.uint8)
    stride = (size + 7) // 8
    packed = tf.reshape(tf.io.decode_raw(parsed["mask"], tf.uint8), [-1, size, stride, 1])
    bits = tf.bitwise.right_shift(packed, tf.constant([7, 6, 5, 4, 3, 2, 1, 0], tf.uint8))
    mask = tf.reshape(tf.bitwise.bitwise_and(bits, tf.constant(1, tf.uint8)), [-1, size, stride * 8])
    return {**parsed, "image": tf.reshape(image, [-1, size, size, channels]), "mask": mask[:, :, :size, tf.newaxis]}


def _columns(batch: NDArray[np.object_], *, size: int, channels: int) -> list[NDArray[Any]]:
    """Parse serialised records into one array per feature, in the order of `FEATURES`."""
    lengths = {"image": size * size * channels, "mask": size * ((size + 7) // 8)}
    columns: list[list[Any]] = [[] for _ in FEATURES]
    for number, serialized in enumerate(batch):
        feature = _features(serialized)
        for column, (name, expected) in zip(columns, FEATURES.items(), strict=True):
            found = feature[name] if name in feature else tf.train.Feature()
            values = getattr(found, _LISTS[expected.dtype]).value
            count = expected.shape[0] if expected.shape else 1
            if len(values) != count:
                raise DataError(f"record {number} of the batch is damaged", found=f"{len(values)} values of {name}")
            if name in lengths and len(values[0]) != lengths[name]:
                raise DataError(
                    f"record {number} of the batch has the wrong length of {name}",
                    found=f"{len(values[0])} bytes",
                    expected=f"{lengths[name]} bytes",
                )
            column.append(values if expected.shape else values[0])
    return [
        np.array(column, expected.dtype.as_numpy_dtype).reshape(len(batch), *expected.shape)
        for column, expected in zip(columns, FEATURES.values(), strict=True)
    ]


def _features(serialized: bytes) -> Any:
    try:
        return tf.train.Example.FromString(serialized).features.feature
    except Exception as error:  # protobuf's DecodeError is defined in another module for each of its implementations
        raise DataError("a damaged record, or not one of kerasseg", found=type(error).__name__) from error
