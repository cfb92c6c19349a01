"""Conversion of protobuf types, constants and attributes to plain values, with limits, because files are untrusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["FLOATS", "TYPES", "attribute", "constant"]

MAX_SPLAT = 1 << 24  # elements of a constant for which the file lists fewer numbers
MAX_RANK = 16

TYPES: Mapping[int, str] = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
}
"""TensorFlow's type numbers; others are shown as `type 42` and refused where they matter."""

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})

_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "uint8": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint16": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    "string": "string_val",
}


def type_name(number: int) -> str:
    """Return `float32` for 1; reference types (1 + 100, variables of TensorFlow 1) count as the type itself."""
    return TYPES.get(number - 100 if number > 100 else number, f"type {number}")


def constant(tensor: Any, where: str) -> np.ndarray:
    """Convert a `TensorProto` to an array; half precision becomes float32, strings an object array.

    Args:
        tensor: The message.
        where: Its name in messages.

    Raises:
        CheckpointError: The type is not numeric, or the shape does not match the bytes.
    """
    dtype = type_name(tensor.dtype)
    shape = tuple(d.size for d in tensor.tensor_shape.dim)
    if dtype not in _FIELDS:
        raise CheckpointError(f"the constant {where} holds {dtype}", expected="numbers")
    if tensor.tensor_shape.unknown_rank or len(shape) > MAX_RANK or any(n < 0 for n in shape):
        raise CheckpointError(f"the constant {where} has an impossible shape", found=shape)
    count = math.prod(shape)
    half = dtype in {"float16", "bfloat16"}
    stored = np.dtype(object if dtype == "string" else np.uint16 if half else dtype)
    if tensor.tensor_content:
        if dtype == "string" or len(tensor.tensor_content) != count * stored.itemsize:
            raise CheckpointError(
                f"the constant {where} does not fit its bytes",
                found=f"{len(tensor.tensor_content)} bytes",
                expected=f"{count} x {dtype}",
            )
        array = np.frombuffer(tensor.tensor_content, stored.newbyteorder("<")).astype(stored, copy=False)
    else:
        array = _listed(getattr(tensor, _FIELDS[dtype]), count, stored, where)
    if dtype == "float16":
        array = array.view(np.float16).astype(np.float32)
    elif dtype == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(shape)


def _listed(values: Any, count: int, stored: np.dtype, where: str) -> np.ndarray:
    """Convert listed numbers; the last one fills the rest."""
    if len(values) > count or (len(values) < count and count > MAX_SPLAT):
        raise CheckpointError(
            f"the constant {where} has an invalid shape", found=f"{len(values)} numbers for {count:,} places"
        )
    try:
        array = np.array(list(values), stored)
    except (OverflowError, ValueError) as error:
        raise CheckpointError(f"the constant {where} does not fit its type", found=error) from None
    if array.size < count:
        last = array[-1] if array.size else (b"" if stored.kind == "O" else stored.type(0))
        array = np.concatenate([array, np.full(count - array.size, last, stored)])
    return array


def attribute(value: Any, where: str) -> Any:
    """Convert an `AttrValue` to a plain value; functions become their names, types names such as `float32`."""
    kind = value.WhichOneof("value")
    if kind == "s":
        return value.s.decode("utf-8", "backslashreplace")
    if kind == "type":
        return type_name(value.type)
    if kind == "shape":
        return None if value.shape.unknown_rank else tuple(d.size for d in value.shape.dim)
    if kind == "tensor":
        return constant(value.tensor, where)
    if kind == "func":
        return value.func.name
    if kind == "list":
        items = value.list
        if items.type:
            return tuple(type_name(t) for t in items.type)
        if items.func:
            return tuple(f.name for f in items.func)
        return tuple(items.s) or tuple(items.i) or tuple(items.f) or tuple(items.b)
    return getattr(value, kind) if kind in {"i", "f", "b"} else None
