"""BatchNorm folded into the convolution before it, for prediction: the same outputs from fewer steps.

In inference mode BatchNorm multiplies each channel by a number and adds another. So does a convolution, if its kernel is
multiplied by the first and the second is added to its bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from kerasseg.models.graph import Graph, Node, flatten
from kerasseg.models.surgery import Replacement, rebuild
from kerasseg_tfrecords.errors import UsageError

__all__ = ["fold_batchnorm"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a kind of convolution keeps its kernels.

    Attributes:
        kind: The layer's class; classes derived from it count where they compute alike.
        scaled: Name of the kernel that makes the output channels.
        scale: That kernel multiplied by a number for each output channel.
    """

    kind: type[Any]
    scaled: str
    scale: Callable[[Array, Array], Array]


_KINDS = (
    # A depthwise kernel is (rows, columns, channels, multiplier): output channels run over both.
    _Kind(layers.DepthwiseConv2D, "kernel", lambda kernel, by: kernel * by.reshape(kernel.shape[2:])),
    _Kind(layers.SeparableConv2D, "pointwise_kernel", lambda kernel, by: kernel * by),
    # A transposed kernel is (rows, columns, filters, channels).
    _Kind(layers.Conv2DTranspose, "kernel", lambda kernel, by: kernel * by[:, None]),
    _Kind(layers.Conv2D, "kernel", lambda kernel, by: kernel * by),
)


def fold_batchnorm(model: keras.Model) -> keras.Model:
    """A network for prediction alone: each BatchNorm that directly follows a convolution becomes part of it.

    Folded are Conv2D, Conv2DTranspose, DepthwiseConv2D and SeparableConv2D without activation, also inside of nested
    models. A BatchNorm stays where it is behind an activation or anything else, where the convolution's output is used
    elsewhere too, where one of the two is used twice, and where it was called with `training=True`.

    Args:
        model: A functional or sequential network with one input, channels last or first. It stays as it is.

    Returns:
        A new network that shares no weights with the given one, with the same names, input and output shapes. Its outputs
        differ by rounding alone: at most 1e-5 for probabilities. Not for training: what BatchNorm would learn is gone.

    Raises:
        UsageError: Several inputs.
        CheckpointError: A subclassed network, whose graph cannot be read.

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
        if not _stands_alone(graph, before) or not _rests(node) or not _same_axis(before.operation, node):
            continue
        replacements[id(before.operation)] = _fold(before.operation, node.operation, kind)
        replacements[id(node.operation)] = Replacement(drop=True)
    return rebuild(model, tuple(model.inputs[0].shape[1:]), replacements=replacements)


def _kind_of(operation: Any) -> _Kind | None:
    """How the kernels lie; None where it is not a convolution that can be changed, or has an activation."""
    for kind in _KINDS:
        if isinstance(operation, kind.kind):
            # Another `call` may do anything; a layer of whole numbers has no kernel to multiply.
            computes_alike = type(operation).call is kind.kind.call and not getattr(
                operation, "quantization_mode", None
            )
            plain = operation.activation is keras.activations.linear and not getattr(operation, "lora_enabled", False)
            return kind if computes_alike and plain else None
    return None


def _stands_alone(graph: Graph, node: Node) -> bool:
    return len(graph.children[node.index]) == 1 and node.index not in graph.outputs


def _rests(node: Node) -> bool:
    """Whether this use of BatchNorm is in inference mode when the network is."""
    arguments = node.arguments
    asked = [*arguments.args[1:], *arguments.kwargs.values()]
    return not any(value is not None and value is not False for value in asked)


def _same_axis(convolution: Any, node: Node) -> bool:
    rank = len(node.shape)
    axis = node.operation.axis
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    return axis % rank == (1 if convolution.data_format == "channels_first" else rank - 1)


def _fold(convolution: Any, norm: Any, kind: _Kind) -> Replacement:
    # In double precision: folded and unfolded then differ by the rounding of the network alone.
    mean, variance = _values(norm.moving_mean), _values(norm.moving_variance)
    by = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        by = by * _values(norm.gamma)
    bias = _values(convolution.bias) if convolution.use_bias else np.zeros_like(mean)
    shifted = (bias - mean) * by + (_values(norm.beta) if norm.center else 0.0)
    weights = []
    for variable in convolution.weights:
        if convolution.use_bias and variable is convolution.bias:
            continue
        value = _values(variable)
        weights.append(kind.scale(value, by) if variable is getattr(convolution, kind.scaled) else value)

    def make() -> Any:
        return type(convolution).from_config({**convolution.get_config(), "use_bias": True})

    return Replacement(make=make, weights=[value.astype(np.float32) for value in (*weights, shifted)])


def _values(variable: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(variable), np.float64)
