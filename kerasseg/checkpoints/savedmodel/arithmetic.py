"""Evaluation of constants and sizes with NumPy, including sizes that are known only at run time.

Such a size is a `Dim`. Arrays of sizes are object arrays that may mix numbers and `Dim`s, so `shape(x)[1] * 2` remains
"twice axis 1 of x".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kerasseg.checkpoints.allowed import pairs
from kerasseg.checkpoints.savedmodel.graph import Node
from kerasseg_tfrecords.errors import CheckpointError

MAX_ELEMENTS = 1 << 22  # of a computed constant
_LARGEST = 1 << 62  # number in an array of sizes, which are Python's integers
_MOST_SIZES = 1024  # in such an array


@dataclass(slots=True)
class Budget:
    """Elements that may still be computed. Without a limit, a few operations could double their values many times."""

    left: int = 1 << 28
    least: int = 1 << 10  # for an operation, which takes time also on few elements

    def spend(self, elements: int) -> None:
        self.left -= max(elements, self.least)
        if self.left < 0:
            raise CheckpointError("the graph is too large", found="constants that take too long to compute")


@dataclass(frozen=True, slots=True)
class Dim:
    """The size of `axis` of the tensor named `source`, times `factor`, plus `offset`.

    >>> Dim("x", 1) * 2 + 1
    Dim(source='x', axis=1, factor=2, offset=1)
    """

    source: str
    axis: int
    factor: int = 1
    offset: int = 0

    def __mul__(self, other: object) -> Dim:
        if not isinstance(other, (int, np.integer)):
            return NotImplemented
        return replace(self, factor=self.factor * int(other), offset=self.offset * int(other))

    __rmul__ = __mul__

    def __add__(self, other: object) -> Dim:
        if not isinstance(other, (int, np.integer)):
            return NotImplemented
        return replace(self, offset=self.offset + int(other))

    __radd__ = __add__

    def __sub__(self, other: object) -> Dim:
        return self + (-other) if isinstance(other, (int, np.integer)) else NotImplemented


def evaluate(node: Node, arrays: Sequence[np.ndarray], budget: Budget) -> list[np.ndarray] | None:
    """Return the outputs of an operation on known arrays, or None if it is not supported here."""
    function = _FUNCTIONS.get(node.op)
    sizes = [array for array in arrays if array.dtype == object]
    if function is None or (sizes and node.op == "Pow") or any(array.size > _MOST_SIZES for array in sizes):
        return None
    try:
        weights = all(array.dtype.kind == "f" for array in arrays[:1])  # of a frozen network; others are few
        budget.spend(_most_elements(node.op, arrays) * (1 if weights else 16))
        with np.errstate(all="ignore"):
            result = function(node, *arrays)
        results = result if isinstance(result, list) else [np.asarray(result)]
        numbers = [n for array in results if array.dtype == object for n in array.flat]
        too_large = any(
            abs(k) > _LARGEST for n in numbers for k in ((n.factor, n.offset) if isinstance(n, Dim) else (n,))
        )
    except (TypeError, ValueError, IndexError, KeyError, ZeroDivisionError, OverflowError, MemoryError):
        return None  # reported later if the value is needed
    return None if too_large else results


def _most_elements(op: str, arrays: Sequence[np.ndarray]) -> int:
    """Return the number of elements of a result, or more; `_small` limits the operations that are given a shape."""
    sizes = [array.size for array in arrays]
    if op == "Unpack":
        return 64 * sizes[0]  # arrays of their own
    if op == "GatherV2":
        return sizes[0] * sizes[1] // max(1, min(arrays[0].shape, default=1))
    if op in {"ConcatV2", "Pack"}:
        return sum(sizes)
    if op in _ELEMENTWISE:
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    return max(sizes, default=0)


def line(op: str, constant: np.ndarray, *, first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset of an operation on `x` and a constant (its first input or not) as `scale x + offset`.

    The operation has its name in TensorFlow or in Keras.
    """
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    if op in {"Mul", "Multiply"}:
        return constant, zero
    if op in {"Div", "RealDiv", "Divide", "TrueDivide"}:
        return 1 / constant, zero
    if op in {"Sub", "Subtract"}:
        return (-one, constant) if first else (one, -constant)
    return one, constant


def _axes(array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(a) for a in np.atleast_1d(array))


def _small(shape: Sequence[Any]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in shape)
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError("too large")
    return sizes


