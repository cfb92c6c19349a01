"""The scale of every tensor of a network relative to its input.

Strides are accumulated node by node instead of derived from sizes: unpadded convolutions, odd sizes and padding change
sizes without changing the scale, and sizes may be unknown. Where an operation declares no stride (resizing, slicing,
depth-to-space, reshaping), the ratio of the sizes before and after it is rounded to an integer factor.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from kerasseg.models.graph import Graph, Node, Shape, is_a

_STRIDED = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "MaxPooling2D", "AveragePooling2D")
_POOLING = ("MaxPooling2D", "AveragePooling2D")
_GLOBAL = ("GlobalAveragePooling2D", "GlobalMaxPooling2D")
_SAME = ("ZeroPadding2D", "Cropping2D")
_TYPICAL = 256  # replaces unknown heights and widths; any size that can be halved often would do


@dataclass(frozen=True, slots=True)
class Place:
    """Scale and size of a tensor.

    Attributes:
        scale: Input pixels per pixel, vertically and horizontally: (1, 1) is full resolution.
        size: Height and width in pixels; estimated if not fixed.
        spatial: False if the tensor is no longer a map (pooled to one value per channel, flattened to a list of pixels);
            `scale` and `size` are then those of the map before.
    """

    scale: tuple[Fraction, Fraction]
    size: tuple[float, float]
    spatial: bool = True

    @property
    def area(self) -> Fraction:
        """Input pixels per pixel, by which levels are ordered."""
        return self.scale[0] * self.scale[1]


def image_axes(graph: Graph) -> tuple[int, int, int]:
    """Return the axes of height, width and channels: (1, 2, 3), or (2, 3, 1) if most layers are channels-first."""
    formats = Counter(
        node.operation.data_format for node in graph.nodes if is_a(node.layer, *_STRIDED, "Conv2DTranspose")
    )
    return _axes("channels_first" if formats["channels_first"] > formats["channels_last"] else "channels_last")


def _axes(data_format: str) -> tuple[int, int, int]:
    return (2, 3, 1) if data_format == "channels_first" else (1, 2, 3)


def measure(graph: Graph) -> list[Place]:
    """Return scale and size of every node's (first) output."""
    axes = image_axes(graph)
    places: list[Place] = []
    for node in graph.nodes:
        if node.is_input:
            height, width = (node.shape[a] if len(node.shape) == 4 else None for a in _input_axes(node.shape, axes)[:2])
            places.append(Place((Fraction(1), Fraction(1)), (height or _TYPICAL, width or _TYPICAL)))
        else:
            places.append(_place(node, [places[p] for p in node.parents], axes))
    return places


