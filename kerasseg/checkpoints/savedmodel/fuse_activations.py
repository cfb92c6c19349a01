"""Fusion of activations that consist of one or more operations into one node `activation`.

Its attribute `name` is the Keras name; the others are parameters of the activation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from kerasseg.checkpoints.allowed import words
from kerasseg.checkpoints.savedmodel.graph import Node, Tensor
from kerasseg.checkpoints.savedmodel.patterns import View, made

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
    """Return the `activation` that ends at a node, if any."""
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
