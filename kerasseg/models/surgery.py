"""Rebuilding of a Keras model with another input or other layers and the same weights: `rebuild`.

`keras.models.clone_model` keeps nested models at their old input size and cannot skip a step. Here each step is replayed on
the new tensors, including nested models, which keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kerasseg.models.graph import calls_for, flatten, has_graph, is_a
from kerasseg.models.layers import own_weights, with_inner
from kerasseg_tfrecords.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Replacement:
    """The replacement of a layer or operation.

    Attributes:
        make: Makes the new layer; None for one with the old layer's configuration.
        weights: The new layer's weights in Keras' order; None copies the old layer's.
        fresh: Whether the new layer keeps its initial weights.
        drop: Whether to skip the step and pass its input on.
    """

    make: Callable[[], Any] | None = None
    weights: Sequence[np.ndarray] | None = None
    fresh: bool = False
    drop: bool = False


def rebuild(
    model: keras.Model,
    shape: Sequence[int | None],
    *,
    outputs: Sequence[int] | None = None,
    replacements: Mapping[int, Replacement] | None = None,
    front: Callable[[Any], Any] | None = None,
) -> keras.Model:
    """Build a model with the layers and weights of `model` for another input shape.

    Args:
        model: A functional or sequential model with one input; left unchanged and not shared with the result.
        shape: Height, width and channels of the new float32 input.
        outputs: Indices of the outputs to keep, None for all. Layers that only serve other outputs are left out.
        replacements: Replacements of layers or operations, by `id`.
        front: Applied to the image in front of the model.

    Returns:
        A functional model with the same names of layers and nested models.
    """
    wanted = list(range(len(model.outputs))) if outputs is None else list(outputs)
    image = keras.Input(tuple(shape), dtype="float32", name=model.inputs[0]._keras_history.operation.name)
    return _Replay(replacements or {}).model(model, [image], wanted, front)


class _Replay:
    """One pass over a model; shared layers are built once."""

    def __init__(self, replacements: Mapping[int, Replacement]) -> None:
        self.replacements = replacements
        self.made: dict[int, Any] = {}

    def model(
        self, model: keras.Model, inputs: list[Any], wanted: list[int], front: Callable[[Any], Any] | None = None
    ) -> keras.Model:
        """Build `model` on new inputs, with some of its outputs."""
        taken_in = [front(new) for new in inputs] if front else inputs
        known = {id(old): new for old, new in zip(model.inputs, taken_in, strict=True)}
        targets = [model.outputs[i] for i in wanted]
        nodes = calls_for(model, targets)
        taken = {id(tensor) for tensor in (*targets, *(tensor for node in nodes for tensor in node.input_tensors))}
        for node in nodes:
            self._node(node, known, taken)
        results = [known[id(target)] for target in targets]
        return keras.Model(
            inputs if len(inputs) > 1 else inputs[0], results if len(results) > 1 else results[0], name=model.name
        )

    def _node(self, node: Any, known: dict[int, Any], taken: set[int]) -> None:
        operation = node.operation
        try:
            made = self._call(operation, node, known, taken)
        except (ValueError, TypeError, ArithmeticError, NotImplementedError) as error:
            shapes = ", ".join(str(tuple(known[id(tensor)].shape)) for tensor in node.input_tensors)
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"{type(operation).__name__} {operation.name!r} works only at the shape that the network was built for",
                found=f"input {shapes}: {first_line}",
                expected=", ".join(str(tuple(tensor.shape)) for tensor in node.input_tensors),
                remedy="Keep the size and the channels that the network has.",
            ) from error
        known.update(made)

    def _call(self, operation: Any, node: Any, known: dict[int, Any], taken: set[int]) -> dict[int, Any]:
        """Return the new tensors of a node by the `id` of the old ones."""
        new_inputs = [known[id(tensor)] for tensor in node.input_tensors]
        if has_graph(operation):
            used = [i for i, tensor in enumerate(node.output_tensors) if id(tensor) in taken]
            inner = self._nested(operation, new_inputs, used)
            results = keras.tree.flatten(inner(new_inputs if len(new_inputs) > 1 else new_inputs[0]))
            return {id(node.output_tensors[i]): new for i, new in zip(used, results, strict=True)}
        replacement = self.replacements.get(id(operation), Replacement())
        if replacement.drop:
            return {id(node.output_tensors[0]): new_inputs[0]}
        new = self._operation(operation, replacement.make)

        def replaced(argument: Any) -> Any:
            return known[id(argument)] if isinstance(argument, keras.KerasTensor) else argument

        args, kwargs = keras.tree.map_structure(replaced, (node.arguments.args, node.arguments.kwargs))
        results = keras.tree.flatten(new(*args, **kwargs))
        if isinstance(new, keras.Layer):
            _carry_weights(operation, new, replacement)
        return {id(old): tensor for old, tensor in zip(node.output_tensors, results, strict=True)}

    def _operation(self, operation: Any, make: Callable[[], Any] | None) -> Any:
        if id(operation) not in self.made:
            self.made[id(operation)] = make() if make else type(operation).from_config(operation.get_config())
        return self.made[id(operation)]

    def _nested(self, operation: Any, inputs: list[Any], used: list[int]) -> keras.Model:
        if id(operation) not in self.made:
            fresh = [
                keras.Input(tuple(new.shape[1:]), dtype=old.dtype, name=old._keras_history.operation.name)
                for new, old in zip(inputs, operation.inputs, strict=True)
            ]
            self.made[id(operation)] = self.model(operation, fresh, used)
        return self.made[id(operation)]


def _carry_weights(old: Any, new: Any, replacement: Replacement) -> None:
    if replacement.fresh:
        return
    if replacement.weights is not None:
        new.set_weights(list(replacement.weights))
        return
    pairs = zip(with_inner([old]), with_inner([new]), strict=True)
    for source, target in pairs:
        was, would_be = ([tuple(v.shape) for v in own_weights(layer)] for layer in (source, target))
        if was != would_be:
            msg = f"weights of shape {was} would become {would_be}"
            raise ValueError(msg)
        store: dict[str, Any] = {}
        source.save_own_variables(store)
        # With Keras' own loader, because some layers derive further state from their weights.
        target.load_own_variables({key: ops.convert_to_numpy(value) for key, value in store.items()})


# Layers that treat all channels alike and keep their number.
_BLIND = (
    "ZeroPadding2D", "Cropping2D", "Resizing", "UpSampling2D", "MaxPooling2D", "AveragePooling2D", "Dropout",
    "SpatialDropout2D", "GaussianNoise", "Activation", "Identity",
)  # fmt: skip


def first_kernels(
    model: keras.Model, change: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[keras.Layer, Replacement]]:
    """Return every convolution that reads the channels of the input, with its changed kernel.

    A convolution is linear in its channels. If all channels of an image are equal, a kernel summed over the channels gives
    the same output from one channel.

    Args:
        model: A model with one image input, channels last.
        change: Maps the old kernel (height, width, channels, filters) to the new one.
    """
    graph = flatten(model)
    found: dict[int, tuple[keras.Layer, Replacement]] = {}
    waiting, seen = list(graph.inputs), set(graph.inputs)
    while waiting:
        for child in graph.children[waiting.pop()]:
            layer: Any = graph.nodes[child].operation
            if isinstance(layer, layers.Conv2D) and layer.groups == 1:
                kernel = np.asarray(ops.convert_to_numpy(layer.kernel))
                rest = [np.asarray(ops.convert_to_numpy(v)) for v in layer.weights[1:]]
                found[id(layer)] = (layer, Replacement(weights=[change(kernel), *rest]))
            elif is_a(layer, *_BLIND) or (
                isinstance(layer, layers.Rescaling) and np.ndim(layer.scale) == np.ndim(layer.offset) == 0
            ):
                if child not in seen:
                    seen.add(child)
                    waiting.append(child)
            else:
                raise CheckpointError(
                    f"the channels of the input cannot be changed: {type(layer).__name__} {layer.name!r} depends on them",
                    expected="a convolution as the first layer with weights",
                    remedy="Give the network as many channels as it takes (--channels repeat).",
                )
    return list(found.values())
