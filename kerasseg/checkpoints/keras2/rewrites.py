"""Rewrites of whole Keras 3 configurations: channels-first to channels-last, and removal of a final argmax or threshold.

They also apply to translated Keras 2 networks, and return new dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kerasseg.checkpoints.allowed import NETWORKS, words
from kerasseg.checkpoints.keras2.layer_config import Adapter, ends, entry_name, histories, map_ends
from kerasseg.checkpoints.stored import StoredLayer
from kerasseg_tfrecords.errors import CheckpointError


@dataclass(frozen=True)
class Translation:
    """A rewritten Keras 3 configuration, and what was translated, one sentence each.

    Adapters make new weights from old, by layer path (`layer`, or `network/layer` in a nested network); `renamed` has the
    new paths of layers by old ones.
    """

    config: dict[str, Any]
    notes: tuple[str, ...]
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def placed(self, stored: Mapping[str, StoredLayer]) -> dict[str, StoredLayer]:
        """Return stored weights under the new names of their layers."""
        if not self.renamed:
            return dict(stored)
        result = {}
        for path, layer in stored.items():
            new = self.renamed.get(path, path)
            inner = {k.removeprefix(f"{path}/"): v for k, v in self.renamed.items() if k.startswith(f"{path}/")}
            # The old layout stores a nested network as one group that uses the names of its layers.
            values = {_renamed_weight(name, inner): value for name, value in layer.values.items()}
            result[new] = replace(layer, path=new, values=values)
        return result


def _renamed_weight(name: str, layers: Mapping[str, str]) -> str:
    for old in sorted(layers, key=len, reverse=True):
        if f"/{old}/" in f"/{name}":
            return f"/{name}".replace(f"/{old}/", f"/{layers[old].rpartition('/')[2]}/", 1).removeprefix("/")
    return name


def rewrite(config: Mapping[str, Any]) -> Translation:
    """Move the channels of a Keras 3 network to the last axis, and remove a final argmax or threshold."""
    result, notes, adapters = dict(config), [], {}
    try:
        if _has_channels_first(result):
            result = deepcopy(result)
            conversion = _ChannelsLast()
            conversion.network(result, None, "")
            adapters = conversion.adapters
            notes.append("converted to channels last: the network takes and returns (rows, columns, channels)")
        result, removed = _without_decisions(result)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise not_understood(error) from error
    return Translation(result, (*notes, *removed), adapters)


def not_understood(error: Exception) -> CheckpointError:
    """Return the error for a configuration with unexpected content."""
    found = f"{type(error).__name__}: {error}"
    return CheckpointError("the network's configuration cannot be understood", found=found)


_PASSED = words("Identity Cast ExpandDims Multiply OneHot Rescaling Reshape Squeeze Where")
_DECISIONS = {"Argmax": "argmax", "Greater": "threshold", "GreaterEqual": "threshold", "Round": "rounding"}
_FILLED = frozenset({"FullLike", "OnesLike", "ZerosLike"})


def _without_decisions(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the network without a final argmax or threshold, which has no gradient."""
    inner = config.get("config")
    if not isinstance(inner, dict) or "output_layers" not in inner or not isinstance(inner.get("layers"), list):
        return config, ()
    by_name = {entry_name(e): e for e in inner["layers"]}
    notes: list[str] = []
    removed: set[str] = set()

    def before(end: list[Any]) -> list[Any]:
        tail, current = [], end
        while (entry := by_name.get(current[0])) is not None and entry.get("inbound_nodes"):
            kind = str(entry["class_name"])
            decision = _DECISIONS.get(kind) if kind != "Argmax" or entry["config"].get("axis") in (-1, 3) else None
            # In files of nested networks, Keras counts calls that the configuration does not list.
            node = entry["inbound_nodes"][min(current[1], len(entry["inbound_nodes"]) - 1)]
            if decision is None and kind not in _PASSED and not (kind == "GetItem" and _adds_axes(node)):
                return end
            sources = list(histories(node))
            tail.append(current[0])
            if kind == "Where":  # what it chooses between may be made by layers, but of constants alone
                filled = [by_name[name] for name, *_ in sources[1:] if name in by_name]
                sources = sources[:1] if all(e["class_name"] in _FILLED for e in filled) else sources
                tail += [entry_name(e) for e in filled]
            if len(sources) != 1:
                return end
            current = sources[0]
            if decision is not None:
                notes.append(f"the final {decision} was removed: the network returns the scores before it")
                removed.update(tail)
                return list(current)
        return end

    outputs = map_ends(inner["output_layers"], before)
    if not notes:
        return config, ()
    if isinstance(outputs, list) and not isinstance(outputs[0], str):
        outputs = [end for i, end in enumerate(outputs) if end not in outputs[:i]]
        outputs = outputs[0] if len(outputs) == 1 and isinstance(outputs[0], list) else outputs
    read = {h[0] for e in inner["layers"] if entry_name(e) not in removed for h in histories(e.get("inbound_nodes"))}
    kept = [e for e in inner["layers"] if entry_name(e) not in removed or entry_name(e) in read]
    return {**config, "config": {**inner, "layers": kept, "output_layers": outputs}}, tuple(dict.fromkeys(notes))


