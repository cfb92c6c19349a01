"""The recipe's optimizer, and L2 for networks that exist already."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from kerasseg_tfrecords.errors import UsageError

__all__ = ["DecayedAdam", "decays", "set_l2"]

_NEVER_DECAYED = frozenset({"bias", "gamma", "beta", "scale", "offset", "moving_mean", "moving_variance"})


def decays(variable: Any) -> bool:
    """Whether weight decay applies to a variable: to kernels, not to biases and normalisation.

    Pulling a bias or a normalisation's scale towards 0 shifts what a layer puts out and regularises nothing (Goyal et
    al., "Accurate, large minibatch SGD", 2017; He et al., "Bag of tricks", CVPR 2019). They are told by
    their shape, at most one axis longer than 1 (so also `Addons>InstanceNormalization` and the like), or by their name.

    Args:
        variable: A Keras or TensorFlow variable.

    Example:
        >>> layer = keras.layers.Conv2D(4, 3); layer.build((None, 8, 8, 2))
        >>> decays(layer.kernel), decays(layer.bias)
        (True, False)
    """
    name = str(variable.name).rsplit("/", 1)[-1].split(":")[0]
    return len(variable.shape) >= 2 and name not in _NEVER_DECAYED


@keras.saving.register_keras_serializable(package="kerasseg")
class DecayedAdam(keras.optimizers.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter, "AdamW", ICLR 2019) on kernels alone.

    In each step a kernel first shrinks by learning_rate * weight_decay, then Adam's step is taken. At the recipe's
    1e-4 * 1e-5 that is one part in 10^9 a step, next to nothing; `set_l2` is the way to a decay that shows.

    `keras.optimizers.AdamW` can leave variables out, but forgets which when a model is saved and opened again; here the
    rule (`decays`) is part of the class, and holds for variables that are thawed later, too. Nor does it clip each
    replica's gradients by themselves: limits are those of the whole batch, on one device and on several.

    Args:
        learning_rate: Rate > 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: Decoupled decay >= 0; 0 is plain Adam.
        clipnorm: Each variable's gradient is scaled to at most this norm; None for no limit.
        global_clipnorm: All gradients together are scaled to at most this norm; None for no limit.
        name: Name of the optimizer.
        **kwargs: As in `keras.optimizers.AdamW`.

    Raises:
        UsageError: If a number is out of its range.

    Example:
        >>> optimizer = DecayedAdam(1e-4)
        >>> optimizer.weight_decay, optimizer.get_config()["global_clipnorm"]
        (1e-05, None)
    """

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        weight_decay: float = 1e-5,
        *,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        name: str = "decayed_adam",
        **kwargs: Any,
    ) -> None:
        if isinstance(learning_rate, int | float) and not 0 < learning_rate < float("inf"):
            raise UsageError("learning rate cannot be used", found=learning_rate, expected="a number > 0")
        if not 0 <= weight_decay < float("inf"):
            raise UsageError("weight decay cannot be used", found=weight_decay, expected="a number >= 0")
        for label, value in (("clipnorm", clipnorm), ("global_clipnorm", global_clipnorm)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{label} cannot be used", found=value, expected="a number > 0, or none")
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            global_clipnorm=global_clipnorm,
            name=name,
            **kwargs,
        )
        self._scaled: frozenset[int] = frozenset()
        self._scale = 1.0
        self._factors: tuple[float, ...] = ()

    def scale_rate(self, variables: Iterable[Any], factor: float) -> None:
        """Train some variables at a multiple of the learning rate. Call it before `build`; it is not part of the config.

        Args:
            variables: Keras variables.
            factor: Multiple of the learning rate, > 0.
        """
        self._scaled, self._scale = frozenset(id(v) for v in variables), factor

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves one variable."""
        factor = self._factors[self._get_variable_index(variable)] if self._factors else 1.0
        super().update_step(gradient, variable, learning_rate if factor == 1.0 else learning_rate * factor)

    def build(self, variables: Iterable[Any]) -> None:
        """Makes the optimizer's own variables, and settles what decays."""
        variables = list(variables)
        if self._scaled:
            self._factors = tuple(self._scale if id(v) in self._scaled else 1.0 for v in variables)
        if not self.built:
            self.exclude_from_weight_decay(var_list=[v for v in variables if not decays(v)])
        super().build(variables)

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        # Keras clips what each replica has before summing it up: two replicas would take up to twice the step of one
        # device. On TensorFlow, the only backend with replicas here, clipping waits for the sum.
        return grads if self._sums_replicas() else super()._clip_gradients(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        pairs = list(super()._all_reduce_sum_gradients(grads_and_vars))
        clipped = super()._clip_gradients([gradient for gradient, _ in pairs])
        return [(gradient, variable) for gradient, (_, variable) in zip(clipped, pairs, strict=True)]

    def _sums_replicas(self) -> bool:
        return hasattr(super(), "_all_reduce_sum_gradients")


def set_l2(model: Any, strength: float) -> int:
    """Adds strength * sum(w^2) over the trainable kernels to a model's loss, whatever it was built with.

    Unlike decoupled decay this goes through Adam's scaling, and so does something at small rates. Works on networks
    opened from a checkpoint, is part of `model.losses` (and so of `fit`), leaves out what is frozen (thawed later it
    comes in) and biases and normalisation (`decays`). It is not part of the saved model: set it again after opening.

    Args:
        model: A built `keras.Model` or layer.
        strength: 0 or more; 0 takes regularisation off again.

    Returns:
        Number of kernels that have it, frozen ones included.

    Raises:
        UsageError: If the strength is out of its range, or the model has no variables yet.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="ones")])
        >>> set_l2(model, 0.5), float(sum(model.losses))
        (1, 4.0)
    """
    if not 0 <= strength < float("inf"):
        raise UsageError("strength of L2 cannot be used", found=strength, expected="a number >= 0")
    if not model.built:
        raise UsageError("L2 needs a model that is built", remedy="Call it on a batch, or give it an Input.")
    # Variables are not enough under `trainable_variables`: a frozen kernel may be thawed later.
    trainable_kinds = {id(v): v for layer in model._flatten_layers() for v in layer._trainable_variables}
    kernels = [v for v in trainable_kinds.values() if decays(v)]
    for kernel in kernels:
        kernel.regularizer = keras.regularizers.L2(strength) if strength else None
    return len(kernels)
