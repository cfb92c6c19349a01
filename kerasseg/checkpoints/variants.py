"""Variants of a U-Net that weight shapes do not distinguish: named by the user, or chosen by running them on images."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.architectures.unet import plain_unet
from kerasseg.checkpoints.keras2.layer_config import histories
from kerasseg.checkpoints.provenance import attach, provenance
from kerasseg_tfrecords.errors import UsageError

_CLEARLY = 0.02  # the margin by which a variant must beat the assumed one to replace it
_MOST_IMAGES = 16
_VALID: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("skip_first", "activation_first"), (False, True)),
    "pooling": ("max", "average"),
    "output": ("sigmoid", "softmax", "linear"),
}


@dataclass(frozen=True)
class Variant:
    """The parts of a U-Net's graph that weight shapes do not determine; the defaults are those of `kerasseg.unet`.

    Attributes:
        skip_first: Concatenate([skip, up]) instead of [up, skip].
        activation_first: Convolution, activation, normalization instead of convolution, normalization, activation.
        pooling: `max` or `average`.
        output: `sigmoid`, `softmax` or `linear`; None means softmax for several classes and sigmoid for one.
    """

    skip_first: bool = False
    activation_first: bool = False
    pooling: str = "max"
    output: str | None = None

    @classmethod
    def split(cls, arguments: Mapping[str, Any]) -> tuple[Variant, dict[str, Any]]:
        """Split the arguments of `--architecture unet(...)` into a variant and arguments of `kerasseg.unet`."""
        chosen = {name: value for name, value in arguments.items() if name in _VALID}
        for name, value in chosen.items():
            if value not in _VALID[name]:
                expected = " or ".join(str(v).lower() for v in _VALID[name])
                raise UsageError(f"invalid {name} in the architecture", found=value, expected=expected)
        return cls(**chosen), {k: v for k, v in arguments.items() if k not in _VALID}

    def __str__(self) -> str:
        """Return the `--architecture` text, with only the values that differ from `kerasseg.unet`."""
        parts = [f"{k}={str(v).lower()}" for k, v in dataclasses.asdict(self).items() if v != getattr(Variant(), k)]
        return f"unet({', '.join(parts)})"


def as_variant(model: keras.Model, variant: Variant, shape: Sequence[int | None] | None = None) -> keras.Model:
    """Return a `kerasseg.unet` network with another graph or input shape, the same layer names and new weights."""
    if variant == Variant() and shape is None:
        return model
    config = model.get_config()
    if shape is not None:
        config["layers"][0]["config"]["batch_shape"] = (None, *shape)
        for entry in config["layers"]:
            entry.pop("build_config", None)
    before: dict[str, str] = {}
    for entry in config["layers"]:
        name, settings = entry["name"], entry["config"]
        sources = list(histories(entry["inbound_nodes"]))
        if entry["class_name"] == "Concatenate" and variant.skip_first:
            call = entry["inbound_nodes"][0]
            call["args"] = (list(reversed(call["args"][0])), *call["args"][1:])
        elif entry["class_name"] == "MaxPooling2D" and variant.pooling == "average":
            entry["class_name"] = "AveragePooling2D"
        elif name == "head" and variant.output is not None:
            settings["activation"] = variant.output
        elif entry["class_name"] in {"BatchNormalization", "GroupNormalization"}:
            before[name] = sources[0][0]
    if variant.activation_first:
        # conv -> norm -> act becomes conv -> act -> norm; consumers of the activation now take the normalization.
        acts = {norm: norm.replace("_norm_", "_act_") for norm in before}
        for entry in config["layers"]:
            for history in histories(entry["inbound_nodes"]):
                source = history[0]
                if entry["name"] in before:
                    history[0] = acts[entry["name"]]
                elif source in before:
                    history[0] = before[source]
                elif source in acts.values():
                    history[0] = source.replace("_act_", "_norm_")
    return keras.Model.from_config(config)


_WORDS = {"true": True, "false": False}
READ_OFF = "the architecture was read off the shapes"
HOW = "unet, unet(depth=4, filters=64, ...), a network's JSON file or a checkpoint of the same network"


def named_arguments(architecture: str) -> Mapping[str, Any] | None:
    """Parse arguments such as `unet(depth=4, normalization="group")`; None if the text is not of this form.

    Values are numbers, texts (with or without quotes) and lists; nothing is evaluated.

    Example:
        >>> named_arguments("unet(depth=3, normalization=group)")
        {'depth': 3, 'normalization': 'group'}
        >>> named_arguments("other.keras") is None
        True
    """
    text = architecture.strip()
    if text == "unet":
        return {}
    if not text.startswith("unet("):
        return None
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("only keyword arguments")
        arguments: dict[str, Any] = {}
        for keyword in call.keywords:
            value = keyword.value
            word = _WORDS.get(value.id, value.id) if isinstance(value, ast.Name) else ast.literal_eval(value)
            arguments[str(keyword.arg)] = word
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"the architecture `{text}` cannot be read", found=error, expected=HOW) from error
    known = [*inspect.signature(plain_unet).parameters, *_VALID]
    if unknown := sorted(set(arguments) - set(known)):
        raise UsageError(f"kerasseg.unet has no argument {', '.join(unknown)}", expected=", ".join(known))
    return arguments


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
    choices = {**_VALID, "output": (None, "sigmoid") if int(model.outputs[0].shape[-1]) > 1 else (None,)}
    choices = {n: c if any(f"({n}=" in t for t in record.translated) else c[:1] for n, c in choices.items()}
    images, masks = images[:_MOST_IMAGES], None if masks is None else masks[:_MOST_IMAGES]
    scores: dict[Variant, float] = {}
    for values in itertools.product(*choices.values()):
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
