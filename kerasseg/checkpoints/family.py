"""Infer from weight shapes which `kerasseg.unet` a file belongs to.

The shapes determine depth, filters, channels, classes, normalisation, biases and the kind of upsampling. They do not
determine the activation, image size or dropout, nor whether a two-parameter normalisation is group or instance
normalisation. Assumptions are reported; where none is reasonable, the user must choose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kerasseg.checkpoints.stored import StoredLayer

_ACTIVATIONS = ("activation", "re_lu", "leaky_re_lu", "elu", "p_re_lu", "selu", "softmax")


class NotOurFamily(Exception):  # noqa: N818 - control flow inside this package; users see CheckpointError
    """The weights are not those of a `kerasseg.unet`; the message is a sentence about the mismatch."""


@dataclass(frozen=True)
class Family:
    """Arguments of the inferred `kerasseg.unet`, a sentence about each assumed one, and an open choice if there is one."""

    arguments: Mapping[str, Any]
    assumed: Mapping[str, str]
    ambiguous: str | None = None


def _sort(stored: Sequence[StoredLayer]) -> dict[str, list[StoredLayer]]:
    """Return the layers of a file by kind, each kind in the file's order."""
    kinds: dict[str, list[StoredLayer]] = {k: [] for k in ("wide", "narrow", "up", "batch", "affine")}
    for layer in stored:
        kinds[_kind(layer)].append(layer)
    return kinds


def _kind(layer: StoredLayer) -> str:
    shapes = layer.shapes
    first = shapes[0]
    if len(first) == 5:
        raise NotOurFamily(f"`{layer.path}` has a 3-D kernel: this is a 3-D network")
    if len(first) == 4 and len(shapes) <= 2:
        if first[:2] in {(3, 3), (1, 1)}:
            return "wide" if first[0] == 3 else "narrow"
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
    """Infer the U-Net that these weights belong to, each class of layers in the network's order, or raise `NotOurFamily`.

    `every_name` has the names of all layers, including those without weights, if the file has them.
    """
    kinds = _sort(stored)
    wide, narrow, up = kinds["wide"], kinds["narrow"], kinds["up"]
    depth = len(up) or len(narrow) - 1
    if depth < 1 or len(wide) != 4 * depth + 2 or len(narrow) != (1 if up else depth + 1):
        raise NotOurFamily(
            f"it has {len(wide)} 3x3, {len(narrow)} 1x1 and {len(up)} transposed 2x2 convolutions; "
            "a U-Net of kerasseg with n levels has 4 n + 2, one, and n"
        )
    kernels = [layer.shapes[0] for layer in wide]
    filters = [kernels[2 * level][3] for level in range(depth + 1)]
    expected = [kernels[0][2]]
    for level in range(depth + 1):
        expected += [filters[level], filters[level]]
    expected.pop()
    for level in reversed(range(depth)):
        expected += [2 * filters[level], filters[level]]
    if [k[2] for k in kernels] != expected:
        raise NotOurFamily("its convolutions do not take the channels that those of a U-Net with one skip a level take")
    norms = len(kinds["batch"]) + len(kinds["affine"])
    if norms not in {0, len(wide)} or (kinds["batch"] and kinds["affine"]):
        raise NotOurFamily(f"it has {norms} normalisations for {len(wide)} convolutions")
    shown = [n for n in every_name if re.sub(r"_?\d*$", "", n.rpartition("/")[2]) in _ACTIVATIONS or "_act_" in n]
    if norms and every_name and not shown:
        raise NotOurFamily("its activations are inside the convolutions, before the normalisation instead of after it")
    arguments = {
        "input_shape": (256, 256, kernels[0][2]),
        "classes": narrow[-1].shapes[0][3],
        "depth": depth,
        "filters": filters,
        "normalization": "batch" if kinds["batch"] else "group" if kinds["affine"] else "none",
        "upsampling": "transposed" if up else "bilinear",
        "bias": len(wide[0].shapes) == 2,
    }
    ours, other = ("sigmoid", "linear") if arguments["classes"] == 1 else ("softmax", "sigmoid")
    unknown = {
        "input_shape": "image size: 256x256 is assumed",
        "activation": "activation: relu is assumed",
        "skip_first": "skip order: [upsampled, skip] is assumed (skip_first=true)",
        "pooling": "pooling: max is assumed (pooling=average)",
        "output": f"last activation: {ours} is assumed (output={other})",
    }
    assumed = {key: f"the weights do not determine the {what}" for key, what in unknown.items()}
    if norms:
        assumed["activation_first"] = (
            "the weights do not determine whether the activation comes before the normalization: no (activation_first=true)"
        )
    return Family(arguments, assumed, "whether its normalisation is `group` or `instance`" if kinds["affine"] else None)


def ordered_like(model: keras.Model, stored: Sequence[StoredLayer]) -> dict[str, StoredLayer]:
    """Return the stored layers under the names of `model`, matched in order within each kind of layer."""
    kinds = _sort(stored)
    result: dict[str, StoredLayer] = {}
    for kind, name, size in (
        ("wide", "Conv2D", (3, 3)),
        ("narrow", "Conv2D", (1, 1)),
        ("up", "Conv2DTranspose", None),
        ("batch", "BatchNormalization", None),
        ("affine", "GroupNormalization", None),
    ):
        ours = [n for n in model.layers if n.weights and type(n).__name__ == name]
        ours = [n for n in ours if size in (None, getattr(n, "kernel_size", None))]
        result |= {layer.name: source for layer, source in zip(ours, kinds[kind], strict=False)}
    return result
