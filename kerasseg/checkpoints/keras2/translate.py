"""Translation of Keras 2 network configurations to Keras 3.

A new dictionary is returned, and nothing that the configuration names is looked up or called. The result must still pass
`allowed.check_config`. Only networks that compute with tensor sizes are partly built, after a check, to find these sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import keras

from kerasseg.checkpoints.allowed import NETWORKS, build, check_config, check_size, without_memory
from kerasseg.checkpoints.keras2.layer_config import (
    Adapter,
    Call,
    NewLayer,
    OldLayer,
    ends,
    entry_name,
    histories,
    map_ends,
    map_refs,
    parse_call,
)
from kerasseg.checkpoints.keras2.layers import ADDONS, LEGACY_BILINEAR, translate_layer
from kerasseg.checkpoints.keras2.rewrites import Translation, not_understood, rewrite
from kerasseg.checkpoints.keras2.tf_operations import OPERATION_CLASSES, Sizes, translate_operation
from kerasseg.checkpoints.operations import Ref, Untranslatable
from kerasseg.checkpoints.savedmodel.graph import sort_from
from kerasseg.checkpoints.stored import StoredLayer, match
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.text import count

_SUBCLASSED = "A subclassed model is Python code: run that code, and save a functional network."


def _one_end(value: Any) -> Any:
    # With a list of one input or output, Keras would build a network that takes or returns a list.
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


def with_bare_ends(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a functional network's configuration with a single input or output not in a list."""
    inner = config.get("config")
    if not isinstance(inner, dict):
        return dict(config)
    bare = {key: _one_end(inner[key]) for key in ("input_layers", "output_layers") if key in inner}
    return {**config, "config": {**inner, **bare}}


def _paths(network: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the name of every layer, after those of the networks that it is nested in."""
    config = network["config"]
    for entry in config if isinstance(config, list) else config.get("layers", []):
        inner = (*path, entry_name(entry))
        yield inner
        if entry["class_name"] in NETWORKS:
            yield from _paths(entry, inner)


def _without_slashes(network: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a network with names that Keras 3 allows, and the new path of each layer by the old one where they differ."""
    paths = list(_paths(network))
    own = network["config"].get("name", "") if isinstance(network["config"], dict) else ""
    taken = {own, *(name for path in paths for name in path)}
    fresh: dict[str, str] = {}
    for name in sorted(n for n in taken if "/" in n):
        free = name.replace("/", "_")
        candidates = itertools.chain([free], (f"{free}_{i}" for i in itertools.count(1)))
        fresh[name] = next(c for c in candidates if c not in taken)
        taken.add(fresh[name])

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: replaced(v) for k, v in value.items()}
        if isinstance(value, list):
            return [replaced(v) for v in value]
        return fresh.get(value, value) if isinstance(value, str) else value

    pairs = (("/".join(path), "/".join(fresh.get(name, name) for name in path)) for path in paths)
    return replaced(dict(network)), {old: new for old, new in pairs if old != new}


def translate(config: Mapping[str, Any], *, writer: str = "") -> Translation:
    """Rewrite the configuration of a functional or sequential network as Keras 2.x or tf.keras wrote it.

    Args:
        config: `{"class_name": "Functional" | "Model" | "Sequential", "config": {...}}`; left unchanged.
        writer: The version of Keras, for instance `2.3.1` or `2.2.4-tf`, because some layers changed between versions.
    """
    translator = _Translator(samples_at_corners(writer))
    try:
        named, renamed = _without_slashes(config)
        rewritten = translator.network(named, "")
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, ValueError) as error:
        raise not_understood(error) from error
    if renamed:
        old, new = next(iter(renamed.items()))
        translator.notes.append(f"{count(len(renamed), 'layer')} renamed because Keras 3 allows no `/`: {old} is {new}")
    final = rewrite(rewritten)
    notes = tuple(dict.fromkeys((*translator.notes, *final.notes)))
    return Translation(final.config, notes, {**translator.adapters, **final.adapters}, renamed)


def samples_at_corners(writer: str) -> bool:
    """Return whether this version's bilinear upsampling sampled at corners, as in Keras 2.0-2.3 (but not `tf.keras`).

    >>> samples_at_corners("2.3.1"), samples_at_corners("2.2.4-tf"), samples_at_corners("2.15.0")
    (True, False, False)
    """
    numbers = writer.split(".")
    return len(numbers) > 1 and numbers[0] == "2" and numbers[1] in {"0", "1", "2", "3"} and not writer.endswith("-tf")


def build_translated(translation: Translation, numbers: int, stored: Mapping[str, StoredLayer]) -> keras.Model:
    """Check and build a translated network, at most as large as the file, and assign weights stored under old names."""
    check_config(translation.config)
    check_size(translation.config, numbers)
    model = build(translation.config)
    report = match(model, translation.placed(stored), adapters=translation.adapters).apply()
    if not report.complete:
        found = "; ".join(report.lines())
        raise CheckpointError("the weights do not fit the network that the file describes", found=found)
    return model


