"""The first convolutions of a network, and what they become when its input gets other channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kerasseg.graph import flatten
from kerasseg.rebuild import Replacement
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["first_kernels"]

# Layers that treat every channel alike, and hand their number on.
_BLIND = (
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.Resizing,
    layers.UpSampling2D,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.Activation,
    layers.Identity,
)


def first_kernels(
    model: keras.Model, change: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[keras.Layer, Replacement]]:
    """Every convolution that sees the channels of the input, with its changed kernel.

    A convolution is linear in its channels: on an image whose channels are all the same, kernels summed over the channels
    give from one channel what the old ones gave from all.

    Args:
        model: A model with one image input, channels last.
        change: From the old kernel (height, width, channels, filters) to the new one.

    Raises:
        CheckpointError: Something else than a convolution looks at the channels.
    """
    graph = flatten(model)
    found: dict[int, tuple[keras.Layer, Replacement]] = {}
    waiting, seen = list(graph.inputs), set(graph.inputs)
    while waiting:
        for child in graph.children[waiting.pop()]:
            layer: Any = graph.steps[child].operation
            if isinstance(layer, layers.Conv2D) and layer.groups == 1:
                kernel = np.asarray(ops.convert_to_numpy(layer.kernel))
                rest = [np.asarray(ops.convert_to_numpy(v)) for v in layer.weights[1:]]
                found[id(layer)] = (layer, Replacement(weights=[change(kernel), *rest]))
            elif isinstance(layer, _BLIND) or _scales_all_alike(layer):
                if child not in seen:
                    seen.add(child)
                    waiting.append(child)
            else:
                raise CheckpointError(
                    f"the channels of the input cannot be changed: {type(layer).__name__} {layer.name!r} looks at them",
                    expected="a convolution as the first layer with weights",
                    remedy="Give the network as many channels as it takes (--channels repeat).",
                )
    return list(found.values())


def _scales_all_alike(layer: Any) -> bool:
    return isinstance(layer, layers.Rescaling) and np.ndim(layer.scale) == 0 and np.ndim(layer.offset) == 0
