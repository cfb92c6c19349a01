"""Nodes without weights -> Keras layers, or `keras.ops` where Keras has no layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasseg.checkpoints.savedmodel.arithmetic import Dim, index
from kerasseg.checkpoints.savedmodel.graph import Node
from kerasseg.checkpoints.savedmodel.layers import _padding, _window
from kerasseg.checkpoints.savedmodel.rebuild import WEIGHT, Builder, refuse

__all__ = ["PLAIN"]

_L = keras.layers


def _activation(b: Builder, node: Node) -> Any:
    x, name, more = b.data(node), node.attrs["name"], node.attrs
    if name == "relu6" or (name == "relu" and "maximum" in more):
        return b.layer(node, _L.ReLU, x, max_value=more.get("maximum", 6.0))
    if name == "relu":
        return b.layer(node, _L.ReLU, x)
    if name == "leaky_relu":
        return b.layer(node, _L.LeakyReLU, x, negative_slope=more["slope"])
    if name == "elu":
        return b.layer(node, _L.ELU, x, alpha=more.get("alpha", 1.0))
    if name == "softmax" and "axis" in more:
        return b.layer(node, _L.Softmax, x, axis=more["axis"])
    if name == "gelu" and more["approximate"]:
        return ops.gelu(x, approximate=True)
    return b.layer(node, _L.Activation, x, activation=name)


def _pool(kind: Any) -> Callable[[Builder, Node], Any]:
    def run(b: Builder, node: Node) -> Any:
        size, strides = _window(node, "ksize"), _window(node, "strides")
        return b.layer(node, kind, b.data(node), pool_size=size, strides=strides, padding=_padding(node))

    return run


def _merge(kind: Any, function: Callable[..., Any]) -> Callable[[Builder, Node], Any]:
    """Layers for tensors of one rank; NumPy's rules of broadcasting, which layers do not know, for all else."""

    def run(b: Builder, node: Node) -> Any:
        values = [b.value(t) for t in node.inputs]
        if all(isinstance(v, keras.KerasTensor) for v in values):
            if kind is not None and len({len(v.shape) for v in values}) == 1:
                return b.layer(node, kind, values)
        elif any(v is WEIGHT for v in values):
            b.data(node, next(i for i, v in enumerate(values) if v is WEIGHT))  # says which variable
        result = values[0]
        for value in values[1:]:
            result = function(result, value)
        return result

    return run


def _apply(function: Callable[..., Any]) -> Callable[[Builder, Node], Any]:
    return lambda b, node: function(*(b.data(node, i) for i in range(len(node.inputs))))


def _rescale(b: Builder, node: Node) -> Any:
    scale, offset = (node.attrs[k] for k in ("scale", "offset"))
    if np.all(scale == 1) and np.all(offset == 0) and str(b.data(node).dtype).startswith("float"):
        return b.data(node)
    return b.layer(node, _L.Rescaling, b.data(node), scale=scale.tolist(), offset=offset.tolist())


def _cast(b: Builder, node: Node) -> Any:
    x, target = b.data(node), str(node.attrs["DstT"])
    if target in {"float16", "bfloat16", "float64", "float32"}:
        whole = str(x.dtype).startswith(("int", "uint"))
        return b.layer(node, _L.Rescaling, x, scale=1.0) if whole else ops.cast(x, "float32")
    return ops.cast(x, target)


def _concat(b: Builder, node: Node) -> Any:
    axis = b.integers(node, 0 if node.op == "Concat" else len(node.inputs) - 1)[0]
    parts = node.inputs[1:] if node.op == "Concat" else node.inputs[:-1]
    values = [b.data(node, node.inputs.index(t)) for t in parts]
    if not all(isinstance(v, keras.KerasTensor) for v in values):
        raise refuse(node, "constants are joined to data")
    if len(values) == 1:
        return values[0]
    return b.layer(node, _L.Concatenate, values, axis=axis)


def _shape(b: Builder, node: Node) -> Any:
    x = b.data(node)
    sizes = [Dim(str(id(x)), i) if n is None else int(n) for i, n in enumerate(x.shape)]
    array = np.empty(len(sizes), dtype=object)
    array[:] = sizes
    return array


