"""Fusion of activations that consist of one or more operations into one node `activation`.

Its attribute `name` is the Keras name; the others are parameters of the activation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from kerasseg.checkpoints.savedmodel.graph import Node, Tensor
from kerasseg.checkpoints.savedmodel.patterns import View, made

__all__ = ["ACTIVATIONS", "activation"]

_SINGLE: Mapping[str, str] = {
    "Elu": "elu",
    "Exp": "exponential",
    "LogSoftmax": "log_softmax",
    "Relu": "relu",
    "Relu6": "relu6",
    "Selu": "selu",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}


def activation(view: View, node: Node) -> Node | None:
    """Return the `activation` that ends at a node, if any."""
    for match in (_composed, _clipped, _prelu, _softmax_over_other_axis):
        found = match(view, node)
        if found is not None:
            return found
    if node.op == "LeakyRelu":
        slope = node.attrs.get("alpha")
        return _named(node, "leaky_relu", node.inputs[0], slope=0.2 if slope is None else float(slope))
    if node.op in _SINGLE:
        return _named(node, _SINGLE[node.op], node.inputs[0])
    return None


def _named(node: Node, name: str, x: Tensor, **parameters: object) -> Node:
    return made(node, "activation", (x,), {"name": name, **parameters})


def _is(view: View, tensor: Tensor, name: str) -> Tensor | None:
    """Return the input of an activation of this name."""
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
    if node.op == "RealDiv":
        divisor = view.scalar(node.inputs[1])
        if divisor:
            inner, more = _times(view, node.inputs[0])
            return inner, more / divisor
    return tensor, 1.0


def _plus(view: View, tensor: Tensor) -> tuple[Tensor, float]:
    for y, number in view.pairs(view.made_by(tensor, "Add", "AddV2")):
        summand = view.scalar(number)
        if summand is not None:
            return y, summand
    return tensor, 0.0


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-5 * abs(b)


def _composed(view: View, node: Node) -> Node | None:
    """Match products and quotients: silu, mish, gelu, hard_sigmoid, hard_silu, log_sigmoid, elu with a factor."""
    if node.op in {"Mul", "RealDiv"}:
        y, factor = _times(view, Tensor(node.key))
        inner = _is(view, y, "relu6")
        if inner is not None and _near(factor, 1 / 6):
            x, summand = _plus(view, inner)
            if _near(summand, 3.0):
                return _named(node, "hard_sigmoid", x)
    if node.op == "Neg":
        softplus = _is(view, node.inputs[0], "softplus")
        if softplus is not None and view.made_by(softplus, "Neg"):
            return _named(node, "log_sigmoid", view.node(softplus).inputs[0])
    if node.op == "Mul":
        for a, b in view.pairs(node):
            found = _product(view, node, a, b)
            if found is not None:
                return found
    if node.op in {"SelectV2", "Select"} and len(node.inputs) == 3:
        return _scaled_elu(view, node)
    return None


def _product(view: View, node: Node, a: Tensor, b: Tensor) -> Node | None:
    inner = _is(view, b, "sigmoid")
    if inner is not None and (inner == a or _times(view, inner) == (a, 1.0)):
        return _named(node, "silu", a)
    if _is(view, b, "hard_sigmoid") == a:
        return _named(node, "hard_silu", a)
    inner = _is(view, b, "tanh")
    if inner is not None and _is(view, inner, "softplus") == a:
        return _named(node, "mish", a)
    return _gelu(view, node, a, b)


def _gelu(view: View, node: Node, a: Tensor, b: Tensor) -> Node | None:
    # The factor 1/2 may be in either factor or in the whole.
    x, half = _times(view, a)
    gate, more = _times(view, b)
    if not _near(half * more, 0.5):
        return None
    erfc = view.made_by(gate, "Erfc")
    if erfc:
        y, scale = _times(view, erfc.inputs[0])
        return _named(node, "gelu", x, approximate=False) if y == x and _near(scale, -math.sqrt(0.5)) else None
    y, one = _plus(view, gate)
    if not _near(one, 1.0):
        return None
    erf = view.made_by(y, "Erf")
    if erf:
        z, scale = _times(view, erf.inputs[0])
        return _named(node, "gelu", x, approximate=False) if z == x and _near(scale, math.sqrt(0.5)) else None
    inner = _is(view, y, "tanh")
    if inner is not None:
        z, scale = _times(view, inner)
        if _near(scale, math.sqrt(2 / math.pi)):
            for linear, cubic in view.pairs(view.made_by(z, "Add", "AddV2")):
                cube, weight = _times(view, cubic)
                if linear == x and _near(weight, 0.044715) and _is_cube(view, cube, x):
                    return _named(node, "gelu", x, approximate=True)
    return None


def _is_cube(view: View, tensor: Tensor, x: Tensor) -> bool:
    node = view.node(tensor)
    return node.op == "Pow" and node.inputs[0] == x and view.is_number(node.inputs[1], 3)


def _scaled_elu(view: View, node: Node) -> Node | None:
    test, above, below = node.inputs
    greater = view.made_by(test, "Greater")
    y, alpha = _times(view, below)
    x = _is(view, y, "elu")
    if greater is None or x is None or greater.inputs[0] != x or above not in {x, y}:
        return None
    return _named(node, "elu", x, alpha=alpha) if view.is_number(greater.inputs[1], 0) else None


def _clipped(view: View, node: Node) -> Node | None:
    """Match ReLU with a maximum, and leaky ReLU written as a maximum."""
    if node.op not in {"Maximum", "Minimum"}:
        return None
    for a, b in view.pairs(node):
        ceiling, inner = view.scalar(b), _is(view, a, "relu")
        if node.op == "Minimum" and inner is not None and ceiling is not None and ceiling > 0:
            return _named(node, "relu", inner, maximum=ceiling)
        # max(min(relu(x), m), 0): the lower bound has no effect.
        if node.op == "Maximum" and inner is not None and ceiling == 0:
            same = view.node(a)
            return same if same.key == node.key else made(node, same.op, same.inputs, same.attrs)
        x, slope = _times(view, b)
        if node.op == "Maximum" and x == a and x != b and 0 < slope < 1:
            return _named(node, "leaky_relu", x, slope=slope)
    return None


def _prelu(view: View, node: Node) -> Node | None:
    """Match relu(x) - alpha * relu(-x), with a variable alpha."""
    if node.op not in {"Add", "AddV2"}:
        return None
    for positive, negative in view.pairs(node):
        x = _is(view, positive, "relu")
        for slope, mirrored in view.pairs(view.made_by(negative, "Mul")):
            other = _is(view, mirrored, "relu")
            minus = view.made_by(slope, "Neg")
            if x is None or other is None or minus is None or not view.made_by(other, "Neg"):
                continue
            alpha = view.leaf(minus.inputs[0])
            if view.node(other).inputs[0] == x and alpha is not None:
                return made(node, "prelu", (x, alpha), {})
    return None


def _softmax_over_other_axis(view: View, node: Node) -> Node | None:
    """Match softmax between two transpositions that swap the last axis with another."""
    if node.op != "Transpose":
        return None
    x = _is(view, node.inputs[0], "softmax")
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


ACTIVATIONS = frozenset(_SINGLE.values()) | {
    "gelu",
    "hard_sigmoid",
    "hard_silu",
    "leaky_relu",
    "log_sigmoid",
    "mish",
    "silu",
}
"""Valid names of an `activation` node."""
