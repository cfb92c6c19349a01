"""Choose between U-Net variants that weight shapes do not distinguish, by running them on images."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.checkpoints.family import READ_OFF, Variant, as_variant
from kerasseg.checkpoints.provenance import attach, provenance

__all__ = ["is_assumed", "settle_variant"]

_CLEARLY = 0.02  # the margin by which a variant must beat the assumed one to replace it
_MOST_IMAGES = 16


def is_assumed(model: keras.Model) -> bool:
    """Return whether the graph of `model` was partly assumed, because its file holds only weights."""
    record = provenance(model)
    return record is not None and any(text.startswith(READ_OFF) for text in record.translated)


def settle_variant(
    model: keras.Model, images: NDArray[np.float32], masks: NDArray[Any] | None = None
) -> tuple[keras.Model, tuple[str, ...]]:
    """Run the plausible variants of a U-Net on images and return the one that fits its weights best.

    With masks, a variant is scored by the likelihood of the masks (the exponential of minus the balanced cross-entropy).
    Without masks, it is scored by the mean distance of the probabilities from 1/2, because weights in the wrong graph give
    blurred maps.

    Args:
        model: A network that `open_checkpoint` made from a weights-only file.
        images: (slices, height, width, channels) in 0..1; the first 16 are used.
        masks: (slices, height, width, 1), 0 and 1.

    Returns:
        The chosen network (`model` itself unless another is clearly better) and sentences about the comparison.
    """
    record = provenance(model)
    if record is None:
        return model, ()
    # Options that the user specified are not among the assumptions.
    open_ = {
        field.name for field in dataclasses.fields(Variant) if any(f"({field.name}=" in t for t in record.translated)
    }
    several = int(model.outputs[0].shape[-1]) > 1
    choices: dict[str, tuple[Any, ...]] = {
        "skip_first": (False, True),
        "activation_first": (False, True),
        "pooling": ("max", "average"),
        "output": (None, "sigmoid") if several else (None,),
    }
    images, masks = images[:_MOST_IMAGES], None if masks is None else masks[:_MOST_IMAGES]
    scores: dict[Variant, float] = {}
    for values in itertools.product(*(choices[name] if name in open_ else choices[name][:1] for name in choices)):
        variant = Variant(*values)
        network = _with_weights(model, variant, images.shape[1:])
        scores[variant] = _score(np.asarray(keras.ops.convert_to_numpy(network(images, training=False))), masks)
    assumed = Variant()
    best = max(scores, key=lambda variant: scores[variant])
    how = "masks" if masks is not None else "sharpness"
    table = ", ".join(f"{variant} {scores[variant]:.3f}" for variant in sorted(scores, key=lambda v: -scores[v])[:4])
    compared = f"{len(scores)} variants were compared by {how} on {len(images)} slices (larger is better): {table}"
    if best == assumed or not scores[best] > scores[assumed] + _CLEARLY:
        note = f"{compared}; the assumed variant is kept"
        chosen = model
    else:
        note = f"{compared}; {best} is taken. Name it with --architecture '{best}'"
        chosen = _with_weights(model, best, model.inputs[0].shape[1:])
    attach(chosen, dataclasses.replace(record, translated=(*record.translated, note)))
    return chosen, (note,)


def _with_weights(model: keras.Model, variant: Variant, shape: tuple[int | None, ...]) -> keras.Model:
    made = as_variant(model, variant, shape)
    for layer in model.layers:
        if layer.weights:
            made.get_layer(layer.name).set_weights(layer.get_weights())
    return made


def _score(output: NDArray[np.float32], masks: NDArray[Any] | None) -> float:
    if output.shape[-1] == 1:
        tumour = output[..., 0]
    else:
        softmax = np.allclose(output.sum(-1), 1, atol=1e-3)
        tumour = 1 - output[..., 0] if softmax else output[..., 1:].max(-1)
    if not np.isfinite(tumour).all():
        return -1.0
    if masks is None:
        return float(np.abs(2 * tumour - 1).mean())
    inside = np.asarray(masks)[..., 0] > 0
    # Cross-entropy as a likelihood in 0..1, with equal weight for tumour and background.
    likely = np.log(np.clip(np.where(inside, tumour, 1 - tumour), 1e-4, 1))
    sides = [likely[side].mean() for side in (inside, ~inside) if side.any()]
    return float(np.exp(np.mean(sides)))
