"""BatchNorm in training: momentum for short epochs, recalibrated statistics, and a fused kernel.

BatchNorm uses the statistics of the batch in training and their running mean in validation. With Keras' momentum of 0.99,
three quarters of that mean still come from the checkpoint after an epoch of 31 steps. Validation then does not measure the
trained network: epochs look flat, and the schedule lowers the learning rate too early.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from kerasseg.models.layers import all_layers

_LEFT = 0.1
"""Largest share of the running statistics that may be older than one epoch."""


def batchnorms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """All BatchNorm layers of a network, nested ones included."""
    return [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]


def momenta(model: keras.Model) -> tuple[float, ...]:
    """Momentum of each BatchNorm layer."""
    return tuple(float(layer.momentum) for layer in batchnorms(model))


def pace(own: Sequence[float], steps: int, asked: float | None = None) -> tuple[float, ...]:
    """Return momenta with which at most a tenth of the running statistics is older than one epoch.

    Example:
        >>> [round(m, 3) for m in (*pace([0.99], 10), *pace([0.99], 31), *pace([0.99], 300), *pace([0.9], 300))]
        [0.794, 0.928, 0.99, 0.9]
    """
    most = _LEFT ** (1 / max(1, steps))
    return tuple(min(momentum, most) if asked is None else asked for momentum in own)


@contextlib.contextmanager
def with_momenta(model: keras.Model, values: Sequence[float]) -> Iterator[None]:
    """Set the momenta of the BatchNorm layers while the block runs; functions traced before keep the old ones."""
    layers = batchnorms(model)
    before = momenta(model)
    for layer, value in zip(layers, values, strict=True):
        layer.momentum = value
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.momentum = value


@contextlib.contextmanager
def batch_statistics(model: keras.Model) -> Iterator[None]:
    """Normalise by the statistics of the batch, and store only those, while the block runs.

    Layers other than BatchNorm keep the mode in which the network is called; frozen BatchNorm layers do not take part. A
    function traced in the block keeps this behaviour.
    """
    layers = batchnorms(model)

    def measure(layer: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:  # noqa: ARG001
        return type(layer).call(layer, inputs, training=True, mask=mask)

    with with_momenta(model, [0.0] * len(layers)):
        for layer in layers:
            layer.call = functools.partial(measure, layer)
        try:
            yield
        finally:
            for layer in layers:
                del layer.call


_DTYPES = (tf.float32, tf.bfloat16)


@contextlib.contextmanager
def fused_batchnorm(model: keras.Model) -> Iterator[None]:
    """Use TensorFlow's fused kernel for BatchNorm while the block runs; a function traced in the block keeps it.

    Results, moving statistics included, equal those of Keras up to rounding. Keras computes the cases that the kernel does
    not cover: statistics over several devices, renorm, masks, inputs that are not images, channels first.

    Example:
        >>> import kerasseg
        >>> model = kerasseg.unet((16, 16, 1), filters=2, depth=1, seed=1)
        >>> image = tf.random.uniform((2, 16, 16, 1))
        >>> with fused_batchnorm(model):
        ...     fused = model(image)
        >>> bool(tf.reduce_max(tf.abs(fused - model(image))) < 1e-5)
        True
    """
    layers = [layer for layer in batchnorms(model) if _fits(layer)]
    for layer in layers:
        layer.call = functools.partial(_call, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def _fits(layer: Any) -> bool:
    # A class derived from Keras' may compute anything.
    return type(layer) is keras.layers.BatchNormalization and not layer.synchronized and not layer.renorm


def _call(layer: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    images = len(inputs.shape) == 4 and layer.axis in (-1, 3) and inputs.dtype in _DTYPES
    if mask is not None or not images:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[-1]
    scale = layer.gamma.value if layer.scale else tf.ones(channels)
    offset = layer.beta.value if layer.center else tf.zeros(channels)
    learns = bool(training and layer.trainable)
    nothing = tf.zeros(0)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=nothing if learns else layer.moving_mean.value,
        variance=nothing if learns else layer.moving_variance.value,
        epsilon=layer.epsilon,
        is_training=learns,
    )
    if learns:
        pixels = tf.cast(tf.size(inputs) // channels, tf.float32)
        variance *= (pixels - 1.0) / pixels
        for moving, new in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + new * (1.0 - layer.momentum))
    # TensorFlow would fuse the kernel with a following ReLU, which turns NaN into 0 and hides divergence. An operation in
    # between, even one that does nothing, prevents that.
    return tf.raw_ops.EnsureShape(input=outputs, shape=inputs.shape)
