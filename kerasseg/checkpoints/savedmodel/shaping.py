"""Keras layers, or operations of `keras.ops`, for nodes without weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasseg.checkpoints.operations import RAW, Expression, Untranslatable, expression
from kerasseg.checkpoints.savedmodel.arithmetic import Dim, index, line
from kerasseg.checkpoints.savedmodel.graph import Node
from kerasseg.checkpoints.savedmodel.rebuild import Builder, refuse

_L = keras.layers


def _activation(b: Builder, node: Node) -> Any:
    x, name, more = b.data(node), node.attrs["name"], node.attrs
    if name == "gelu" and more["approximate"]:
        return ops.gelu(x, approximate=True)
    kind, config = {
        "relu": (_L.ReLU, {"max_value": more["maximum"]} if "maximum" in more else {}),
        "relu6": (_L.ReLU, {"max_value": 6.0}),
        "leaky_relu": (_L.LeakyReLU, {"negative_slope": more.get("slope")}),
        "elu": (_L.ELU, {"alpha": more.get("alpha", 1.0)}),
        "softmax over": (_L.Softmax, {"axis": more.get("axis")}),
    }.get(f"{name} over" if "axis" in more else name, (_L.Activation, {"activation": more["name"]}))
    return b.layer(node, kind, x, **config)


def _rescale(b: Builder, node: Node) -> Any:
    scale, offset = (node.attrs[k] for k in ("scale", "offset"))
    if np.all(scale == 1) and np.all(offset == 0) and str(b.data(node).dtype).startswith("float"):
        return b.data(node)
    return b.layer(node, _L.Rescaling, b.data(node), scale=scale.tolist(), offset=offset.tolist())


def _fixed(b: Builder, node: Node) -> Any:
    x, value = b.data(node), np.asarray(b.fixed(node.inputs[1]), np.float64)
    if any(n != 1 for n in value.shape[:-1]):
        raise refuse(node, f"the input is scaled by numbers of shape {value.shape}")
    value = value.reshape(-1) if value.size > 1 else value.reshape(())
    scale, offset = line(node.attrs["kind"], value, first=node.attrs["swapped"])
    return b.layer(node, _L.Rescaling, x, scale=scale.tolist(), offset=offset.tolist())


def _cast(b: Builder, node: Node) -> Any:
    x, target = b.data(node), str(node.attrs["DstT"])
    if target in {"float16", "bfloat16", "float64", "float32"}:
        whole = str(x.dtype).startswith(("int", "uint"))
        return b.layer(node, _L.Rescaling, x, scale=1.0) if whole else ops.cast(x, "float32")
    return ops.cast(x, target)


def _sizes(x: Any) -> list[Any]:
    return [Dim(str(id(x)), i) if n is None else int(n) for i, n in enumerate(x.shape)]


def _reshape(b: Builder, node: Node) -> Any:
    x, target = b.data(node), list(np.atleast_1d(b.array(node, 1)))
    per_slice = math.prod(x.shape[1:]) if all(n is not None for n in x.shape[1:]) else None
    sizes = [-1 if isinstance(n, Dim) else int(n) for n in target]  # -1: known only at run time
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
    if Ellipsis in key:  # Keras cannot save an Ellipsis
        place = key.index(Ellipsis)
        missing = len(x.shape) - sum(k is not None for k in key) + 1
        key = (*key[:place], *[slice(None)] * missing, *key[place + 1 :])
    return x[key]


def _crops(key: tuple[Any, ...], shape: tuple[int | None, ...]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return what a slice crops from an image, if it slices only rows and columns."""
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