def _input_axes(shape: Shape, axes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the axes of the input; networks translated from other frameworks may transpose a channels-first input."""
    if len(shape) == 4 and (shape[1] or 9) <= 4 and all(n is None or n > 4 for n in shape[2:]):
        return _axes("channels_first")
    return axes


def _place(node: Node, parents: list[Place], axes: tuple[int, int, int]) -> Place:
    data_format = getattr(node.operation, "data_format", None)
    if data_format in {"channels_first", "channels_last"}:
        axes = _axes(data_format)
    source = _source(node, parents, axes)
    lost = Place(source.scale, source.size, spatial=False)
    if len(node.shape) != 4 or is_a(node.operation, *_GLOBAL):
        return lost
    declared = _stride(node, source, axes)
    if declared is not None and source.spatial:
        return _moved(source, declared)
    size = _size(node, source, parents, axes)
    if size == (1.0, 1.0) and (not source.spatial or max(source.size) >= 3):
        return lost
    ratios = (source.size[0] / size[0], source.size[1] / size[1])
    if not 0.6 < ratios[0] / ratios[1] < 1.7:
        # Resizing never changes the aspect ratio this much: the axes are heads, patches or rearrangements.
        return lost
    return Place(
        (source.scale[0] * _whole(ratios[0]), source.scale[1] * _whole(ratios[1])), (float(size[0]), float(size[1]))
    )


def _source(node: Node, parents: list[Place], axes: tuple[int, int, int]) -> Place:
    """Return the argument whose pixels the result has."""

    def extent(shape: Shape) -> Shape | None:
        return tuple(shape[a] for a in axes[:2]) if len(shape) == 4 else None

    made = extent(node.shape)
    candidates = [(place, extent(shape)) for place, shape in zip(parents, node.incoming, strict=True)]
    # A merge has the pixels of its finest map; gates that are broadcast do not count.
    order = [
        (not place.spatial, made is not None and taken != made, place.area, i)
        for i, (place, taken) in enumerate(candidates)
    ]
    return candidates[min(order)[-1]][0]


def _stride(node: Node, source: Place, axes: tuple[int, int, int]) -> tuple[Fraction, Fraction] | None:
    """Return the factor by which a node makes its map coarser, if the operation declares it."""
    operation = node.operation
    if len(node.parents) > 1 and source.spatial and len(node.incoming[0]) == 4:
        # Elementwise operations and concatenation keep the pixels. Attention over two maps keeps those of its query.
        shapes = [tuple(shape[a] for a in axes[:2]) for shape in node.incoming if len(shape) == 4]
        if tuple(node.shape[a] for a in axes[:2]) in shapes:
            return Fraction(1), Fraction(1)
    if is_a(operation, *_POOLING) and _covers(operation, source):
        return None
    if is_a(operation, *_STRIDED):
        down, across = _pair(operation.strides)
        return Fraction(down), Fraction(across)
    if is_a(operation, "Conv2DTranspose"):
        down, across = _pair(operation.strides)
        return Fraction(1, down), Fraction(1, across)
    if is_a(operation, "UpSampling2D"):
        down, across = _pair(operation.size)
        return Fraction(1, down), Fraction(1, across)
    if is_a(operation, *_SAME) or _is_crop(node) or is_permutation(node):
        return Fraction(1), Fraction(1)
    return None


def _covers(pooling: Any, source: Place) -> bool:
    """Return whether a pooling window covers the whole map (2x2 on a 2x2 map is an ordinary level)."""
    window = _pair(pooling.pool_size)
    return min(window) >= 3 and window[0] >= source.size[0] and window[1] >= source.size[1]


def _is_crop(node: Node) -> bool:
    """Return whether a node is a slice without steps, `x[:, 1:-1, 1:-1]`, whose sizes may resemble a stride."""
    if type(node.operation).__name__ != "GetItem" or node.arguments is None or len(node.arguments.args) < 2:
        return False
    key = node.arguments.args[1]
    key = key if isinstance(key, tuple) else (key,)
    return all(part is Ellipsis or (isinstance(part, slice) and part.step in {None, 1}) for part in key)


def is_permutation(node: Node) -> bool:
    """Return whether a node only reorders axes, for instance from channels first to channels last."""
    return type(node.operation).__name__ in {"Permute", "Transpose"}


def _moved(source: Place, factor: tuple[Fraction, Fraction]) -> Place:
    return Place(
        (source.scale[0] * factor[0], source.scale[1] * factor[1]),
        (max(1.0, source.size[0] / float(factor[0])), max(1.0, source.size[1] / float(factor[1]))),
    )


def _size(node: Node, source: Place, parents: list[Place], axes: tuple[int, int, int]) -> tuple[float, float]:
    """Return height and width of the result, estimated for a typical size if not fixed."""
    shape = node.shape
    if any(shape[a] is None for a in axes[:2]):
        shape = _symbolic(node, parents, axes) or shape
    height, width = (shape[a] or fallback for a, fallback in zip(axes[:2], source.size, strict=True))
    return float(height), float(width)


def _symbolic(node: Node, parents: list[Place], axes: tuple[int, int, int]) -> Shape | None:
    """Return the output shape of an operation with estimates for unknown sizes, without computing values."""
    if node.arguments is None:
        return None
    import keras  # here, because the graph of a file needs no Keras

    stand_ins = {}
    for tensor, place in zip(node.tensors, parents, strict=True):
        shape = list(tensor.shape)
        for axis, size in zip(axes[:2], place.size, strict=True):
            if len(shape) == 4 and shape[axis] is None:
                shape[axis] = round(size)
        stand_ins[id(tensor)] = keras.KerasTensor(tuple(shape), dtype=tensor.dtype)
    args, kwargs = keras.tree.map_structure(
        lambda x: stand_ins.get(id(x), x), (node.arguments.args, node.arguments.kwargs)
    )
    try:
        spec = node.operation.compute_output_spec(*args, **kwargs)
    except Exception:  # an estimate may be invalid for the operation although the model is valid
        return None
    made = getattr(keras.tree.flatten(spec)[0], "shape", None)
    return None if made is None or len(made) != 4 else tuple(made)


def _whole(ratio: float) -> Fraction:
    """Round a size ratio to an integer factor or its inverse: 1.07 is 1, 2.1 is 2, 0.52 is 1/2."""
    return Fraction(max(1, round(ratio))) if ratio >= 1 else 1 / Fraction(max(1, round(1 / ratio)))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
