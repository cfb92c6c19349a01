"""`open_checkpoint`: one call for every kind of checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from kerasseg.checkpoints.allowed import check_maps
from kerasseg.checkpoints.h5 import open_h5
from kerasseg.checkpoints.hdf5 import open_hdf5
from kerasseg.checkpoints.hub import fetch, is_remote
from kerasseg.checkpoints.identify import Kind, explain, kind_of, missing
from kerasseg.checkpoints.keras_file import open_keras, open_keras_folder, read_weights
from kerasseg.checkpoints.provenance import OpenedModel, Provenance, attach, recorded_beside, sha256_of
from kerasseg.checkpoints.stored import leaves, nested
from kerasseg.checkpoints.variants import is_assumed, settle_variant
from kerasseg.checkpoints.weights_only import is_weights_only, open_weights
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.text import count

__all__ = ["open_checkpoint"]

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

    A checkpoint is data: nothing in it is run, and what would have to be run (Lambda layers, Python code) or leads out of
    the file (links, archive members with `..`) is refused by name first.

    Args:
        path: A `.keras` or `.h5` file, a SavedModel folder, `hf://owner/name[@revision]` or `https://...`. What it is is
            told by its content, not by its name.
        architecture: The network that the weights of a `.keras` or `.h5` file belong to: a network (which is not changed),
            `unet`, `unet(depth=3, normalization=group)`, the path of its configuration as JSON, or of another checkpoint of
            it. The structure in the file itself, if any, is then not read. Without `architecture`, files that hold weights
            alone are read as a U-Net of kerasseg, by their shapes.
        allow_partial: For files that hold weights alone: take what fits and leave the rest as it was initialised.
        compare: For SavedModels: run the original beside the rebuilt network on random input.
        examples: For files that hold weights alone: images (slices, height, width, channels) in 0..1 for the network to
            segment, and their masks or None. What the shapes of the weights do not tell is then compared on them.

    Returns:
        The network, not compiled; input (batch, rows, columns, channels). `provenance(model)` tells where it came from.

    Raises:
        CheckpointError: The file is not a network that can be opened; the message says what it is.

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
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Readers expect the form that Keras writes; a file of another form may trip them anywhere.
        raise CheckpointError(
            "its content does not have the form that Keras writes",
            path=source,
            found=f"{type(error).__name__}: {error}"[:200],
            remedy="The file is damaged or was edited: fetch it again.",
        ) from error
    _check_purpose(opened.model, file)
    _check_numbers(opened.model, file)
    check_maps(opened.model, file)
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
    model = attach(opened.model, record)
    if examples is not None and is_assumed(model):
        images, masks = examples
        model, _ = settle_variant(model, np.asarray(images, np.float32), None if masks is None else np.asarray(masks))
    return model


@dataclass(frozen=True)
class _Options:
    architecture: str | Path | keras.Model | None
    allow_partial: bool
    compare: bool


def _read(file: Path, options: _Options) -> tuple[OpenedModel, Provenance | None]:
    match kind_of(file):
        case Kind.KERAS | Kind.KERAS_FOLDER as kind:
            if options.architecture is not None:
                with open_hdf5(read_weights(file), file) as hdf5:
                    return _read_weights(hdf5, file, options), None
            return open_keras(file) if kind is Kind.KERAS else open_keras_folder(file)
        case Kind.HDF5:
            with open_hdf5(file, file) as hdf5:
                if is_weights_only(hdf5):
                    return _read_weights(hdf5, file, options), None
                weights = hdf5.get("model_weights")
                if options.architecture is not None and isinstance(weights, h5py.Group):
                    return _read_weights(weights, file, options), None
                return open_h5(hdf5, file), None
        case Kind.SAVED_MODEL:
            # Not above: it alone needs TensorFlow.
            from kerasseg.checkpoints.savedmodel.open import open_savedmodel

            found = open_savedmodel(file, compare=options.compare)
            opened = OpenedModel(found.model, found.writer, found.kind, found.translated, found.largest_difference)
            return opened, recorded_beside(file)
        case _:
            raise explain(file)


def _read_weights(weights: h5py.Group, file: Path, options: _Options) -> OpenedModel:
    return open_weights(
        weights,
        file,
        architecture=options.architecture,
        allow_partial=options.allow_partial,
        open_other=open_checkpoint,
    )


def _thaw(model: keras.Model) -> tuple[str, ...]:
    """Make every layer trainable: what is frozen is decided by `freeze`, not by whoever saved the file."""
    frozen = [layer for _, layer in leaves(model) if not layer.trainable]
    # One by one: set on a network, the flag does not reach the layers where the network has that value already.
    for layer in (*nested(model), *frozen):
        layer.trainable = True
    count = sum(bool(layer.weights) for layer in frozen)
    return (f"{count} layers were saved frozen and are trainable now",) if count else ()


def _check_numbers(model: keras.Model, path: Path) -> None:
    """Refuse weights that hold NaN or infinity, by name."""
    bad = []
    for weight in model.weights:
        values = np.asarray(keras.ops.convert_to_numpy(weight), copy=False)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            kind = "NaN" if np.isnan(values).any() else "infinite numbers"
            bad.append(f"{kind} in {weight.path}")
    if bad:
        more = f" and {count(len(bad) - 5, 'other variable')}" if len(bad) > 5 else ""
        raise CheckpointError(
            "its weights are damaged",
            path=str(path),
            found=", ".join(bad[:5]) + more,
            expected="finite numbers",
            remedy="The training that wrote it diverged: take an earlier checkpoint.",
        )


def _check_purpose(model: keras.Model, path: Path) -> None:
    """Refuse networks that do not map an image to an image."""
    inputs, outputs = _shapes(model.inputs), _shapes(model.outputs)
    found = f"input {inputs[0]}, output {outputs[0]}"
    if len(inputs[0]) == 5 or len(outputs[0]) == 5:
        raise CheckpointError(
            "this is a 3-D network", path=str(path), found=found, expected="a 2-D one, (batch, rows, columns, channels)"
        )
    if len(inputs[0]) == 4 and not any(_holds_pixels(shape, inputs[0]) for shape in outputs):
        raise CheckpointError(
            "this is a classifier: its output is one vector for an image",
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


def _holds_pixels(output: tuple[int | None, ...], image: tuple[int | None, ...]) -> bool:
    """Whether an output is a map, or one value or one list of classes for each pixel of the image."""
    _, height, width, _ = image
    if len(output) == 4 or height is None or width is None:
        return len(output) == 4
    return output[1:] == (height, width) or (len(output) == 3 and output[1] == height * width)


def _shapes(tensors: Any) -> list[tuple[int | None, ...]]:
    return [tuple(t.shape) for t in tensors]
