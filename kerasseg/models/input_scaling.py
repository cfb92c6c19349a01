"""The range of intensities that a network expects, from the layers that scale its input: `read_input_scaling`.

kerasseg feeds images in 0..1. Networks that start with `Rescaling(1/255)`, `Normalization` or the subtraction of a mean
expect 0..255 and would see 0..1 as black. `fit_to_task` multiplies the image in front of such a network, so that training,
evaluation, prediction and export feed it in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kerasseg.checkpoints.savedmodel.arithmetic import line as affine
from kerasseg.models.graph import Node, flatten

_PASSING = {
    "Identity", "Dropout", "GaussianNoise", "ZeroPadding2D", "Cropping2D", "Resizing", "Permute", "Reshape", "Cast",
    "Concatenate", "Repeat", "Flip", "GetItem", "Take", "Transpose", "Pad", "Resize", "Stack", "Activation", "Squeeze",
    "ExpandDims", "BroadcastTo", "Tile", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation",
}  # fmt: skip
_ARITHMETIC = {"Add", "Subtract", "Multiply", "Divide", "TrueDivide"}
_BYTE = 255.0


@dataclass(frozen=True, slots=True)
class InputScaling:
    """How a network scales its own input.

    Attributes:
        white: Largest value of the images that it expects, 255 for 8-bit grey levels.
        layers: Names of the layers and operations that scale.
    """

    white: float
    layers: tuple[str, ...]

    def __str__(self) -> str:
        """Return a description of the expected range."""
        return f"grey levels 0 to {self.white:g}, which {', '.join(map(repr, self.layers))} rescales"


def read_input_scaling(model: keras.Model) -> InputScaling | None:
    """Read the first affine layers of a network: Rescaling, Normalization, BatchNorm, arithmetic with constants.

    Returns:
        The expected range; None if it is 0..1 or cannot be determined.

    Example:
        >>> image = keras.Input((32, 32, 1))
        >>> body = keras.layers.Conv2D(1, 3)(keras.layers.Rescaling(1 / 255, name="scale")(image))
        >>> print(read_input_scaling(keras.Model(image, body)))
        grey levels 0 to 255, which 'scale' rescales
    """
    graph = flatten(model)
    # (node, scale, offset, names): all paths from the input through operations that only scale and rearrange.
    waiting: list[tuple[int, Any, Any, tuple[str, ...]]] = [(i, 1.0, 0.0, ()) for i in graph.inputs]
    seen: set[int] = set()
    while waiting:
        index, scale, offset, names = waiting.pop()
        for child in graph.children[index]:
            if child in seen:
                continue
            seen.add(child)
            node = graph.nodes[child]
            line = _line(node)
            if line is not None:
                try:
                    own_scale, own_offset = (np.asarray(v, np.float64) for v in line)
                    new = (own_scale * scale, own_scale * offset + own_offset)
                except ValueError:  # an operation between them changed the channels
                    by = np.median(line[0])
                    new = (by * np.median(scale), by * np.median(offset) + np.median(line[1]))
                waiting.append((child, *new, (*names, node.operation.name)))
                continue
            if type(node.operation).__name__ in _PASSING and _passes(node):
                waiting.append((child, scale, offset, names))
                continue
            if names and (white := _white(float(np.median(scale)), float(np.median(offset)))) != 1:
                return InputScaling(white, names)
    return None


def _passes(node: Node) -> bool:
    return not isinstance(node.operation, layers.Activation) or node.operation.activation is keras.activations.linear


def _line(node: Node) -> tuple[Any, Any] | None:
    """Return scale and offset of a node that is an affine function of each pixel's channels, else None."""
    operation: Any = node.operation
    if isinstance(operation, layers.Rescaling):
        return operation.scale, operation.offset
    if isinstance(operation, layers.Normalization):
        mean, variance = (np.asarray(ops.convert_to_numpy(v)).reshape(-1) for v in (operation.mean, operation.variance))
        deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
        return (deviation, mean) if operation.invert else (1 / deviation, -mean / deviation)
    if isinstance(operation, layers.BatchNormalization):
        mean, variance = (
            np.asarray(ops.convert_to_numpy(v)) for v in (operation.moving_mean, operation.moving_variance)
        )
        deviation = np.sqrt(variance + operation.epsilon)
        # Means below 1.5 are also possible for images in 0..1.
        return (1 / deviation, -mean / deviation) if np.median(mean) > 1.5 else None
    name = type(operation).__name__
    plain = name in _ARITHMETIC and len(node.parents) == 1 and not isinstance(operation, keras.Layer)
    if not plain or node.arguments is None:
        return None
    values = [*node.arguments.args, *node.arguments.kwargs.values()]
    constants = [v for v in values if not isinstance(v, keras.KerasTensor)]
    if len(values) != 2 or len(constants) != 1:
        return None
    number = np.asarray(ops.convert_to_numpy(constants[0]), np.float64).reshape(-1)
    first = not isinstance(values[0], keras.KerasTensor)
    if number.size > 4 or (first and name in {"Divide", "TrueDivide"}):
        return None
    return affine(name, number, first=first)


def _white(scale: float, offset: float) -> float:
    """Return the largest intensity that fits `scale * x + offset`, assuming that the zero crossing is inside the range."""
    width = abs(scale)
    if not np.isfinite([scale, offset]).all() or width < 1e-12:
        return 1.0
    centre = -offset / scale
    if centre > _BYTE:
        return float(round(centre + 4 / width))
    if centre <= 1.5 and width < 1 / 300:
        return float(round(1 / width))
    return _BYTE if centre > 1.5 or width < 1 / 50 else 1.0
