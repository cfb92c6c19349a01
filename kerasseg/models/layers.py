"""Layers inside layers: walking them, freezing them, and finding those that change even when frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

Part = Literal["head", "decoder"]


def mark_fresh(model: keras.Model, part: Part | None) -> None:
    """Remember which part of an otherwise pretrained network has fresh weights; a saved file does not contain it."""
    model._kerasseg_fresh = part


def fresh_part(model: keras.Model) -> Part | None:
    part: Part | None = getattr(model, "_kerasseg_fresh", None)
    return part


def set_trainable(layers: Iterable[Any], value: bool) -> None:
    """Set `trainable` of layers, of everything inside them and of their weights.

    On the TensorFlow backend `layer.trainable = value` has no effect on inner layers and weights if the layer already has
    that value.
    """
    for layer in with_inner(layers):
        layer.trainable = value
        for v in layer._trainable_variables:
            v.trainable = value


@contextlib.contextmanager
def trainable_restored(model: keras.Model) -> Iterator[None]:
    """Restore what is trainable at the end of the block."""
    layers = [(layer, layer._trainable) for layer in with_inner([model])]
    variables = [(v, v.trainable) for v in model.variables]
    try:
        yield
    finally:
        for layer, trainable in layers:
            # Not through the property, which would also set the inner layers.
            layer._trainable = trainable
        for variable, trainable in variables:
            variable.trainable = trainable


def all_layers(model: Any) -> list[Any]:
    """Return every layer and nested model below `model`, including those inside wrappers, each once."""
    return list({id(layer): layer for layer in model._flatten_layers(include_self=False, recursive=True)}.values())


def with_inner(layers: Iterable[Any]) -> list[Any]:
    """Return `layers` and everything inside them, each once."""
    return list({id(inner): inner for layer in layers for inner in [layer, *all_layers(layer)]}.values())


def own_weights(layer: Any) -> list[Any]:
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def fixed_weights(layer: Any) -> list[Any]:
    """Return the weights that never receive a gradient."""
    return [v for inner in with_inner([layer]) for v in inner._non_trainable_variables]


def restless(layer: Any) -> bool:
    """Return whether a frozen layer still changes a weight when called with `training=True`.

    No attribute tells, so the layer is called. Layers without non-trainable weights are skipped, except wrappers
    (`SpectralNormalization` assigns to the inner layer's kernel), and so is Keras' own BatchNormalization.
    """
    state = layer.weights if isinstance(layer, keras.layers.Wrapper) else fixed_weights(layer)
    nodes = getattr(layer, "_inbound_nodes", ())
    if not state or not nodes or isinstance(layer, keras.Model) or type(layer) is keras.layers.BatchNormalization:
        return False
    kept = [(v, np.array(ops.convert_to_numpy(v)), v.trainable) for v in layer.variables]
    flags = [(inner, inner.trainable) for inner in with_inner([layer])]
    arguments = nodes[0].arguments
    args, kwargs = keras.tree.map_structure(_probe, (arguments.args, arguments.kwargs))
    if layer._call_has_training_arg:
        kwargs["training"] = True
    try:
        set_trainable([layer], False)
        layer(*args, **kwargs)
        watched = {id(v) for v in layer.weights}
        return any((ops.convert_to_numpy(v) != value).any() for v, value, _ in kept if id(v) in watched)
    finally:
        for inner, trainable in flags:
            inner._trainable = trainable
        for v, value, trainable in kept:
            v.assign(value)
            v.trainable = trainable


def _probe(argument: Any) -> Any:
    """Return ones in the shape of a symbolic tensor, and other arguments unchanged."""
    if not isinstance(argument, keras.KerasTensor):
        return argument
    return ops.ones([2] + [size or 8 for size in argument.shape[1:]], dtype=argument.dtype)
