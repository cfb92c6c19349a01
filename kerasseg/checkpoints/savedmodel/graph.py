"""A small dataflow graph with only the parts of a GraphDef that affect the computed values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Graph", "Node", "Tensor", "scope"]


class Tensor(NamedTuple):
    """One output of a node: the node's key and the number of the output."""

    node: str
    output: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        key: Unique in its graph.
        op: The operation's type, for instance `Conv2D`. Types made by `fuse` start with a lower-case letter.
        inputs: Its inputs in order, without control inputs.
        attrs: Attributes as plain Python and NumPy values; types are NumPy names such as `float32`.
        name: The name in the file; its path (`model/conv2d_1/Relu`) identifies the layer that wrote it.
        where: For messages: the node's name and its function.
        message: The node in the file, from which the comparison takes attributes; None for new nodes.
    """

    key: str
    op: str
    inputs: tuple[Tensor, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    where: str = ""
    message: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in topological order, with inputs and outputs.

    Attributes:
        nodes: By key, in topological order.
        inputs: Signature name -> key of its `Placeholder` node.
        outputs: Signature name -> tensor.
    """

    nodes: Mapping[str, Node]
    inputs: Mapping[str, str]
    outputs: Mapping[str, Tensor]

    def __getitem__(self, tensor: Tensor) -> Node:
        """Return the node that makes a tensor."""
        return self.nodes[tensor.node]

    def constant(self, tensor: Tensor) -> np.ndarray | None:
        """Return the value of a tensor from a `Const` node, else None."""
        node = self.nodes[tensor.node]
        return node.attrs["value"] if node.op == "Const" else None

    def live(self) -> Graph:
        """Return the graph in topological order, without nodes that no output needs.

        Raises:
            ValueError: The graph has a cycle; the message names a node on it.
        """
        order = sort_from(self.nodes, (t.node for t in self.outputs.values()))
        kept = {key: self.nodes[key] for key in order}
        # Unused inputs stay, because they belong to the signature.
        for key in self.inputs.values():
            kept.setdefault(key, self.nodes[key])
        return Graph(kept, self.inputs, self.outputs)

    def readers(self) -> dict[Tensor, list[str]]:
        """Return tensor -> keys of the nodes that read it, once for each input."""
        found: dict[Tensor, list[str]] = {}
        for node in self.nodes.values():
            for tensor in node.inputs:
                found.setdefault(tensor, []).append(node.key)
        return found


def sort_from(nodes: Mapping[str, Node], roots: Iterable[str]) -> list[str]:
    """Return the keys that the roots need, each after its inputs. Iterative, because graphs exceed Python's stack."""
    done: dict[str, bool] = {}  # False while its inputs are being visited
    order: list[str] = []
    for root in roots:
        stack = [(root, False)]
        while stack:
            key, finished = stack.pop()
            if finished:
                done[key] = True
                order.append(key)
            elif key not in done:
                done[key] = False
                stack.append((key, True))
                stack.extend((t.node, False) for t in reversed(nodes[key].inputs) if not done.get(t.node, False))
            elif not done[key]:
                msg = f"a cycle through {key}"
                raise ValueError(msg)
    return order


def scope(name: str) -> str:
    """Return the path of the layer that wrote a node: its name without the last part.

    >>> scope("functional/conv2d_1/BiasAdd")
    'functional/conv2d_1'
    """
    return name.rpartition("/")[0]
