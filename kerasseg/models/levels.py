"""The part of the U-Net that each node of a graph belongs to: encoder, bottleneck, decoder, head and their side branches.

`docs/blocks.md` describes the rules.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from kerasseg.models.graph import Graph, Node, is_a
from kerasseg.models.scales import Place, image_axes, measure
from kerasseg_tfrecords.errors import CheckpointError

_SQUASHING = {"sigmoid", "hard_sigmoid", "softmax", "tanh", "hardsigmoid", "logsigmoid"}
# Between a gate's activation and the product: resizing, repeating, reshaping, 1 - x. Longer chains are not gates.
_LONGEST_CHAIN = 8


def effective_areas(graph: Graph, places: list[Place]) -> list[Fraction]:
    """Return the scale (as an area) of each node, with side branches at the scale where they rejoin.

    Returns:
        Input pixels per pixel of the map that each node belongs to.
    """
    areas = [place.area for place in places]
    deepest = max(areas)
    for node in graph.nodes:
        for branch in _gates(graph, node):
            # Otherwise the branch is the whole U-Net, whose output is multiplied by the input.
            if any(areas[i] == deepest for i in range(len(areas)) if i not in branch):
                for i in branch:
                    areas[i] = areas[node.index]
    _level_pyramids(graph, areas)
    return areas


def _gates(graph: Graph, node: Node) -> list[set[int]]:
    if type(node.operation).__name__ != "Multiply" or len(set(node.parents)) < 2:
        return []
    branches = [graph.only_for(parent, node.index) for parent in node.parents if _squashed(graph, parent)]
    return [branch for branch in branches if branch]


def _squashed(graph: Graph, index: int) -> bool:
    """Return whether a tensor comes from a sigmoid, softmax or similar, possibly resized or repeated."""
    for _ in range(_LONGEST_CHAIN):
        node = graph.nodes[index]
        operation = node.operation
        activation = getattr(operation, "activation", None)
        name = getattr(activation, "__name__", type(operation).__name__).lower()
        if name in _SQUASHING:
            return True
        if node.is_input or node.weighted or len(set(node.parents)) != 1:
            return False
        index = node.parents[0]
    return False


def _level_pyramids(graph: Graph, areas: list[Fraction]) -> None:
    """Assign pyramid branches to the level where they start and end, coarse levels first."""
    for area in sorted(set(areas), reverse=True):
        found: dict[tuple[frozenset[int], frozenset[int]], list[set[int]]] = {}
        for part in _parts(graph, {i for i, a in enumerate(areas) if a > area}):
            sources = frozenset(p for i in part for p in graph.nodes[i].parents if p not in part)
            exits = frozenset(_merge(graph, c) for i in part for c in graph.children[i] if c not in part)
            if len({areas[i] for i in part}) == 1 and len(sources) == 1 and len(exits) == 1:
                found.setdefault((sources, exits), []).append(part)
        for branches in found.values():
            if len(branches) > 1:
                for i in set().union(*branches):
                    areas[i] = area


def _parts(graph: Graph, kept: set[int]) -> list[set[int]]:
    """Return the connected parts of the graph among the nodes `kept`."""
    parts = []
    while kept:
        part: set[int] = set()
        waiting = [kept.pop()]
        while waiting:
            i = waiting.pop()
            part.add(i)
            near = kept.intersection((*graph.nodes[i].parents, *graph.children[i]))
            kept -= near
            waiting.extend(near)
        parts.append(part)
    return parts


def _merge(graph: Graph, index: int) -> int:
    """Return the node where a chain merges with something else."""
    while len(set(graph.nodes[index].parents)) < 2 and len(graph.children[index]) == 1:
        index = graph.children[index][0]
    return index


_NORMALISATIONS = (
    "Normalization",
    "BatchNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "UnitNormalization",
)
_COMBINING = {"Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"}


class Layout:
    """The U-Net structure of a graph.

    Attributes:
        graph: The graph.
        places: Scale and size of each node's output.
        areas: Scale of each node (input pixels per pixel), adjusted for side branches.
        axes: Axes of height, width and channels.
        useful: Nodes that the output maps are computed from.
        risen: For each node, whether it comes after upsampling.
        bottom: Nodes at the deepest level.
        down: Nodes that the deepest level is computed from, including itself.
        levels: Areas of the levels above the bottleneck, finest first.
        heads: Nodes of the head.
        names: The block of each node.

    Raises:
        CheckpointError: The graph is not an encoder-decoder.
    """

    def __init__(self, graph: Graph) -> None:
        check_input(graph)
        self.graph = graph
        self.places: list[Place] = measure(graph)
        self.areas: list[Fraction] = effective_areas(graph, self.places)
        self.axes = image_axes(graph)
        maps = [i for i in graph.outputs if self._is_map(i)]
        self.useful = graph.ancestors(maps)
        self.risen = self._risen()
        self._check(maps)
        deepest = max(self.areas[i] for i in self.useful)
        self.bottom = {i for i in self.useful if self.areas[i] == deepest}
        self._check_single(deepest)
        self.down = graph.ancestors(self.bottom)
        self.levels = self._levels(deepest)
        self.heads = self._heads()
        self.names = self._names()

    def _is_map(self, i: int) -> bool:
        """Return whether an output is a map, possibly reshaped to a list of pixels."""
        made = self.graph.nodes[i].shape[1:]
        while not self.places[i].spatial:
            node = self.graph.nodes[i]
            if node.weighted or len(set(node.parents)) != 1 or None in made:
                return False
            i = node.parents[0]
            taken = self.graph.nodes[i].shape[1:]
            if None in taken or math.prod(taken) != math.prod(made):  # type: ignore[arg-type]  # None is ruled out
                return False
        return True

    def _risen(self) -> list[bool]:
        """Return for each node whether it follows upsampling: a finer map computed from one that was made coarser."""
        risen: list[bool] = []
        finest: list[Fraction] = []
        for node in self.graph.nodes:
            area = self.areas[node.index]
            risen.append(any(risen[p] or area < self.areas[p] > finest[p] for p in node.parents))
            finest.append(min([area, *(finest[p] for p in node.parents)]))
        return risen

    def _check(self, maps: list[int]) -> None:
        """Refuse networks that do not go down and up again."""
        areas = {self.areas[i] for i in self.useful}
        problem = None
        if not maps:
            problem = "a classifier or regressor: its output is not a map"
        elif len(areas) == 1:
            problem = "a plain stack of layers: all its maps have the same resolution"
        elif max(areas) <= 1:
            problem = "a network that only raises the resolution: it never goes down"
        elif not any(self.risen[i] for i in maps):
            scale = side(max(self.places[i].area for i in maps))
            problem = f"only an encoder: it goes down to 1/{scale} of the resolution and never up"
        if problem:
            outputs = [self.graph.nodes[i].shape for i in self.graph.outputs]
            expected = "an encoder-decoder, which goes down to coarse maps and up again"
            raise CheckpointError(problem, found=f"output {', '.join(map(str, outputs))}", expected=expected)

    def _check_single(self, deepest: Fraction) -> None:
        again = [self.graph.nodes[i].path for i in sorted(self.bottom) if self.risen[i]]
        if again:
            raise CheckpointError(
                "several encoder-decoders in one network: it goes down to its deepest level again after coming up",
                found=f"{again[0]!r} at 1/{side(deepest)} of the resolution",
                expected="one way down and one way up",
            )

    def _levels(self, deepest: Fraction) -> list[Fraction]:
        """Return the areas of the levels above the bottleneck that have layers of their own, finest first."""
        found = {
            self.areas[i] for i in self.down - self.bottom if not self.risen[i] and _makes_level(self.graph.nodes[i])
        }
        levels = sorted(area for area in found if area < deepest)
        if not levels:
            raise CheckpointError(
                "no encoder: there is nothing with weights above the deepest level",
                found=f"a single level at 1/{side(deepest)} of the resolution",
                expected="an encoder-decoder with at least one level above its bottleneck",
            )
        return levels

    def _level(self, area: Fraction) -> int:
        """Return the number (from 1) of the level at a scale, or of the next finer one."""
        return max([k for k, level in enumerate(self.levels, 1) if level <= area], default=1)

    def _heads(self) -> set[int]:
        """Return the last layers before each output, back to the convolution that makes its channels."""
        graph = self.graph
        heads: set[int] = set()
        waiting = [i for i in graph.outputs if self.risen[i] or i not in self.useful]
        while waiting:
            i = waiting.pop()
            node = graph.nodes[i]
            merges = len(set(node.parents)) > 1
            if i in heads or node.is_input or i in self.down - self.bottom:
                continue
            if merges and (node.weighted or type(node.operation).__name__ not in _COMBINING):
                continue
            heads.add(i)
            if not node.weighted or not _makes_values(node):
                waiting.extend(node.parents)
        # A node that also feeds the decoder does not belong to the head.
        for node in reversed(graph.nodes):
            if node.index in heads and not heads.issuperset(graph.children[node.index]):
                heads.discard(node.index)
        return heads

    def _names(self) -> list[str]:
        """Return the block of every node."""
        names = [""] * len(self.graph.nodes)
        for node in reversed(self.graph.nodes):
            i = node.index
            if i in self.heads:
                names[i] = "head"
            elif self.risen[i]:
                names[i] = f"decoder_{self._level(self.areas[i])}"
            elif i in self.bottom:
                names[i] = "bottleneck"
            elif i in self.down:
                names[i] = f"encoder_{self._level(self.areas[i])}"
            else:
                # A node on a skip connection belongs to the block that uses it.
                names[i] = self._served(i, names)
        return names

    def _served(self, i: int, names: list[str]) -> str:
        """Return the block that a node on a skip or auxiliary output is used by, preferably at its own scale."""
        users = [names[c] for c in self.graph.children[i]]
        if not users:
            return "head"
        own = f"decoder_{self._level(self.areas[i])}"
        return own if own in users else users[0]

    def home(self, node: Node) -> str:
        """Return the block that lists a node's layer; pooling is listed at the end of the block before it."""
        i = node.index
        if i in self.down and not self.risen[i] and not node.weighted and len(node.parents) == 1:
            above = node.parents[0]
            if self.areas[above] < self.areas[i] and not self.graph.nodes[above].is_input:
                return self.names[above]
        return self.names[i]

    @property
    def deepest(self) -> Fraction:
        return max(self.areas[i] for i in self.bottom)


