"""Infer from weight shapes which `kerasseg.unet` a file belongs to.

The shapes determine depth, filters, channels, classes, normalisation, biases and the kind of upsampling. They do not
determine the activation, image size or dropout, nor whether a two-parameter normalisation is group or instance
normalisation. Assumptions are reported; where none is reasonable, the user must choose.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kerasseg.architectures.unet import plain_unet
from kerasseg.checkpoints.allowed import build, check_config, check_size, parse_config, without_training
from kerasseg.checkpoints.keras2.rewrites import histories
from kerasseg.checkpoints.keras2.translate import translate
from kerasseg.checkpoints.stored import StoredLayer
from kerasseg_tfrecords.errors import CheckpointError, UsageError

__all__ = [
    "READ_OFF",
    "Family",
    "NotOurFamily",
    "Variant",
    "as_variant",
    "named_arguments",
    "ordered_like",
    "read_configuration",
    "read_family",
]

_ACTIVATIONS = ("activation", "re_lu", "leaky_re_lu", "elu", "p_re_lu", "selu", "softmax")


class NotOurFamily(Exception):  # noqa: N818 - control flow inside this package; users see CheckpointError
    """The weights are not those of a `kerasseg.unet`; the message is a sentence about the mismatch."""


@dataclass(frozen=True)
class Family:
    """A U-Net inferred from its weights.

    Attributes:
        arguments: Arguments for `kerasseg.unet`.
        assumed: Argument -> a sentence about its assumed value, where the shapes do not determine it.
        ambiguous: A choice that the user must make, or None.
    """

    arguments: Mapping[str, Any]
    assumed: Mapping[str, str]
    ambiguous: str | None = None


@dataclass(frozen=True)
class _Sorted:
    """The layers of a file by kind, each kind in the file's order."""

    wide: tuple[StoredLayer, ...]
    narrow: tuple[StoredLayer, ...]
    up: tuple[StoredLayer, ...]
    batch: tuple[StoredLayer, ...]
    affine: tuple[StoredLayer, ...]


def _sort(stored: Sequence[StoredLayer]) -> _Sorted:
    kinds: dict[str, list[StoredLayer]] = {k: [] for k in ("wide", "narrow", "up", "batch", "affine")}
    for layer in stored:
        kinds[_kind(layer)].append(layer)
    return _Sorted(**{k: tuple(v) for k, v in kinds.items()})


def _kind(layer: StoredLayer) -> str:
    shapes = layer.shapes
    first = shapes[0]
    if len(first) == 5:
        raise NotOurFamily(f"`{layer.path}` has a 3-D kernel: this is a 3-D network")
    if len(first) == 4 and len(shapes) <= 2:
        if first[:2] == (3, 3):
            return "wide"
        if first[:2] == (1, 1):
            return "narrow"
        # A growing number of filters, or the name, distinguishes it from an ordinary 2x2 convolution.
        named = "transpose" in layer.path or layer.path.endswith("_up")
        if first[:2] == (2, 2) and (first[2] < first[3] or named):
            return "up"
        raise NotOurFamily(f"`{layer.path}` has a kernel of {'x'.join(map(str, first))}")
    if all(len(s) == 1 and s == first for s in shapes) and len(shapes) in {2, 4}:
        return "batch" if len(shapes) == 4 else "affine"
    if len(first) == 2:
        raise NotOurFamily(f"`{layer.path}` is a dense layer, as classifiers have")
    raise NotOurFamily(f"`{layer.path}` has weights of shapes {', '.join(map(str, shapes))}")


def read_family(stored: Sequence[StoredLayer], every_name: Sequence[str] = ()) -> Family:
    """Infer the U-Net that these weights belong to.

    Args:
        stored: The layers with weights, each class of layers in the network's order.
        every_name: The names of all layers, including those without weights, if the file has them.

    Raises:
        NotOurFamily: The weights belong to another network.
    """
    kinds = _sort(stored)
    depth = len(kinds.up) or len(kinds.narrow) - 1
    if depth < 1 or len(kinds.wide) != 4 * depth + 2 or len(kinds.narrow) != (1 if kinds.up else depth + 1):
        raise NotOurFamily(
            f"it has {len(kinds.wide)} 3x3, {len(kinds.narrow)} 1x1 and {len(kinds.up)} transposed 2x2 convolutions; "
            "a U-Net of kerasseg with n levels has 4 n + 2, one, and n"
        )
    kernels = [layer.shapes[0] for layer in kinds.wide]
    filters = [kernels[2 * level][3] for level in range(depth + 1)]
    expected = [kernels[0][2]]
    for level in range(depth + 1):
        expected += [filters[level], filters[level]]
    expected.pop()
    for level in reversed(range(depth)):
        expected += [2 * filters[level], filters[level]]
    if [k[2] for k in kernels] != expected:
        raise NotOurFamily("its convolutions do not take the channels that those of a U-Net with one skip a level take")
    norms = len(kinds.batch) + len(kinds.affine)
    if norms not in {0, len(kinds.wide)} or (kinds.batch and kinds.affine):
        raise NotOurFamily(f"it has {norms} normalisations for {len(kinds.wide)} convolutions")
    shown = [n for n in every_name if _stem(n) in _ACTIVATIONS or "_act_" in n]
    if norms and every_name and not shown:
        raise NotOurFamily("its activations are inside the convolutions, before the normalisation instead of after it")
    bias = len(kinds.wide[0].shapes) == 2
    arguments = {
        "input_shape": (256, 256, kernels[0][2]),
        "classes": kinds.narrow[-1].shapes[0][3],
        "depth": depth,
        "filters": filters,
        "normalization": "batch" if kinds.batch else "group" if kinds.affine else "none",
        "upsampling": "transposed" if kinds.up else "bilinear",
        "bias": bias,
    }
    ours, other = ("sigmoid", "linear") if arguments["classes"] == 1 else ("softmax", "sigmoid")
    assumed = {
        "input_shape": "the weights do not determine the image size: 256x256 is assumed",
        "activation": "the weights do not determine the activation: relu is assumed",
        "skip_first": "the weights do not determine the skip order: [upsampled, skip] is assumed (skip_first=true)",
        "pooling": "the weights do not determine the pooling: max is assumed (pooling=average)",
        "output": f"the weights do not determine the last activation: {ours} is assumed (output={other})",
    }
    if norms:
        assumed["activation_first"] = (
            "the weights do not determine whether the activation comes before the normalization: no (activation_first=true)"
        )
    ambiguous = "whether its normalisation is `group` or `instance`" if kinds.affine else None
    return Family(arguments, assumed, ambiguous)


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rstrip("0123456789").rstrip("_")


