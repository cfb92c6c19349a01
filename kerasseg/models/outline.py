"""The structure of a network from its file alone, without Keras, whose import takes seconds.

Keras 3 stores the classes, arguments and connections of all layers with the shapes of their inputs. `read_outline` reads
them for networks of common layers, compares the shapes of the weights, and returns None for everything else, so that
`open_checkpoint` with all its checks decides about unusual and damaged files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasseg.checkpoints.hdf5 import attribute_texts, open_hdf5, text_attribute
from kerasseg.checkpoints.identify import Kind, is_keras_3, kind_of, writer_name
from kerasseg.checkpoints.provenance import Provenance, recorded, sha256_of
from kerasseg.checkpoints.savedmodel.graph import sort_from
from kerasseg.models.graph import Graph, Node, Shape
from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import DataError, KerassegError
from kerasseg_tfrecords.formats.weights import read_members

if TYPE_CHECKING:
    import h5py

_LARGEST_CONFIG, _LARGEST_MAP = 1 << 24, 1 << 28
_KEEPS_SHAPE = {"Activation", "BatchNormalization", "ReLU", "Softmax"}
_WITHOUT_WEIGHTS = _KEEPS_SHAPE - {"BatchNormalization"} | {
    "InputLayer", "LeakyReLU", "ELU", "Dropout", "SpatialDropout2D", "GaussianNoise", "Identity", "MaxPooling2D",
    "AveragePooling2D", "UpSampling2D", "ZeroPadding2D", "Cropping2D", "Concatenate", "Add", "Average", "Maximum",
    "Minimum", "Multiply", "Subtract",
}  # fmt: skip
_MODULES = {"keras", "keras.initializers", "keras.regularizers", "keras.constraints"}
_GROUPS = {
    "Conv2D": "conv2d",
    "Conv2DTranspose": "conv2d_transpose",
    "DepthwiseConv2D": "depthwise_conv2d",
    "BatchNormalization": "batch_normalization",
}
"""Class of a layer with weights -> name of its group in the file."""


class _OtherNetworkError(Exception):
    """Raised for networks that are left to Keras."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight in a file."""

    shape: tuple[int, ...]
    trainable: bool


class Layer:
    """A layer in a file, with its arguments as attributes. Its subclasses have the names of Keras' classes."""

    name: str
    activation: Any
    weights: tuple[Weight, ...]

    def __init__(self, config: Mapping[str, Any], weights: tuple[Weight, ...]) -> None:
        self.__dict__.update(config)
        self.activation = SimpleNamespace(__name__=config["activation"]) if "activation" in config else None
        self.weights = weights


def read_outline(path: Path) -> tuple[Graph, Provenance] | None:
    """Read a `.keras` archive or whole-model `.h5` file of Keras 3; None for other files.

    Returns:
        The graph, whose operations are of type `Layer`, and the origin as `open_checkpoint` records it.
    """
    if not path.is_file():  # reading a pipe would block
        return None
    try:
        kind = kind_of(path)
        if kind is Kind.KERAS:
            return _from_archive(path)
        return _from_hdf5(path) if kind is Kind.HDF5 else None
    # Whatever is unusual or damaged is opened, refused and explained by `open_checkpoint`.
    except (_OtherNetworkError, KerassegError, OSError, RuntimeError) as error:
        if isinstance(error.__cause__, DataError) and error.__cause__.kind == "crashed":
            raise  # it would take as long again, or as much memory
        return None
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
        return None


def _from_archive(path: Path) -> tuple[Graph, Provenance]:
    members = read_members(path, ("config.json", "metadata.json"))
    config = parse_json(members["config.json"], max_bytes=_LARGEST_CONFIG)
    version = parse_json(members["metadata.json"], max_bytes=1 << 20)["keras_version"]
    counts: Counter[str] = Counter()

    def stored(file: h5py.File, kind: str, name: str) -> list[Any]:  # noqa: ARG001 - groups are numbered by class
        stem, number = _GROUPS[kind], counts[kind]
        counts[kind] += 1
        values = file[f"layers/{stem}_{number}/vars" if number else f"layers/{stem}/vars"]
        return [values[str(place)] for place in range(len(values))]

    with open_hdf5(path, path, "model.weights.h5") as file:
        return _outline(path, config, version, "Keras 3 archive (.keras)", lambda *layer: stored(file, *layer))


def _from_hdf5(path: Path) -> tuple[Graph, Provenance]:
    with open_hdf5(path, path) as file:
        group = file["model_weights"]
        version = text_attribute(file, "keras_version") or text_attribute(group, "keras_version")
        config = parse_json(text_attribute(file, "model_config") or "")

        def stored(kind: str, name: str) -> list[Any]:  # noqa: ARG001 - groups have the names of layers
            return [group[name][weight] for weight in attribute_texts(group[name], "weight_names") or ()]

        return _outline(path, config, version, "Keras 3 HDF5 (legacy)", stored)


def _require(fits: bool) -> None:
    if not fits:
        raise _OtherNetworkError