def _adds_axes(node: Mapping[str, Any]) -> bool:
    """Whether a slice takes all and only adds axes, as `[..., None]` does."""
    key = node["args"][1] if len(node.get("args", ())) > 1 else node.get("kwargs", {}).get("key")
    whole = {"start": None, "stop": None, "step": None}
    parts = key if isinstance(key, list) else [key]
    return all(p is None or p.get("class_name") == "__ellipsis__" or p.get("config") == whole for p in parts)


_FIRST, _LAST, _FLAT = "channels_first", "channels_last", "flat"
_AXES = {0: 0, 1: 3, 2: 1, 3: 2}
_NEUTRAL = words(
    "Absolute Activation ActivityRegularization Add AlphaDropout Average Cast Clip Divide Dropout ELU Elu Exp "
    "GaussianDropout GaussianNoise Gelu Greater GreaterEqual HardSigmoid HardSilu Identity LeakyReLU LeakyRelu "
    "Log Maximum Minimum Multiply Negative OnesLike Power ReLU Relu Relu6 Rescaling Round Selu Sigmoid Silu "
    "Softplus Softsign Sqrt Square Subtract Tanh ZerosLike"
)
_WITH_AXIS = words(
    "Argmax BatchNormalization Concatenate GroupNormalization LayerNormalization Max Mean Min Normalization "
    "Softmax Stack Sum UnitNormalization"
)


