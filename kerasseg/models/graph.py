"""A Keras model as one flat graph: nested models are expanded, and shared layers appear once per use.

Only the connections are read; names, classes and weights do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kerasseg.checkpoints.savedmodel.graph import sort_from
from kerasseg_tfrecords.errors import CheckpointError

if TYPE_CHECKING:
    import keras

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One use of an operation.

    Attributes:
        index: Position in `Graph.nodes`, after all its parents.
        operation: The layer or `keras.ops` operation; a model only if it is subclassed and has no graph.
        path: The operation's name, with the names of enclosing models: `backbone/conv1`.
        parents: Indices of the nodes whose outputs it takes, one per tensor argument, in order.
        incoming: Shapes of these tensors, with the batch axis.
        shape: Shape of the (first) output, with the batch axis.
        arguments: Keras' record of the call, None for an input.
        tensors: The symbolic tensors that it takes.
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
        return not self.parents

    @property
    def layer(self) -> keras.Layer | None:
        return self.operation if is_a(self.operation, "Layer") and not self.is_input else None

    @property
    def weighted(self) -> bool:
        """Whether the operation has variables that a checkpoint stores."""
        return self.layer is not None and bool(self.layer.weights)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The nodes of a model in execution order."""

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
        found = set(indices)
        for node in reversed(self.nodes):
            if node.index in found:
                found.update(node.parents)
        return found

    def only_for(self, start: int, consumer: int) -> set[int]:
        """Return the nodes whose results are used only through `start` as an argument of `consumer`.

        Empty if `start` has other uses. Inputs and outputs of the model are never included.
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
    """Return the graph of a functional or sequential model with all nested models expanded.

    A nested model that is used twice appears twice, with the same layers.
    """
    if not has_graph(model):
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


def is_a(operation: Any, *classes: str) -> bool:
    """Return whether an operation's class, or one that it derives from, has one of these names.

    Classes are compared by name, so that the graph of a file can be read without Keras; see `kerasseg.models.outline`.
    """
    return any(kind.__name__ in classes for kind in type(operation).__mro__)


def has_graph(operation: Any) -> bool:
    """Return whether an operation is a model whose tensors have a history."""
    return is_a(operation, "Model") and bool(getattr(operation, "outputs", None))


def calls_for(model: keras.Model, targets: Iterable[Any]) -> list[Any]:
    """Return the calls (Keras' nodes) that tensors of a model need, each after those that it depends on."""
    given = {id(tensor) for tensor in model.inputs}

    def made_by(tensors: Iterable[Any]) -> list[Any]:
        histories = [tensor._keras_history for tensor in tensors if id(tensor) not in given]
        return [operation._inbound_nodes[index] for operation, index, _ in histories]

    return sort_from(made_by(targets), lambda call: made_by(call.input_tensors))


def _walk(model: keras.Model, bound: list[int], prefix: str, nodes: list[Node]) -> list[int]:
    """Append the nodes of `model`, whose inputs are the nodes `bound`; return the nodes of its outputs."""
    known = {id(tensor): index for tensor, index in zip(model.inputs, bound, strict=True)}
    for call in calls_for(model, model.outputs):
        operation, tensors = call.operation, tuple(call.input_tensors)
        if not tensors:
            raise CheckpointError(f"the model {model.name!r} is fed by {operation.name!r}, which is none of its inputs")
        parents = [known[id(parent)] for parent in tensors]
        path = prefix + operation.name
        if has_graph(operation):
            results = _walk(operation, parents, path + "/", nodes)
        else:
            shapes = tuple(tuple(parent.shape) for parent in tensors)
            made = tuple(call.output_tensors[0].shape)
            results = [len(nodes)] * len(call.output_tensors)
            nodes.append(Node(len(nodes), operation, path, tuple(parents), shapes, made, call.arguments, tensors))
        known.update({id(made): index for made, index in zip(call.output_tensors, results, strict=True)})
    return [known[id(output)] for output in model.outputs]
