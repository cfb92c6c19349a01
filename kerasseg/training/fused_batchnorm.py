"""BatchNorm in one operation on processors, where Keras' layer takes a dozen.

Keras computes mean, variance, scale and shift as operations of their own, in float32, with copies between them and to and
from bfloat16; their gradients are as many again. On a processor all of them wait for memory: they took a fifth of a step of
the default network in bfloat16. TensorFlow's fused kernel reads its input twice, computes in float32 as well and writes the
result once. On GPUs XLA joins the operations already.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from kerasseg.training.batchnorm import batchnorms

__all__ = ["fused_batchnorm"]

_DTYPES = (tf.float32, tf.bfloat16)


@contextlib.contextmanager
def fused_batchnorm(model: keras.Model) -> Iterator[None]:
    """While the block runs, BatchNorm layers of a network compute by the fused kernel; a function traced in it keeps that.

    The results are those of Keras up to rounding, those of the moving statistics included: their variance is that of the
    batch, and not the unbiased one which the kernel gives. What the kernel cannot do (statistics over several devices,
    renorm, masks, images that are no images, channels first) stays Keras'.

    Args:
        model: Changed in place, and put back.

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
    # TensorFlow would join the kernel with a ReLU behind it, and that makes 0 of NaN: a broken network would look whole. It
    # does not join across an operation, even one that does nothing.
    return tf.raw_ops.EnsureShape(input=outputs, shape=inputs.shape)
