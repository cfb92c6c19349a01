"""A Keras model as one flat graph of nodes: nested models opened up, shared layers listed once for each use.

Only the wiring is read: which operation takes which tensors. Names, classes and weights play no part here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import keras

from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["Graph", "Node", "Shape", "flatten"]

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One use of one operation.

    Attributes:
        index: Place in `Graph.nodes`; parents have smaller ones.
        operation: The layer or `keras.ops` operation; a model only where it hides its graph (a subclassed model).
        path: The operation's name, below the names of the models that it is nested in: `backbone/conv1`.
        parents: Indices of the nodes whose outputs are taken, one for each tensor argument, in order.
        incoming: Shapes of those tensors, the batch first.
        shape: Shape of the (first) output, the batch first.
        arguments: Keras' record of the call, `None` for an input.
        tensors: The symbolic tensors taken.
    """

    index: int
    operation: Any
    path: str
    parents: tuple[int, ...]
    incoming: tuple[Shape, ...]
    shape: Shape
    arguments: Any = None
    tensors: tuple[Any, ...] = ()

    @property
    def is_input(self) -> bool:
        """Whether this is an input of the model."""
        return not self.parents

    @property
    def layer(self) -> keras.Layer | None:
        """The operation where it is a layer (which may hold weights)."""
        return self.operation if isinstance(self.operation, keras.Layer) and not self.is_input else None

    @property
    def weighted(self) -> bool:
        """Whether the operation holds variables that a checkpoint stores."""
        return self.layer is not None and bool(self.layer.weights)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The nodes of a model in an order in which they can be run.

    Attributes:
        nodes: All nodes; inputs among them.
        inputs: Indices of the model's inputs.
        outputs: Indices of the nodes that make the model's outputs.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    children: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        children: list[dict[int, None]] = [{} for _ in self.nodes]
        for node in self.nodes:
            for parent in node.parents:
                children[parent][node.index] = None
        object.__setattr__(self, "children", tuple(tuple(c) for c in children))

    def ancestors(self, indices: Iterable[int]) -> set[int]:
        """The given nodes and all that they are computed from."""
        found = set(indices)
        for node in reversed(self.nodes):
            if node.index in found:
                found.update(node.parents)
        return found

    def only_for(self, start: int, consumer: int) -> set[int]:
        """The nodes whose results serve nothing but one argument: `start`, as taken by `consumer`.

        Empty where `start` is used elsewhere too. Inputs and outputs of the model are never among them.
        """
        if self.children[start] != (consumer,) or self.nodes[consumer].parents.count(start) != 1:
            return set()
        kept = {start} if self._free(start) else set()
        for node in reversed(self.nodes[:start]):
            children = self.children[node.index]
            if children and self._free(node.index) and kept.issuperset(children):
                kept.add(node.index)
        return kept

    def _free(self, index: int) -> bool:
        return not self.nodes[index].is_input and index not in self.outputs


def flatten(model: keras.Model) -> Graph:
    """The graph of a functional or sequential model with every nested one opened up.

    Args:
        model: A built model.

    Returns:
        The flat graph. A nested model that is used twice appears twice, with the same layers.

    Raises:
        CheckpointError: The model is subclassed or unbuilt, so that no graph can be read.
    """
    if not _has_graph(model):
        raise CheckpointError(
            f"the graph of the model {model.name!r} cannot be read",
            found=f"{type(model).__name__}, {'a subclass of keras.Model' if model.built else 'which was never built'}",
            expected="a functional or sequential Keras model",
            remedy="Rebuild it as keras.Model(inputs, outputs)." if model.built else "Call it on an image first.",
        )
    nodes: list[Node] = []
    bound = []
    for tensor in model.inputs:
        operation = tensor._keras_history.operation
        nodes.append(Node(len(nodes), operation, operation.name, (), (), tuple(tensor.shape)))
        bound.append(nodes[-1].index)
    outputs = _walk(model, bound, "", nodes)
    return Graph(tuple(nodes), tuple(bound), tuple(dict.fromkeys(outputs)))


def _has_graph(operation: Any) -> bool:
    """Whether an operation is a model whose tensors carry their history."""
    return isinstance(operation, keras.Model) and bool(getattr(operation, "outputs", None))


def _walk(model: keras.Model, bound: list[int], prefix: str, nodes: list[Node]) -> list[int]:
    """Append the nodes of `model`, its inputs being the nodes `bound`; the nodes that make its outputs."""
    known = {id(tensor): index for tensor, index in zip(model.inputs, bound, strict=True)}
    for output in model.outputs:
        # Depth first with a stack of our own: deep encoders exceed Python's recursion limit.
        stack = [output]
        while stack:
            tensor = stack[-1]
            if id(tensor) in known:
                stack.pop()
                continue
            operation, call_index, _ = tensor._keras_history
            call = operation._inbound_nodes[call_index]
            if not call.input_tensors:
                raise CheckpointError(
                    f"the model {model.name!r} is fed by {operation.name!r}, which is none of its inputs"
                )
            waiting = [parent for parent in call.input_tensors if id(parent) not in known]
            if waiting:
                stack.extend(reversed(waiting))
                continue
            parents = [known[id(parent)] for parent in call.input_tensors]
            path = prefix + operation.name
            if _has_graph(operation):
                results = _walk(operation, parents, path + "/", nodes)
            else:
                shapes = tuple(tuple(parent.shape) for parent in call.input_tensors)
                made = tuple(call.output_tensors[0].shape)
                node = Node(
                    len(nodes), operation, path, tuple(parents), shapes, made, call.arguments, tuple(call.input_tensors)
                )
                nodes.append(node)
                results = [node.index] * len(call.output_tensors)
            known.update({id(made): index for made, index in zip(call.output_tensors, results, strict=True)})
    return [known[id(output)] for output in model.outputs]
