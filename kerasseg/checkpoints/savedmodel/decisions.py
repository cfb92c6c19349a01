"""Removal of a final argmax or threshold from a graph, because it has no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kerasseg.checkpoints.savedmodel.graph import Graph, Node, Tensor

__all__ = ["Undecided", "without_decisions"]

_PASSED = frozenset({"Cast", "ExpandDims", "Reshape", "Squeeze", "StridedSlice"})


@dataclass(frozen=True)
class Undecided:
    """A graph that returns scores.

    Attributes:
        graph: The graph.
        order: Names of its outputs, without outputs that only decided on another output.
        notes: What was removed, one sentence each.
    """

    graph: Graph
    order: list[str]
    notes: tuple[str, ...]


def without_decisions(graph: Graph, order: Sequence[str]) -> Undecided:
    """Remove a final argmax, threshold or rounding, and the casts and reshapes after it.

    Args:
        graph: The unfolded network.
        order: Names of its outputs.
    """
    outputs, notes = dict(graph.outputs), []
    for name in order:
        found = _scores(graph, outputs[name])
        if found is not None:
            outputs[name], decision = found
            notes.append(f"the final {decision} was removed: the network returns the scores before it")
    if not notes:
        return Undecided(graph, list(order), ())
    kept: list[str] = []
    for name in sorted(order, key=lambda n: outputs[n] != graph.outputs[n]):  # untouched outputs first
        if outputs[name] not in [outputs[k] for k in kept]:
            kept.append(name)
    kept = [name for name in order if name in kept]
    changed = Graph(graph.nodes, graph.inputs, {name: outputs[name] for name in kept})
    return Undecided(changed.live(), kept, tuple(dict.fromkeys(notes)))


def _scores(graph: Graph, tensor: Tensor) -> tuple[Tensor, str] | None:
    """Return the scores that a tensor decides on, and how; None if it decides nothing."""
    node = graph[tensor]
    while node.op in _PASSED and (node.op != "StridedSlice" or node.attrs.get("new_axis_mask")):
        node = graph[node.inputs[0]]
    if node.op == "ArgMax" and _channels(graph, node):
        return node.inputs[0], "argmax"
    if node.op in {"Greater", "GreaterEqual"} and graph.constant(node.inputs[1]) is not None:
        return node.inputs[0], "threshold"
    return (node.inputs[0], "rounding") if node.op == "Round" else None


def _channels(graph: Graph, node: Node) -> bool:
    axis = graph.constant(node.inputs[1])
    return axis is not None and int(np.reshape(axis, -1)[0]) in {-1, 3}
