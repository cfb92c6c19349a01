"""Files that hold weights without a network: `.weights.h5` and `save_weights` `.h5`, in both layouts.

The shapes of the weights tell to which `kerasseg.unet` a file belongs: depth, filters, channels, classes, normalisation,
biases and the kind of upsampling. They do not determine the activation, image size or dropout, nor whether a two-parameter
normalisation is group or instance normalisation. Assumptions are reported; where none is reasonable, the user must choose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras

from kerasseg.architectures.unet import plain_unet
from kerasseg.checkpoints import stored as files
from kerasseg.checkpoints.allowed import build, check_config, check_size, parse_config, without_training
from kerasseg.checkpoints.hdf5 import attribute_texts, text_attribute
from kerasseg.checkpoints.identify import errors_about, writer_name
from kerasseg.checkpoints.keras2.translate import translate
from kerasseg.checkpoints.provenance import OpenedModel
from kerasseg.checkpoints.stored import LoadReport, Match, StoredLayer, container
from kerasseg.checkpoints.variants import HOW, READ_OFF, Variant, as_variant, named_arguments
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.files import read_file

_ACTIVATIONS = ("activation", "re_lu", "leaky_re_lu", "elu", "p_re_lu", "selu", "softmax")


class NotOurFamily(Exception):  # noqa: N818 - control flow inside this package; users see CheckpointError
    """The weights are not those of a `kerasseg.unet`; the message is a sentence about the mismatch."""


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


def read_family(stored: Sequence[StoredLayer], every_name: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Infer the U-Net that these weights belong to, each class of layers in the network's order, or raise `NotOurFamily`.

    Args:
        stored: The layers with weights.
        every_name: The names of all layers, including those without weights, if the file has them.

    Returns:
        The arguments of `kerasseg.unet`, and a sentence about each assumed one.
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
    return arguments, assumed


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


_MOST_LINES = 12


def is_weights_only(file: h5py.File) -> bool:
    """Return whether an HDF5 file has the layout of Keras weights and no network."""
    if "model_config" in file.attrs:
        return False
    return attribute_texts(file, "layer_names") is not None or container(file) is not None


def open_weights(
    file: h5py.Group,
    architecture: str | Path | keras.Model | None,
    allow_partial: bool,
    open_other: Callable[[str], keras.Model],
) -> OpenedModel:
    """Open a weights-only file, as yielded by `open_hdf5`; see `open_checkpoint`, which is also `open_other`."""
    new = container(file) is not None
    stored = files.read_all(file) if new else files.read_by_name(file)
    if not stored:
        raise CheckpointError("the file holds no weights")
    notes: tuple[str, ...]
    if isinstance(architecture, keras.Model):
        model, notes = keras.models.clone_model(architecture), ("the architecture was given as a network",)
    elif (arguments := named_arguments(str(architecture)) if architecture else {}) is not None:
        names = attribute_texts(file, "layer_names") or list(files.noted_names(file).values())
        model, notes = _family(stored, names, arguments, asked=bool(architecture))
    elif str(architecture).endswith(".json"):
        model = _read_configuration(Path(str(architecture)), files.stored_numbers(file))
        notes = (f"the architecture was read from {architecture}",)
    else:
        model, notes = open_other(str(architecture)), (f"the architecture is that of {architecture}",)
    best = _best_match(model, file, stored)
    report = best.report
    if not report.loaded or not (report.complete or allow_partial):
        raise _partial(report)
    best.apply()
    if not report.complete:
        notes = (*notes, *report.lines())
    writer = writer_name(text_attribute(file, "keras_version"))
    if new:  # this layout does not name its writer; only Keras 3 names the layers
        writer = "Keras 3" if files.noted_names(file) else "Keras 3 or tf-keras"
    return OpenedModel(model, writer, f"Keras weights ({'new' if new else 'old'} layout)", notes)


def _family(
    stored: Mapping[str, StoredLayer], names: list[str], named: Mapping[str, Any], *, asked: bool
) -> tuple[keras.Model, tuple[str, ...]]:
    variant, arguments = Variant.split(named)
    try:
        found, assumed = read_family(list(stored.values()), names)
    except NotOurFamily as problem:
        if asked and {"depth", "filters"} <= set(arguments):
            model = as_variant(plain_unet(**arguments), variant)
            return model, ("the architecture was specified, not read off the shapes",)
        raise CheckpointError(
            "the file holds weights without a network, and their shapes do not match a kerasseg U-Net",
            found=f"{len(stored)} layers; {problem}",
            remedy="Name the network with --architecture: a JSON file of its configuration, or a checkpoint of it.",
        ) from problem
    if found["normalization"] == "group" and "normalization" not in arguments:
        what = "the file holds weights without a network"
        seen = "a U-Net, but not whether its normalisation is `group` or `instance`"
        remedy = "Choose with --architecture 'unet(normalization=group)' or 'unet(normalization=instance)'."
        raise CheckpointError(what, found=seen, remedy=remedy)
    arguments = {**found, **arguments}
    read = ", ".join(f"{k}={v}" for k, v in arguments.items())
    sentences = [sentence for argument, sentence in assumed.items() if argument not in named]
    return as_variant(plain_unet(**arguments), variant), (f"{READ_OFF}: unet({read})", *sentences)


def _read_configuration(path: Path, stored: int) -> keras.Model:
    """Build a network with new weights, at most `stored`, from the JSON of `model.to_json()` of Keras 2 or 3."""
    with errors_about(path):
        try:
            config = without_training(parse_config(read_file(path)))
        except OSError as error:
            raise CheckpointError("the architecture cannot be read", found=error, expected=HOW) from error
        if "module" not in config:
            config = translate(config, writer=str(config.get("keras_version", ""))).config
        check_config(config)
        check_size(config, stored)
        return build(config)


def _best_match(model: keras.Model, file: h5py.Group, stored: Mapping[str, StoredLayer]) -> Match:
    """Match by name, by class and in order, and return the match that fills most of the network."""
    candidates: list[Mapping[str, StoredLayer]] = [stored]
    if container(file) is not None:
        found = files.read_by_class(file, model)
        used = {next(iter(layer.values.values())).name for layer in found.values()}
        candidates.append(found | {p: s for p, s in stored.items() if next(iter(s.values.values())).name not in used})
    else:
        with_weights = [layer.name for layer in model.layers if layer.weights]
        rest = list(stored.items())[len(with_weights) :]
        renamed = dict(zip(with_weights, stored.values(), strict=False))
        candidates.append(renamed | {f"{p} (in order)": s for p, s in rest})
    try:
        by_kind = ordered_like(model, list(stored.values()))
    except (NotOurFamily, AttributeError):
        by_kind = {}
    paths = {s.path for s in by_kind.values()} | set(by_kind)
    candidates.append(by_kind | {p: s for p, s in stored.items() if p not in paths})
    return max((files.match(model, c) for c in candidates), key=lambda m: (m.report.complete, m.report.parameters))


def _partial(report: LoadReport) -> CheckpointError:
    head, *lines = report.lines()
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    found = "; ".join([head, *lines[:_MOST_LINES], *more])
    remedy = "Name the right network with --architecture"
    if not report.loaded:
        what = "no layer of the network has its weights in the file"
        return CheckpointError(what, found=found, remedy=f"{remedy}.")
    remedy += ", or take what fits with --allow-partial."
    return CheckpointError("the weights do not fit the network", found=found, remedy=remedy)
