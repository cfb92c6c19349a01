"""Conversion of protobuf types, constants and attributes to plain values, with limits, because files are untrusted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from kerasseg_tfrecords.errors import CheckpointError

MAX_SPLAT = 1 << 24  # elements of a constant for which the file lists fewer numbers
MAX_RANK = 16

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


def type_name(number: int) -> str:
    """Return `float32` for 1; reference types (variables of TensorFlow 1) count as the type itself."""
    try:
        return str(tf.dtypes.as_dtype(number).base_dtype.name)
    except TypeError:
        return f"type {number}"  # refused where it matters


def operation(op: str) -> Any:
    """Return TensorFlow's definition (`OpDef`) of an operation, or None if it has none."""
    return op_def_registry.get(op)


def item_size(name: str) -> int | None:
    """Return the bytes of one number of a type; None for a type that holds no numbers."""
    if name not in FLOATS and not name.startswith(("int", "uint", "bool")):
        return None
    return int(tf.dtypes.as_dtype(name).size)


def constant(tensor: Any, where: str) -> np.ndarray:
    """Convert a `TensorProto`, named `where` in messages; half precision becomes float32, strings an object array."""
    dtype = type_name(tensor.dtype)
    shape = tuple(d.size for d in tensor.tensor_shape.dim)
    if item_size(dtype) is None and dtype != "string":
        raise CheckpointError(f"the constant {where} holds {dtype}", expected="numbers")
    if tensor.tensor_shape.unknown_rank or len(shape) > MAX_RANK or any(n < 0 for n in shape):
        raise CheckpointError(f"the constant {where} has an impossible shape", found=shape)
    count, size = math.prod(shape), tensor.ByteSize()
    if count > MAX_SPLAT and size < count:  # one number may stand for the rest
        raise CheckpointError(f"the constant {where} has an invalid shape", found=f"{size} bytes for {count:,} places")
    try:
        array = tf.make_ndarray(tensor)
    except (OverflowError, TypeError, ValueError) as error:
        expected = f"{count} x {dtype}"
        raise CheckpointError(f"the constant {where} does not fit its type", found=error, expected=expected) from None
    return array.astype(np.float32) if dtype in {"float16", "bfloat16"} else array


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


def steps_of(model: Any, inputs: Iterable[Any]) -> list[tuple[str, Iterable[int | None]]]:
    """Return the names and shapes of all results in the graph of a Keras network; TensorFlow does not compute them."""

    def call(*images: Any) -> Any:
        return model(images if len(images) > 1 else images[0], training=False)

    traced = tf.function(call).get_concrete_function(*(tf.TensorSpec(t.shape, t.dtype) for t in inputs))
    results = [(step.name, tensor.shape) for step in traced.graph.get_operations() for tensor in step.outputs]
    return [(name, shape if shape.rank else ()) for name, shape in results]
