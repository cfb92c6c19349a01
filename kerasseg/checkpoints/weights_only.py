"""Files that hold weights without a network: `.weights.h5` and `save_weights` `.h5`, in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import keras

from kerasseg.architectures.unet import plain_unet
from kerasseg.checkpoints import stored as files
from kerasseg.checkpoints.allowed import build, check_config, check_size, parse_config, without_training
from kerasseg.checkpoints.family import NotOurFamily, ordered_like, read_family
from kerasseg.checkpoints.hdf5 import attribute_texts, text_attribute
from kerasseg.checkpoints.identify import errors_about, writer_name
from kerasseg.checkpoints.keras2.translate import translate
from kerasseg.checkpoints.provenance import OpenedModel
from kerasseg.checkpoints.stored import LoadReport, Match, StoredLayer, container
from kerasseg.checkpoints.variants import HOW, READ_OFF, Variant, as_variant, named_arguments
from kerasseg_tfrecords.errors import CheckpointError

_MOST_LINES = 12


class PartialMatchError(CheckpointError):
    """The weights do not fill the network, or the network does not use all of them; `report` has its layers."""

    report: LoadReport


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
        names = attribute_texts(file, "layer_names") or _names(file)
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
        writer = "Keras 3" if _names(file) else "Keras 3 or tf-keras"
    return OpenedModel(model, writer, f"Keras weights ({'new' if new else 'old'} layout)", notes)


def _names(file: h5py.Group) -> list[str]:
    """Return the layer names that Keras 3 stores with the variables; empty for other writers."""
    names: list[str] = []

    def note(path: str, item: object) -> None:
        if isinstance(item, h5py.Group) and path.rpartition("/")[2] == "vars" and path.count("/") >= 2:
            named = text_attribute(item, "name")
            if named:
                names.append(named)

    file.visititems(note)
    return names


def _family(
    stored: Mapping[str, StoredLayer], names: list[str], named: Mapping[str, Any], *, asked: bool
) -> tuple[keras.Model, tuple[str, ...]]:
    variant, arguments = Variant.split(named)
    try:
        family = read_family(list(stored.values()), names)
    except NotOurFamily as problem:
        if asked and {"depth", "filters"} <= set(arguments):
            model = as_variant(plain_unet(**arguments), variant)
            return model, ("the architecture was specified, not read off the shapes",)
        raise CheckpointError(
            "the file holds weights without a network, and their shapes do not match a kerasseg U-Net",
            found=f"{len(stored)} layers; {problem}",
            remedy="Name the network with --architecture: a JSON file of its configuration, or a checkpoint of it.",
        ) from problem
    if family.ambiguous and "normalization" not in arguments:
        what = "the file holds weights without a network"
        remedy = "Choose with --architecture 'unet(normalization=group)' or 'unet(normalization=instance)'."
        raise CheckpointError(what, found=f"a U-Net, but not {family.ambiguous}", remedy=remedy)
    arguments = {**family.arguments, **arguments}
    read = ", ".join(f"{k}={v}" for k, v in arguments.items())
    assumed = [sentence for argument, sentence in family.assumed.items() if argument not in named]
    return as_variant(plain_unet(**arguments), variant), (f"{READ_OFF}: unet({read})", *assumed)


def _read_configuration(path: Path, stored: int) -> keras.Model:
    """Build a network with new weights, at most `stored`, from the JSON of `model.to_json()` of Keras 2 or 3."""
    with errors_about(path):
        try:
            config = without_training(parse_config(path.read_bytes()))
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


def _partial(report: LoadReport) -> PartialMatchError:
    lines = report.lines()
    shown = lines[: _MOST_LINES + 1]
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    error = PartialMatchError(
        "the weights do not fit the network"
        if report.loaded
        else "no layer of the network has its weights in the file",
        found="; ".join(shown),
        remedy="Name the right network with --architecture"
        + (", or take what fits with --allow-partial." if report.loaded else "."),
    )
    error.report = report
    return error
