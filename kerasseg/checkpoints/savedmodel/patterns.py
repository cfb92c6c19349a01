"""Building blocks of graph patterns, and the loop that applies them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from kerasseg.checkpoints.savedmodel.arithmetic import Budget, evaluate
from kerasseg.checkpoints.savedmodel.graph import VARIABLES, Graph, Node, Tensor

LINEAR = frozenset({"Conv2D", "Conv2DBackpropInput", "DepthwiseConv2dNative", "Einsum", "MatMul", "dense", "separable"})
"""Operations with a kernel and possibly a bias."""

_SHAPING = frozenset({"ExpandDims", "Reshape", "Squeeze"})


class View:
    """A graph for pattern matching. Nodes may be replaced during matching; keys stay."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = dict(graph.nodes)
        self._readers = Counter(tensor for node in graph.nodes.values() for tensor in node.inputs)
        self._readers.update(graph.outputs.values())

    def node(self, tensor: Tensor) -> Node:
        return self.nodes[tensor.node]

    def once(self, tensor: Tensor) -> bool:
        """Return whether exactly one input reads a tensor."""
        return self._readers[tensor] == 1

    def array(self, tensor: Tensor) -> np.ndarray | None:
        node = self.node(tensor)
        return node.attrs["value"] if node.op == "Const" else None

    def scalar(self, tensor: Tensor) -> float | None:
        array = self.array(tensor)
        return float(array.reshape(())) if array is not None and array.ndim == 0 and array.dtype != object else None

    def is_number(self, tensor: Tensor, value: float) -> bool:
        found = self.scalar(tensor)
        return found is not None and abs(found - value) <= 1e-6 * max(1.0, abs(value))

    def made_by(self, tensor: Tensor, *ops: str) -> Node | None:
        node = self.node(tensor)
        return node if node.op in ops and tensor.output == 0 else None

    def chain(self, tensor: Tensor, first: str, last: str | tuple[str, ...]) -> tuple[Node | None, Node | None]:
        """Return the two nodes that make a tensor from the result of a first operation; None where they are others."""
        after = self.made_by(tensor, *([last] if isinstance(last, str) else last))
        return self.made_by(after.inputs[0], first) if after is not None and after.inputs else None, after

    def pairs(self, node: Node | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs of a commutative operation in both orders."""
        if node is not None and len(node.inputs) == 2:
            yield node.inputs[0], node.inputs[1]
            yield node.inputs[1], node.inputs[0]

    def leaf(self, tensor: Tensor) -> Tensor | None:
        """Return the variable or the constant with axes that a tensor is a reshaped form of, if any."""
        while self.node(tensor).op in _SHAPING:
            tensor = self.node(tensor).inputs[0]
        node = self.node(tensor)
        value = node.attrs["value"] if node.op == "Const" else None
        weights = node.op in VARIABLES or (value is not None and value.ndim and value.dtype.kind == "f")
        return tensor if weights else None

    def per_channel(self, tensor: Tensor) -> Tensor | None:
        leaf = self.leaf(tensor)
        if leaf is None:
            return None
        array = self.array(leaf)
        shape = array.shape if array is not None else self.node(leaf).attrs.get("shape")
        return leaf if shape and all(n == 1 for n in shape[:-1]) else None


Pattern = Callable[[View, Node], Node | None]


def rewrite(graph: Graph, *patterns: Pattern, everywhere: bool = False) -> Graph:
    """Replace each node that a pattern matches, inputs first, and drop nodes that are no longer read.

    Without `everywhere`, only nodes that depend on the network's input are matched, because the others compute weights.
    """
    view = View(graph)
    data: set[str] = set()
    for key, node in graph.nodes.items():
        if node.op.startswith("Placeholder") or any(t.node in data for t in node.inputs):
            data.add(key)
        elif not everywhere:
            continue
        for pattern in patterns:
            found = pattern(view, view.nodes[key])
            if found is not None:
                view.nodes[key] = found
    return Graph(view.nodes, graph.inputs, graph.outputs).live()


def fold(graph: Graph, wanted: Callable[[np.ndarray], bool], budget: Budget) -> Graph:
    """Evaluate nodes that depend only on constants, if the result is `wanted`."""

    def compute(view: View, node: Node) -> Node | None:
        arrays = [view.array(t) for t in node.inputs]
        known = [a for a in arrays if a is not None]
        if node.op == "Const" or not arrays or len(known) < len(arrays) or any(t.output for t in node.inputs):
            return None
        results = evaluate(node, known, budget)
        if results is None or len(results) != 1 or not wanted(results[0]):
            return None
        return made(node, "Const", (), {"value": results[0]})

    return rewrite(graph, compute, everywhere=True)


def made(node: Node, op: str, inputs: tuple[Tensor, ...], attrs: Mapping[str, object], name: str | None = None) -> Node:
    return Node(node.key, op, inputs, dict(attrs), node.name if name is None else name, node.where)