def ordered_like(model: keras.Model, stored: Sequence[StoredLayer]) -> dict[str, StoredLayer]:
    """Return the stored layers under the names of `model`, matched in order within each kind of layer."""
    layers = [layer for layer in model.layers if layer.weights]
    kinds = _sort(stored)
    result: dict[str, StoredLayer] = {}
    for (name, size), theirs in (
        (("Conv2D", (3, 3)), kinds.wide),
        (("Conv2D", (1, 1)), kinds.narrow),
        (("Conv2DTranspose", None), kinds.up),
        (("BatchNormalization", None), kinds.batch),
        (("GroupNormalization", None), kinds.affine),
    ):
        ours = [n for n in layers if type(n).__name__ == name and size in (None, getattr(n, "kernel_size", None))]
        result |= {layer.name: source for layer, source in zip(ours, theirs, strict=False)}
    return result


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
        """Split the arguments of `--architecture unet(...)` into a variant and arguments of `kerasseg.unet`.

        Raises:
            UsageError: A value is invalid.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        chosen = {name: arguments[name] for name in names if name in arguments}
        valid: dict[str, tuple[Any, ...]] = {
            "skip_first": (True, False),
            "activation_first": (True, False),
            "pooling": ("max", "average"),
            "output": ("sigmoid", "softmax", "linear"),
        }
        for name, value in chosen.items():
            if value not in valid[name]:
                expected = " or ".join(str(v).lower() for v in valid[name])
                raise UsageError(f"invalid {name} in the architecture", found=value, expected=expected)
        return cls(**chosen), {k: v for k, v in arguments.items() if k not in names}

    def __str__(self) -> str:
        """Return the `--architecture` text, with only the values that differ from `kerasseg.unet`."""
        parts = [f"{k}={str(v).lower()}" for k, v in dataclasses.asdict(self).items() if v != getattr(Variant(), k)]
        return f"unet({', '.join(parts)})"


def build_family(family: Family, variant: Variant = Variant()) -> keras.Model:
    """Build the U-Net with new weights."""
    return as_variant(plain_unet(**family.arguments), variant)


def as_variant(model: keras.Model, variant: Variant, shape: Sequence[int | None] | None = None) -> keras.Model:
    """Return a `kerasseg.unet` network with another graph, the same layer names and new weights.

    Args:
        model: The network; returned itself if nothing changes.
        variant: The graph to build.
        shape: Another input shape; None keeps it.
    """
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
    made: keras.Model = keras.Model.from_config(config)
    return made


_WORDS = {"true": True, "false": False}
READ_OFF = "the architecture was read off the shapes"
_HOW = "unet, unet(depth=4, filters=64, ...), a network's JSON file or a checkpoint of the same network"


def named_arguments(architecture: str) -> Mapping[str, Any] | None:
    """Parse arguments such as `unet(depth=4, normalization="group")`; None if the text is not of this form.

    Values are numbers, texts (with or without quotes) and lists; nothing is evaluated.

    Raises:
        UsageError: The text starts like a U-Net but is invalid.

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
        arguments = {
            str(k.arg): _WORDS.get(k.value.id, k.value.id)
            if isinstance(k.value, ast.Name)
            else ast.literal_eval(k.value)
            for k in call.keywords
        }
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"the architecture `{text}` cannot be read", found=error, expected=_HOW) from error
    known = [*inspect.signature(plain_unet).parameters, *(field.name for field in dataclasses.fields(Variant))]
    if unknown := sorted(set(arguments) - set(known)):
        raise UsageError(f"kerasseg.unet has no argument {', '.join(unknown)}", expected=", ".join(known))
    return arguments


def read_configuration(path: Path, stored: int) -> keras.Model:
    """Build a network with new weights from the JSON of `model.to_json()`, of Keras 2 or 3.

    Args:
        path: The JSON file.
        stored: Number of values in the weights file; the network must not be larger.

    Raises:
        CheckpointError: The configuration is refused, as for a whole checkpoint.
    """
    try:
        config = without_training(parse_config(path.read_bytes(), path))
    except OSError as error:
        raise CheckpointError("the architecture cannot be read", path=str(path), found=error, expected=_HOW) from error
    if "module" not in config:
        config = translate(config, writer=str(config.get("keras_version", "")), path=path).config
    check_config(config, path)
    check_size(config, stored, path)
    return build(config, path)