def _outline(
    path: Path, config: Any, version: str | None, kind: str, stored: Callable[[str, str], list[Any]]
) -> tuple[Graph, Provenance]:
    _require(is_keras_3(version) and config["class_name"] == "Functional")
    network = config["config"]
    entries = {entry["config"]["name"]: entry for entry in network["layers"]}
    _require(len(entries) == len(network["layers"]))
    layers: dict[str, Layer] = {}
    frozen = 0
    for name, entry in entries.items():
        _check_entry(entry)
        weights: tuple[Weight, ...] = ()
        if entry["class_name"] not in _WITHOUT_WEIGHTS:
            values = stored(entry["class_name"], name)
            weights = _weights(entry, [tuple(value.shape) for value in values])
            _require(all(np.isfinite(np.asarray(value)).all() for value in values))
            frozen += not entry["config"].get("trainable", True)
        layers[name] = type(entry["class_name"], (Layer,), {})(entry["config"], weights)
    graph = _graph(entries, layers, _names(network["input_layers"]), _names(network["output_layers"]))
    thawed = (f"{frozen} layers were saved frozen and are trainable now",) if frozen else ()
    record, digest = recorded(config), sha256_of(path)
    if record is None:
        record = Provenance(path=str(path), sha256=digest, writer=writer_name(version), kind=kind, translated=thawed)
    else:
        record = replace(record, file=str(path), file_sha256=digest)
    return graph, record


def _check_entry(entry: Mapping[str, Any]) -> None:
    """Leave everything to Keras but plain float32 layers that are called once."""
    kind, config = entry["class_name"], entry["config"]
    _require(kind in _WITHOUT_WEIGHTS or kind in _GROUPS)
    _require(entry.get("module") in (None, "keras.layers") and entry.get("registered_name") in (None, kind))
    policy = config.get("dtype", "float32")
    _require(policy == "float32" or policy["config"] == {"name": "float32"})
    _require(isinstance(config.get("activation", ""), str))
    for part in config.values():  # initializers, regularizers, the policy; `open_checkpoint` refuses anything else
        inner = part["config"].values() if isinstance(part, Mapping) else ()
        _require(not isinstance(part, Mapping) or part["module"] in _MODULES)
        _require(not any(isinstance(value, Mapping) for value in inner))
    _require(config.get("data_format", "channels_last") == "channels_last")
    _require(len(entry["inbound_nodes"]) == (kind != "InputLayer"))


def _weights(entry: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> tuple[Weight, ...]:
    """Return the weights of a layer if they have the shapes that its arguments and its input ask for."""
    kind, config = entry["class_name"], entry["config"]
    channels = _tensors(entry)[0]["shape"][-1]
    if kind == "BatchNormalization":
        _require(config["axis"] in (-1, 3) and config["scale"] and config["center"])
        expected = [(channels,)] * 4
    else:
        size, filters = tuple(config["kernel_size"]), config.get("filters")
        if kind == "Conv2D":
            kernel, out = (channels // config["groups"], filters), filters
        elif kind == "Conv2DTranspose":
            kernel, out = (filters, channels), filters
        else:
            kernel, out = (channels, config["depth_multiplier"]), channels * config["depth_multiplier"]
        expected = [(*size, *kernel), *([(out,)] if config["use_bias"] else [])]
    _require(shapes == expected)
    measured = kind == "BatchNormalization"
    return tuple(Weight(shape, not measured or place < 2) for place, shape in enumerate(shapes))


def _tensors(entry: Mapping[str, Any]) -> list[Any]:
    """Return the tensors that a layer is called with: shape, and `keras_history` with the layer that made it."""
    (call,) = entry["inbound_nodes"]
    (argument,) = call["args"]
    _require(not any(call["kwargs"].values()))
    found = [tensor["config"] for tensor in (argument if isinstance(argument, list) else [argument])]
    _require(bool(found) and all(tensor["keras_history"][1:] == [0, 0] for tensor in found))
    return found


def _names(ends: list[Any]) -> list[str]:
    return [ends[0]] if isinstance(ends[0], str) else [end[0] for end in ends]


def _graph(entries: Mapping[str, Any], layers: Mapping[str, Layer], inputs: list[str], outputs: list[str]) -> Graph:
    """Connect the layers in the order of `kerasseg.models.graph.flatten`."""
    shapes: dict[str, Shape] = {
        tensor["keras_history"][0]: tuple(tensor["shape"])
        for entry in entries.values()
        if entry["inbound_nodes"]
        for tensor in _tensors(entry)
    }
    _require(all(len(shape) == 4 and math.prod(n or 1 for n in shape) <= _LARGEST_MAP for shape in shapes.values()))
    sources = {
        name: [tensor["keras_history"][0] for tensor in _tensors(entry)] if entry["inbound_nodes"] else []
        for name, entry in entries.items()
    }
    _require(len(inputs) == 1 and inputs == [name for name, before in sources.items() if not before])
    nodes: list[Node] = []
    known: dict[str, int] = {}
    for name in sort_from(outputs, sources.__getitem__):
        incoming = tuple(shapes[source] for source in sources[name])
        if incoming:
            made = shapes.get(name) or _made(layers[name], incoming[0])
        else:
            made = tuple(entries[name]["config"]["batch_shape"])
        known[name] = len(nodes)
        parents = tuple(known[source] for source in sources[name])
        nodes.append(Node(len(nodes), layers[name], name, parents, incoming, made))
    _require(len(nodes) == len(entries))
    graph = Graph(tuple(nodes), (0,), tuple(dict.fromkeys(known[name] for name in outputs)))
    # Other first layers may rescale the image, which `read_input_scaling` looks for.
    _require(all(type(nodes[child].operation).__name__ == "Conv2D" for child in graph.children[0]))
    return graph


def _made(layer: Layer, shape: Shape) -> Shape:
    """Return the shape of an output, which no other layer's inputs record."""
    kind: Any = layer
    if type(layer).__name__ == "Conv2D":
        _require(set(kind.strides) == {1} and (kind.padding == "same" or set(kind.kernel_size) == {1}))
        return (*shape[:3], kind.filters)
    _require(type(layer).__name__ in _KEEPS_SHAPE)
    return shape
