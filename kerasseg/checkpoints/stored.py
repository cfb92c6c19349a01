"""Weights as files store them, layer by layer, and how they are matched to a network.

Keras has two layouts. The old one (`.h5` files of Keras 1-2 and legacy `.h5` of Keras 3) has one group per layer, under
the layer's name, and lists the names of its weights. The new one (`.weights.h5`, also inside `.keras`) has one group per
layer named after its class and a counter (`conv2d`, `conv2d_1`, ...), with numbered variables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import keras
import numpy as np

from kerasseg.checkpoints.allowed import NETWORKS
from kerasseg.checkpoints.hdf5 import attribute_texts, text_attribute, walk_datasets
from kerasseg.checkpoints.keras2.layer_config import Adapter
from kerasseg.checkpoints.operations import Untranslatable
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.sources.tree import natural_key


@dataclass(frozen=True)
class StoredLayer:
    """The weights of one layer (or `network/layer`) in a file: data sets by name (`conv2d/kernel:0`, `vars/0`), in order.

    Kernels of Keras on Theano are stored `flipped`.
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
    """The layers of a network that received their weights, and those that did not.

    Attributes:
        loaded, missing: Paths of layers with weights that are, or are not, in the file.
        unexpected: Layers in the file that are not in the network.
        wrong_shape: Layers with different shapes in the file: path, the network's shapes, the file's shapes.
        parameters: Number of loaded values.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[tuple[str, str, str], ...] = ()
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
    return sum(int(d.size or 0) for _, d in walk_datasets(group))


def read_by_name(group: h5py.Group) -> dict[str, StoredLayer]:
    """Read the layers of the old layout by name, in the file's order, without layers that have no weights."""
    flipped = attribute_texts(group, "backend") == ["theano"]
    layers: dict[str, StoredLayer] = {}
    for name in [*(attribute_texts(group, "layer_names") or []), "top_level_model_weights"]:
        inner = group.get(name)
        names = attribute_texts(inner, "weight_names") if isinstance(inner, h5py.Group) else []
        values = {weight: inner.get(weight) for weight in names or []}
        lost = [weight for weight, dataset in values.items() if not isinstance(dataset, h5py.Dataset)]
        if lost:
            raise CheckpointError(f"the weights `{lost[0]}` of layer `{name}` are listed but missing")
        if values:
            layers[name] = StoredLayer(name, values, flipped)
    return layers


def read_by_class(
    group: h5py.Group, network: Mapping[str, Any] | keras.Model, prefix: str = ""
) -> dict[str, StoredLayer]:
    """Read the layers of the new layout by name.

    `network` names the layer of each group: the configuration stored with the weights, or a model that should have them.
    Layers whose group is missing or empty, and groups that the network does not have, are left out.
    """
    groups = container(group)
    counts: Counter[str] = Counter()
    layers: dict[str, StoredLayer] = {}
    if groups is None:
        return layers
    for class_name, name, inner in _members(network):
        stem = snake_case(class_name)  # numbered from the second layer of a class
        child = groups.get(f"{stem}_{counts[stem]}" if counts[stem] else stem)
        counts[stem] += 1
        if not isinstance(child, h5py.Group):
            continue
        if inner is not None:
            layers |= read_by_class(child, inner, f"{prefix}{name}/")
        elif values := _values(child):
            layers[prefix + name] = StoredLayer(prefix + name, values)
    return layers


