"""Which part of a U each step of a graph belongs to: the way down, the turn, the way up, and what hangs on them.

`docs/blocks.md` tells the rules.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from keras import layers

from kerasseg.models.graph import Graph, Step
from kerasseg.models.scales import Place, image_axes, measure
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["Layout", "effective_areas", "side"]

_SQUASHING = {"sigmoid", "hard_sigmoid", "softmax", "tanh", "hardsigmoid", "logsigmoid"}
# Between a gate's squashing and the product: resizing, repeating, reshaping, 1 - x. Longer chains are no gates.
_LONGEST_CHAIN = 8


def effective_areas(graph: Graph, places: list[Place]) -> list[Fraction]:
    """The scale (as an area) at which each step counts, side branches being where they rejoin.

    Args:
        graph: The graph.
        places: What `kerasseg.models.scales.measure` found for it.

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


_NORMALISATIONS = (
    layers.Normalization,
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.RMSNormalization,
    layers.UnitNormalization,
)
_COMBINING = {"Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"}


class Layout:
    """The U that a graph makes.

    Attributes:
        graph: The graph.
        places: Scale and size of each step's output.
        areas: The scale (input pixels in a pixel) at which each step counts.
        axes: Axes of height, width and channels.
        useful: Steps that the maps among the outputs are computed from.
        risen: For each step, whether it comes after going up again.
        bottom: Steps at the deepest level.
        down: Steps that the deepest level is computed from, and itself.
        levels: Areas of the levels above the bottleneck, finest first.
        heads: Steps of the head.
        names: The block of each step.

    Raises:
        CheckpointError: The graph is no encoder-decoder.
    """

    def __init__(self, graph: Graph) -> None:
        _check_input(graph)
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
        """Whether an output is a map, if need be as a list of all its pixels."""
        made = self.graph.steps[i].shape[1:]
        while not self.places[i].spatial:
            step = self.graph.steps[i]
            if step.weighted or len(set(step.parents)) != 1 or None in made:
                return False
            i = step.parents[0]
            taken = self.graph.steps[i].shape[1:]
            if None in taken or math.prod(taken) != math.prod(made):  # type: ignore[arg-type]  # None is ruled out
                return False
        return True

    def _risen(self) -> list[bool]:
        """For each step, whether it comes after a rise: a finer map made from one that had been made coarser."""
        risen: list[bool] = []
        finest: list[Fraction] = []
        for step in self.graph.steps:
            area = self.areas[step.index]
            risen.append(any(risen[p] or area < self.areas[p] > finest[p] for p in step.parents))
            finest.append(min([area, *(finest[p] for p in step.parents)]))
        return risen

    def _check(self, maps: list[int]) -> None:
        """Refuse what does not go down and up again."""
        outputs = [self.graph.steps[i].shape for i in self.graph.outputs]
        found = f"output {', '.join(map(str, outputs))}"
        expected = "an encoder-decoder, which goes down to coarse maps and up again"
        if not maps:
            raise CheckpointError("a classifier or regressor: its output is no map", found=found, expected=expected)
        areas = {self.areas[i] for i in self.useful}
        if len(areas) == 1:
            raise CheckpointError(
                "a plain stack of layers: all its maps have the same resolution", found=found, expected=expected
            )
        if max(areas) <= 1:
            raise CheckpointError(
                "a network that only raises the resolution: it never goes down", found=found, expected=expected
            )
        if not any(self.risen[i] for i in maps):
            scale = side(max(self.places[i].area for i in maps))
            raise CheckpointError(
                f"an encoder alone: it goes down to 1/{scale} of the resolution and never up",
                found=found,
                expected=expected,
            )

    def _check_single(self, deepest: Fraction) -> None:
        again = [self.graph.steps[i].path for i in sorted(self.bottom) if self.risen[i]]
        if again:
            raise CheckpointError(
                "several encoder-decoders in one network: it goes down to its deepest level again after coming up",
                found=f"{again[0]!r} at 1/{side(deepest)} of the resolution",
                expected="one way down and one way up",
            )

    def _levels(self, deepest: Fraction) -> list[Fraction]:
        """Areas of the levels above the bottleneck that have layers of their own, finest first."""
        found = {
            self.areas[i] for i in self.down - self.bottom if not self.risen[i] and _makes_level(self.graph.steps[i])
        }
        levels = sorted(area for area in found if area < deepest)
        if not levels:
            raise CheckpointError(
                "no encoder: nothing with weights stands above the deepest level",
                found=f"a single level at 1/{side(deepest)} of the resolution",
                expected="an encoder-decoder with at least one level above its bottleneck",
            )
        return levels

    def _level(self, area: Fraction) -> int:
        """Number (from 1) of the level at or just above (finer than) a scale."""
        return max([k for k, level in enumerate(self.levels, 1) if level <= area], default=1)

    def _heads(self) -> set[int]:
        """The last layers before each output, back to the convolution that makes its channels."""
        graph = self.graph
        heads: set[int] = set()
        waiting = [i for i in graph.outputs if self.risen[i] or i not in self.useful]
        while waiting:
            i = waiting.pop()
            step = graph.steps[i]
            merges = len(set(step.parents)) > 1
            if i in heads or step.is_input or i in self.down - self.bottom:
                continue
            if merges and (step.weighted or type(step.operation).__name__ not in _COMBINING):
                continue
            heads.add(i)
            if not step.weighted or not _makes_values(step):
                waiting.extend(step.parents)
        # A step that also feeds the decoder, or no convolution at its end, is none of the head's.
        for step in reversed(graph.steps):
            if step.index in heads and not heads.issuperset(graph.children[step.index]):
                heads.discard(step.index)
        return heads

    def _names(self) -> list[str]:
        """The block of every step."""
        names = [""] * len(self.graph.steps)
        for step in reversed(self.graph.steps):
            i = step.index
            if i in self.heads:
                names[i] = "head"
            elif self.risen[i]:
                names[i] = f"decoder_{self._level(self.areas[i])}"
            elif i in self.bottom:
                names[i] = "bottleneck"
            elif i in self.down:
                names[i] = f"encoder_{self._level(self.areas[i])}"
            else:
                # On the way from the encoder to one user: part of what it serves.
                names[i] = self._served(i, names)
        return names

    def _served(self, i: int, names: list[str]) -> str:
        """The block that a step on a skip, or an auxiliary output, is computed for: that at its own scale if several."""
        users = [names[c] for c in self.graph.children[i]]
        if not users:
            return "head"
        own = f"decoder_{self._level(self.areas[i])}"
        return own if own in users else users[0]

    def home(self, step: Step) -> str:
        """The block that lists a step's layer: its own, but pooling closes the block that it leaves."""
        i = step.index
        if i in self.down and not self.risen[i] and not step.weighted and len(step.parents) == 1:
            above = step.parents[0]
            if self.areas[above] < self.areas[i] and not self.graph.steps[above].is_input:
                return self.names[above]
        return self.names[i]

    @property
    def deepest(self) -> Fraction:
        """Area of the deepest level."""
        return max(self.areas[i] for i in self.bottom)