def check_input(graph: Graph) -> None:
    """Refuse a network that does not take one image."""
    shapes = [graph.nodes[i].shape for i in graph.inputs]
    if len(shapes) != 1:
        raise CheckpointError(
            f"the network takes {len(shapes)} inputs", found=", ".join(map(str, shapes)), expected="one image input"
        )
    rank = len(shapes[0])
    if rank != 4:
        kinds = {5: "a 3-D network (volumes)", 3: "a network for sequences", 2: "a network for vectors"}
        raise CheckpointError(
            f"{kinds.get(rank, 'a network for other data than images')}, not a 2-D encoder-decoder",
            found=f"input {shapes[0]}",
            expected="input (batch, height, width, channels)",
        )


def _makes_values(node: Node) -> bool:
    """Return whether a node's weights mix channels (convolution) instead of scaling them (normalisation, PReLU)."""
    return not is_a(node.layer, *_NORMALISATIONS, "PReLU")


def _makes_level(node: Node) -> bool:
    """Return whether a node makes a level: its weights use neighbours or are dense, unlike a 1x1 convolution."""
    if not node.weighted or not _makes_values(node):
        return False
    kernel: Any = getattr(node.layer, "kernel_size", None)
    return kernel is None or set(kernel) != {1}


def side(area: Fraction) -> int:
    """Return the side length of a square of this area, in whole pixels."""
    return max(1, round(math.sqrt(area)))
