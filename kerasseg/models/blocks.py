"""Detection of the blocks of a U-Net (encoder, bottleneck, decoder, head) from its graph, not from names.

Levels follow from the scale of every tensor relative to the input. The encoder is everything that the deepest level is
computed from; the decoder is what follows the first upsampling. `docs/blocks.md` has the rules and edge cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kerasseg.models.graph import Graph, Node, flatten
from kerasseg.models.levels import Layout, side
from kerasseg.models.scales import is_permutation
from kerasseg_tfrecords.errors import UsageError

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, slots=True)
class Block:
    """One block of an encoder-decoder network.

    Attributes:
        name: `encoder_1`, ..., `bottleneck`, ..., `decoder_1`, `head`.
        layers: Its layers in execution order, each once, including those of nested models.
        scale: Input pixels per pixel of its feature maps: 1 is full resolution, 16 the bottleneck of a usual U-Net.
        filters: Channels of its output.
        paths: Path of each layer, which includes the names of nested models: `backbone/conv1`.
        size: Height and width of its output in pixels; None if not fixed.

    Example:
        >>> from kerasseg import find_blocks, unet
        >>> block = find_blocks(unet((16, 16, 1), filters=2, depth=1))["bottleneck"]
        >>> block.scale, block.filters, block.size, block.parameters
        (2, 4, (8, 8), 248)
    """

    name: str
    layers: tuple[keras.Layer, ...]
    scale: int
    filters: int
    paths: tuple[str, ...] = ()
    size: tuple[int | None, int | None] = (None, None)

    @property
    def parameters(self) -> int:
        """Number of parameters, including BatchNorm statistics (as Keras counts them)."""
        return sum(math.prod(weight.shape) for layer in self.layers for weight in layer.weights)


@dataclass(frozen=True, slots=True)
class Skip:
    """A connection from the encoder to the decoder that does not pass through the bottleneck.

    Attributes:
        source: Encoder block where it starts.
        target: Decoder block where it ends.
        filters: Channels of the tensor.
        tensor: Path of the operation that made the tensor.
    """

    source: str
    target: str
    filters: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a network, iterable in execution order.

    Attributes:
        encoder: `encoder_1` (finest) to `encoder_n`.
        bottleneck: The deepest level; without weights if upsampling directly follows the last pooling.
        decoder: `decoder_n` to `decoder_1`; numbers without layers are left out.
        head: The layers that turn the last decoder map into classes.
        skips: Connections from encoder to decoder; empty for an autoencoder.

    Example:
        >>> from kerasseg import find_blocks, unet
        >>> blocks = find_blocks(unet((16, 16, 1), filters=2, depth=1))
        >>> blocks.names, "encoder_2" in blocks, blocks.of("decoder_1_up").name
        (('encoder_1', 'bottleneck', 'decoder_1', 'head'), False, 'decoder_1')
        >>> print(blocks)
        block       scale  size   filters  layers  parameters
        encoder_1   1/1    16x16  2        7       70
        bottleneck  1/2    8x8    4        6       248
        decoder_1   1/1    16x16  2        8       158
        head        1/1    16x16  1        1       3
    """

    encoder: tuple[Block, ...]
    bottleneck: Block
    decoder: tuple[Block, ...]
    head: Block
    skips: tuple[Skip, ...] = ()

    def __str__(self) -> str:
        """Return a table with one line per block."""
        rows = [("block", "scale", "size", "filters", "layers", "parameters")]
        for block in self:
            size = "x".join("any" if side is None else str(side) for side in block.size)
            numbers = (str(block.filters), str(len(block.layers)), f"{block.parameters:,}")
            rows.append((block.name, f"1/{block.scale}", size, *numbers))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join(lines)

    def __iter__(self) -> Iterator[Block]:
        """Yield `encoder_1`..`encoder_n`, `bottleneck`, `decoder_n`..`decoder_1`, `head`."""
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
        """Return the block of a layer.

        Args:
            layer_name: The layer's name, or its path (`backbone/conv1`) if nested models repeat names.

        Raises:
            UsageError: There is no such layer, or several blocks have layers of that name.
        """
        found = [b for b in self if layer_name in b.paths or layer_name in [layer.name for layer in b.layers]]
        if not found:
            raise UsageError("no such layer in the network", found=layer_name)
        if len(found) > 1:
            raise UsageError(
                f"layers named {layer_name!r} are in several blocks",
                found=" ".join(block.name for block in found),
                remedy="Give the layer's path, for instance backbone/conv1.",
            )
        return found[0]