def _cast(node: Node, x: np.ndarray) -> np.ndarray:
    target = node.attrs["DstT"]
    if x.dtype == object and any(isinstance(n, Dim) for n in x.flat):
        if not str(target).startswith(("int", "uint")):
            raise TypeError("a size as a float")
        return x
    return x.astype("float32" if target in {"float16", "bfloat16", "float64"} else target)


def _range(_: Node, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    _small([max(0, (limit - start) / delta)])
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def index(node: Node, begin: np.ndarray, end: np.ndarray, strides: np.ndarray) -> tuple[Any, ...]:
    """Return the Python index of a `StridedSlice`.

    >>> node = Node("s", "StridedSlice", attrs={"begin_mask": 1, "shrink_axis_mask": 2})
    >>> index(node, np.array([0, 3]), np.array([2, 4]), np.array([1, 1]))
    (slice(None, 2, None), 3)
    """
    bit = {k: int(node.attrs.get(f"{k}_mask") or 0) for k in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    key: list[Any] = []
    for i in range(len(begin)):
        if bit["ellipsis"] >> i & 1:
            key.append(Ellipsis)
        elif bit["new_axis"] >> i & 1:
            key.append(None)
        elif bit["shrink_axis"] >> i & 1:
            key.append(int(begin[i]))
        else:
            first = None if bit["begin"] >> i & 1 else int(begin[i])
            last = None if bit["end"] >> i & 1 else int(end[i])
            step = int(strides[i])
            key.append(slice(first, last, None if step == 1 else step))
    return tuple(key)


def _reduce(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda node, x, axes: function(x, axis=_axes(axes), keepdims=bool(node.attrs.get("keep_dims")))


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *arrays: function(*arrays)


def _float(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, x: function(x).astype(x.dtype)


def _tile(_: Node, x: np.ndarray, times: np.ndarray) -> np.ndarray:
    _small([int(n) * int(t) for n, t in zip(x.shape, times, strict=True)])
    return np.tile(x, [int(t) for t in times])


_PLAIN = (
    "Add:add AddV2:add FloorDiv:floor_divide Maximum:maximum Minimum:minimum Mul:multiply Neg:negative OnesLike:ones_like "
    "Pow:power RealDiv:true_divide Square:square Sub:subtract ZerosLike:zeros_like"
)
_ELEMENTWISE = {op for op, _ in pairs(_PLAIN)} | {"Div"}
_FLOAT: Mapping[str, Any] = {"Exp": np.exp, "Reciprocal": np.reciprocal, "Rsqrt": lambda x: x**-0.5, "Sqrt": np.sqrt}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{op: _plain(getattr(np, name)) for op, name in pairs(_PLAIN)},
    **{op: _float(function) for op, function in _FLOAT.items()},
    **{op: _reduce(getattr(np, op.lower())) for op in ("Max", "Mean", "Min", "Prod", "Sum")},
    "BroadcastTo": lambda _, x, shape: np.broadcast_to(x, _small(shape)),
    "Cast": _cast,
    "ConcatV2": lambda _, *parts: np.concatenate(parts[:-1], axis=int(parts[-1])),
    "Div": lambda _, a, b: a / b if np.issubdtype(np.asarray(a).dtype, np.floating) else a // b,
    "ExpandDims": lambda _, x, axis: np.expand_dims(x, int(axis)),
    "Fill": lambda _, shape, x: np.full(_small(shape), x),
    "GatherV2": lambda _, x, where, axis: np.take(x, where.astype(int), axis=int(axis)),
    "Pack": lambda node, *parts: np.stack(parts, axis=int(node.attrs.get("axis") or 0)),
    "Range": _range,
    "Reshape": lambda _, x, shape: np.reshape(x, [int(n) for n in shape]),
    "Slice": lambda _, x, begin, size: x[
        tuple(slice(int(b), None if s == -1 else int(b) + int(s)) for b, s in zip(begin, size, strict=True))
    ],
    "Squeeze": lambda node, x: np.squeeze(x, axis=tuple(node.attrs.get("squeeze_dims") or ()) or None),
    "StridedSlice": lambda node, x, *where: x[index(node, *where)],
    "Tile": _tile,
    "Transpose": lambda _, x, order: np.transpose(x, _axes(order)),
    "Unpack": lambda node, x: [np.asarray(p) for p in np.moveaxis(x, int(node.attrs.get("axis") or 0), 0)],
}
