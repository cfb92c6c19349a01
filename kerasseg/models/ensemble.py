"""Ensembles: one network that returns the mean probabilities of several."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from kerasseg_tfrecords.errors import UsageError


def ensemble(models: Sequence[keras.Model]) -> keras.Model:
    """Combine networks, such as those of cross-validation folds, into one that returns their mean.

    The result is an ordinary Keras model. It takes as long as all parts together.

    Args:
        models: At least one; each maps (batch, height, width, channels) to (batch, height, width, 1). The ensemble shares
            their weights.

    Raises:
        UsageError: There are no networks, or their shapes differ.

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
        raise UsageError("the networks of an ensemble must have the same input and output shapes", found=found)
    inputs = keras.Input(tuple(models[0].input_shape[1:]), name="image")
    outputs = [_named(model, f"fold_{i + 1}")(inputs, training=False) for i, model in enumerate(models)]
    mean = keras.layers.Average(name="mean")(outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(inputs, mean, name="ensemble")


def _named(model: keras.Model, name: str) -> keras.Model:
    """Return the model under another name, because a saved model cannot have two parts of the same name."""
    return keras.Model(model.inputs, model.outputs[0], name=name)
