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

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from numpy.typing import NDArray

from kerasseg_tfrecords.errors import DataError


@dataclass(frozen=True, slots=True)
class SliceFacts:
    """Metadata of a slice.

    Attributes:
        slice_id: Unique over all inputs: name of the input, a slash, the reader's id.
        source: File that it was read from, with the same prefix.
        sha256: Hex digest of the bytes that were read.
        label: Class name.
        patient: As read; "" if unknown.
        volume: Unique over all inputs; "" for single slices.
        slice_index: Index in the volume, from 0; -1 for single slices.
        height, width: Native size in pixels.
        channels: 1 or 3.
        spacing: Pixel size in millimetres, rows then columns; (0, 0) if unknown.
        tumour_pixels: Tumour area in pixels at native size.
        notes: Notes of the reader.
    """

    slice_id: str
    source: str
    sha256: str
    label: str
    patient: str
    volume: str
    slice_index: int
    height: int
    width: int
    channels: int
    spacing: tuple[float, float]
    tumour_pixels: int
    notes: tuple[str, ...] = ()

    def tumour_mm2(self) -> float | None:
        """Return the tumour area in square millimetres; None if the spacing is unknown."""
        return self.tumour_pixels * self.spacing[0] * self.spacing[1] if min(self.spacing) > 0 else None


@dataclass(frozen=True, slots=True)
class Payload:
    """The three byte strings of a record, ready to be written.

    Attributes:
        image: uint8, row-major, size x size x channels.
        mask: size x size bits, see `pack_mask`.
        mask_native: PNG of 1 bit, native size.
    """

    image: bytes
    mask: bytes
    mask_native: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One decoded record.

    Attributes:
        image: (size, size, channels) uint8.
        mask: (size, size) bool.
        mask_native: (height, width) bool.
        label: Index into the manifest's classes.
        group: All slices of a group are in one split.
        Others: As in `SliceFacts`.

    Example:
        >>> from kerasseg_tfrecords import read_records
        >>> record = next(iter(read_records("shards", "test")))
        >>> record.mask.dtype, record.mask_native.shape == (record.height, record.width)
        (dtype('bool'), True)
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    mask_native: NDArray[np.bool_]
    label: int
    slice_id: str
    patient: str
    group: str
    volume: str
    slice_index: int
    height: int
    width: int
    spacing: tuple[float, float]


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """Pack a mask: one bit per pixel, row-major, most significant bit first, each row padded to a byte.

    >>> pack_mask(np.array([[True, False, False], [False, False, True]])).hex()
    '8020'
    """
    return np.packbits(mask, axis=1).tobytes()


def unpack_mask(data: bytes, size: int) -> NDArray[np.bool_]:
    """Undo `pack_mask` for a square mask of side `size`."""
    rows = np.frombuffer(data, np.uint8).reshape(size, -1)
    return np.unpackbits(rows, axis=1, count=size).astype(bool)


def pack_native_mask(mask: NDArray[np.bool_]) -> bytes:
    """Encode a mask as PNG with 1 bit per pixel."""
    # Fixed settings, so that the bytes depend only on the mask and the library.
    settings = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 1]
    done, data = cv2.imencode(".png", mask.view(np.uint8) * np.uint8(255), settings)
    if not done:
        raise DataError("the mask cannot be encoded as PNG", found=f"{mask.shape[1]}x{mask.shape[0]}")
    return bytes(data.tobytes())


def unpack_native_mask(data: bytes) -> NDArray[np.bool_]:
    height, width = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])  # a few bytes can unpack to gigabytes
    small = data[24:25] <= b"\x08" and data[25:26] == b"\0"  # at most a byte per pixel: grey, not 64 bits of colour
    good = data.startswith(b"\x89PNG\r\n\x1a\n") and small and 0 < height * width <= _NATIVE_PIXELS
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if good else None
    if image is None:
        raise DataError("the native mask is not a PNG")
    return np.asarray(image > 0)


FEATURES: dict[str, str] = {
    **dict.fromkeys(("image", "mask", "mask_native"), "bytes_list"),
    **dict.fromkeys(("label", "height", "width", "slice_index"), "int64_list"),
    **dict.fromkeys(("slice_id", "patient", "group", "volume"), "bytes_list"),
    "spacing": "float_list",
}
"""Name -> field of `tf.train.Feature`; each holds one value, `spacing` two."""


