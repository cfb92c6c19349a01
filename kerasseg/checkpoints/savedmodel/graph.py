"""A small dataflow graph: what is left of a GraphDef when only the numbers it computes matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Graph", "Node", "Tensor", "scope"]


class Tensor(NamedTuple):
    """One output of one node: the node's key and which of its outputs."""

    node: str
    output: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        key: Unique in its graph.
        op: The operation's type, for instance `Conv2D`. Types that `fuse` makes start with a small letter.
        inputs: What it computes from, in order; control inputs are gone.
        attrs: Attributes as plain Python and NumPy values; types are NumPy-style names such as `float32`.
        name: The name in the file; its path (`model/conv2d_1/Relu`) tells which layer wrote it.
        where: For messages: the node's name with the function that holds it.
        message: The node as the file has it, which the comparison takes attributes from; None where it was made here.
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
    """Nodes in an order in which each comes after its inputs, and what goes in and out.

    Attributes:
        nodes: By key, in topological order.
        inputs: Signature name -> key of its `Placeholder` node.
        outputs: Signature name -> tensor.
    """

    nodes: Mapping[str, Node]
    inputs: Mapping[str, str]
    outputs: Mapping[str, Tensor]

    def __getitem__(self, tensor: Tensor) -> Node:
        """The node that makes a tensor."""
        return self.nodes[tensor.node]

    def constant(self, tensor: Tensor) -> np.ndarray | None:
        """The value of a tensor that a `Const` node holds, else None."""
        node = self.nodes[tensor.node]
        return node.attrs["value"] if node.op == "Const" else None

    def live(self) -> Graph:
        """The graph without nodes that no output needs, sorted again.

        Raises:
            ValueError: The graph has a cycle; the message names a node on it.
        """
        order = sort_from(self.nodes, (t.node for t in self.outputs.values()))
        kept = {key: self.nodes[key] for key in order}
        # Inputs stay even where nothing reads them: they belong to the signature.
        for key in self.inputs.values():
            kept.setdefault(key, self.nodes[key])
        return Graph(kept, self.inputs, self.outputs)

    def readers(self) -> dict[Tensor, list[str]]:
        """Tensor -> keys of the nodes that read it, once for each input that it is."""
        found: dict[Tensor, list[str]] = {}
        for node in self.nodes.values():
            for tensor in node.inputs:
                found.setdefault(tensor, []).append(node.key)
        return found


def sort_from(nodes: Mapping[str, Node], roots: Iterable[str]) -> list[str]:
    """Keys that the roots need, each after its inputs. No recursion: graphs are deeper than Python's stack."""
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
    """The path of the layer that wrote a node: its name without the last part.

    >>> scope("functional/conv2d_1/BiasAdd")
    'functional/conv2d_1'
    """
    return name.rpartition("/")[0]