def _resize(method: str) -> Callable[[Builder, Node], Any]:
    def run(b: Builder, node: Node) -> Any:
        x = b.data(node)
        sizes = list(np.atleast_1d(b.array(node, 1)))
        times = [_times(x, axis, size) for axis, size in zip((1, 2), sizes, strict=True)]
        centred = bool(node.attrs.get("half_pixel_centers"))
        whole = all(t is not None for t in times)
        # With integer factors, nearest-neighbour sampling is the same under both conventions.
        if node.attrs.get("align_corners") or not (centred or (method == "nearest" and whole)):
            why = "it samples at the corners of pixels, as TensorFlow 1 did; Keras samples at their centres"
            raise refuse(node, why)
        if whole and method in {"nearest", "bilinear"}:
            return b.layer(node, _L.UpSampling2D, x, size=tuple(times), interpolation=method)
        if any(isinstance(s, Dim) for s in sizes):
            why = "the size of its output depends on that of another tensor"
            raise refuse(node, why, expected="a fixed image size")
        return b.layer(node, _L.Resizing, x, height=int(sizes[0]), width=int(sizes[1]), interpolation=method)

    return run


def _times(x: Any, axis: int, size: Any) -> int | None:
    if isinstance(size, Dim):
        if size.source != str(id(x)):
            return 2 if (size.factor, size.offset) == (1, 0) else None  # the size of a skip, checked by the comparison
        return size.factor if size.axis == axis and size.offset == 0 and size.factor >= 1 else None
    known = x.shape[axis]
    return int(size) // known if known and int(size) % known == 0 and int(size) >= known else None


def _from_table(b: Builder, node: Node) -> Any:
    """Translate an operation by the table shared with Keras 2 files."""
    raw = RAW[node.op]
    first = next((i for i, name in enumerate(raw.inputs) if name.startswith("*")), len(raw.inputs))
    extra = len(node.inputs) - len(raw.inputs) + 1  # number of inputs of a starred name
    arguments: dict[str, Any] = {
        theirs: list(value) if isinstance(value := node.attrs.get(ours), tuple) else value
        for ours, theirs in raw.attributes.items()
    }
    for i, name in enumerate(raw.inputs):
        place = i if i <= first else i + extra - 1
        values = [_argument(b, node, j) for j in range(place, place + (extra if i == first else 1))]
        arguments[name.removeprefix("*")] = values if i == first else values[0]
    try:
        return _computed(b, node, expression(raw.function, arguments))
    except Untranslatable as error:
        raise refuse(node, str(error)) from error


def _argument(b: Builder, node: Node, place: int) -> Any:
    value = b.data(node, place)
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == object or value.dtype.kind in "iu":
        numbers = b.integers(node, place)
        return numbers[0] if value.ndim == 0 else np.reshape(numbers, value.shape).tolist()
    return float(value) if value.ndim == 0 else value


def _computed(b: Builder, node: Node, value: Any) -> Any:
    if isinstance(value, list):
        return [_computed(b, node, v) for v in value]
    if not isinstance(value, Expression):
        return value
    inputs = [_computed(b, node, v) for v in value.inputs]
    if value.module == "keras.layers":
        if value.class_name == "Identity":
            return inputs[0]
        return b.layer(node, getattr(_L, value.class_name), *inputs, **value.config)
    described = {"module": value.module, "class_name": value.class_name, "config": dict(value.config)}
    return keras.saving.deserialize_keras_object({**described, "registered_name": None})(*inputs)


PLAIN: Mapping[str, Callable[[Builder, Node], Any]] = {
    **dict.fromkeys(RAW, _from_table),
    # These depend on shapes that are known only in a built network.
    "Cast": _cast,
    "Reshape": _reshape,
    "ResizeBicubic": _resize("bicubic"),
    "ResizeBilinear": _resize("bilinear"),
    "ResizeNearestNeighbor": _resize("nearest"),
    "Shape": lambda b, node: np.array(_sizes(b.data(node)), dtype=object),
    "Slice": _slice,
    "StridedSlice": _slice,
    "activation": _activation,
    "fixed": _fixed,
    "rescale": _rescale,
    "upsample": lambda b, node: b.layer(node, _L.UpSampling2D, b.data(node), size=node.attrs["size"]),
    "repeat": lambda b, node: ops.repeat(b.data(node), node.attrs["times"], axis=node.attrs["axis"]),
}
"""Operation -> function that makes its layer."""
