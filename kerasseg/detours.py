"""Side branches of a network that go down or up without being a level of the U.

- **Gates**: what is computed only to be squashed and multiplied onto a map (squeeze-and-excitation, CBAM, attention
  gates on skips; Hu et al. 2018, Woo et al. 2018, Oktay et al. 2018) stands where the map stands.
- **Pyramids**: maps pooled to several sizes side by side, and resized back to be merged (PSPNet, Zhao et al. 2017).
"""

from __future__ import annotations

from fractions import Fraction

from kerasseg.graph import Graph, Step
from kerasseg.scales import Place

__all__ = ["effective_areas"]

_SQUASHING = {"sigmoid", "hard_sigmoid", "softmax", "tanh", "hardsigmoid", "logsigmoid"}
# Between a gate's squashing and the product: resizing, repeating, reshaping, 1 - x. Longer chains are no gates.
_LONGEST_CHAIN = 8


def effective_areas(graph: Graph, places: list[Place]) -> list[Fraction]:
    """The scale (as an area) at which each step counts, side branches being where they rejoin.

    Args:
        graph: The graph.
        places: What `kerasseg.scales.measure` found for it.

    Returns:
        Input pixels in one pixel of the map that each step belongs to.
    """
    areas = [place.area for place in places]
    deepest = max(areas)
    for step in graph.steps:
        for branch in _gates(graph, step):
            # A product of the input with the whole network's output is no gate: the U itself would be the side branch.
            if any(areas[i] == deepest for i in range(len(areas)) if i not in branch):
                for i in branch:
                    areas[i] = areas[step.index]
    _level_pyramids(graph, areas)
    return areas


def _gates(graph: Graph, step: Step) -> list[set[int]]:
    if type(step.operation).__name__ != "Multiply" or len(set(step.parents)) < 2:
        return []
    branches = [graph.only_for(parent, step.index) for parent in step.parents if _squashed(graph, parent)]
    return [branch for branch in branches if branch]


def _squashed(graph: Graph, index: int) -> bool:
    """Whether a tensor comes out of a sigmoid, softmax or the like, perhaps resized or repeated since."""
    for _ in range(_LONGEST_CHAIN):
        step = graph.steps[index]
        operation = step.operation
        activation = getattr(operation, "activation", None)
        name = getattr(activation, "__name__", type(operation).__name__).lower()
        if name in _SQUASHING:
            return True
        if step.is_input or step.weighted or len(set(step.parents)) != 1:
            return False
        index = step.parents[0]
    return False


def _level_pyramids(graph: Graph, areas: list[Fraction]) -> None:
    """Raise pyramid branches to the level they start from and return to, coarse levels first."""
    for area in sorted(set(areas), reverse=True):
        found: dict[tuple[frozenset[int], frozenset[int]], list[set[int]]] = {}
        for part in _parts(graph, {i for i, a in enumerate(areas) if a > area}):
            sources = frozenset(p for i in part for p in graph.steps[i].parents if p not in part)
            exits = frozenset(_merge(graph, c) for i in part for c in graph.children[i] if c not in part)
            if len({areas[i] for i in part}) == 1 and len(sources) == 1 and len(exits) == 1:
                found.setdefault((sources, exits), []).append(part)
        for branches in found.values():
            if len(branches) > 1:
                for i in set().union(*branches):
                    areas[i] = area


def _parts(graph: Graph, kept: set[int]) -> list[set[int]]:
    """The connected parts of the graph among the steps `kept`."""
    parts = []
    while kept:
        part: set[int] = set()
        waiting = [kept.pop()]
        while waiting:
            i = waiting.pop()
            part.add(i)
            near = kept.intersection((*graph.steps[i].parents, *graph.children[i]))
            kept -= near
            waiting.extend(near)
        parts.append(part)
    return parts


def _merge(graph: Graph, index: int) -> int:
    """The step that merges a chain with something else."""
    while len(set(graph.steps[index].parents)) < 2 and len(graph.children[index]) == 1:
        index = graph.children[index][0]
    return index