def find_blocks(model: keras.Model | Graph) -> Blocks:
    """Find the encoder, bottleneck, decoder and head of a U-Net from its graph.

    It works for functional, sequential and nested models with any layer names: U-Nets (Ronneberger et al. 2015) with any
    encoder, attention, residual and nested (U-Net++) variants, and autoencoders (without skips).

    Args:
        model: A built model (or its graph) with one image input, (batch, height, width, channels) or channels first. Height
            and width need not be fixed.

    Returns:
        The blocks. Every layer of the model except its input belongs to exactly one of them.

    Raises:
        CheckpointError: The network is not an encoder-decoder; the message describes it.

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
    return _assemble(Layout(model if isinstance(model, Graph) else flatten(model)))


def _assemble(layout: Layout) -> Blocks:
    members: dict[str, dict[int, tuple[keras.Layer, str]]] = {}
    taken: set[int] = set()
    for node in layout.graph.nodes:
        # A layer that is used several times belongs to its first place.
        if node.layer is not None and id(node.layer) not in taken:
            taken.add(id(node.layer))
            members.setdefault(layout.home(node), {})[node.index] = (node.layer, node.path)
    made = {name: _block(layout, name, list(found.values())) for name, found in members.items()}
    for name in ("bottleneck", "head", *(f"encoder_{k}" for k in range(1, len(layout.levels) + 1))):
        made.setdefault(name, _block(layout, name, []))
    numbers = range(1, len(layout.levels) + 1)
    return Blocks(
        encoder=tuple(made[f"encoder_{k}"] for k in numbers),
        bottleneck=made["bottleneck"],
        decoder=tuple(made[f"decoder_{k}"] for k in reversed(numbers) if f"decoder_{k}" in made),
        head=made["head"],
        skips=_skips(layout),
    )


def _block(layout: Layout, name: str, found: list[tuple[keras.Layer, str]]) -> Block:
    kind, _, number = name.partition("_")
    inside = [s for s in layout.graph.nodes if layout.names[s.index] == name]
    if kind == "head":
        area = min((layout.areas[s.index] for s in inside), default=layout.levels[0])
    else:
        area = layout.levels[int(number) - 1] if number else layout.deepest
    height, width, channels = _handed_on(layout, inside)
    return Block(
        name=name,
        layers=tuple(layer for layer, _ in found),
        scale=side(area),
        filters=channels or 0,
        paths=tuple(path for _, path in found),
        size=(height, width),
    )


def _handed_on(layout: Layout, inside: list[Node]) -> tuple[int | None, int | None, int | None]:
    """Return height, width and channels of the last feature map that the block does not use itself."""
    maps = [s for s in inside if layout.places[s.index].spatial and s.index in layout.useful and not is_permutation(s)]
    own = {s.index for s in inside}
    ends = [s for s in maps if not own.intersection(layout.graph.children[s.index])] or maps
    height, width, channels = (ends[-1].shape[axis] if ends else None for axis in layout.axes)
    return height, width, channels


def _skips(layout: Layout) -> tuple[Skip, ...]:
    """Find edges from the encoder into the decoder, at the same scale or to a finer one."""
    found: dict[Skip, None] = {}
    for node in layout.graph.nodes:
        if not layout.risen[node.index] or node.index in layout.heads:
            continue
        for parent in node.parents:
            for source in _sources(layout, parent):
                if source not in layout.bottom and layout.areas[source] <= layout.areas[node.index]:
                    made = layout.graph.nodes[source]
                    filters = int(made.shape[layout.axes[2]] or 0) if len(made.shape) == 4 else 0
                    found[Skip(layout.names[source], layout.names[node.index], filters, made.path)] = None
    return tuple(sorted(found, key=lambda skip: (skip.source, skip.target)))


def _sources(layout: Layout, start: int) -> list[int]:
    """Return the encoder nodes that a node outside the decoder is computed from."""
    found: list[int] = []
    waiting, seen = [start], {start}
    while waiting:
        i = waiting.pop()
        if layout.risen[i] or layout.graph.nodes[i].is_input:
            continue
        if i in layout.down:
            found.append(i)
            continue
        new = set(layout.graph.nodes[i].parents) - seen
        seen |= new
        waiting.extend(sorted(new))
    return found