def _reshape(b: Builder, node: Node) -> Any:
    x, target = b.data(node), list(np.atleast_1d(b.array(node, 1)))
    per_slice = math.prod(x.shape[1:]) if all(n is not None for n in x.shape[1:]) else None
    sizes = [_known(n) for n in target]
    rest = sizes[1:]
    keeps_batch = isinstance(target[0], Dim) and target[0].axis == 0 and (target[0].factor, target[0].offset) == (1, 0)
    if sizes[0] == -1 and not keeps_batch:
        keeps_batch = per_slice is not None and -1 not in rest and math.prod(rest) == per_slice
    if not keeps_batch:
        if sizes.count(-1) > 1 or sizes[0] != -1:
            raise refuse(node, f"it mixes slices with each other: {target}")
        return ops.reshape(x, sizes)
    if rest.count(-1) > 1:
        raise refuse(node, "it depends on more than one size of the image")
    if tuple(rest) == tuple(x.shape[1:]):
        return x
    return b.layer(node, _L.Reshape, x, target_shape=tuple(rest))


def _known(size: Any) -> int:
    """An entry of a shape as a number; -1 for what is known only at run time."""
    return -1 if isinstance(size, Dim) else int(size)


def _moved(change: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]) -> Callable[[Builder, Node], Any]:
    """Axes of length one that come or go, as a reshape that leaves slices alone."""

    def run(b: Builder, node: Node) -> Any:
        x = b.data(node)
        axes = b.integers(node, 1) if node.op == "ExpandDims" else tuple(node.attrs.get("squeeze_dims") or ())
        sizes = [-1 if n is None else n for n in x.shape]
        marked = np.empty((2, *(1 if n == 1 else 2 for n in sizes[1:])))  # only which axes have length one matters
        shape = list(change(marked, axes).shape)
        if shape[0] != 2 or sizes[1:].count(-1) > 1:
            return ops.expand_dims(x, axes[0]) if node.op == "ExpandDims" else ops.squeeze(x, axes or None)
        wide = iter([n for n in sizes[1:] if n != 1])
        target = tuple(1 if n == 1 else next(wide) for n in shape[1:])
        return b.layer(node, _L.Reshape, x, target_shape=target)

    return run


def _transpose(b: Builder, node: Node) -> Any:
    order = b.integers(node, 1)
    if order == tuple(range(len(order))):
        return b.data(node)
    if order[0] == 0:
        return b.layer(node, _L.Permute, b.data(node), dims=order[1:])
    return ops.transpose(b.data(node), order)


def _pad(b: Builder, node: Node) -> Any:
    x = b.data(node)
    pads = np.asarray(b.integers(node, 1)).reshape(-1, 2)
    value = float(b.array(node, 2)) if node.op == "PadV2" else 0.0
    if node.op == "MirrorPad":
        return ops.pad(x, pads.tolist(), mode=str(node.attrs["mode"]).lower())
    if len(x.shape) == 4 and not pads[[0, 3]].any() and value == 0.0:
        rows, columns = pads[1].tolist(), pads[2].tolist()
        return b.layer(node, _L.ZeroPadding2D, x, padding=(tuple(rows), tuple(columns)))
    return ops.pad(x, pads.tolist(), mode="constant", constant_values=value)


def _slice(b: Builder, node: Node) -> Any:
    x = b.data(node)
    where = [np.asarray(b.integers(node, i)) for i in range(1, len(node.inputs))]
    if node.op == "Slice":
        key: tuple[Any, ...] = tuple(
            slice(int(first) or None, None if size == -1 else int(first) + int(size))
            for first, size in zip(*where, strict=True)
        )
    else:
        key = index(node, *where)
    crops = _crops(key, x.shape)
    if crops is not None:
        return b.layer(node, _L.Cropping2D, x, cropping=crops)
    return x[key]


