"""Removal of a final argmax or threshold from a graph, because it has no gradient."""

from __future__ import annotations

import numpy as np

from kerasseg.checkpoints.savedmodel.graph import Graph, Node, Tensor

__all__ = ["without_decisions"]

_PASSED = frozenset({"Cast", "ExpandDims", "OneHot", "Reshape", "Squeeze", "StridedSlice"})
_CHOICES = frozenset({"Select", "SelectV2"})
_FILLED = frozenset({"Const", "Fill", "OnesLike", "ZerosLike"})


def without_decisions(graph: Graph, order: list[str]) -> tuple[Graph, list[str], tuple[str, ...]]:
    """Remove a final argmax, threshold or rounding, and the casts and reshapes after it.

    Also return the names of the outputs without those that only decided on another output, and what was removed.
    """
    outputs, notes = dict(graph.outputs), []
    for name in order:
        found = _scores(graph, outputs[name])
        if found is not None:
            outputs[name], decision = found
            notes.append(f"the final {decision} was removed: the network returns the scores before it")
    if not notes:
        return graph, order, ()
    kept: list[str] = []
    for name in sorted(order, key=lambda n: outputs[n] != graph.outputs[n]):  # untouched outputs first
        if outputs[name] not in [outputs[k] for k in kept]:
            kept.append(name)
    kept = [name for name in order if name in kept]
    changed = Graph(graph.nodes, graph.inputs, {name: outputs[name] for name in kept})
    return changed.live(), kept, tuple(dict.fromkeys(notes))


def _scores(graph: Graph, tensor: Tensor) -> tuple[Tensor, str] | None:
    """Return the scores that a tensor decides on, and how; None if it decides nothing."""
    node = graph[tensor]
    while (before := _passed(graph, node)) is not None:
        node = graph[before]
    if node.op == "ArgMax" and _channels(graph, node):
        return _with_negative_zeros(graph, node.inputs[0]), "argmax"
    if node.op in {"Greater", "GreaterEqual"} and graph.constant(node.inputs[1]) is not None:
        return node.inputs[0], "threshold"
    return (node.inputs[0], "rounding") if node.op == "Round" else None


def _passed(graph: Graph, node: Node) -> Tensor | None:
    """The input of a node that may follow a decision without changing it; None for another node."""
    if node.op == "StridedSlice":
        return node.inputs[0] if node.attrs.get("new_axis_mask") else None
    if node.op in _CHOICES:  # where(decision, 1, 0)
        return node.inputs[0] if all(graph[value].op in _FILLED for value in node.inputs[1:]) else None
    if node.op == "Mul":  # decision * 255
        inputs = [tensor for tensor in node.inputs if graph.constant(tensor) is None]
        return inputs[0] if len(inputs) == 1 else None
    return node.inputs[0] if node.op in _PASSED else None


def _with_negative_zeros(graph: Graph, tensor: Tensor) -> Tensor:
    """The scores of an argmax of Keras 3, which first replaces each -0.0 by the smallest negative number."""
    node = graph[tensor]
    if node.op in _CHOICES and (value := graph.constant(node.inputs[1])) is not None and value.size == 1:
        return node.inputs[2] if -1e-37 < float(np.reshape(value, -1)[0]) < 0 else tensor
    return tensor


def _channels(graph: Graph, node: Node) -> bool:
    axis = graph.constant(node.inputs[1])
    return axis is not None and int(np.reshape(axis, -1)[0]) in {-1, 3}
