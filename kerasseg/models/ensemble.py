"""Several networks as one: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from kerasseg_tfrecords.errors import UsageError

__all__ = ["ensemble"]


def ensemble(models: Sequence[keras.Model]) -> keras.Model:
    """One network that puts out the mean of several, such as those of the folds of a cross-validation.

    It is an ordinary Keras model: it can be saved, opened, evaluated and asked for predictions like each of its parts. It
    takes as long as all of them together.

    Args:
        models: At least one; each takes (batch, height, width, channels) and gives (batch, height, width, 1). They stay
            usable on their own; the ensemble shares their weights.

    Raises:
        UsageError: None, or networks that take or give different shapes.

    Example:
        >>> from kerasseg import unet
        >>> both = ensemble([unet((16, 16, 1), filters=2, depth=1, seed=seed) for seed in (0, 1)])
        >>> both.output_shape
        (None, 16, 16, 1)
    """
    if not models:
        raise UsageError("an ensemble needs networks", found="none", expected="at least one")
    shapes = {(tuple(model.input_shape), tuple(model.output_shape)) for model in models}
    if len(shapes) > 1:
        found = ", ".join(sorted(f"{i} -> {o}" for i, o in shapes))
        raise UsageError("networks of an ensemble take and give the same shapes", found=found)
    inputs = keras.Input(tuple(models[0].input_shape[1:]), name="image")
    outputs = [_named(model, f"fold_{i + 1}")(inputs, training=False) for i, model in enumerate(models)]
    mean = keras.layers.Average(name="mean")(outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(inputs, mean, name="ensemble")


def _named(model: keras.Model, name: str) -> keras.Model:
    """The same layers and weights under another name: two parts of one name could not be saved together."""
    return keras.Model(model.inputs, model.outputs[0], name=name)
