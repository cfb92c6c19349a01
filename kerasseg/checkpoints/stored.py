"""Weights as files keep them, layer by layer, and how they get into a network.

Keras has two layouts. The old one (whole-model and weights `.h5` of Keras 1-2 and Keras' legacy `.h5`) has one group a
layer, by the layer's name, and the names of its weights. The new one (`.weights.h5`, also inside `.keras`) has one group a
layer by its class and a counter (`conv2d`, `conv2d_1`, ...), with numbered variables.
"""

from __future__ import annotations

import re
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
    "assign",
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
    """The weights of one layer in a file, not read yet.

    Attributes:
        path: The layer's name, or `network/layer` inside a nested network.
        values: Data sets by their name in the file, in the file's order: `conv2d/kernel:0`, or `vars/0`.
        flipped: Whether kernels are stored mirrored, as Keras on Theano did.
    """

    path: str
    values: Mapping[str, h5py.Dataset]
    flipped: bool = False

    @property
    def short(self) -> dict[str, h5py.Dataset]:
        """The data sets under the last part of their names (`kernel`), where the layout has such names."""
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
    """Which layers got their weights.

    Attributes:
        loaded: Layers that did, by path.
        missing: Layers with weights that the file says nothing about.
        unexpected: Layers in the file that the network does not have.
        wrong_shape: Layers whose weights have other shapes in the file: path, the network's shapes, the file's shapes.
        parameters: How many numbers were loaded.
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
        """The report for people, one line a layer that is not simply loaded, after a line of counts."""
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
    """A class's name as Keras' new layout writes it.

    >>> [snake_case(n) for n in ("Conv2DTranspose", "ReLU", "PReLU", "BatchNormalization")]
    ['conv2d_transpose', 're_lu', 'p_re_lu', 'batch_normalization']
    """
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def stored_numbers(group: h5py.Group) -> int:
    """How many numbers a file stores below `group`."""
    return sum(int(d.size or 0) for _, d in walk_datasets(group))


def read_by_name(group: h5py.Group, path: object) -> dict[str, StoredLayer]:
    """The layers of the old layout, by name, in the file's order; layers without weights are left out.

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
                raise CheckpointError(
                    f"the weights `{weight}` of layer `{name}` are listed but not there", path=str(path)
                )
            values[weight] = dataset
        if values:
            layers[name] = StoredLayer(name, values, flipped)
    return layers


def read_by_class(group: h5py.Group, config: Mapping[str, Any], prefix: str = "") -> dict[str, StoredLayer]:
    """The layers of the new layout, by name: `config` (as the writer wrote it) says which layer each group is.

    Layers that have no group in the file, or an empty one, are left out.
    """
    container = next((group[c] for c in CONTAINERS if isinstance(group.get(c), h5py.Group)), None)
    if container is None:
        return {}
    inner = config["config"]
    entries = inner if isinstance(inner, list) else inner["layers"]
    if config["class_name"] == "Sequential":
        entries = [e for e in entries if e["class_name"] != "InputLayer"]
    counts: dict[str, int] = {}
    layers: dict[str, StoredLayer] = {}
    for entry in entries:
        stem = snake_case(str(entry["class_name"]))
        number = counts.get(stem, 0)
        counts[stem] = number + 1
        child = container.get(f"{stem}_{number}" if number else stem)
        name = str(entry.get("name") or entry["config"]["name"])
        if not isinstance(child, h5py.Group):
            continue
        if entry["class_name"] in NETWORKS:
            layers |= read_by_class(child, entry, f"{prefix}{name}/")
            continue
        if values := _values(child):
            layers[f"{prefix}{name}"] = StoredLayer(f"{prefix}{name}", values)
    return layers


def read_by_model(group: h5py.Group, model: keras.Model, prefix: str = "") -> dict[str, StoredLayer]:
    """The layers of the new layout as `model` would look for them; what it does not look for is left out."""
    container = next((group[c] for c in CONTAINERS if isinstance(group.get(c), h5py.Group)), None)
    counts: dict[str, int] = {}
    layers: dict[str, StoredLayer] = {}
    for layer in model.layers:
        stem = snake_case(type(layer).__name__)
        number = counts.get(stem, 0)
        counts[stem] = number + 1
        child = None if container is None else container.get(f"{stem}_{number}" if number else stem)
        if not isinstance(child, h5py.Group):
            continue
        if isinstance(layer, keras.Model):
            layers |= read_by_model(child, layer, f"{prefix}{layer.name}/")
        elif values := _values(child):
            layers[f"{prefix}{layer.name}"] = StoredLayer(f"{prefix}{layer.name}", values)
    return layers


def read_all(group: h5py.Group, prefix: str = "") -> dict[str, StoredLayer]:
    """Every layer of the new layout with weights, under its group (`layers/conv2d_1`), each class in its order."""
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
    # A layer's own variables come before those of its parts, as `layer.weights` has them.
    own = path.startswith("vars/")
    return [not own, *((0, int(p), "") if p.isdigit() else (1, 0, p) for p in path.split("/"))]


def leaves(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Every layer of a network by path, those of nested networks one by one."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def nested(model: keras.Model) -> Iterator[keras.Model]:
    """A network and the networks nested in it, outermost first."""
    yield model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from nested(layer)


@dataclass(frozen=True)
class Match:
    """Which stored weights belong to which layer, before any is put in place.

    Attributes:
        report: What fits and what does not.
        values: For each layer that fits: the layer, and its weights in its order.
    """

    report: LoadReport
    values: tuple[tuple[keras.layers.Layer, tuple[Any, ...]], ...]

    def apply(self) -> LoadReport:
        """Put the weights that fit into their layers, all of a layer or none."""
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
        model: A built network; it is not changed.
        stored: What `read_by_name` or `read_by_class` found.
        adapters: For translated layers, what makes the new weights from the old (see `translate`).
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


def assign(
    model: keras.Model, stored: Mapping[str, StoredLayer], *, adapters: Mapping[str, Adapter] | None = None
) -> LoadReport:
    """`match`, and put what fits in place; nothing is raised for a partial match."""
    return match(model, stored, adapters=adapters).apply()


def _shapes(values: Iterable[Any]) -> str:
    return ", ".join("x".join(str(n) for n in v.shape) or "scalar" for v in values) or "none"


def _ordered(source: StoredLayer, weights: list[Any]) -> list[h5py.Dataset]:
    short = source.short
    names = [w.name for w in weights]
    if len(short) == len(source.values) and set(names) == set(short):
        return [short[name] for name in names]
    return list(source.values.values())


def _unflipped(kernel: np.ndarray) -> np.ndarray:
    # Theano computed convolutions, TensorFlow computes correlations: the kernels are each other's mirror image.
    return kernel[::-1, ::-1] if kernel.ndim == 4 else kernel


def _split_nested(model: keras.Model, stored: dict[str, StoredLayer]) -> dict[str, StoredLayer]:
    """The old layout keeps a nested network as one layer with many weights; give them to its layers."""
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
    # The order in which Keras writes the weights of a nested network: trainable ones first.
    owners = {id(w): path for path, layer in inner.items() for w in layer.weights}
    order = [*network.trainable_weights, *network.non_trainable_weights]
    parts: dict[str, dict[str, h5py.Dataset]] = {}
    for weight, (name, dataset) in zip(order, whole.values.items(), strict=False):
        path = owners.get(id(weight))
        if path is not None:
            parts.setdefault(path, {})[name] = dataset
    return parts
