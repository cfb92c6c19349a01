"""Fusion of groups of operations that were one layer into one node, and removal of a final argmax or threshold.

The most reliable passes come first. A decision is removed because it has no gradient.

Activations of one or more operations become one node `activation`: its attribute `name` is the Keras name, the others are
parameters of the activation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from kerasseg.checkpoints.allowed import words
from kerasseg.checkpoints.savedmodel import fuse_norms as norms
from kerasseg.checkpoints.savedmodel.arithmetic import Budget
from kerasseg.checkpoints.savedmodel.graph import Graph, Node, Tensor, scope
from kerasseg.checkpoints.savedmodel.patterns import LINEAR, View, fold, made, rewrite

_SINGLE = {op: op.lower() for op in words("Elu Relu Relu6 Selu Sigmoid Softmax Softplus Softsign Tanh")} | {
    "Exp": "exponential",
    "LogSoftmax": "log_softmax",
}
_HALF = math.sqrt(0.5)
_CUBIC = ("Add", "x", ("times", 0.044715, ("Pow", "x", 3.0)))
_GATES = (
    (False, ("Erfc", ("times", -_HALF, "x"))),
    (False, ("Add", 1.0, ("Erf", ("times", _HALF, "x")))),
    (True, ("Add", 1.0, ("tanh", ("times", math.sqrt(2 / math.pi), _CUBIC)))),
)
#: Activations as (operation, *inputs): an activation's name is an operation too, a letter stands for any tensor, and
#: ("times", c, y) for y multiplied by c in one or more operations.
_PATTERNS: tuple[tuple[str, dict[str, Any], Any], ...] = (
    ("hard_sigmoid", {}, ("times", 1 / 6, ("relu6", ("Add", "x", 3.0)))),
    ("log_sigmoid", {}, ("Neg", ("softplus", ("Neg", "x")))),
    ("silu", {}, ("Mul", "x", ("sigmoid", ("times", 1.0, "x")))),
    ("hard_silu", {}, ("Mul", "x", ("hard_sigmoid", "x"))),
    ("mish", {}, ("Mul", "x", ("tanh", ("softplus", "x")))),
    *(("gelu", {"approximate": a}, ("Mul", ("times", 0.5, "x"), gate)) for a, gate in _GATES),
    *(("gelu", {"approximate": a}, ("Mul", "x", ("times", 0.5, gate))) for a, gate in _GATES),
)
_PRELU = ("Add", ("relu", "x"), ("Mul", ("Neg", "a"), ("relu", ("Neg", "x"))))
_COMMUTATIVE = frozenset({"Add", "Mul"})

Bound = dict[str, Tensor]


def activation(view: View, node: Node) -> Node | None:
    end = Tensor(node.key)
    for name, parameters, pattern in _PATTERNS:
        for bound in _matches(view, end, pattern, {}):
            return _named(node, name, bound["x"], **parameters)
    for bound in _matches(view, end, _PRELU, {}):
        alpha = view.leaf(bound["a"])
        if alpha is not None:
            return made(node, "prelu", (bound["x"], alpha), {})
    for match in (_scaled_elu, _clipped, _softmax_over_other_axis):
        found = match(view, node)
        if found is not None:
            return found
    if node.op == "LeakyRelu":
        slope = node.attrs.get("alpha")
        return _named(node, "leaky_relu", node.inputs[0], slope=0.2 if slope is None else float(slope))
    return _named(node, _SINGLE[node.op], node.inputs[0]) if node.op in _SINGLE else None


def _matches(view: View, tensor: Tensor, pattern: Any, bound: Bound) -> Iterator[Bound]:
    """Yield the ways to read a tensor as a pattern, each with the tensors that its letters stand for."""
    if isinstance(pattern, str):
        if bound.get(pattern, tensor) == tensor:
            yield {**bound, pattern: tensor}
    elif isinstance(pattern, float):
        number = view.scalar(tensor)
        if number is not None and _near(number, pattern):
            yield bound
    elif pattern[0] == "times":
        inner, factor = _times(view, tensor)
        if _near(factor, pattern[1]):
            yield from _matches(view, inner, pattern[2], bound)
        if pattern[1] == 1.0 and inner != tensor:
            yield from _matches(view, tensor, pattern[2], bound)
    else:
        op, *inner = pattern
        node = view.made_by(tensor, "activation" if op.islower() else op, *(["AddV2"] if op == "Add" else []))
        if node is None or len(node.inputs) != len(inner) or (op.islower() and node.attrs["name"] != op):
            return
        for inputs in view.pairs(node) if op in _COMMUTATIVE else [node.inputs]:
            found = [bound]
            for part, wanted in zip(inputs, inner, strict=True):
                found = [deeper for so_far in found for deeper in _matches(view, part, wanted, so_far)]
            yield from found


def _named(node: Node, name: str, x: Tensor, **parameters: object) -> Node:
    return made(node, "activation", (x,), {"name": name, **parameters})


def _is(view: View, tensor: Tensor, name: str) -> Tensor | None:
    node = view.node(tensor)
    return node.inputs[0] if node.op == "activation" and node.attrs["name"] == name else None


def _times(view: View, tensor: Tensor) -> tuple[Tensor, float]:
    """Split `c * y`, `y / c` or `-y` into (y, c); anything else is (itself, 1)."""
    node = view.node(tensor)
    if node.op == "Neg":
        return node.inputs[0], -1.0
    for y, number in view.pairs(view.made_by(tensor, "Mul")):
        factor = view.scalar(number)
        if factor is not None:
            inner, more = _times(view, y)
            return inner, factor * more
    divisor = view.scalar(node.inputs[1]) if node.op == "RealDiv" else None
    if divisor:
        inner, more = _times(view, node.inputs[0])
        return inner, more / divisor
    return tensor, 1.0


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-5 * abs(b)


def _scaled_elu(view: View, node: Node) -> Node | None:
    if node.op not in {"SelectV2", "Select"} or len(node.inputs) != 3:
        return None
    test, above, below = node.inputs
    greater = view.made_by(test, "Greater")
    y, alpha = _times(view, below)
    x = _is(view, y, "elu")
    if greater is None or x is None or greater.inputs[0] != x or above not in {x, y}:
        return None
    return _named(node, "elu", x, alpha=alpha) if view.is_number(greater.inputs[1], 0) else None


def _clipped(view: View, node: Node) -> Node | None:
    """Match ReLU with a maximum, and leaky ReLU written as a maximum."""
    for a, b in view.pairs(node) if node.op in {"Maximum", "Minimum"} else ():
        ceiling, inner = view.scalar(b), _is(view, a, "relu")
        if node.op == "Minimum" and inner is not None and ceiling is not None and ceiling > 0:
            return _named(node, "relu", inner, maximum=ceiling)
        # max(min(relu(x), m), 0): the lower bound has no effect.
        if node.op == "Maximum" and inner is not None and ceiling == 0:
            same = view.node(a)
            return made(node, same.op, same.inputs, same.attrs)
        x, slope = _times(view, b)
        if node.op == "Maximum" and x == a and x != b and 0 < slope < 1:
            return _named(node, "leaky_relu", x, slope=slope)
    return None


def _softmax_over_other_axis(view: View, node: Node) -> Node | None:
    """Match softmax between two transpositions that swap the last axis with another."""
    x = _is(view, node.inputs[0], "softmax") if node.op == "Transpose" else None
    before = view.made_by(x, "Transpose") if x is not None else None
    if before is None:
        return None
    order, back = view.array(before.inputs[1]), view.array(node.inputs[1])
    if order is None or back is None or not np.array_equal(order, back):
        return None
    swapped = [int(i) for i, n in enumerate(order) if i != n]
    if len(swapped) != 2 or swapped[1] != len(order) - 1 or order[swapped[0]] != swapped[1]:
        return None
    return _named(node, "softmax", before.inputs[0], axis=swapped[0])


# Activations without parameters that a convolution can take as its own.
_OWN = words(
    "relu relu6 sigmoid tanh softmax elu selu softplus softsign silu hard_sigmoid hard_silu mish exponential gelu"
)
_PASSED = frozenset({"Cast", "ExpandDims", "OneHot", "Reshape", "Squeeze", "StridedSlice"})
_CHOICES = frozenset({"Select", "SelectV2"})
_FILLED = frozenset({"Const", "Fill", "OnesLike", "ZerosLike"})


def fuse(graph: Graph) -> Graph:
    """Return the graph with layers in place of their operations.

    A new node keeps the key of the last node that it replaces, so equal keys mean equal tensors in both graphs.
    """
    # Sizes and single numbers first; larger constants stay, because they may be weights of a frozen network.
    budget = Budget(1 << 29)
    graph = fold(graph, lambda a: a.ndim == 0 or a.dtype.kind in "iub", budget)
    graph = rewrite(graph, dilated, dense_over_last_axis, norms.weighted_mean)
    graph = rewrite(graph, bias)
    graph = rewrite(graph, separable)
    graph = rewrite(graph, activation)
    graph = rewrite(graph, norms.fused_batch_norm, norms.fused_layer_norm, norms.with_scale, norms.normalisation)
    graph = rewrite(graph, norms.group_norm)
    graph = fold(graph, lambda a: a.dtype.kind in "fiub", budget)
    graph = rewrite(graph, norms.rescale, norms.leading)
    graph = rewrite(graph, norms.channelwise)
    graph = rewrite(graph, repeated)
    graph = rewrite(graph, upsampled)
    return rewrite(graph, own_activation)


def dilated(view: View, node: Node) -> Node | None:
    """Fuse a convolution between `SpaceToBatchND` and `BatchToSpaceND`, which is how TensorFlow writes a dilated one."""
    if node.op != "BatchToSpaceND":
        return None
    outer, inner = view.chain(node.inputs[0], "SpaceToBatchND", ("Conv2D", "DepthwiseConv2dNative"))
    if inner is None or outer is None:
        return None
    block, pads, crops = (view.array(t) for t in (outer.inputs[1], outer.inputs[2], node.inputs[2]))
    if block is None or block.shape != (2,):
        return None
    if pads is None or crops is None:
        padding = "SAME" if any(_first_pads(view, outer.inputs[2])) else "VALID"
    else:  # padding beyond what makes the size divisible was requested
        padding = "SAME" if pads.sum() > crops.sum() else "VALID"
    attrs = {**inner.attrs, "dilations": (1, int(block[0]), int(block[1]), 1), "padding": padding}
    return made(node, inner.op, (outer.inputs[0], inner.inputs[1]), attrs, inner.name)


def _first_pads(view: View, tensor: Tensor) -> list[float]:
    """Return the padding above and to the left, which is known even if the image size is not."""
    while view.made_by(tensor, "StridedSlice"):
        tensor = view.node(tensor).inputs[0]
    pairs = view.made_by(tensor, "Pack")
    rows = [view.made_by(t, "Pack") for t in pairs.inputs] if pairs is not None else []
    return [view.scalar(r.inputs[0]) or 0.0 for r in rows if r is not None]


def dense_over_last_axis(view: View, node: Node) -> Node | None:
    """Fuse a matrix product between reshapes: a Dense layer on a tensor with more than two axes."""
    if node.op != "Reshape":
        return None
    flat, product = view.chain(node.inputs[0], "Reshape", "MatMul")
    if product is None or flat is None or any(product.attrs.get(k) for k in ("transpose_a", "transpose_b")):
        return None
    source = flat.inputs[0]
    turned = view.made_by(source, "Transpose")
    if turned is not None:
        order = view.array(turned.inputs[1])
        if order is None or not np.array_equal(order, np.arange(len(order))):
            return None
        source = turned.inputs[0]
    if view.leaf(product.inputs[1]) is None or scope(flat.name) != scope(product.name):
        return None
    return made(node, "dense", (source, product.inputs[1]), {})


def bias(view: View, node: Node) -> Node | None:
    """Fuse a variable that is added to the output of a kernel."""
    if node.op not in {"Add", "AddV2", "BiasAdd", "BiasAddV1"}:
        return None
    for x, other in view.pairs(node):
        linear = view.made_by(x, *LINEAR)
        # An Einsum may have several channel axes, such as the heads of an attention layer.
        leaf = view.leaf(other) if linear is not None and linear.op == "Einsum" else view.per_channel(other)
        if linear is not None and leaf is not None and not linear.attrs.get("bias") and view.once(x):
            # Grouped convolutions are in a function of their own, without the path of the layer.
            name = linear.name if scope(linear.name) else node.name
            return made(node, linear.op, (*linear.inputs, leaf), {**linear.attrs, "bias": True}, name)
    return None


def separable(view: View, node: Node) -> Node | None:
    """Fuse a depthwise and a pointwise convolution that belong to one layer."""
    if node.op != "Conv2D" or node.attrs["padding"] != "VALID" or set(node.attrs["strides"]) != {1}:
        return None
    depthwise = view.made_by(node.inputs[0], "DepthwiseConv2dNative")
    if depthwise is None or depthwise.attrs.get("bias") or not view.once(node.inputs[0]) or not scope(node.name):
        return None
    # tf.nn.separable_conv2d names one within the other; separate layers do not nest like that.
    if scope(depthwise.name) != node.name:
        return None
    if not all(view.leaf(n.inputs[1]) is not None for n in (depthwise, node)):
        return None
    inputs = (depthwise.inputs[0], depthwise.inputs[1], *node.inputs[1:])
    return made(node, "separable", inputs, {**depthwise.attrs, "bias": node.attrs.get("bias", False)}, node.name)


def repeated(view: View, node: Node) -> Node | None:
    """Fuse an axis that is added, tiled and merged again: each row (or column) repeated -> `repeat`."""
    if node.op != "Reshape":
        return None
    wider, tile = view.chain(node.inputs[0], "ExpandDims", "Tile")
    if tile is None or wider is None:
        return None
    times, axis = view.array(tile.inputs[1]), view.array(wider.inputs[1])
    if times is None or axis is None or axis.size != 1:
        return None
    place = int(axis.reshape(()))
    if place < 1 or place >= len(times) or any(n != 1 for i, n in enumerate(times) if i != place):
        return None
    return made(node, "repeat", (wider.inputs[0],), {"axis": place - 1, "times": int(times[place])})


def upsampled(view: View, node: Node) -> Node | None:
    """Fuse repeated rows and columns -> `upsample`."""
    inner = view.made_by(node.inputs[0], "repeat") if node.op == "repeat" else None
    if inner is None or {inner.attrs["axis"], node.attrs["axis"]} != {1, 2} or not view.once(node.inputs[0]):
        return None
    sizes = {n.attrs["axis"]: n.attrs["times"] for n in (inner, node)}
    # The operations are one scope below the layer's own.
    return made(node, "upsample", inner.inputs, {"size": (sizes[1], sizes[2])}, scope(node.name))


def own_activation(view: View, node: Node) -> Node | None:
    """Fuse an activation with the layer before it, if both are in one scope."""
    if node.op != "activation" or node.attrs["name"] not in _OWN or not set(node.attrs) <= {"name", "approximate"}:
        return None
    linear = view.made_by(node.inputs[0], *LINEAR)
    if linear is None or not view.once(node.inputs[0]) or "activation" in linear.attrs or node.attrs.get("approximate"):
        return None
    # In one scope, or the activation in the scope of the layer (`conv/Gelu/mul`).
    layer = scope(linear.name)
    if "/" not in layer or not (scope(node.name) == layer or node.name.startswith(f"{layer}/")):
        return None
    return made(node, linear.op, linear.inputs, {**linear.attrs, "activation": node.attrs["name"]}, linear.name)


def without_decisions(graph: Graph, order: list[str]) -> tuple[Graph, list[str], tuple[str, ...]]:
    """Remove a final argmax, threshold or rounding, and the casts and reshapes after it.

    Also return the names of the outputs without those that only decided on another output, and what was removed.
    """
    outputs, notes = dict(graph.outputs), []
    for name in order:
        found = _scores(graph, outputs[name])
        if found is not None:
            outputs[name], decision = found
            notes.append(f"the final {decision} was removed: the network returns the scores before it")
    if not notes:
        return graph, order, ()
    kept: list[str] = []
    for name in sorted(order, key=lambda n: outputs[n] != graph.outputs[n]):  # untouched outputs first
        if outputs[name] not in [outputs[k] for k in kept]:
            kept.append(name)
    kept = [name for name in order if name in kept]
    changed = Graph(graph.nodes, graph.inputs, {name: outputs[name] for name in kept})
    return changed.live(), kept, tuple(dict.fromkeys(notes))


def _scores(graph: Graph, tensor: Tensor) -> tuple[Tensor, str] | None:
    """Return the scores that a tensor decides on, and how; None if it decides nothing."""
    node = graph[tensor]
    while (before := _passed(graph, node)) is not None:
        node = graph[before]
    if node.op == "ArgMax" and _channels(graph, node):
        return _with_negative_zeros(graph, node.inputs[0]), "argmax"
    if node.op in {"Greater", "GreaterEqual"} and graph.constant(node.inputs[1]) is not None:
        return node.inputs[0], "threshold"
    return (node.inputs[0], "rounding") if node.op == "Round" else None


def _passed(graph: Graph, node: Node) -> Tensor | None:
    """The input of a node that may follow a decision without changing it; None for another node."""
    if node.op == "StridedSlice":
        return node.inputs[0] if node.attrs.get("new_axis_mask") else None
    if node.op in _CHOICES:  # where(decision, 1, 0)
        return node.inputs[0] if all(graph[value].op in _FILLED for value in node.inputs[1:]) else None
    if node.op == "Mul":  # decision * 255
        inputs = [tensor for tensor in node.inputs if graph.constant(tensor) is None]
        return inputs[0] if len(inputs) == 1 else None
    return node.inputs[0] if node.op in _PASSED else None


def _with_negative_zeros(graph: Graph, tensor: Tensor) -> Tensor:
    """The scores of an argmax of Keras 3, which first replaces each -0.0 by the smallest negative number."""
    node = graph[tensor]
    if node.op in _CHOICES and (value := graph.constant(node.inputs[1])) is not None and value.size == 1:
        return node.inputs[2] if -1e-37 < float(np.reshape(value, -1)[0]) < 0 else tensor
    return tensor


def _channels(graph: Graph, node: Node) -> bool:
    axis = graph.constant(node.inputs[1])
    return axis is not None and int(np.reshape(axis, -1)[0]) in {-1, 3}
