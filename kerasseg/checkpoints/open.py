"""`open_checkpoint`: one call for every kind of checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kerasseg.checkpoints.h5 import open_h5
from kerasseg.checkpoints.hdf5 import open_hdf5
from kerasseg.checkpoints.hub import fetch, is_remote
from kerasseg.checkpoints.identify import Kind, explain, kind_of, missing
from kerasseg.checkpoints.keras_file import open_keras, open_keras_folder
from kerasseg.checkpoints.provenance import OpenedModel, Provenance, attach, recorded_beside, sha256_of
from kerasseg.checkpoints.stored import leaves, nested
from kerasseg.checkpoints.weights_only import is_weights_only, open_weights
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["open_checkpoint"]

_LOG = logging.getLogger("kerasseg")


def open_checkpoint(
    path: str | Path,
    *,
    architecture: str | Path | keras.Model | None = None,
    allow_partial: bool = False,
    compare: bool = True,
) -> keras.Model:
    """Open a checkpoint of a 2-D segmentation network as a native, trainable Keras 3 network.

    A checkpoint is data: nothing in it is run, and what would have to be run (Lambda layers, Python code) or leads out of
    the file (links, archive members with `..`) is refused by name first.

    Args:
        path: A `.keras` or `.h5` file, a SavedModel folder, `hf://owner/name[@revision]` or `https://...`. What it is is
            told by its content, not by its name.
        architecture: For files that hold weights alone: the network they belong to, as a network (which is not changed),
            `unet`, `unet(depth=3, normalization=group)`, the path of its configuration as JSON, or of another checkpoint of
            it. Without it a U-Net of kerasseg is read off the shapes.
        allow_partial: For files that hold weights alone: take what fits and leave the rest as it was initialised.
        compare: For SavedModels: run the original beside the rebuilt network on random input.

    Returns:
        The network, not compiled; input (batch, rows, columns, channels). `provenance(model)` tells where it came from.

    Raises:
        CheckpointError: Saying what the file is, if it is no network that can be opened.

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
    try:
        if not file.exists():
            raise missing(file)
        if not (file.is_file() or file.is_dir()):  # reading a pipe would wait for ever
            raise CheckpointError("this is a pipe or a device", path=source, expected="a file or a folder")
        if file.name in {"saved_model.pb", "saved_model.pbtxt"} and file.is_file():
            file = file.parent
        opened, record = _read(file, _Options(architecture, allow_partial, compare))
    except OSError as error:
        raise CheckpointError("it cannot be read", path=source, found=error.strerror or error) from error
    _check_purpose(opened.model, file)
    translated = (*opened.translated, *_thaw(opened.model))
    digest = sha256_of(file)
    if record is None:
        record = Provenance(
            path=source,
            sha256=digest,
            writer=opened.writer,
            kind=opened.kind,
            translated=translated,
            largest_difference=opened.largest_difference,
        )
    else:
        record = dataclasses.replace(record, file=source, file_sha256=digest)
    _LOG.info("opened %s: %s, written by %s", source, record.kind, record.writer)
    return attach(opened.model, record)


@dataclass(frozen=True)
class _Options:
    architecture: str | Path | keras.Model | None
    allow_partial: bool
    compare: bool


def _read(file: Path, options: _Options) -> tuple[OpenedModel, Provenance | None]:
    match kind_of(file):
        case Kind.KERAS:
            return open_keras(file)
        case Kind.KERAS_FOLDER:
            return open_keras_folder(file)
        case Kind.HDF5:
            with open_hdf5(file, file) as hdf5:
                if not is_weights_only(hdf5):
                    return open_h5(hdf5, file), None
                return open_weights(
                    hdf5,
                    file,
                    architecture=options.architecture,
                    allow_partial=options.allow_partial,
                    open_other=open_checkpoint,
                ), None
        case Kind.SAVED_MODEL:
            # Not above: it alone needs TensorFlow.
            from kerasseg.checkpoints.savedmodel.open import open_savedmodel

            found = open_savedmodel(file, compare=options.compare)
            opened = OpenedModel(found.model, found.writer, found.kind, found.translated, found.largest_difference)
            return opened, recorded_beside(file)
        case _:
            raise explain(file)


def _thaw(model: keras.Model) -> tuple[str, ...]:
    """Make every layer trainable: what is frozen is decided by `freeze`, not by whoever saved the file."""
    frozen = [layer for _, layer in leaves(model) if not layer.trainable]
    # One by one: set on a network, the flag does not reach the layers where the network has that value already.
    for layer in (*nested(model), *frozen):
        layer.trainable = True
    count = sum(bool(layer.weights) for layer in frozen)
    return (f"{count} layers were saved frozen and are trainable now",) if count else ()


def _check_purpose(model: keras.Model, path: Path) -> None:
    """Refuse networks that do not map an image to an image."""
    inputs, outputs = _shapes(model.inputs), _shapes(model.outputs)
    found = f"input {inputs[0]}, output {outputs[0]}"
    if len(inputs[0]) == 5 or len(outputs[0]) == 5:
        raise CheckpointError(
            "this is a 3-D network", path=str(path), found=found, expected="a 2-D one, (batch, rows, columns, channels)"
        )
    if len(inputs[0]) == 4 and all(len(shape) < 4 for shape in outputs):
        raise CheckpointError(
            "this is a classifier: it answers with one vector for an image",
            path=str(path),
            found=found,
            expected="a mask, (batch, rows, columns, classes)",
        )
    if len(inputs[0]) != 4:
        raise CheckpointError(
            "this network does not take images",
            path=str(path),
            found=found,
            expected="(batch, rows, columns, channels)",
        )


def _shapes(tensors: Any) -> list[tuple[int | None, ...]]:
    return [tuple(t.shape) for t in tensors]
