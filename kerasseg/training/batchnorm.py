"""How fast BatchNorm follows the data: validation is only worth as much as the statistics that it runs with.

In training BatchNorm uses the statistics of the batch, in validation their running mean. With Keras' momentum of 0.99 that
mean forgets a hundredth a step: after an epoch of 31 steps three quarters of it are still those of the checkpoint, and
validation measures a network that nobody trained. Epochs then look flat, the schedule drops the rate, and the best weights
are chosen by how far the statistics have come.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras

from kerasseg.layertree import all_layers

__all__ = ["batchnorms", "momenta", "pace", "with_momenta"]

_LEFT = 0.1
"""Share of the statistics that may be older than an epoch."""


def batchnorms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """All BatchNorm layers of a network, nested ones too."""
    return [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]


def momenta(model: keras.Model) -> tuple[float, ...]:
    """Momentum of each BatchNorm layer."""
    return tuple(float(layer.momentum) for layer in batchnorms(model))


def pace(own: Sequence[float], steps: int, asked: float | None = None) -> tuple[float, ...]:
    """Momenta for training: at most one with which a tenth of the statistics is older than an epoch.

    Args:
        own: The network's momenta.
        steps: In an epoch.
        asked: One for all, instead.

    Example:
        >>> [round(m, 3) for m in (*pace([0.99], 10), *pace([0.99], 31), *pace([0.99], 300), *pace([0.9], 300))]
        [0.794, 0.928, 0.99, 0.9]
    """
    most = _LEFT ** (1 / max(1, steps))
    return tuple(min(momentum, most) if asked is None else asked for momentum in own)


@contextlib.contextmanager
def with_momenta(model: keras.Model, values: Sequence[float]) -> Iterator[None]:
    """While the block runs, BatchNorm layers have these momenta. Functions that were compiled before do not notice.

    Args:
        model: Changed in place, and put back.
        values: One a layer, in the order of `momenta`.
    """
    layers = batchnorms(model)
    before = momenta(model)
    for layer, value in zip(layers, values, strict=True):
        layer.momentum = value
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.momentum = value