class _Translator:
    def __init__(self, corners: bool) -> None:
        self.corners = corners
        self.notes: list[str] = []
        self.adapters: dict[str, Adapter] = {}

    def network(self, entry: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        class_name = entry["class_name"]
        if class_name not in NETWORKS:
            what, found = "the file holds neither a functional nor a sequential network", f"class {class_name}"
            raise CheckpointError(what, found=found, expected="Functional, Model or Sequential", remedy=_SUBCLASSED)
        config = entry["config"]
        if class_name == "Sequential":
            return self.sequential(config, prefix)
        if "layers" in config and "output_layers" in config:
            return self.functional(config, prefix)
        expected = "a functional or sequential network"
        raise CheckpointError("the file describes a subclassed model", expected=expected, remedy=_SUBCLASSED)

    def functional(self, config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        names = frozenset(entry_name(e) for e in config["layers"])
        nested = {entry_name(e): e for e in config["layers"] if e["class_name"] in NETWORKS}
        parsed: dict[str, tuple[Call, ...]] = {}
        for entry in config["layers"]:
            try:
                parsed[entry_name(entry)] = tuple(parse_call(node, names) for node in entry.get("inbound_nodes") or [])
            except Untranslatable as error:
                raise self.error(entry_name(entry), entry["class_name"], error) from error
        offsets = {name: _offset(name, entry, parsed, config) for name, entry in nested.items()}
        rows: list[_Row] = []
        last: dict[str, str] = {}

        def shape_of(ref: Ref, usual: bool) -> tuple[int | None, ...]:
            probe = _node(Call((ref,)), last, offsets)
            return _shape(_wired(rows, last, offsets), probe, usual=usual)

        sizes = Sizes(shape_of)
        for entry in config["layers"]:
            name, calls = entry_name(entry), parsed[entry_name(entry)]
            if name in nested:
                rows.append(([{**self.network(entry, f"{prefix}{name}/"), "name": name}], [calls]))
                continue
            old = OldLayer(name, _class(entry), dict(entry["config"]), calls)
            chain = self.chain(old, prefix, sizes)
            if chain:
                last[name] = chain[-1].name
                first = calls if chain[0].calls is None else chain[0].calls
                rows.append(([_entry(layer) for layer in chain], [first, *(layer.calls for layer in chain[1:])]))
        layers = _wired(rows, last, offsets)

        def moved(end: list[Any]) -> list[Any]:
            name, node, tensor = end
            if name in nested:
                # Here Keras 3 numbers the calls of nested functional networks from 1, and all others from 0.
                node = node - offsets[name] + (nested[name]["class_name"] != "Sequential")
            return [last.get(name, name), node, tensor]

        return _network(
            "Functional",
            name=config["name"],
            trainable=config.get("trainable", True),
            layers=layers,
            input_layers=_one_end(map_ends(config["input_layers"], moved)),
            output_layers=_one_end(map_ends(config["output_layers"], moved)),
        )

    def sequential(self, config: Any, prefix: str) -> dict[str, Any]:
        # Keras 2.0-2.2 wrote only the list of layers.
        entries = config if isinstance(config, list) else config["layers"]
        name = "sequential" if isinstance(config, list) else config["name"]
        shape = None if isinstance(config, list) else config.get("build_input_shape")
        layers: list[dict[str, Any]] = []
        for number, entry in enumerate(entries):
            if entry["class_name"] in NETWORKS:
                layers.append(self.network(entry, f"{prefix}{entry_name(entry)}/"))
                continue
            inner = dict(entry["config"])
            if number == 0 and entry["class_name"] != "InputLayer":
                first = inner.get("batch_input_shape") or shape
                if first:
                    dtype = inner.get("dtype") if isinstance(inner.get("dtype"), str) else "float32"
                    batch = {"batch_shape": first, "dtype": dtype, "name": f"{entry_name(entry)}_input"}
                    layers.append(_entry(NewLayer("InputLayer", batch)))
            old = OldLayer(entry_name(entry), _class(entry), inner, ())
            layers += [_entry(layer) for layer in self.chain(old, prefix)]
        for entry in layers:
            entry.pop("inbound_nodes", None)
        return _network("Sequential", name=name, layers=layers)

    def chain(self, old: OldLayer, prefix: str, sizes: Sizes | None = None) -> list[NewLayer]:
        """Translate one layer; empty for a layer that computes only with sizes."""
        if old.class_name == "UpSampling2D" and self.corners:
            old.config[LEGACY_BILINEAR] = True
        try:
            if old.class_name in OPERATION_CLASSES:
                if sizes is None:
                    raise Untranslatable("it is in a sequential network")
                if sizes.add(old):
                    return []
                chain = translate_operation(old, sizes)
                self.notes.append(f"tf.{old.config.get('function')} became {chain[-1].class_name}")
            elif old.class_name.startswith("Addons>") and old.class_name[7:] in ADDONS:
                chain = ADDONS[old.class_name[7:]](old, self.notes)
            else:
                chain = translate_layer(old, self.notes)
        except Untranslatable as error:
            raise self.error(old.name, old.class_name, error) from error
        for layer in chain:
            if layer.adapter is not None:
                self.adapters[f"{prefix}{layer.name}"] = layer.adapter
        return chain

    def error(self, name: str, class_name: str, error: Untranslatable) -> CheckpointError:
        return CheckpointError(
            f"the layer `{name}` ({class_name}) cannot be opened with Keras 3: {error}",
            remedy="Replace the layer with the library that wrote the file, then save the network again.",
        )


#: The new layers in the place of an old one, and their calls; None for a layer that follows the one before it.
_Row = tuple[list[dict[str, Any]], list[tuple[Call, ...] | None]]


def _wired(rows: list[_Row], last: Mapping[str, str], offsets: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the layers with their inbound nodes."""
    layers: list[dict[str, Any]] = []
    for entries, calls in rows:
        times = len(calls[0] or ())
        for place, (entry, own) in enumerate(zip(entries, calls, strict=True)):
            known: Mapping[str, str] = last
            if own is None:
                known = {}  # here the old name means the first layer; everywhere else it means the last
                own = tuple(Call((Ref(entries[place - 1]["name"], i, 0),)) for i in range(times))
            layers.append({**entry, "inbound_nodes": [_node(call, known, offsets) for call in own]})
    return layers


_PROBE, _USUAL = "kerasseg_probe", 256


def _shape(layers: list[dict[str, Any]], node: Mapping[str, Any], *, usual: bool) -> tuple[int | None, ...]:
    """Return the shape of a tensor from the layers that it depends on, without allocating weights."""
    probe = {**_entry(NewLayer("Identity", {"name": _PROBE})), "inbound_nodes": [node]}
    by_name = {entry["name"]: entry for entry in (*layers, probe)}
    try:
        needed = sort_from([_PROBE], lambda name: [source for source, *_ in histories(by_name[name]["inbound_nodes"])])
    except KeyError:
        raise Untranslatable("it takes a tensor that comes later") from None
    part = [deepcopy(by_name[name]) for name in needed]
    starts = [entry for entry in part if entry["class_name"] == "InputLayer"]
    for entry in starts if usual else ():
        shape = entry["config"]["batch_shape"]
        entry["config"]["batch_shape"] = [shape[0], *(_USUAL if n is None else n for n in shape[1:])]
    bounds = {"input_layers": [[e["name"], 0, 0] for e in starts], "output_layers": [_PROBE, 0, 0]}
    config = _network("Functional", name="part", layers=part, **bounds)
    check_config(config)
    return without_memory(config, lambda model: tuple(model.output_shape))


def _class(entry: Mapping[str, Any]) -> str:
    """Return the registered name of the class if there is one, because `.keras` files store both."""
    registered = entry.get("registered_name")
    return registered if isinstance(registered, str) and ">" in registered else str(entry["class_name"])


def _offset(name: str, entry: Mapping[str, Any], parsed: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Return 1 if the file numbers the calls of the nested network from 1, else 0."""
    refs: list[Ref] = []
    for call in (call for calls in parsed.values() for call in calls):
        map_refs([*call.args, *call.kwargs.values()], refs.append)
    used = [node for layer, node, _ in (*refs, *ends(config["output_layers"])) if layer == name]
    calls = parsed[name]
    if any(node >= len(calls) for node in used):
        return 1
    if 0 in used or entry["class_name"] != "Sequential":
        return 0 if 0 in used else 1
    inner = entry["config"]["layers"] if isinstance(entry["config"], dict) else entry["config"]
    return int(bool(inner) and (inner[0]["class_name"] == "InputLayer" or "batch_input_shape" in inner[0]["config"]))


def _node(call: Call, last: Mapping[str, str], offsets: Mapping[str, int]) -> dict[str, Any]:
    def tensor(ref: Ref) -> dict[str, Any]:
        history = [last.get(ref.layer, ref.layer), ref.node - offsets.get(ref.layer, 0), ref.tensor]
        described = {"shape": [1], "dtype": "float32", "keras_history": history}
        return {"class_name": "__keras_tensor__", "config": described}

    return {
        "args": map_refs(list(call.args), tensor),
        "kwargs": {k: map_refs(v, tensor) for k, v in call.kwargs.items()},
    }


def _entry(layer: NewLayer) -> dict[str, Any]:
    return {
        "module": layer.module or None,
        "class_name": layer.class_name,
        "config": layer.config,
        "registered_name": layer.registered_name,
        "name": layer.name,
        "inbound_nodes": [],
    }


def _network(class_name: str, **config: Any) -> dict[str, Any]:
    # Keras itself writes "keras.src.models.functional", because `Functional` has no public module.
    module = "keras.src.models.functional" if class_name == "Functional" else "keras"
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}
