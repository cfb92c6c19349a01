"""TensorFlow Addons classes that checkpoints contain, computed with Keras 3 under their original registered names.

TensorFlow Addons was retired in May 2024 (0.23.0) and cannot be imported with Keras 3. `open_checkpoint` replaces its
classes with Keras layers where they exist; this module provides the rest. Importing it registers the names, so that
`keras.saving.load_model` opens such files too.
"""

from __future__ import annotations

import re
from typing import Any

import keras
from keras import ops

_addons = keras.saving.register_keras_serializable


@_addons(package="Addons")
class GroupNormalization(keras.layers.GroupNormalization):
    """`tfa.layers.GroupNormalization`: Keras' own layer under the Addons' name (Wu and He, 2018)."""


@_addons(package="Addons")
class InstanceNormalization(keras.layers.GroupNormalization):
    """`tfa.layers.InstanceNormalization`: one group per channel (Ulyanov et al., 2016)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "groups": -1})  # TensorFlow Addons stores the number of channels as `groups`


@_addons(package="Addons")
class WeightNormalization(keras.layers.Wrapper):
    """`tfa.layers.WeightNormalization`: the wrapped layer's kernel is `g v / |v|` (Salimans and Kingma, 2016).

    Args:
        layer: A layer with a `kernel` whose last axis is the filter axis.
        data_init: Kept only for the configuration: a checkpoint already contains `g`.
    """

    def __init__(self, layer: keras.layers.Layer, data_init: bool = True, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.data_init = data_init

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        if not hasattr(self.layer, "kernel"):
            msg = f"WeightNormalization must wrap a layer with a kernel. Received: layer={self.layer}"
            raise ValueError(msg)
        self.v = self.layer.kernel
        self.g = self.add_weight(name="g", shape=(self.v.shape[-1],), initializer="ones", trainable=True)
        self.g.assign(ops.sqrt(self._squares()))

    def _squares(self) -> Any:
        return ops.sum(ops.square(self.v), axis=list(range(len(self.v.shape) - 1)))

    def call(self, inputs: Any) -> Any:
        norm = ops.rsqrt(ops.maximum(self._squares(), 1e-12))
        layer = self.layer
        # Set the kernel for this call only: the wrapped layer computes with whatever the attribute holds.
        object.__setattr__(layer, "_kernel", ops.multiply(self.v, self.g * norm))
        try:
            return layer(inputs)
        finally:
            object.__setattr__(layer, "_kernel", self.v)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_init": self.data_init}


@_addons(package="Addons")
class FilterResponseNormalization(keras.layers.Layer):
    """`tfa.layers.FilterResponseNormalization`: x / sqrt(mean of x^2 over rows and columns), scaled and shifted.

    Singh and Krishnan, 2020. Input and output (batch, rows, columns, channels).
    """

    def __init__(
        self, epsilon: float = 1e-6, axis: tuple[int, ...] = (1, 2), learned_epsilon: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.axis = [int(a) for a in axis]
        self.learned_epsilon = learned_epsilon

    def build(self, input_shape: Any) -> None:
        if self.learned_epsilon:  # first, as in TensorFlow Addons: weights are matched by order
            self.eps = self.add_weight(
                shape=(1,), name="learned_epsilon", initializer=keras.initializers.Constant(1e-4)
            )
        shape = (1, 1, 1, input_shape[-1])
        self.gamma = self.add_weight(shape=shape, name="gamma", initializer="ones")
        self.beta = self.add_weight(shape=shape, name="beta", initializer="zeros")

    def call(self, inputs: Any) -> Any:
        epsilon = abs(self.epsilon) + (ops.abs(self.eps) if self.learned_epsilon else 0.0)
        mean = ops.mean(ops.square(inputs), axis=self.axis, keepdims=True)
        return self.gamma * (inputs * ops.rsqrt(mean + epsilon)) + self.beta


@_addons(package="Addons")
class TLU(keras.layers.Layer):
    """`tfa.layers.TLU`: max(x, tau), or max(x, tau + alpha x) if `affine`, with tau and alpha learned for each element."""

    def __init__(self, affine: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.affine = affine

    def build(self, input_shape: Any) -> None:
        shape = tuple(input_shape[1:])
        self.tau = self.add_weight(shape=shape, name="tau", initializer="zeros")
        if self.affine:
            self.alpha = self.add_weight(shape=shape, name="alpha", initializer="zeros")

    def call(self, inputs: Any) -> Any:
        return ops.maximum(inputs, self.tau + (self.alpha * inputs if self.affine else 0.0))


@_addons(package="Addons")
class StochasticDepth(keras.layers.Layer):
    """`tfa.layers.StochasticDepth`: shortcut + residual, with the residual dropped at random (Huang et al., 2016).

    Call it on `[shortcut, residual]`. At inference the residual is scaled by `survival_probability`.
    """

    def __init__(self, survival_probability: float = 0.5, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.survival_probability = survival_probability
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool = False) -> Any:
        shortcut, residual = inputs
        if not training:
            return shortcut + self.survival_probability * residual
        kept = keras.random.uniform((), seed=self.generator) < self.survival_probability
        return shortcut + ops.cast(kept, residual.dtype) * residual


@_addons(package="Addons")
def lisht(x: Any) -> Any:
    """`tfa.activations.lisht`: x tanh(x)."""
    return ops.multiply(x, ops.tanh(x))


@_addons(package="Addons")
def snake(x: Any, frequency: float = 1.0) -> Any:
    """`tfa.activations.snake`: x + (1 - cos(2 f x)) / (2 f)."""
    return x + (1 - ops.cos(2 * frequency * x)) / (2 * frequency)


@_addons(package="Addons")
def rrelu(x: Any, lower: float = 0.125, upper: float = 1 / 3) -> Any:
    """`tfa.activations.rrelu` at inference: a leaky ReLU with the mean slope."""
    return ops.where(x >= 0, x, x * ((lower + upper) / 2))


@_addons(package="Addons")
def sparsemax(x: Any) -> Any:
    """`tfa.activations.sparsemax` over the last axis: projection onto the probability simplex.

    Martins and Astudillo, 2016. `keras.activations.sparsemax` (3.15) differs where more than one entry is kept.
    """
    largest = ops.flip(ops.sort(x, axis=-1), axis=-1)
    summed = ops.cumsum(largest, axis=-1)
    rank = ops.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    kept = ops.sum(ops.cast(1 + rank * largest > summed, x.dtype), axis=-1, keepdims=True)
    last = ops.cast(ops.equal(rank, kept), x.dtype)
    threshold = (ops.sum(summed * last, axis=-1, keepdims=True) - 1) / kept
    return ops.maximum(x - threshold, 0)


@_addons(package="Addons")
class AdamW(keras.optimizers.Adam):
    """`tfa.optimizers.AdamW`: Adam whose weight decay, unlike in Keras, is not multiplied by the learning rate.

    Args:
        weight_decay: Fraction of each weight that is subtracted in every step.
        exclude_from_weight_decay: Regular expressions; variables whose path contains a match do not decay.
    """

    def __init__(
        self, weight_decay: float = 0.0, exclude_from_weight_decay: list[str] | None = None, **kwargs: Any
    ) -> None:
        kwargs.pop("decay", None)  # written by Keras 2, always 0.0
        super().__init__(weight_decay=weight_decay, **kwargs)
        self.excluded = list(exclude_from_weight_decay or [])

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        for variable in variables:
            if not any(re.search(pattern, variable.path) for pattern in self.excluded):
                variable.assign(variable * (1 - ops.cast(self.weight_decay, variable.dtype)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "exclude_from_weight_decay": self.excluded or None}