def _has_channels_first(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get("data_format") == _FIRST or any(_has_channels_first(v) for v in value.values())
    return isinstance(value, list) and any(_has_channels_first(v) for v in value)


class _ChannelsLast:
    """Rewrites a network in place, keeping track of each tensor's layout in the file."""

    def __init__(self) -> None:
        self.adapters: dict[str, Adapter] = {}

    def network(self, entry: dict[str, Any], given: str | None, prefix: str) -> str:
        """Rewrite one network and return the original layout of its first output."""
        config = entry["config"]
        layers = config["layers"]
        layouts: dict[str, str] = {}
        layout = given or _FIRST
        for layer in layers:
            name = entry_name(layer)
            sources = [layouts[h[0]] for h in histories(layer.get("inbound_nodes")) if h[0] in layouts]
            if layer["class_name"] == "InputLayer":
                layout = given or self.start(layers, name)
            elif entry["class_name"] != "Sequential":
                layout = next((s for s in sources if s != _FLAT), sources[0] if sources else layout)
            layouts[name] = layout = self.layer(layer, layout, prefix)
        if config.get("build_input_shape") and (given or _FIRST) == _FIRST:
            config["build_input_shape"] = _moved(config["build_input_shape"])
        if isinstance(entry.get("build_config"), dict):
            entry.pop("build_config")
        outputs = ends(config["output_layers"]) if "output_layers" in config else []
        return layouts.get(outputs[0][0], layout) if outputs else layout

    def start(self, layers: list[dict[str, Any]], name: str) -> str:
        """Return the layout of an input, determined by the first layer that requires one."""
        reached = {name}
        for layer in layers:
            if not reached & {h[0] for h in histories(layer.get("inbound_nodes"))}:
                continue
            if layer["class_name"] == "Permute":
                return _LAST if list(layer["config"]["dims"]) == [3, 1, 2] else _FIRST
            if "data_format" in layer["config"]:
                return str(layer["config"]["data_format"])
            reached.add(entry_name(layer))
        return _FIRST

    def layer(self, entry: dict[str, Any], layout: str, prefix: str) -> str:
        kind, config, name = entry["class_name"], entry["config"], entry_name(entry)
        entry.pop("build_config", None)
        if kind in NETWORKS:
            return self.network(entry, layout, f"{prefix}{name}/")
        if "data_format" in config and kind != "Flatten":
            if config["data_format"] not in (layout, None):
                self.refuse(name, kind, f"it is {config['data_format']} and its input is {layout}")
            if config.get("activation") in {"softmax", "log_softmax"} and layout == _FIRST:
                self.refuse(name, kind, "its softmax runs over the columns")
            config["data_format"] = _LAST
            return _FLAT if kind.startswith("Global") and not config.get("keepdims") else layout
        if layout == _LAST:
            if kind == "Permute" and list(config["dims"]) == [3, 1, 2]:
                entry.update(class_name="Identity", config={"name": config["name"]})
                return _FIRST
            return layout
        if layout == _FLAT and not (kind == "Reshape" and len(config["target_shape"]) == 3):
            return layout
        return self.first(entry, kind, config, name, prefix)

    def first(self, entry: dict[str, Any], kind: str, config: dict[str, Any], name: str, prefix: str) -> str:
        """Rewrite a layer without `data_format` on a channels-first tensor."""
        if kind == "InputLayer":
            config["batch_shape"] = _moved(config["batch_shape"])
        elif kind == "Permute" and list(config["dims"]) == [2, 3, 1]:
            entry.update(class_name="Identity", config={"name": config["name"]})
            return _LAST
        elif kind == "Flatten" and config.get("data_format") == _FIRST:
            config["data_format"] = _LAST  # Keras flattens both layouts in the same order
            return _FLAT
        elif kind == "Reshape" and list(config["target_shape"])[1:] == [1, 1]:
            config["target_shape"] = [1, 1, config["target_shape"][0]]
        elif kind == "PReLU" and sorted(config.get("shared_axes") or []) == [2, 3]:
            config["shared_axes"] = [1, 2]
            self.adapters[f"{prefix}{name}"] = _alpha_last
        elif kind in _WITH_AXIS and isinstance(config.get("axis"), int):
            config["axis"] = _AXES[config["axis"] % 4]
            if kind in {"Argmax", "Max", "Mean", "Min", "Sum"} and not config.get("keepdims"):
                return _FLAT
        elif kind in {"Max", "Mean", "Min", "Sum"} and isinstance(config.get("axis"), list) and config.get("keepdims"):
            config["axis"] = sorted(_AXES[a % 4] for a in config["axis"])
        elif kind not in _NEUTRAL or config.get("activation") == "softmax" or isinstance(config.get("scale"), list):
            self.refuse(name, kind, "its axes cannot be moved")
        return _FIRST

    def refuse(self, name: str, kind: str, why: str) -> None:
        raise CheckpointError(
            f"the network has its channels first, and the layer `{name}` ({kind}) cannot be converted: {why}",
            expected="data_format='channels_last'",
            remedy="Build the network with keras.config.set_image_data_format('channels_last'), load the weights, save it.",
        )


def _alpha_last(values: Mapping[str, Any]) -> list[Any]:
    return [np.moveaxis(np.asarray(values.get("alpha", next(iter(values.values())))), 0, -1)]


def _moved(shape: Any) -> list[Any]:
    batch, channels, *rest = shape
    return [batch, *rest, channels]