def _crops(key: tuple[Any, ...], shape: tuple[int | None, ...]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """What a slice cuts off an image, if it is a slice of rows and columns alone."""
    if len(shape) != 4 or not all(isinstance(k, slice) and k.step is None for k in key):
        return None
    full = [*key, *[slice(None)] * (4 - len(key))]
    if full[0] != slice(None) or full[3] != slice(None):
        return None
    found = []
    for part, size in zip(full[1:3], shape[1:3], strict=True):
        if size is None and ((part.start or 0) < 0 or (part.stop or -1) > 0):
            return None
        first, last, _ = part.indices(size or 1 << 30)
        found.append((first, (size or 1 << 30) - last))
    return (found[0], found[1])


def _reduce(function: Callable[..., Any], kind: Any = None) -> Callable[[Builder, Node], Any]:
    def run(b: Builder, node: Node) -> Any:
        x, keep = b.data(node), bool(node.attrs.get("keep_dims"))
        axes = tuple(sorted(a % len(x.shape) for a in b.integers(node, 1)))
        if kind is not None and len(x.shape) == 4 and axes == (1, 2):
            return b.layer(node, kind, x, keepdims=keep)
        return function(x, axis=axes, keepdims=keep)

    return run


def _resize(method: str) -> Callable[[Builder, Node], Any]:
    def run(b: Builder, node: Node) -> Any:
        x = b.data(node)
        sizes = list(np.atleast_1d(b.array(node, 1)))
        times = [_times(x, axis, size) for axis, size in zip((1, 2), sizes, strict=True)]
        centred = bool(node.attrs.get("half_pixel_centers"))
        whole = all(t is not None for t in times)
        # Enlarged by whole numbers, the nearest pixel is the same for both conventions.
        if node.attrs.get("align_corners") or not (centred or (method == "nearest" and whole)):
            raise refuse(
                node, "it samples at the corners of pixels, as TensorFlow 1 did; Keras samples at their centres"
            )
        if whole and method in {"nearest", "bilinear"}:
            return b.layer(node, _L.UpSampling2D, x, size=tuple(times), interpolation=method)
        if any(isinstance(s, Dim) for s in sizes):
            raise refuse(node, "its output's size depends on another tensor's size", expected="a fixed image size")
        return b.layer(node, _L.Resizing, x, height=int(sizes[0]), width=int(sizes[1]), interpolation=method)

    return run


def _times(x: Any, axis: int, size: Any) -> int | None:
    if isinstance(size, Dim):
        if size.source != str(id(x)):
            return 2 if (size.factor, size.offset) == (1, 0) else None  # the size of a skip; the comparison tells
        return size.factor if size.axis == axis and size.offset == 0 and size.factor >= 1 else None
    known = x.shape[axis]
    return int(size) // known if known and int(size) % known == 0 and int(size) >= known else None


def _upsample(b: Builder, node: Node) -> Any:
    return b.layer(node, _L.UpSampling2D, b.data(node), size=node.attrs["size"], interpolation="nearest")


def _split(b: Builder, node: Node) -> Any:
    if node.op == "Split":
        return list(ops.split(b.data(node, 1), int(node.attrs["num_split"]), axis=b.integers(node, 0)[0]))
    if node.op == "Unpack":
        return list(ops.unstack(b.data(node), axis=int(node.attrs.get("axis") or 0)))
    ends = np.cumsum(b.integers(node, 1))[:-1].tolist()
    return list(ops.split(b.data(node), ends, axis=b.integers(node, 2)[0]))


def _tile(b: Builder, node: Node) -> Any:
    times = b.integers(node, 1)
    if times[0] != 1:
        raise refuse(node, "it multiplies slices")
    return ops.tile(b.data(node), times)


def _blocks(function: Callable[..., Any]) -> Callable[[Builder, Node], Any]:
    def run(b: Builder, node: Node) -> Any:
        _window(node, "strides")  # channels last?
        return function(b.data(node), int(node.attrs["block_size"]))

    return run


def _clip(b: Builder, node: Node) -> Any:
    return ops.clip(b.data(node), float(b.array(node, 1)), float(b.array(node, 2)))


PLAIN: Mapping[str, Callable[[Builder, Node], Any]] = {
    "Abs": _apply(ops.absolute),
    "Add": _merge(_L.Add, ops.add),
    "AddN": _merge(_L.Add, ops.add),
    "AddV2": _merge(_L.Add, ops.add),
    "AvgPool": _pool(_L.AveragePooling2D),
    "BiasAdd": _merge(None, ops.add),
    "BiasAddV1": _merge(None, ops.add),
    "Cast": _cast,
    "Ceil": _apply(ops.ceil),
    "ClipByValue": _clip,
    "Concat": _concat,
    "ConcatV2": _concat,
    "Cos": _apply(ops.cos),
    "DepthToSpace": _blocks(ops.nn.depth_to_space),
    "Div": _merge(None, ops.divide),
    "DivNoNan": _merge(None, ops.divide_no_nan),
    "Equal": _merge(None, ops.equal),
    "Erf": _apply(ops.erf),
    "Erfc": _apply(lambda x: ops.subtract(1.0, ops.erf(x))),
    "Exp": _apply(ops.exp),
    "ExpandDims": _moved(lambda a, axes: np.expand_dims(a, axes[0])),
    "Expm1": _apply(ops.expm1),
    "Floor": _apply(ops.floor),
    "FloorDiv": _merge(None, ops.floor_divide),
    "FloorMod": _merge(None, ops.mod),
    "Greater": _merge(None, ops.greater),
    "GreaterEqual": _merge(None, ops.greater_equal),
    "Inv": _apply(ops.reciprocal),
    "Less": _merge(None, ops.less),
    "LessEqual": _merge(None, ops.less_equal),
    "Log": _apply(ops.log),
    "Log1p": _apply(ops.log1p),
    "LogicalAnd": _merge(None, ops.logical_and),
    "LogicalNot": _apply(ops.logical_not),
    "LogicalOr": _merge(None, ops.logical_or),
    "Max": _reduce(ops.max, _L.GlobalMaxPooling2D),
    "MaxPool": _pool(_L.MaxPooling2D),
    "Maximum": _merge(_L.Maximum, ops.maximum),
    "Mean": _reduce(ops.mean, _L.GlobalAveragePooling2D),
    "Min": _reduce(ops.min),
    "Minimum": _merge(_L.Minimum, ops.minimum),
    "MirrorPad": _pad,
    "Mul": _merge(_L.Multiply, ops.multiply),
    "Neg": _apply(ops.negative),
    "NotEqual": _merge(None, ops.not_equal),
    "OnesLike": _apply(ops.ones_like),
    "Pad": _pad,
    "PadV2": _pad,
    "Pow": _merge(None, ops.power),
    "Prod": _reduce(ops.prod),
    "RealDiv": _merge(None, ops.divide),
    "Reciprocal": _apply(ops.reciprocal),
    "Reshape": _reshape,
    "ResizeBicubic": _resize("bicubic"),
    "ResizeBilinear": _resize("bilinear"),
    "ResizeNearestNeighbor": _resize("nearest"),
    "Round": _apply(ops.round),
    "Rsqrt": _apply(ops.rsqrt),
    "Select": _apply(ops.where),
    "SelectV2": _apply(ops.where),
    "Shape": _shape,
    "Sign": _apply(ops.sign),
    "Sin": _apply(ops.sin),
    "Slice": _slice,
    "SpaceToDepth": _blocks(ops.nn.space_to_depth),
    "Split": _split,
    "SplitV": _split,
    "Sqrt": _apply(ops.sqrt),
    "Square": _apply(ops.square),
    "SquaredDifference": _merge(None, lambda a, b: ops.square(ops.subtract(a, b))),
    "Squeeze": _moved(lambda a, axes: np.squeeze(a, tuple(axes) or None)),
    "StridedSlice": _slice,
    "Sub": _merge(_L.Subtract, ops.subtract),
    "Sum": _reduce(ops.sum),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unpack": _split,
    "ZerosLike": _apply(ops.zeros_like),
    "activation": _activation,
    "rescale": _rescale,
    "upsample": _upsample,
    "repeat": lambda b, node: ops.repeat(b.data(node), node.attrs["times"], axis=node.attrs["axis"]),
}
"""Operation -> the layer or the operation of `keras.ops`."""
