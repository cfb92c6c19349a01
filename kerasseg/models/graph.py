"""A Keras model as one flat graph of steps: nested models opened up, shared layers listed once for each use.

Only the wiring is read: which operation takes which tensors. Names, classes and weights play no part here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import keras

from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["Graph", "Shape", "Step", "flatten"]

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One use of one operation.

    Attributes:
        index: Place in `Graph.steps`; parents have smaller ones.
        operation: The layer or `keras.ops` operation; a model only where it hides its graph (a subclassed model).
        path: The operation's name, below the names of the models that it is nested in: `backbone/conv1`.
        parents: Indices of the steps whose outputs are taken, one for each tensor argument, in order.
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
    """The steps of a model in an order in which they can be run.

    Attributes:
        steps: All steps; inputs among them.
        inputs: Indices of the model's inputs.
        outputs: Indices of the steps that make the model's outputs.
    """

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    children: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        children: list[dict[int, None]] = [{} for _ in self.steps]
        for step in self.steps:
            for parent in step.parents:
                children[parent][step.index] = None
        object.__setattr__(self, "children", tuple(tuple(c) for c in children))

    def ancestors(self, indices: Iterable[int]) -> set[int]:
        """The given steps and all that they are computed from."""
        found = set(indices)
        for step in reversed(self.steps):
            if step.index in found:
                found.update(step.parents)
        return found

    def only_for(self, start: int, consumer: int) -> set[int]:
        """The steps whose results serve nothing but one argument: `start`, as taken by `consumer`.

        Empty where `start` is used elsewhere too. Inputs and outputs of the model are never among them.
        """
        if self.children[start] != (consumer,) or self.steps[consumer].parents.count(start) != 1:
            return set()
        kept = {start} if self._free(start) else set()
        for step in reversed(self.steps[:start]):
            children = self.children[step.index]
            if children and self._free(step.index) and kept.issuperset(children):
                kept.add(step.index)
        return kept

    def _free(self, index: int) -> bool:
        return not self.steps[index].is_input and index not in self.outputs


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
            found=f"a {type(model).__name__} {'subclass of keras.Model' if model.built else 'that was never built'}",
            expected="a functional or sequential Keras model",
            remedy="Rebuild it as keras.Model(inputs, outputs)." if model.built else "Call it on an image first.",
        )
    steps: list[Step] = []
    bound = []
    for tensor in model.inputs:
        operation = tensor._keras_history.operation
        steps.append(Step(len(steps), operation, operation.name, (), (), tuple(tensor.shape)))
        bound.append(steps[-1].index)
    outputs = _walk(model, bound, "", steps)
    return Graph(tuple(steps), tuple(bound), tuple(dict.fromkeys(outputs)))


def _has_graph(operation: Any) -> bool:
    """Whether an operation is a model whose tensors carry their history."""
    return isinstance(operation, keras.Model) and bool(getattr(operation, "outputs", None))


def _walk(model: keras.Model, bound: list[int], prefix: str, steps: list[Step]) -> list[int]:
    """Append the steps of `model`, its inputs being the steps `bound`; the steps that make its outputs."""
    known = {id(tensor): index for tensor, index in zip(model.inputs, bound, strict=True)}
    for output in model.outputs:
        # Depth first with a stack of our own: deep encoders exceed Python's recursion limit.
        stack = [output]
        while stack:
            tensor = stack[-1]
            if id(tensor) in known:
                stack.pop()
                continue
            operation, node_index, _ = tensor._keras_history
            node = operation._inbound_nodes[node_index]
            if not node.input_tensors:
                raise CheckpointError(
                    f"the model {model.name!r} is fed by {operation.name!r}, which is none of its inputs"
                )
            waiting = [parent for parent in node.input_tensors if id(parent) not in known]
            if waiting:
                stack.extend(reversed(waiting))
                continue
            parents = [known[id(parent)] for parent in node.input_tensors]
            path = prefix + operation.name
            if _has_graph(operation):
                results = _walk(operation, parents, path + "/", steps)
            else:
                shapes = tuple(tuple(parent.shape) for parent in node.input_tensors)
                made = tuple(node.output_tensors[0].shape)
                step = Step(
                    len(steps), operation, path, tuple(parents), shapes, made, node.arguments, tuple(node.input_tensors)
                )
                steps.append(step)
                results = [step.index] * len(node.output_tensors)
            known.update({id(made): index for made, index in zip(node.output_tensors, results, strict=True)})
    return [known[id(output)] for output in model.outputs]
