"""A small dataflow graph with only the parts of a GraphDef that affect the computed values."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

_K = TypeVar("_K", bound=Hashable)

VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
"""Operations that represent a variable's value, since reads are skipped."""


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
    """Nodes by key in topological order, and the keys of the inputs and the outputs by their names in the signature."""

    nodes: Mapping[str, Node]
    inputs: Mapping[str, str]
    outputs: Mapping[str, Tensor]

    def __getitem__(self, tensor: Tensor) -> Node:
        return self.nodes[tensor.node]

    def constant(self, tensor: Tensor) -> np.ndarray | None:
        """Return the value of a tensor from a `Const` node, else None."""
        node = self.nodes[tensor.node]
        return node.attrs["value"] if node.op == "Const" else None

    def variables_of(self, tensor: Tensor) -> list[str]:
        needed = sort_from([tensor.node], lambda key: (t.node for t in self.nodes[key].inputs))
        return sorted(key for key in needed if self.nodes[key].op in VARIABLES)

    def live(self) -> Graph:
        """Return the graph in topological order, without nodes that no output needs; `ValueError` if it has a cycle."""
        order = sort_from((t.node for t in self.outputs.values()), lambda key: (t.node for t in self.nodes[key].inputs))
        # Unused inputs stay, because they belong to the signature.
        kept = dict.fromkeys([*order, *self.inputs.values()])
        return Graph({key: self.nodes[key] for key in kept}, self.inputs, self.outputs)


def sort_from(roots: Iterable[_K], inputs: Callable[[_K], Iterable[_K]]) -> list[_K]:
    """Return the keys that the roots need, each after its inputs. Iterative, because graphs exceed Python's stack."""
    done: dict[_K, bool] = {}  # False while its inputs are being visited
    order: list[_K] = []
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
                stack.extend((k, False) for k in reversed(list(inputs(key))) if not done.get(k, False))
            elif not done[key]:
                raise ValueError(f"a cycle through {key}")
    return order


def scope(name: str) -> str:
    """Return the path of the layer that wrote a node: `model/conv2d_1` for `model/conv2d_1/BiasAdd`."""
    return name.rpartition("/")[0]
