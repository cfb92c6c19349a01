"""`tf.train.Example` <-> arrays: the record format of the shards, version 1.

| feature | type | meaning |
| --- | --- | --- |
| `image` | bytes | uint8, row-major, size x size x channels, after the intensity rule |
| `mask` | bytes | size x size bits, row-major, most significant first, each row padded to a byte |
| `mask_native` | bytes | PNG of 1 bit at the original height and width |
| `label`, `height`, `width`, `slice_index` | int64 | class index; original size; place in its volume or -1 |
| `slice_id`, `patient`, `group`, `volume` | bytes | UTF-8; "" where unknown |
| `spacing` | 2 float32 | millimetres a pixel, rows then columns; 0 where unknown |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.records.record import Payload, Record, SliceFacts, unpack_mask, unpack_native_mask

__all__ = ["FEATURES", "FORMAT_VERSION", "decode", "decode_pixels", "encode", "parse_batch"]

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


def _bytes(value: bytes | str) -> Any:
    data = value.encode() if isinstance(value, str) else value
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))


def _ints(value: int) -> Any:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def encode(payload: Payload, facts: SliceFacts, *, label: int, group: str) -> bytes:
    """The serialised Example; the same input gives the same bytes (map entries in the order of their names)."""
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


def decode(serialized: bytes, *, size: int, channels: int) -> Record:
    """One record as NumPy arrays.

    Raises:
        DataError: Where a feature is missing, or has another type or length.
    """
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
        text = {name: feature[name].bytes_list.value[0].decode() for name in ("slice_id", "patient", "group", "volume")}
        number = {name: int(feature[name].int64_list.value[0]) for name in ("label", "height", "width", "slice_index")}
        spacing = feature["spacing"].float_list.value
        image = np.frombuffer(feature["image"].bytes_list.value[0], np.uint8)
        mask, native = feature["mask"].bytes_list.value[0], feature["mask_native"].bytes_list.value[0]
        rows, columns = float(spacing[0]), float(spacing[1])
    except DataError:
        raise
    except Exception as error:  # protobuf raises its own DecodeError, missing features an IndexError
        raise DataError("a record that is not in the format of kerasseg", found=type(error).__name__) from error
    if image.size != size * size * channels:
        raise DataError(
            f"the image of slice {text['slice_id']} has the wrong length",
            found=f"{image.size} bytes",
            expected=f"{size}x{size}x{channels}",
        )
    return Record(
        image=image.reshape(size, size, channels),
        mask=unpack_mask(mask, size),
        mask_native=unpack_native_mask(native),
        spacing=(rows, columns),
        label=number["label"],
        height=number["height"],
        width=number["width"],
        slice_index=number["slice_index"],
        slice_id=text["slice_id"],
        patient=text["patient"],
        group=text["group"],
        volume=text["volume"],
    )


def decode_pixels(serialized: bytes, *, size: int, channels: int) -> tuple[bytes, bytes, int]:
    """Image and mask of one record as they are stored, and its label; the rest is passed over.

    Args:
        serialized: One Example.
        size: Side of the images, from the manifest.
        channels: 1 or 3, from the manifest.

    Returns:
        size * size * channels bytes of image, size * ceil(size / 8) bytes of packed mask, class index.

    Raises:
        DataError: Where one is missing or has another length.
    """
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
        image: bytes = feature["image"].bytes_list.value[0]
        mask: bytes = feature["mask"].bytes_list.value[0]
        label = int(feature["label"].int64_list.value[0])
    except Exception as error:  # protobuf raises its own DecodeError, missing features an IndexError
        raise DataError("a record that is not in the format of kerasseg", found=type(error).__name__) from error
    found, expected = (len(image), len(mask)), (size * size * channels, size * ((size + 7) // 8))
    if found != expected:
        raise DataError("image or mask has the wrong length", found=f"{found} bytes", expected=f"{expected} bytes")
    return image, mask, label


def parse_batch(serialized: Any, *, size: int, channels: int) -> dict[str, Any]:
    """Inside `tf.data`: a batch of serialised records as tensors.

    Args:
        serialized: (batch,) string tensor.
        size: Side of the images, from the manifest.
        channels: 1 or 3, from the manifest.

    Returns:
        `image` (batch, size, size, channels) uint8, `mask` (batch, size, size, 1) uint8 of 0 and 1, and the other features
        (`mask_native` still as PNG).

    Example:
        >>> from kerasseg_tfrecords import load_manifest, shard_paths
        >>> manifest = load_manifest("shards")
        >>> records = tf.data.TFRecordDataset([str(path) for path in shard_paths("shards", "train")]).batch(8)
        >>> batch = next(iter(records.map(lambda x: parse_batch(x, size=manifest.size, channels=manifest.channels))))
        >>> batch["image"].shape, batch["mask"].shape
        (TensorShape([8, 32, 32, 1]), TensorShape([8, 32, 32, 1]))
    """
    parsed: dict[str, Any] = tf.io.parse_example(serialized, FEATURES)
    image = tf.io.decode_raw(parsed["image"], tf.uint8)
    stride = (size + 7) // 8
    packed = tf.reshape(tf.io.decode_raw(parsed["mask"], tf.uint8), [-1, size, stride, 1])
    bits = tf.bitwise.right_shift(packed, tf.constant([7, 6, 5, 4, 3, 2, 1, 0], tf.uint8))
    mask = tf.reshape(tf.bitwise.bitwise_and(bits, tf.constant(1, tf.uint8)), [-1, size, stride * 8])
    return {
        **parsed,
        "image": tf.reshape(image, [-1, size, size, channels]),
        "mask": mask[:, :, :size, tf.newaxis],
    }
