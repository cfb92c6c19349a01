"""The blocks of any U-Net: encoder, bottleneck, decoder and head, read off the graph and not off the names.

The scale of every tensor relative to the input gives the levels; what the deepest level is computed from is the encoder;
what comes after going up again is the decoder. `docs/blocks.md` tells the rules and the edge cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import keras
from keras import layers

from kerasseg.detours import effective_areas
from kerasseg.graph import Graph, Step, flatten
from kerasseg.scales import Place, image_axes, measure
from kerasseg_tfrecords.errors import CheckpointError, UsageError

__all__ = ["Block", "Blocks", "Skip", "find_blocks"]

_NORMALISATIONS = (
    layers.Normalization,
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.RMSNormalization,
    layers.UnitNormalization,
)
_SUMS = {"Add", "Average", "Maximum", "Minimum", "Subtract"}


@dataclass(frozen=True, slots=True)
class Block:
    """One block of an encoder-decoder network.

    Attributes:
        name: `encoder_1`, ..., `bottleneck`, ..., `decoder_1`, `head`.
        layers: Its layers in the order in which they run, each once; nested models are opened up.
        scale: Input pixels that a pixel of its maps spans: 1 is full resolution, 16 the bottleneck of a usual U-Net.
        filters: Channels of the map that it hands on.
        paths: For each layer its name below the names of the models that it is nested in, `backbone/conv1`.
        size: Height and width in pixels of the map that it hands on; None where the model leaves them open.
    """

    name: str
    layers: tuple[keras.Layer, ...]
    scale: int
    filters: int
    paths: tuple[str, ...] = ()
    size: tuple[int | None, int | None] = (None, None)

    @property
    def parameters(self) -> int:
        """Number of weights, those of BatchNorm statistics included (as Keras counts them)."""
        return sum(math.prod(weight.shape) for layer in self.layers for weight in layer.weights)


@dataclass(frozen=True, slots=True)
class Skip:
    """A connection from the encoder to the decoder that does not pass through the bottleneck.

    Attributes:
        source: Name of the encoder block that it leaves.
        target: Name of the decoder block that it joins.
        filters: Channels of the tensor.
        tensor: Path of the operation that made the tensor.
    """

    source: str
    target: str
    filters: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a network; iterating yields them in the order in which they run.

    Attributes:
        encoder: `encoder_1` (finest) to `encoder_n`.
        bottleneck: The deepest level; without weights where the network turns round right after pooling.
        decoder: `decoder_n` to `decoder_1`; a number without layers is left out.
        head: What turns the last decoder map into classes.
        skips: Connections from encoder to decoder; empty for an autoencoder.
    """

    encoder: tuple[Block, ...]
    bottleneck: Block
    decoder: tuple[Block, ...]
    head: Block
    skips: tuple[Skip, ...] = ()
    _by_layer: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names: dict[str, dict[str, None]] = {}
        for block in self:
            for layer, path in zip(block.layers, block.paths or [x.name for x in block.layers], strict=True):
                for name in {layer.name, path}:
                    names.setdefault(name, {})[block.name] = None
        object.__setattr__(self, "_by_layer", {name: tuple(blocks) for name, blocks in names.items()})

    def __iter__(self) -> Iterator[Block]:
        """`encoder_1`..`encoder_n`, `bottleneck`, `decoder_n`..`decoder_1`, `head`."""
        return iter((*self.encoder, self.bottleneck, *self.decoder, self.head))

    def __len__(self) -> int:
        return len(self.encoder) + len(self.decoder) + 2

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Block:
        for block in self:
            if block.name == name:
                return block
        raise UsageError("no such block", found=name, expected=" ".join(self.names))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the blocks in order."""
        return tuple(block.name for block in self)

    def of(self, layer_name: str) -> Block:
        """The block that a layer belongs to.

        Args:
            layer_name: The layer's name, or its path (`backbone/conv1`) where nested models repeat names.

        Raises:
            UsageError: There is no such layer, or layers of that name stand in several blocks.
        """
        found = self._by_layer.get(layer_name, ())
        if not found:
            raise UsageError("no such layer in the network", found=layer_name)
        if len(found) > 1:
            raise UsageError(
                f"layers named {layer_name!r} stand in several blocks",
                found=" ".join(found),
                remedy="Give the layer's path, for instance backbone/conv1.",
            )
        return self[found[0]]


def find_blocks(model: keras.Model) -> Blocks:
    """Tell encoder, bottleneck, decoder and head of a U-Net apart by its graph.

    Works on functional and sequential models, nested ones included, whatever their layers are called: U-Nets (Ronneberger
    et al. 2015) with any encoder, attention, residual and nested (U-Net++) variants, and autoencoders (without skips).

    Args:
        model: A built model with one image input, (batch, height, width, channels) or channels first. Height and width may
            be open.

    Returns:
        The blocks. Every layer of the model (but its input) belongs to exactly one of them.

    Raises:
        CheckpointError: The network is no encoder-decoder; the message says what it is.

    Example:
        >>> import keras
        >>> x = keras.Input((32, 32, 1))
        >>> a = keras.layers.Conv2D(4, 3, padding="same", name="fine")(x)
        >>> b = keras.layers.Conv2D(8, 3, padding="same", name="deep")(keras.layers.MaxPooling2D()(a))
        >>> c = keras.layers.Concatenate()([keras.layers.UpSampling2D()(b), a])
        >>> c = keras.layers.Conv2D(4, 3, padding="same", name="joined")(c)
        >>> model = keras.Model(x, keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")(c))
        >>> blocks = find_blocks(model)
        >>> blocks.names
        ('encoder_1', 'bottleneck', 'decoder_1', 'head')
        >>> blocks.of("joined").name, blocks["bottleneck"].scale
        ('decoder_1', 2)
    """
    graph = flatten(model)
    _check_input(graph)
    return _Reading(graph).blocks()


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


class _Reading:
    """One pass over a graph; each attribute is settled by the method that fills it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.places: list[Place] = measure(graph)
        self.areas: list[Fraction] = effective_areas(graph, self.places)
        self.axes = image_axes(graph)
        maps = [i for i in graph.outputs if self.places[i].spatial]
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
            scale = _side(max(self.places[i].area for i in maps))
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
                found=f"{again[0]!r} at 1/{_side(deepest)} of the resolution",
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
                found=f"a single level at 1/{_side(deepest)} of the resolution",
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
            if i in heads or step.is_input or i in self.down:
                continue
            if merges and (step.weighted or type(step.operation).__name__ not in _SUMS):
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

    def blocks(self) -> Blocks:
        """What was read, as blocks."""
        members: dict[str, dict[int, tuple[keras.Layer, str]]] = {}
        taken: set[int] = set()
        for step in self.graph.steps:
            # A layer used in several places belongs to the first.
            if step.layer is not None and id(step.layer) not in taken:
                taken.add(id(step.layer))
                members.setdefault(self._home(step), {})[step.index] = (step.layer, step.path)
        made = {name: self._block(name, list(found.values())) for name, found in members.items()}
        for name in ("bottleneck", "head", *(f"encoder_{k}" for k in range(1, len(self.levels) + 1))):
            made.setdefault(name, self._block(name, []))
        numbers = range(1, len(self.levels) + 1)
        return Blocks(
            encoder=tuple(made[f"encoder_{k}"] for k in numbers),
            bottleneck=made["bottleneck"],
            decoder=tuple(made[f"decoder_{k}"] for k in reversed(numbers) if f"decoder_{k}" in made),
            head=made["head"],
            skips=self._skips(),
        )

    def _home(self, step: Step) -> str:
        """The block that lists a step's layer: its own, but pooling closes the block that it leaves."""
        i = step.index
        if i in self.down and not self.risen[i] and not step.weighted and len(step.parents) == 1:
            above = step.parents[0]
            if self.areas[above] < self.areas[i] and not self.graph.steps[above].is_input:
                return self.names[above]
        return self.names[i]

    def _block(self, name: str, found: list[tuple[keras.Layer, str]]) -> Block:
        kind, _, number = name.partition("_")
        inside = [s for s in self.graph.steps if self.names[s.index] == name]
        if kind == "head":
            area = min((self.areas[s.index] for s in inside), default=self.levels[0])
        else:
            area = self.levels[int(number) - 1] if number else max(self.areas[i] for i in self.bottom)
        height, width, channels = self._handed_on(inside)
        return Block(
            name=name,
            layers=tuple(layer for layer, _ in found),
            scale=_side(area),
            filters=channels or 0,
            paths=tuple(path for _, path in found),
            size=(height, width),
        )

    def _handed_on(self, inside: list[Step]) -> tuple[int | None, int | None, int | None]:
        """Height, width and channels of the last map that nothing inside the block takes."""
        maps = [s for s in inside if self.places[s.index].spatial and s.index in self.useful]
        own = {s.index for s in inside}
        ends = [s for s in maps if not own.intersection(self.graph.children[s.index])] or maps
        height, width, channels = (ends[-1].shape[axis] if ends else None for axis in self.axes)
        return height, width, channels

    def _skips(self) -> tuple[Skip, ...]:
        """Edges from the encoder's side into the decoder, at the same scale or a coarser one."""
        found: dict[Skip, None] = {}
        for step in self.graph.steps:
            if not self.risen[step.index] or step.index in self.heads:
                continue
            for parent in step.parents:
                for source in self._sources(parent):
                    if source not in self.bottom and self.areas[source] <= self.areas[step.index]:
                        made = self.graph.steps[source]
                        filters = int(made.shape[self.axes[2]] or 0) if len(made.shape) == 4 else 0
                        found[Skip(self.names[source], self.names[step.index], filters, made.path)] = None
        return tuple(sorted(found, key=lambda skip: (skip.source, skip.target)))

    def _sources(self, i: int) -> list[int]:
        """The encoder's steps that a step outside the decoder comes from."""
        if self.risen[i] or self.graph.steps[i].is_input:
            return []
        if i in self.down:
            return [i]
        return [source for parent in self.graph.steps[i].parents for source in self._sources(parent)]


def _makes_values(step: Step) -> bool:
    """Whether a step's weights mix channels (a convolution) rather than scale them (normalisation, PReLU)."""
    return not isinstance(step.layer, (*_NORMALISATIONS, layers.PReLU))


def _makes_level(step: Step) -> bool:
    """Whether a step is a level's own: weights that look at neighbours, or a dense mixing; no change of channels alone."""
    if not step.weighted or not _makes_values(step):
        return False
    kernel: Any = getattr(step.layer, "kernel_size", None)
    return kernel is None or set(kernel) != {1}


def _side(area: Fraction) -> int:
    """The length of a pixel of that many input pixels."""
    return max(1, round(math.sqrt(area)))