def _members(network: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield the class and the name of each layer, and the layer itself if it is a network."""
    if isinstance(network, keras.Model):
        for layer in network.layers:
            yield type(layer).__name__, layer.name, layer if isinstance(layer, keras.Model) else None
        return
    inner = network["config"]
    for entry in inner if isinstance(inner, list) else inner["layers"]:
        class_name = str(entry["class_name"])
        if network["class_name"] != "Sequential" or class_name != "InputLayer":
            name = str(entry.get("name") or entry["config"]["name"])
            yield class_name, name, entry if class_name in NETWORKS else None


def container(group: h5py.Group) -> h5py.Group | None:
    """Return the group of a network's layers in the new layout; None for another layout."""
    found = (group.get(name) for name in ("layers", "_layer_checkpoint_dependencies"))
    return next((inner for inner in found if isinstance(inner, h5py.Group)), None)


def read_all(group: h5py.Group) -> dict[str, StoredLayer]:
    """Read every layer of the new layout by its group (`layers/conv2d_1`), the layers of a class in order."""
    layers: dict[str, StoredLayer] = {}
    for _, child in sorted((container(group) or {}).items(), key=lambda item: natural_key(item[0])):
        path = child.name.removeprefix("/")
        if container(child) is not None:
            layers |= read_all(child)
        elif values := _values(child):
            layers[path] = StoredLayer(path, values)
    return layers


def noted_names(group: h5py.Group) -> dict[str, str]:
    """Return the names of layers that Keras 3 stores with their variables, by group; empty for other writers."""
    names: dict[str, str] = {}

    def note(path: str, item: object) -> None:
        place, _, last = path.rpartition("/")
        if isinstance(item, h5py.Group) and last == "vars" and "/" in place and (name := text_attribute(item, "name")):
            names[place] = name

    group.visititems(note)
    return names


def _values(group: h5py.Group) -> dict[str, h5py.Dataset]:
    # A layer's own variables come before those of its sublayers, as in `layer.weights`.
    order = sorted(walk_datasets(group), key=lambda item: (not item[0].startswith("vars/"), natural_key(item[0])))
    return dict(order)


def leaves(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield every layer of a network by path, including the layers of nested networks."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


@dataclass(frozen=True)
class Match:
    """The stored weights of each layer that fits, in the layer's order, before any are assigned."""

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
    """Find the stored weights of each layer by its path; `adapters` make those of translated layers from the old ones."""
    stored = _split_nested(model, stored)
    loaded: list[str] = []
    missing: list[str] = []
    wrong: list[tuple[str, str, str]] = []
    pairs: list[tuple[keras.layers.Layer, tuple[Any, ...]]] = []
    for path, layer in leaves(model):
        weights = layer.weights
        if not weights:
            continue
        source, adapter = stored.pop(path, None), (adapters or {}).get(path)
        try:
            if source is None:
                raise Untranslatable("it is not in the file")
            values = tuple(adapter({**source.values, **source.short}) if adapter else _ordered(source, weights))
        except Untranslatable:
            missing.append(path)
            continue
        if [tuple(v.shape) for v in values] != [tuple(w.shape) for w in weights]:
            wrong.append((path, _shapes(weights), _shapes(values)))
            continue
        if source.flipped:
            # Theano computes convolutions and TensorFlow correlations, so the kernels are mirror images.
            flip = ["kernel" in w.name and len(w.shape) == 4 for w in weights]
            values = tuple(np.asarray(v)[::-1, ::-1] if f else v for v, f in zip(values, flip, strict=True))
        pairs.append((layer, values))
        loaded.append(path)
    count = sum(int(np.prod(v.shape)) for _, values in pairs for v in values)
    return Match(LoadReport(tuple(loaded), tuple(missing), tuple(stored), tuple(wrong), count), tuple(pairs))


def _shapes(values: Iterable[Any]) -> str:
    return ", ".join("x".join(str(n) for n in v.shape) or "scalar" for v in values) or "none"


def _ordered(source: StoredLayer, weights: list[Any]) -> list[h5py.Dataset]:
    short, names = source.short, [w.name for w in weights]
    by_name = len(short) == len(source.values) and set(names) == set(short)
    return [short[name] for name in names] if by_name else list(source.values.values())


def _split_nested(model: keras.Model, stored: Mapping[str, StoredLayer]) -> dict[str, StoredLayer]:
    """Distribute the weights of nested networks, which the old layout stores as one layer each."""
    result = dict(stored)
    for network in model.layers:
        if not isinstance(network, keras.Model) or network.name not in stored:
            continue
        whole = result.pop(network.name)
        inner = dict(leaves(network, f"{network.name}/"))
        by_name: dict[str, list[str]] = {}
        for path in inner:
            by_name.setdefault(path.rpartition("/")[2], []).append(path)
        owners = [
            next((by_name[p][0] for p in reversed(name.split("/")[:-1]) if len(by_name.get(p, ())) == 1), None)
            for name in whole.values
        ]
        if None in owners:  # by order: Keras writes the trainable weights of a nested network first
            of_weight = {id(w): path for path, layer in inner.items() for w in layer.weights}
            order = [*network.trainable_weights, *network.non_trainable_weights]
            owners = [of_weight.get(id(weight)) for weight in order]
        parts: dict[str, dict[str, h5py.Dataset]] = {}
        for owner, (name, dataset) in zip(owners, whole.values.items(), strict=False):
            if owner is not None:
                parts.setdefault(owner, {})[name] = dataset
        result |= {path: StoredLayer(path, values, whole.flipped) for path, values in parts.items()}
    return result