def _check_input(graph: Graph) -> None:
    shapes = [graph.steps[i].shape for i in graph.inputs]
    if len(shapes) != 1:
        raise CheckpointError(
            f"the network takes {len(shapes)} inputs", found=", ".join(map(str, shapes)), expected="one image input"
        )
    rank = len(shapes[0])
    if rank != 4:
        kinds = {5: "a 3-D network (volumes)", 3: "a network for sequences", 2: "a network for vectors"}
        raise CheckpointError(
            f"{kinds.get(rank, 'a network for something else than images')}, no 2-D encoder-decoder",
            found=f"input {shapes[0]}",
            expected="input (batch, height, width, channels)",
        )


def _makes_values(step: Step) -> bool:
    """Whether a step's weights mix channels (a convolution) rather than scale them (normalisation, PReLU)."""
    return not isinstance(step.layer, (*_NORMALISATIONS, layers.PReLU))


def _makes_level(step: Step) -> bool:
    """Whether a step is a level's own: weights that look at neighbours, or a dense mixing; no change of channels alone."""
    if not step.weighted or not _makes_values(step):
        return False
    kernel: Any = getattr(step.layer, "kernel_size", None)
    return kernel is None or set(kernel) != {1}


def side(area: Fraction) -> int:
    """The length of a pixel of that many input pixels."""
    return max(1, round(math.sqrt(area)))
