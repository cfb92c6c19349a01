"""Files that hold weights without a network: `.weights.h5` and `save_weights` `.h5`, in both layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import keras

from kerasseg.architectures.unet import plain_unet
from kerasseg.checkpoints.family import (
    READ_OFF,
    Family,
    NotOurFamily,
    Variant,
    as_variant,
    build_family,
    named_arguments,
    ordered_like,
    read_configuration,
    read_family,
)
from kerasseg.checkpoints.hdf5 import attribute_texts, text_attribute
from kerasseg.checkpoints.identify import writer_name
from kerasseg.checkpoints.provenance import OpenedModel
from kerasseg.checkpoints.stored import (
    CONTAINERS,
    LoadReport,
    Match,
    StoredLayer,
    match,
    read_all,
    read_by_model,
    read_by_name,
    stored_numbers,
)
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["PartialMatchError", "is_weights_only", "open_weights"]

_MOST_LINES = 12


class PartialMatchError(CheckpointError):
    """The weights do not fill the network, or the network does not use all of them.

    Attributes:
        report: The layers that were loaded, missing, unexpected or of wrong shape.
    """

    report: LoadReport


def is_weights_only(file: h5py.File) -> bool:
    """Return whether an HDF5 file has the layout of Keras weights and no network."""
    if "model_config" in file.attrs:
        return False
    return attribute_texts(file, "layer_names") is not None or _is_new_layout(file)


def _is_new_layout(file: h5py.File) -> bool:
    return any(isinstance(file.get(c), h5py.Group) for c in CONTAINERS)


def open_weights(
    file: h5py.File,
    path: Path,
    *,
    architecture: str | Path | keras.Model | None,
    allow_partial: bool,
    open_other: Callable[[str], keras.Model],
) -> OpenedModel:
    """Open a weights-only file.

    Args:
        file: The file, as yielded by `open_hdf5`.
        path: Its name in messages.
        architecture: See `open_checkpoint`.
        allow_partial: Whether to load what fits and keep the initial values of the rest.
        open_other: Function that opens the checkpoint named by `architecture`.

    Raises:
        PartialMatchError: The match is partial and `allow_partial` is false.
        CheckpointError: The weights are not those of a kerasseg U-Net and no architecture is given.
    """
    new = _is_new_layout(file)
    stored = read_all(file) if new else read_by_name(file, path)
    if not stored:
        raise CheckpointError("the file holds no weights", path=str(path))
    names = attribute_texts(file, "layer_names") or _names(file)
    notes: tuple[str, ...]
    if isinstance(architecture, keras.Model):
        model, notes = keras.models.clone_model(architecture), ("the architecture was given as a network",)
    else:
        arguments = named_arguments(str(architecture)) if architecture else {}
        if arguments is None:
            model, notes = _named_by_file(str(architecture), stored_numbers(file), open_other)
        else:
            model, notes = _family(stored, names, arguments, path, asked=bool(architecture))
    best = _best_match(model, file, stored, path)
    report = best.report
    if not report.loaded or not (report.complete or allow_partial):
        raise _partial(report, path)
    best.apply()
    if not report.complete:
        notes = (*notes, *report.lines())
    kind = f"Keras weights ({'new' if new else 'old'} layout)"
    writer = writer_name(text_attribute(file, "keras_version"))
    if new:  # this layout does not name its writer; only Keras 3 names the layers
        writer = "Keras 3" if _names(file) else "Keras 3 or tf-keras"
    return OpenedModel(model, writer, kind, notes)


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
    stored: Mapping[str, StoredLayer], names: list[str], arguments: Mapping[str, object], path: Path, *, asked: bool
) -> tuple[keras.Model, tuple[str, ...]]:
    try:
        family: Family | None = read_family(list(stored.values()), names)
        problem = ""
    except NotOurFamily as error:
        family, problem = None, str(error)
    given = set(arguments)
    variant, arguments = Variant.split(arguments)
    if family is None:
        if asked and {"depth", "filters"} <= set(arguments):
            model = as_variant(plain_unet(**arguments), variant)
            return model, ("the architecture was specified, not read off the shapes",)
        raise CheckpointError(
            "the file holds weights without a network, and their shapes do not match a kerasseg U-Net",
            path=str(path),
            found=f"{len(stored)} layers; {problem}",
            remedy="Name the network with --architecture: a JSON file of its configuration, or a checkpoint of it.",
        )
    if family.ambiguous and "normalization" not in arguments:
        raise CheckpointError(
            "the file holds weights without a network",
            path=str(path),
            found=f"a U-Net, but not {family.ambiguous}",
            remedy="Choose with --architecture 'unet(normalization=group)' or 'unet(normalization=instance)'.",
        )
    family = dataclasses.replace(family, arguments={**family.arguments, **arguments})
    read = ", ".join(f"{k}={v}" for k, v in family.arguments.items())
    told = {*arguments, *given}
    assumed = [sentence for argument, sentence in family.assumed.items() if argument not in told]
    return build_family(family, variant), (f"{READ_OFF}: unet({read})", *assumed)


def _named_by_file(
    architecture: str, stored: int, open_other: Callable[[str], keras.Model]
) -> tuple[keras.Model, tuple[str, ...]]:
    if architecture.endswith(".json"):
        return read_configuration(Path(architecture), stored), (f"the architecture was read from {architecture}",)
    return open_other(architecture), (f"the architecture is that of {architecture}",)


def _best_match(model: keras.Model, file: h5py.File, stored: Mapping[str, StoredLayer], path: Path) -> Match:
    """Match by name, by class and in order, and return the match that fills most of the network."""
    candidates = [match(model, stored)]
    if _is_new_layout(file):
        found = read_by_model(file, model)
        used = {next(iter(layer.values.values())).name for layer in found.values()}
        rest = {p: s for p, s in stored.items() if next(iter(s.values.values())).name not in used}
        candidates.append(match(model, found | rest))
    else:
        candidates.append(match(model, read_by_name(file, path)))
        with_weights = [layer.name for layer in model.layers if layer.weights]
        renamed = dict(zip(with_weights, stored.values(), strict=False))
        rest = dict(list(stored.items())[len(with_weights) :])
        candidates.append(match(model, renamed | {f"{p} (in order)": s for p, s in rest.items()}))
    try:
        by_kind = ordered_like(model, list(stored.values()))
    except (NotOurFamily, AttributeError):
        by_kind = {}
    used_paths = {s.path for s in by_kind.values()}
    candidates.append(
        match(model, by_kind | {p: s for p, s in stored.items() if p not in used_paths and p not in by_kind})
    )
    return max(candidates, key=lambda m: (m.report.complete, m.report.parameters))


def _partial(report: LoadReport, path: Path) -> PartialMatchError:
    lines = report.lines()
    shown = lines[: _MOST_LINES + 1]
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    partly = bool(report.loaded)
    error = PartialMatchError(
        "the weights do not fit the network" if partly else "no layer of the network has its weights in the file",
        path=str(path),
        found="; ".join(shown),
        remedy="Name the right network with --architecture"
        + (", or take what fits with --allow-partial." if partly else "."),
    )
    error.report = report
    return error