_DEFINITION = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: ".tensorflow.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".tensorflow.Int64List" oneof_index: 0 }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".tensorflow.Features.FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".tensorflow.Feature" }
  }
}
message_type { name: "Example" field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.Features" } }
"""


@cache
def _example() -> Any:
    """`tf.train.Example`, from its published definition: TensorFlow takes seconds and 500 MB to load."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_DEFINITION, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_OTHERS = 32 << 20  # bytes of a record besides image and mask; a native mask of 64 million pixels has 8 million
_NATIVE_PIXELS = 1 << 27


def features_of(serialized: bytes, *, size: int, channels: int) -> Any:
    """Return the features of a serialised record, name -> `tf.train.Feature`."""
    most = size * size * (channels + 1) + _OTHERS
    if len(serialized) > most:  # which may take thirty times as much when it is parsed
        raise DataError("the record is too long", found=f"{len(serialized):,} bytes", expected=f"at most {most:,}")
    try:
        return _example().FromString(serialized).features.feature
    except Exception as error:  # protobuf's DecodeError is defined in another module for each of its implementations
        raise DataError("a damaged record, or not one of kerasseg", found=type(error).__name__) from error


def encode(payload: Payload, facts: SliceFacts, *, label: int, group: str) -> bytes:
    """Serialise a record; equal input gives equal bytes (features are in the order of their names)."""
    values = {
        **{name: getattr(payload, name) for name in ("image", "mask", "mask_native")},
        **{name: getattr(facts, name) for name in ("height", "width", "slice_index", "spacing")},
        **{name: getattr(facts, name).encode() for name in ("slice_id", "patient", "volume")},
        "group": group.encode(),
        "label": label,
    }
    example = _example()()
    for name, kind in FEATURES.items():
        found = values[name]
        getattr(example.features.feature[name], kind).value.extend(found if name == "spacing" else [found])
    return bytes(example.SerializeToString(deterministic=True))


def values_of(serialized: bytes, *, size: int, channels: int) -> dict[str, Any]:
    """Return the values of a record: feature -> bytes, whole number, or (`spacing`) two numbers.

    Raises:
        DataError: A feature is missing, or has another type or length.
    """
    feature = features_of(serialized, size=size, channels=channels)
    values: dict[str, Any] = {}
    for name, kind in FEATURES.items():
        found = getattr(feature[name], kind).value
        if len(found) != (2 if name == "spacing" else 1):
            raise DataError("a damaged record, or not one of kerasseg", found=f"{len(found)} values of {name}")
        values[name] = tuple(found) if name == "spacing" else found[0]
    for name, length in (("image", size * size * channels), ("mask", size * ((size + 7) // 8))):
        if len(values[name]) != length:
            found, expected = f"{len(values[name])} bytes", f"{length} bytes"
            raise DataError(f"a record has the wrong length of {name}", found=found, expected=expected)
    return values


def decode(serialized: bytes, *, size: int, channels: int) -> Record:
    """Decode a record to NumPy arrays; exceptions as in `values_of`."""
    values = values_of(serialized, size=size, channels=channels)
    try:
        values |= {name: values[name].decode() for name in ("slice_id", "patient", "group", "volume")}
    except UnicodeDecodeError as error:
        raise DataError("a damaged record, or not one of kerasseg", found=type(error).__name__) from error
    values["image"] = np.frombuffer(values["image"], np.uint8).reshape(size, size, channels)
    values["mask"] = unpack_mask(values["mask"], size)
    values["mask_native"] = unpack_native_mask(values["mask_native"])
    return Record(**values)


def decode_pixels(serialized: bytes, *, size: int, channels: int) -> tuple[bytes, bytes, int]:
    """Return image (size * size * channels bytes), packed mask (size * ceil(size / 8) bytes) and label of a record.

    Raises:
        DataError: A feature is missing or has another length.
    """
    try:
        feature = features_of(serialized, size=size, channels=channels)
        image: bytes = feature["image"].bytes_list.value[0]
        mask: bytes = feature["mask"].bytes_list.value[0]
        label = int(feature["label"].int64_list.value[0])
    except (IndexError, UnicodeDecodeError) as error:
        raise DataError("a damaged record, or not one of kerasseg", found=type(error).__name__) from error
    found, expected = (len(image), len(mask)), (size * size * channels, size * ((size + 7) // 8))
    if found != expected:
        raise DataError("image or mask has the wrong length", found=f"{found} bytes", expected=f"{expected} bytes")
    return image, mask, label
