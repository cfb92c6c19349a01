"""Normalisations as sums of products, a form in which all ways to write them are equal.

`gamma * (x - mean) / sqrt(variance + e) + beta` can be written in a dozen ways. Expanded, each is
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kerasseg.checkpoints.savedmodel.graph import Tensor
from kerasseg.checkpoints.savedmodel.patterns import View

MAX_TERMS = 8
MAX_DEPTH = 12


class Root(NamedTuple):
    """1 / sqrt(`inside` + `epsilon`)."""

    inside: Tensor
    epsilon: float


Factor = Tensor | Root
Polynomial = Mapping[tuple[Factor, ...], float]  # sorted factors of each product -> its coefficient


def expand(view: View, tensor: Tensor, depth: int = 0) -> Polynomial | None:
    """Expand a tensor, or return None if it is not a short sum of products.

    Variables are factors whatever their shape, because `(1, 1, 1, 8)` and `(8,)` mean the same along channels.
    """
    node = view.node(tensor)
    number = view.scalar(tensor)
    if number is not None:
        return {(): number}
    leaf = view.leaf(tensor)
    if leaf is not None:
        return {(leaf,): 1.0}
    if depth < MAX_DEPTH and tensor.output == 0:
        parts = [expand(view, t, depth + 1) for t in node.inputs] if node.op in _EXPANDED else []
        known = [p for p in parts if p is not None]
        if known and len(known) == len(parts):
            result = _combine(node.op, known)
            if result is not None and len(result) <= MAX_TERMS and not (depth and _is_data(view, tensor, result)):
                return result
        root = _root(view, tensor)
        if root is not None:
            return {(root,): 1.0}
        if node.op == "RealDiv":
            return _quotient(view, node.inputs[0], node.inputs[1], depth)
    return {(tensor,): 1.0}


def _is_data(view: View, tensor: Tensor, polynomial: Polynomial) -> bool:
    """Return whether a sum is the data to normalise, such as a residual connection, rather than part of the formula."""
    factors = [f for product in polynomial for f in product]
    data = [f for f in factors if not isinstance(f, Root) and view.leaf(f) is None]
    if not data:
        return False
    # The difference from a mean is part of a normalisation. So is a term with a root or a variable, unless other nodes
    # read it too, as they do for sums between blocks.
    about_mean = any(view.node(f).op == "Mean" for f in data)
    if len(data) == len(factors):
        return not (about_mean and view.node(tensor).op in {"Mul", "Neg", "Sub"})
    return not (about_mean or view.once(tensor))


_EXPANDED = frozenset({"Add", "AddN", "AddV2", "BiasAdd", "Mul", "Neg", "Sub"})


def _combine(op: str, parts: list[Polynomial]) -> Polynomial | None:
    if op == "Mul":
        return _product(parts[0], parts[1])
    signs = {"Neg": (-1.0,), "Sub": (1.0, -1.0)}.get(op, (1.0,) * len(parts))
    total = _collected((f, sign * n) for part, sign in zip(parts, signs, strict=True) for f, n in part.items())
    return {f: n for f, n in total.items() if n != 0.0}


def _product(a: Polynomial, b: Polynomial) -> Polynomial | None:
    if len(a) * len(b) > MAX_TERMS:
        return None
    return _collected((tuple(sorted((*fa, *fb), key=repr)), na * nb) for fa, na in a.items() for fb, nb in b.items())


def _collected(terms: Iterable[tuple[tuple[Factor, ...], float]]) -> Polynomial:
    total: dict[tuple[Factor, ...], float] = {}
    for factors, number in terms:
        total[factors] = total.get(factors, 0.0) + number
    return total


def _root(view: View, tensor: Tensor) -> Root | None:
    node = view.node(tensor)
    if node.op == "Rsqrt":
        return _shifted(view, node.inputs[0])
    if node.op == "Reciprocal" and view.node(node.inputs[0]).op == "Sqrt":
        return _shifted(view, view.node(node.inputs[0]).inputs[0])
    return None


def _quotient(view: View, above: Tensor, below: Tensor, depth: int) -> Polynomial | None:
    numerator = expand(view, above, depth + 1)
    if numerator is None:
        return None
    divisor = view.scalar(below)
    if divisor:
        return {f: n / divisor for f, n in numerator.items()}
    node = view.node(below)
    if node.op == "Sqrt":
        return _product(numerator, {(_shifted(view, node.inputs[0]),): 1.0})
    return None


def _shifted(view: View, tensor: Tensor) -> Root:
    for inside, number in view.pairs(view.made_by(tensor, "Add", "AddV2")):
        epsilon = view.scalar(number)
        if epsilon is not None:
            return Root(view.leaf(inside) or inside, epsilon)
    return Root(view.leaf(tensor) or tensor, 0.0)
