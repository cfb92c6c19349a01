"""Open any supported kind of checkpoint: `open_checkpoint`."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from kerasseg.checkpoints.allowed import check_maps, check_numbers, check_sums
from kerasseg.checkpoints.hdf5 import open_hdf5
from kerasseg.checkpoints.hub import fetch, is_remote
from kerasseg.checkpoints.identify import Kind, errors_about, explain, kind_of, reading
from kerasseg.checkpoints.keras_file import open_h5, open_keras, open_weights_in
from kerasseg.checkpoints.provenance import OpenedModel, Provenance, attach, provenance, recorded_beside, sha256_of
from kerasseg.checkpoints.stored import leaves
from kerasseg.checkpoints.variants import is_assumed, settle_variant
from kerasseg.checkpoints.weights_only import is_weights_only, open_weights
from kerasseg_tfrecords.errors import CheckpointError

_LOG = logging.getLogger("kerasseg")


def open_checkpoint(
    path: str | Path,
    *,
    architecture: str | Path | keras.Model | None = None,
    allow_partial: bool = False,
    compare: bool = True,
    examples: tuple[Any, Any] | None = None,
) -> keras.Model:
    """Open a checkpoint of a 2-D segmentation network as a native, trainable Keras 3 network.

    Nothing in the checkpoint is executed. Files that contain Python code (such as Lambda layers), links out of the file or
    archive members with `..` are refused.

    Args:
        path: A `.keras` or `.h5` file, a SavedModel folder, `hf://owner/name[@revision]` or `https://...`. The kind is
            determined from the content, not the name.
        architecture: The network that the weights of a `.keras` or `.h5` file belong to: a model (left unchanged),
            `unet`, `unet(depth=3, normalization=group)`, the path of its configuration as JSON, or another checkpoint of
            it. The structure in the file, if any, is then ignored. Without `architecture`, weights-only files are read as
            a kerasseg U-Net inferred from the weight shapes.
        allow_partial: For weights-only files: load what fits and keep the initial values of the rest.
        compare: For SavedModels: compare the original with the rebuilt network on random input.
        examples: For weights-only files: images (slices, height, width, channels) in 0..1, and their masks or None. They
            are used to choose between variants that the weight shapes do not distinguish.

    Returns:
        The uncompiled network; input (batch, rows, columns, channels). `provenance(model)` returns its origin.

    Raises:
        CheckpointError: The file does not contain a supported network; the message says what it contains.

    Example:
        >>> import kerasseg
        >>> kerasseg.unet((16, 16, 1), filters=2, depth=1).save("unet.keras")
        >>> model = open_checkpoint("unet.keras")
        >>> model.output_shape, kerasseg.provenance(model).kind
        ((None, 16, 16, 1), 'Keras 3 archive (.keras)')
        >>> open_checkpoint("no-such-file.keras")
        Traceback (most recent call last):
            ...
        kerasseg_tfrecords.errors.CheckpointError: no-such-file.keras: no such file ...
    """
    source = str(path)
    if is_remote(path):
        fetched = fetch(source)
        file, source = fetched.path, fetched.source
    else:
        file = Path(path)
    with errors_about(file, source if is_remote(path) else None):
        with reading(file, source):
            if file.name in {"saved_model.pb", "saved_model.pbtxt"} and file.is_file():
                file = file.parent
            opened, record = _read(file, architecture, allow_partial=allow_partial, compare=compare)
        _check_purpose(opened.model)
        check_numbers(opened.model)
        check_sums(opened.model)
        check_maps(opened.model)
    translated = (*opened.translated, *_thaw(opened.model))
    digest = sha256_of(file)
    if record is None:
        difference = opened.largest_difference
        record = Provenance(source, digest, opened.writer, opened.kind, translated, largest_difference=difference)
    else:
        record = dataclasses.replace(record, file=source, file_sha256=digest)
    _LOG.info("opened %s: %s, written by %s", source, record.kind, record.writer)
    model = attach(opened.model, record)
    if examples is not None and is_assumed(model):
        images, masks = examples
        model, _ = settle_variant(model, np.asarray(images, np.float32), None if masks is None else np.asarray(masks))
    return model


def reopen(path: Path) -> keras.Model:
    """Open a network that kerasseg saved, with the record in the file, or none, so that a copy has the same."""
    return attach(open_checkpoint(path), provenance(path))


def _read(
    file: Path, architecture: str | Path | keras.Model | None, *, allow_partial: bool, compare: bool
) -> tuple[OpenedModel, Provenance | None]:
    def read_weights_only(weights: h5py.Group) -> tuple[OpenedModel, None]:
        return open_weights(weights, architecture, allow_partial, open_checkpoint), None

    match kind_of(file):
        case Kind.KERAS | Kind.KERAS_FOLDER:
            if architecture is None:
                return open_keras(file)
            with open_weights_in(file, file) as hdf5:
                return read_weights_only(hdf5)
        case Kind.HDF5:
            with open_hdf5(file, file) as hdf5:
                weights = hdf5.get("model_weights")
                if is_weights_only(hdf5):
                    return read_weights_only(hdf5)
                if architecture is not None and isinstance(weights, h5py.Group):
                    return read_weights_only(weights)
                return open_h5(hdf5), None
        case Kind.SAVED_MODEL:
            # Imported here because only SavedModels need TensorFlow.
            from kerasseg.checkpoints.savedmodel.open import open_savedmodel

            return open_savedmodel(file, compare=compare), recorded_beside(file)
        case _:
            raise explain(file)


def _thaw(model: keras.Model) -> tuple[str, ...]:
    """Make every layer trainable: `freeze` decides what is frozen, not the saved file."""
    frozen = [layer for _, layer in leaves(model) if not layer.trainable]
    # One by one: a network's setter does not reach its layers where the network already has that value.
    for layer in model._flatten_layers():
        layer.trainable = True
    count = sum(bool(layer.weights) for layer in frozen)
    return (f"{count} layers were saved frozen and are trainable now",) if count else ()


def _check_purpose(model: keras.Model) -> None:
    """Refuse networks that do not map an image to an image."""
    inputs, outputs = ([tuple(t.shape) for t in tensors] for tensors in (model.inputs, model.outputs))
    image = "(batch, rows, columns, channels)"
    problem = None
    if len(inputs[0]) == 5 or len(outputs[0]) == 5:
        problem = "this is a 3-D network", f"a 2-D one, {image}"
    elif len(inputs[0]) != 4:
        problem = "this network does not take images", image
    elif not any(_holds_pixels(shape, inputs[0]) for shape in outputs):
        problem = "this is a classifier: its output is one vector per image", "a mask, (batch, rows, columns, classes)"
    if problem:
        raise CheckpointError(problem[0], found=f"input {inputs[0]}, output {outputs[0]}", expected=problem[1])


def _holds_pixels(output: tuple[int | None, ...], image: tuple[int | None, ...]) -> bool:
    """Return whether an output is a map, or one value or one list of classes for each pixel of the image."""
    _, height, width, _ = image
    if len(output) == 4 or height is None or width is None:
        return len(output) == 4
    return output[1:] == (height, width) or (len(output) == 3 and output[1] == height * width)
