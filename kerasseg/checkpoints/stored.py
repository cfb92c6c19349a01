"""Weights as files store them, layer by layer, and how they are matched to a network.

Keras has two layouts. The old one (`.h5` files of Keras 1-2 and legacy `.h5` of Keras 3) has one group per layer, under
the layer's name, and lists the names of its weights. The new one (`.weights.h5`, also inside `.keras`) has one group per
layer named after its class and a counter (`conv2d`, `conv2d_1`, ...), with numbered variables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import keras
import numpy as np

from kerasseg.checkpoints.allowed import NETWORKS
from kerasseg.checkpoints.hdf5 import attribute_texts, walk_datasets
from kerasseg.checkpoints.keras2.layer_config import Adapter, Untranslatable
from kerasseg_tfrecords.errors import CheckpointError

__all__ = [
    "LoadReport",
    "Match",
    "StoredLayer",
    "leaves",
    "match",
    "nested",
    "read_all",
    "read_by_class",
    "read_by_model",
    "read_by_name",
    "snake_case",
    "stored_numbers",
]

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


@dataclass(frozen=True)
class StoredLayer:
    """The weights of one layer in a file, not yet read.

    Attributes:
        path: The layer's name, or `network/layer` inside a nested network.
        values: Data sets by name, in the file's order: `conv2d/kernel:0` or `vars/0`.
        flipped: Whether kernels are stored mirrored, as by Keras on Theano.
    """

    path: str
    values: Mapping[str, h5py.Dataset]
    flipped: bool = False

    @property
    def short(self) -> dict[str, h5py.Dataset]:
        """The data sets under the last part of their names (`kernel`), if the layout has such names."""
        short: dict[str, h5py.Dataset] = {}
        for name, value in self.values.items():
            last = name.split("/")[-1]
            short.setdefault(name if last.isdigit() else last.partition(":")[0], value)
        return short

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(v.shape) for v in self.values.values())


@dataclass(frozen=True)
class LoadReport:
    """Which layers of a network received their weights.

    Attributes:
        loaded: Paths of the loaded layers.
        missing: Layers with weights that are not in the file.
        unexpected: Layers in the file that are not in the network.
        wrong_shape: Layers with different shapes in the file: path, the network's shapes, the file's shapes.
        parameters: Number of loaded values.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[tuple[str, str, str], ...] = field(default=())
    parameters: int = 0

    @property
    def complete(self) -> bool:
        """Whether every layer of the network got its weights and every layer of the file was used."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def lines(self) -> list[str]:
        """Return a line of counts, then one line for each layer that was not loaded."""
        head = (
            f"{len(self.loaded)} layers loaded ({self.parameters} parameters), {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.wrong_shape)} of wrong shape"
        )
        return [
            head,
            *(f"missing in the file: {name}" for name in self.missing),
            *(f"unexpected in the file: {name}" for name in self.unexpected),
            *(f"wrong shape: {name} (network {ours}, file {theirs})" for name, ours, theirs in self.wrong_shape),
        ]


def snake_case(class_name: str) -> str:
    """Return a class name as Keras' new layout writes it.

    >>> [snake_case(n) for n in ("Conv2DTranspose", "ReLU", "PReLU", "BatchNormalization")]
    ['conv2d_transpose', 're_lu', 'p_re_lu', 'batch_normalization']
    """
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def stored_numbers(group: h5py.Group) -> int:
    """Return the number of values stored below `group`."""
    return sum(int(d.size or 0) for _, d in walk_datasets(group))


def read_by_name(group: h5py.Group, path: object) -> dict[str, StoredLayer]:
    """Read the layers of the old layout by name, in the file's order, without layers that have no weights.

    Raises:
        CheckpointError: If the file lists weights that it does not hold.
    """
    flipped = attribute_texts(group, "backend") == ["theano"]
    layers: dict[str, StoredLayer] = {}
    for name in [*(attribute_texts(group, "layer_names") or []), "top_level_model_weights"]:
        inner = group.get(name)
        names = attribute_texts(inner, "weight_names") if isinstance(inner, h5py.Group) else []
        values = {}
        for weight in names or []:
            dataset = inner.get(weight)
            if not isinstance(dataset, h5py.Dataset):
                message = f"the weights `{weight}` of layer `{name}` are listed but missing"
                raise CheckpointError(message, path=str(path))
            values[weight] = dataset
        if values:
            layers[name] = StoredLayer(name, values, flipped)
    return layers


def read_by_class(group: h5py.Group, config: Mapping[str, Any], prefix: str = "") -> dict[str, StoredLayer]:
    """Read the layers of the new layout by name; `config`, as stored with them, names the layer of each group.

    Layers whose group is missing or empty are left out.
    """
    container = _container(group)
    if container is None:
        return {}
    inner = config["config"]
    entries = inner if isinstance(inner, list) else inner["layers"]
    if config["class_name"] == "Sequential":
        entries = [e for e in entries if e["class_name"] != "InputLayer"]
    layers: dict[str, StoredLayer] = {}
    for entry, child in zip(entries, _children(container, [str(e["class_name"]) for e in entries]), strict=True):
        if not isinstance(child, h5py.Group):
            continue
        path = prefix + str(entry.get("name") or entry["config"]["name"])
        if entry["class_name"] in NETWORKS:
            layers |= read_by_class(child, entry, f"{path}/")
        elif values := _values(child):
            layers[path] = StoredLayer(path, values)
    return layers


def read_by_model(group: h5py.Group, model: keras.Model, prefix: str = "") -> dict[str, StoredLayer]:
    """Read the layers of the new layout where `model` would look for them; the rest of the file is left out."""
    container = _container(group)
    if container is None:
        return {}
    layers: dict[str, StoredLayer] = {}
    names = [type(layer).__name__ for layer in model.layers]
    for layer, child in zip(model.layers, _children(container, names), strict=True):
        path = f"{prefix}{layer.name}"
        if not isinstance(child, h5py.Group):
            continue
        if isinstance(layer, keras.Model):
            layers |= read_by_model(child, layer, f"{path}/")
        elif values := _values(child):
            layers[path] = StoredLayer(path, values)
    return layers


def _container(group: h5py.Group) -> h5py.Group | None:
    return next((group[c] for c in CONTAINERS if isinstance(group.get(c), h5py.Group)), None)


def _children(container: h5py.Group, class_names: Iterable[str]) -> Iterator[Any]:
    """Yield the group of each layer: the class name in snake case, numbered from the second layer of a class."""
    counts: Counter[str] = Counter()
    for stem in map(snake_case, class_names):
        yield container.get(f"{stem}_{counts[stem]}" if counts[stem] else stem)
        counts[stem] += 1


def read_all(group: h5py.Group, prefix: str = "") -> dict[str, StoredLayer]:
    """Read every layer of the new layout by its group (`layers/conv2d_1`), the layers of a class in order."""
    container = next((c for c in CONTAINERS if isinstance(group.get(c), h5py.Group)), None)
    layers: dict[str, StoredLayer] = {}
    for key in sorted(group[container] if container else (), key=_natural_name):
        child, path = group[container][key], f"{prefix}{container}/{key}"
        if any(isinstance(child.get(c), h5py.Group) for c in CONTAINERS):
            layers |= read_all(child, f"{path}/")
        elif values := _values(child):
            layers[path] = StoredLayer(path, values)
    return layers


def _values(group: h5py.Group) -> dict[str, h5py.Dataset]:
    return dict(sorted(walk_datasets(group), key=lambda item: _natural(item[0])))


def _natural_name(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and number.isdigit() else (name, 0)


def _natural(path: str) -> list[Any]:
    # A layer's own variables come before those of its sublayers, as in `layer.weights`.
    own = path.startswith("vars/")
    return [not own, *((0, int(p), "") if p.isdigit() else (1, 0, p) for p in path.split("/"))]


def leaves(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield every layer of a network by path, including the layers of nested networks."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def nested(model: keras.Model) -> Iterator[keras.Model]:
    """Yield a network and the networks nested in it, outermost first."""
    yield model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from nested(layer)


@dataclass(frozen=True)
class Match:
    """The stored weights of each layer, before any are assigned.

    Attributes:
        report: What fits and what does not.
        values: Each layer that fits, with its weights in the layer's order.
    """

    report: LoadReport
    values: tuple[tuple[keras.layers.Layer, tuple[Any, ...]], ...]

    def apply(self) -> LoadReport:
        """Assign the weights that fit."""
        for layer, values in self.values:
            for weight, value in zip(layer.weights, values, strict=True):
                weight.assign(np.asarray(value))
            if isinstance(layer, keras.layers.Normalization) and layer.weights:
                layer.finalize_state()  # it works with copies of its mean and variance
        return self.report


def match(
    model: keras.Model, stored: Mapping[str, StoredLayer], *, adapters: Mapping[str, Adapter] | None = None
) -> Match:
    """Find the stored weights of each layer by its path.

    Args:
        model: A built network, left unchanged.
        stored: The result of `read_by_name` or `read_by_class`.
        adapters: For translated layers, functions that make the new weights from the old (see `translate`).
    """
    stored = _split_nested(model, dict(stored))
    loaded: list[str] = []
    missing: list[str] = []
    wrong: list[tuple[str, str, str]] = []
    pairs: list[tuple[keras.layers.Layer, tuple[Any, ...]]] = []
    for path, layer in leaves(model):
        weights = layer.weights
        if not weights:
            continue
        source = stored.pop(path, None)
        if source is None:
            missing.append(path)
            continue
        adapter = (adapters or {}).get(path)
        try:
            values = tuple(adapter({**source.values, **source.short}) if adapter else _ordered(source, weights))
        except Untranslatable:
            missing.append(path)
            continue
        if [tuple(v.shape) for v in values] != [tuple(w.shape) for w in weights]:
            wrong.append((path, _shapes(weights), _shapes(values)))
            continue
        if source.flipped:
            values = tuple(
                _unflipped(np.asarray(v)) if "kernel" in w.name else v for v, w in zip(values, weights, strict=True)
            )
        pairs.append((layer, values))
        loaded.append(path)
    count = sum(int(np.prod(v.shape)) for _, values in pairs for v in values)
    return Match(LoadReport(tuple(loaded), tuple(missing), tuple(stored), tuple(wrong), count), tuple(pairs))


def _shapes(values: Iterable[Any]) -> str:
    return ", ".join("x".join(str(n) for n in v.shape) or "scalar" for v in values) or "none"


def _ordered(source: StoredLayer, weights: list[Any]) -> list[h5py.Dataset]:
    short = source.short
    names = [w.name for w in weights]
    if len(short) == len(source.values) and set(names) == set(short):
        return [short[name] for name in names]
    return list(source.values.values())


def _unflipped(kernel: np.ndarray) -> np.ndarray:
    # Theano computes convolutions and TensorFlow correlations, so the kernels are mirror images.
    return kernel[::-1, ::-1] if kernel.ndim == 4 else kernel


def _split_nested(model: keras.Model, stored: dict[str, StoredLayer]) -> dict[str, StoredLayer]:
    """Distribute the weights of nested networks, which the old layout stores as one layer each."""
    result = dict(stored)
    for layer in model.layers:
        if not isinstance(layer, keras.Model) or layer.name not in stored:
            continue
        whole = result.pop(layer.name)
        inner = dict(leaves(layer, f"{layer.name}/"))
        by_name: dict[str, list[str]] = {}
        for path in inner:
            by_name.setdefault(path.rpartition("/")[2], []).append(path)
        parts: dict[str, dict[str, h5py.Dataset]] = {}
        for name, dataset in whole.values.items():
            owner = next((p for p in reversed(name.split("/")[:-1]) if len(by_name.get(p, ())) == 1), None)
            if owner is None:
                parts = _by_order(layer, inner, whole)
                break
            parts.setdefault(by_name[owner][0], {})[name] = dataset
        result |= {path: StoredLayer(path, values, whole.flipped) for path, values in parts.items()}
    return result


def _by_order(
    network: keras.Model, inner: Mapping[str, keras.layers.Layer], whole: StoredLayer
) -> dict[str, dict[str, h5py.Dataset]]:
    # Keras writes the trainable weights of a nested network first.
    owners = {id(w): path for path, layer in inner.items() for w in layer.weights}
    order = [*network.trainable_weights, *network.non_trainable_weights]
    parts: dict[str, dict[str, h5py.Dataset]] = {}
    for weight, (name, dataset) in zip(order, whole.values.items(), strict=False):
        path = owners.get(id(weight))
        if path is not None:
            parts.setdefault(path, {})[name] = dataset
    return parts
