"""Folding of BatchNorm into the convolution before it, for faster prediction with the same outputs.

At inference BatchNorm scales and shifts each channel, which can be included in the convolution's kernel and bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from kerasseg.models.graph import Node, flatten
from kerasseg.models.surgery import Replacement, rebuild
from kerasseg_tfrecords.errors import UsageError

Array = NDArray[np.float64]


#: Kind of a convolution -> the kernel that makes its output channels, and what multiplies it by a number for each of these.
_KERNELS: dict[type[Any], tuple[str, Callable[[Array, Array], Array]]] = {
    # A depthwise kernel is (rows, columns, channels, multiplier); output channels run over the last two.
    layers.DepthwiseConv2D: ("kernel", lambda kernel, by: kernel * by.reshape(kernel.shape[2:])),
    layers.SeparableConv2D: ("pointwise_kernel", lambda kernel, by: kernel * by),
    # A transposed kernel is (rows, columns, filters, channels).
    layers.Conv2DTranspose: ("kernel", lambda kernel, by: kernel * by[:, None]),
    layers.Conv2D: ("kernel", lambda kernel, by: kernel * by),
}


def fold_batchnorm(model: keras.Model) -> keras.Model:
    """Return a network for prediction in which each BatchNorm directly after a convolution is part of it.

    This applies to Conv2D, Conv2DTranspose, DepthwiseConv2D and SeparableConv2D without activation, also in nested models.
    A BatchNorm stays if it follows anything else, if the convolution's output has other uses, if either layer is used
    twice, or if it was called with `training=True`.

    Args:
        model: A functional or sequential network with one input; left unchanged.

    Returns:
        A new network that shares no weights with the given one and has the same names and shapes. Outputs differ only by
        rounding, at most 1e-5 for probabilities. It is not suitable for training.

    Raises:
        UsageError: The network has several inputs.
        CheckpointError: The network is subclassed and has no readable graph.

    Example:
        >>> import kerasseg
        >>> model = kerasseg.unet((32, 32, 1), filters=2, depth=1, seed=0)
        >>> folded = fold_batchnorm(model)
        >>> kinds = [type(layer).__name__ for layer in folded.layers]
        >>> "BatchNormalization" in kinds, folded.output_shape
        (False, (None, 32, 32, 1))
        >>> image = np.random.default_rng(0).random((1, 32, 32, 1)).astype("float32")
        >>> bool(np.abs(model.predict_on_batch(image) - folded.predict_on_batch(image)).max() < 1e-5)
        True
    """
    if len(model.inputs) != 1:
        raise UsageError("BatchNorm is folded in networks with one input", found=f"{len(model.inputs)} inputs")
    graph = flatten(model)
    uses = Counter(id(node.operation) for node in graph.nodes)
    replacements: dict[int, Replacement] = {}
    for node in graph.nodes:
        if not isinstance(node.operation, layers.BatchNormalization) or len(node.parents) != 1:
            continue
        before = graph.nodes[node.parents[0]]
        kind = _kind_of(before.operation)
        if kind is None or uses[id(node.operation)] > 1 or uses[id(before.operation)] > 1:
            continue
        read_elsewhere = len(graph.children[before.index]) > 1 or before.index in graph.outputs
        if read_elsewhere or not _rests(node) or not _same_axis(before.operation, node):
            continue
        replacements[id(before.operation)] = _fold(before.operation, node.operation, kind)
        replacements[id(node.operation)] = Replacement(drop=True)
    return rebuild(model, tuple(model.inputs[0].shape[1:]), replacements=replacements)


def _kind_of(operation: Any) -> type[Any] | None:
    """Return the kind of a convolution; None for other layers and for convolutions that cannot be folded."""
    kind = next((kind for kind in _KERNELS if isinstance(operation, kind)), None)
    # A changed `call` may do anything, and a quantised layer has no float kernel to multiply.
    if kind is None or type(operation).call is not kind.call or getattr(operation, "quantization_mode", None):
        return None
    plain = operation.activation is keras.activations.linear and not getattr(operation, "lora_enabled", False)
    return kind if plain else None


def _rests(node: Node) -> bool:
    """Return whether this use of BatchNorm is in inference mode whenever the network is."""
    arguments = node.arguments
    asked = [*arguments.args[1:], *arguments.kwargs.values()]
    return not any(value is not None and value is not False for value in asked)


def _same_axis(convolution: Any, node: Node) -> bool:
    rank = len(node.shape)
    axis = node.operation.axis
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    return axis % rank == (1 if convolution.data_format == "channels_first" else rank - 1)


def _fold(convolution: Any, norm: Any, kind: type[Any]) -> Replacement:
    # In double precision, so that only the rounding of the network itself remains.
    mean, variance = _values(norm.moving_mean), _values(norm.moving_variance)
    by = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        by = by * _values(norm.gamma)
    bias = _values(convolution.bias) if convolution.use_bias else np.zeros_like(mean)
    shifted = (bias - mean) * by + (_values(norm.beta) if norm.center else 0.0)
    scaled, scale = _KERNELS[kind]
    weights = []
    for variable in convolution.weights:
        if convolution.use_bias and variable is convolution.bias:
            continue
        value = _values(variable)
        weights.append(scale(value, by) if variable is getattr(convolution, scaled) else value)

    def make() -> Any:
        return type(convolution).from_config({**convolution.get_config(), "use_bias": True})

    return Replacement(make=make, weights=[value.astype(np.float32) for value in (*weights, shifted)])


def _values(variable: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(variable), np.float64)
