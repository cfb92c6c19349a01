"""Freezing of blocks of a U-Net: `freeze`.

Frozen layers keep their weights and the moving statistics of their BatchNorm. In Keras both follow from
`layer.trainable = False`: no gradient is computed, and `BatchNormalization` uses its stored statistics even if the model is
called with `training=True`. (With weights alone frozen, as by `tf.stop_gradient`, the encoder would drift.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import keras

from kerasseg.checkpoints.stored import leaves
from kerasseg.models.blocks import Blocks, find_blocks
from kerasseg.models.layers import all_layers, fixed_weights, own_weights, restless, set_trainable, with_inner
from kerasseg.recipe import STRATEGIES, frozen_encoder_blocks
from kerasseg_tfrecords.errors import UsageError


@dataclass(frozen=True, slots=True)
class BlockReport:
    """The state of one block after `freeze`.

    Attributes:
        name: `encoder_1`, ..., `bottleneck`, `decoder_n`, ..., `head`; or `other` for layers outside all blocks.
        parameters: Number of parameters, including BatchNorm statistics, which are never trained.
        trained: Number of parameters that the optimizer updates.
        statistics: Number of BatchNorm statistics that training updates.
        frozen_layers: Names of frozen layers with weights, in graph order.
        held_batchnorm: Number of these that only `freeze_batchnorm` froze.
    """

    name: str
    parameters: int
    trained: int
    statistics: int
    frozen_layers: tuple[str, ...] = ()
    held_batchnorm: int = 0

    @property
    def state(self) -> str:
        """`frozen`, `trained`, `partly trained`, or `no weights`."""
        if not self.parameters:
            return "no weights"
        if not self.trained and not self.statistics:
            return "frozen"
        return "partly trained" if len(self.frozen_layers) > self.held_batchnorm else "trained"


@dataclass(frozen=True, slots=True)
class FreezeReport:
    """What is frozen and what is trained, by block; `str()` gives a table.

    Attributes:
        what: The strategy or the patterns, as given.
        blocks: One entry per block, in the order of `find_blocks`.
        parameters: Number of parameters of the model; shared layers count once.
        trained: Number of parameters that the optimizer updates.
        batchnorm: Number of BatchNorm layers.
        held_batchnorm: Number of BatchNorm layers that keep their statistics.
        thawed: Layers that were frozen before and are trained now, for instance those of a checkpoint saved frozen.
        recompile: Whether the model was compiled before and must be compiled again.

    Example:
        >>> import kerasseg
        >>> report = kerasseg.freeze(kerasseg.unet((16, 16, 1), filters=2, depth=1), "conservative")
        >>> report.frozen_blocks, report.held_batchnorm, report.batchnorm
        (('encoder_1',), 2, 6)
    """

    what: tuple[str, ...]
    blocks: tuple[BlockReport, ...]
    parameters: int
    trained: int
    batchnorm: int
    held_batchnorm: int
    thawed: tuple[str, ...] = ()
    recompile: bool = False

    @property
    def frozen_blocks(self) -> tuple[str, ...]:
        """Names of the completely frozen blocks."""
        return tuple(block.name for block in self.blocks if block.state == "frozen")

    def __str__(self) -> str:
        """Return the table, the totals and remarks."""
        rows = [("block", "parameters", "trained", "")]
        rows += [(b.name, f"{b.parameters:,}", f"{b.trained:,}", b.state) for b in self.blocks]
        rows += [("total", f"{self.parameters:,}", f"{self.trained:,}", "")]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {parameters:>{widths[1]}}  {trained:>{widths[2]}}  {state}".rstrip()
            for name, parameters, trained, state in rows
        ]
        if self.batchnorm:
            lines.append(f"BatchNorm: {self.held_batchnorm} of {self.batchnorm} layers keep their statistics")
        if self.thawed:
            lines.append(f"now trained, frozen before: {_listed(self.thawed)}")
        if self.recompile:
            lines.append("the model was compiled before: compile it again before fit()")
        return "\n".join(lines)


def freeze(model: keras.Model, what: str | Sequence[str], *, freeze_batchnorm: bool = False) -> FreezeReport:
    """Freeze blocks or layers of a U-Net by name; everything else is trained.

    The whole model is unfrozen first, so the result depends only on the arguments. Call it before `compile`, or compile
    again. Dropout and other random layers in frozen blocks stay active in training.

    Args:
        model: A U-Net of any origin; it is changed in place.
        what: `"conservative"` freezes the first half of the encoder blocks (`max(1, n // 2)` of n), `"moderate"` the first
            quarter (`max(1, n // 4)`), `"aggressive"` none. Or one or more case-sensitive patterns with `*`, `?` and
            `[...]` for the names of blocks (`"encoder_1"`, `"decoder_*"`), of layers (`"conv2d_19"`, or with a path
            `"vgg16/block1_conv1"`) and of nested models (`"vgg16"`).
        freeze_batchnorm: Whether to freeze every BatchNorm layer, also in trained blocks: statistics, scale and offset
            stay as pretrained. Useful for small batches.

    Returns:
        What is frozen and what is trained, by block.

    Raises:
        UsageError: A pattern matches no name or only layers without weights, there is no pattern, or a layer changes its
            state in training although it is frozen (`SpectralNormalization`). The model is then unchanged.
        KerassegError: The model is not an encoder-decoder.

    Example:
        >>> import kerasseg
        >>> model = kerasseg.unet((32, 32, 3), filters=4, depth=2)
        >>> print(kerasseg.freeze(model, "conservative"))
        block       parameters  trained
        encoder_1          284        0  frozen
        encoder_2          928      896  trained
        bottleneck       3,584    3,520  trained
        decoder_2        2,312    2,280  trained
        decoder_1          596      580  trained
        head                 5        5  trained
        total            7,709    7,281
        BatchNorm: 2 of 10 layers keep their statistics
    """
    blocks = find_blocks(model)
    patterns = (what,) if isinstance(what, str) else tuple(what)
    chosen = _chosen(model, blocks, patterns)
    batchnorm = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    _refuse_restless(chosen)

    before = _frozen_layers(model)
    set_trainable([model], True)
    set_trainable(chosen, False)
    named = {id(layer) for layer in _frozen_layers(model)}
    if freeze_batchnorm:
        set_trainable(batchnorm, False)
    frozen = {id(layer) for layer in _frozen_layers(model)}
    # A train step that was traced before would continue to train layers that are frozen now.
    model.train_function = None

    in_blocks = {id(layer) for block in blocks for layer in with_inner(block.layers)}
    other = [layer for _, layer in leaves(model) if id(layer) not in in_blocks and layer.weights]
    groups = [(block.name, tuple(block.layers)) for block in blocks] + ([("other", tuple(other))] if other else [])
    return FreezeReport(
        what=patterns,
        blocks=tuple(_report(name, layers, frozen, frozen - named) for name, layers in groups),
        parameters=_count(model.weights),
        trained=_count(v for v in model.weights if v.trainable),
        batchnorm=len(batchnorm),
        held_batchnorm=sum(not layer.trainable for layer in batchnorm),
        thawed=tuple(layer.name for layer in before if id(layer) not in frozen),
        recompile=bool(getattr(model, "compiled", False)),
    )


def _chosen(model: keras.Model, blocks: Blocks, patterns: tuple[str, ...]) -> list[Any]:
    """Return the layers and nested models to freeze, each once."""
    if len(patterns) == 1 and patterns[0] in STRATEGIES:
        count = frozen_encoder_blocks(patterns[0], len(blocks.encoder))
        return [layer for block in blocks.encoder[:count] for layer in block.layers]
    if not patterns:
        raise UsageError("no block or layer is named", remedy='Name some, or use "aggressive" to freeze nothing.')
    named = [(block.name, tuple(block.layers)) for block in blocks]
    named += [(layer.name, (layer,)) for layer in all_layers(model)]
    # Nested models may repeat names, which paths such as backbone/conv1 distinguish.
    named += [
        (path, (layer,))
        for block in blocks
        for path, layer in zip(block.paths, block.layers, strict=True)
        if path != layer.name
    ]
    chosen: dict[int, Any] = {}
    for pattern in patterns:
        hits = [layers for name, layers in named if fnmatchcase(name, pattern)]
        if not hits:
            raise _unknown(pattern, blocks, [name for name, _ in named])
        found = [layer for layers in hits for layer in layers]
        if not any(_freezable(layer) for layer in found):
            raise UsageError(
                f"{pattern!r} freezes nothing: it matches only layers without weights to train",
                found=_listed([layer.name for layer in found]) or "a block without layers",
            )
        chosen |= {id(layer): layer for layer in found}
    return list(chosen.values())


def _unknown(pattern: str, blocks: Blocks, names: list[str]) -> UsageError:
    if pattern in STRATEGIES:
        return UsageError(
            f"{pattern!r} is a strategy, which cannot be combined with other names",
            found="other names beside it",
            remedy="Name the blocks that it freezes instead, for instance encoder_1.",
        )
    near = get_close_matches(pattern, [*STRATEGIES, *dict.fromkeys(names)], n=1, cutoff=0.6)
    there = [block.name for block in blocks]
    layers = [name for name in dict.fromkeys(names) if name not in there]
    return UsageError(
        f"no block or layer matches {pattern!r}",
        expected=f"a strategy ({_listed(STRATEGIES)}), a block ({_listed(there, most=30)}) or a layer ({_listed(layers)})",
        remedy=f"Did you mean {near[0]!r}?" if near else None,
    )


def _refuse_restless(layers: Iterable[Any]) -> None:
    """Refuse layers that ignore `trainable = False`, before anything is changed."""
    for layer in with_inner(layers):
        if restless(layer):
            raise UsageError(
                f"layer {layer.name!r} cannot be frozen: {type(layer).__name__} changes its state in training whether it "
                "is trainable or not",
                remedy="Leave its block trained, or replace the layer by the one inside it.",
            )


def _report(name: str, layers: Sequence[Any], frozen: set[int], only_batchnorm: set[int]) -> BlockReport:
    weights = _unique(v for layer in layers for v in layer.weights)
    inner = [layer for layer in with_inner(layers) if layer.weights]
    live = {
        id(v)
        for layer in inner
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for v in fixed_weights(layer)
    }
    held = [layer for layer in inner if id(layer) in frozen]
    return BlockReport(
        name=name,
        parameters=_count(weights),
        trained=_count(v for v in weights if v.trainable),
        statistics=_count(v for v in weights if id(v) in live),
        frozen_layers=tuple(layer.name for layer in held),
        held_batchnorm=sum(id(layer) in only_batchnorm for layer in held),
    )


def _frozen_layers(model: keras.Model) -> list[Any]:
    """Return frozen layers with weights of their own, without the models around them."""
    return [layer for layer in all_layers(model) if not layer.trainable and own_weights(layer)]


def _freezable(layer: Any) -> bool:
    """Return whether freezing has an effect: there are weights to train or statistics to keep."""
    return any(
        inner._trainable_variables or isinstance(inner, keras.layers.BatchNormalization)
        for inner in with_inner([layer])
    )


def _unique(variables: Iterable[Any]) -> list[Any]:
    return list({id(v): v for v in variables}.values())


def _count(variables: Iterable[Any]) -> int:
    return sum(math.prod(variable.shape) for variable in _unique(variables))


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... {len(names) - most} more"
