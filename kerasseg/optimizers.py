"""The optimizer of the training recipe, and L2 regularisation for existing networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from kerasseg_tfrecords.errors import UsageError

_NEVER_DECAYED = frozenset({"bias", "gamma", "beta", "scale", "offset", "moving_mean", "moving_variance"})


def decays(variable: Any) -> bool:
    """Return whether weight decay applies to a variable: to kernels, but not to biases and normalisation.

    Decaying a bias or a normalisation scale shifts the outputs without regularising (Goyal et al., "Accurate, large
    minibatch SGD", 2017; He et al., "Bag of tricks", CVPR 2019). Such variables have one axis or a known name.

    Example:
        >>> layer = keras.layers.Conv2D(4, 3); layer.build((None, 8, 8, 2))
        >>> decays(layer.kernel), decays(layer.bias)
        (True, False)
    """
    name = str(variable.name).rsplit("/", 1)[-1].split(":")[0]
    return len(variable.shape) >= 2 and name not in _NEVER_DECAYED


@keras.saving.register_keras_serializable(package="kerasseg")
class DecayedAdam(keras.optimizers.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter, "AdamW", ICLR 2019) on kernels only.

    In each step a kernel shrinks by learning_rate * weight_decay before Adam's update. With the recipe's 1e-4 * 1e-5 this
    is negligible (one part in 10^9); use `set_l2` for a noticeable decay.

    `keras.optimizers.AdamW` can exclude variables, but loses that setting when a model is saved and loaded. Here the rule
    (`decays`) is part of the class and also covers variables that are unfrozen later. Gradients are clipped for the whole
    batch, on one device and on several, not for each replica.

    Args:
        learning_rate: Learning rate > 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: Decoupled decay >= 0; 0 is plain Adam.
        clipnorm: Maximum norm of each variable's gradient; None for no limit.
        global_clipnorm: Maximum norm of all gradients together; None for no limit.
        name: Name of the optimizer.
        **kwargs: See `keras.optimizers.AdamW`.

    Raises:
        UsageError: A number is out of range.

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
        """Train some variables at a multiple of the learning rate. Call it before `build`; it is not serialised.

        Args:
            variables: Keras variables.
            factor: Multiple of the learning rate, > 0.
        """
        self._scaled, self._scale = frozenset(id(v) for v in variables), factor

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable."""
        factor = self._factors[self._get_variable_index(variable)] if self._factors else 1.0
        super().update_step(gradient, variable, learning_rate if factor == 1.0 else learning_rate * factor)

    def build(self, variables: Iterable[Any]) -> None:
        """Create the optimizer's own variables and determine which variables decay."""
        variables = list(variables)
        if self._scaled:
            self._factors = tuple(self._scale if id(v) in self._scaled else 1.0 for v in variables)
        if not self.built:
            self.exclude_from_weight_decay(var_list=[v for v in variables if not decays(v)])
        super().build(variables)

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        # Keras clips each replica's gradients before summing, so two replicas could take twice the step of one device. On
        # TensorFlow, the only backend with replicas here, clip after summing.
        sums_replicas = hasattr(super(), "_all_reduce_sum_gradients")
        return grads if sums_replicas else super()._clip_gradients(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        pairs = list(super()._all_reduce_sum_gradients(grads_and_vars))
        clipped = super()._clip_gradients([gradient for gradient, _ in pairs])
        return [(gradient, variable) for gradient, (_, variable) in zip(clipped, pairs, strict=True)]


def set_l2(model: Any, strength: float) -> int:
    """Add strength * sum(w^2) over the trainable kernels to a model's loss.

    Unlike decoupled decay, it is scaled by Adam and therefore effective at small learning rates. It works on networks
    opened from a checkpoint and is part of `model.losses`. Frozen kernels count only once they are unfrozen; biases and
    normalisation never do (`decays`). It is not saved with the model.

    Args:
        model: A built `keras.Model` or layer.
        strength: 0 or more; 0 removes the regularisation.

    Returns:
        Number of regularised kernels, including frozen ones.

    Raises:
        UsageError: The strength is out of range, or the model has no variables yet.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="ones")])
        >>> set_l2(model, 0.5), float(sum(model.losses))
        (1, 4.0)
    """
    if not 0 <= strength < float("inf"):
        raise UsageError("strength of L2 cannot be used", found=strength, expected="a number >= 0")
    if not model.built:
        raise UsageError("L2 needs a model that is built", remedy="Call it on a batch, or give it an Input.")
    # `_trainable_variables` includes frozen kernels, which may be unfrozen later.
    trainable_kinds = {id(v): v for layer in model._flatten_layers() for v in layer._trainable_variables}
    kernels = [v for v in trainable_kinds.values() if decays(v)]
    for kernel in kernels:
        kernel.regularizer = keras.regularizers.L2(strength) if strength else None
    return len(kernels)
