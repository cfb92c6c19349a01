"""TensorFlow Addons layers as Keras 3 layers: native ones where they exist, else those of `legacy`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kerasseg.checkpoints.keras2.layer_config import NewLayer, OldLayer, Untranslatable
from kerasseg.checkpoints.keras2.layers import arguments, translate_layer

__all__ = ["ADDONS", "translate_addon"]


def translate_addon(old: OldLayer, notes: list[str]) -> list[NewLayer]:
    """Translate one `Addons>...` layer into Keras 3 layers."""
    return ADDONS[old.class_name.rpartition(">")[2]](old, notes)


def _native(class_name: str, **config: Any) -> Callable[[OldLayer, list[str]], list[NewLayer]]:
    def rule(old: OldLayer, notes: list[str]) -> list[NewLayer]:
        shown = f"({', '.join(f'{k}={v}' for k, v in config.items())})" if config else ""
        notes.append(f"{old.class_name} became {class_name}{shown}")
        known = arguments(class_name, {**old.config, **config}, notes)
        return [NewLayer(class_name, {"name": old.name, **known}, calls=old.calls)]

    return rule


def _wrapped(old: OldLayer, notes: list[str]) -> list[NewLayer]:
    inner = old.config["layer"]
    chain = translate_layer(
        OldLayer(str(inner["config"]["name"]), str(inner["class_name"]), dict(inner["config"]), old.calls), notes
    )
    if chain[0].module != "keras.layers":
        raise Untranslatable(f"it wraps a layer of the unknown class {inner['class_name']}")
    return chain


def _weight(old: OldLayer, notes: list[str]) -> list[NewLayer]:
    """Fold the normalisation into the kernel, as `WeightNormalization.remove()` of TensorFlow Addons does."""
    first, *rest = _wrapped(old, notes)
    notes.append("Addons>WeightNormalization was removed: its layer has the normalised kernel as a plain weight")
    has_bias = first.config.get("use_bias", True)

    def adapt(values: Mapping[str, Any]) -> list[Any]:
        v = np.asarray(_pick(values, "kernel", "vars/1"), np.float32)
        g = np.asarray(_pick(values, "g", "vars/0"), np.float32)
        initialized = bool(np.asarray(_pick(values, "initialized", "vars/2")))
        axes = tuple(range(v.ndim - 1))
        # As tf.nn.l2_normalize; without `initialized`, the network was never called and g is still to be computed from v.
        norm = np.sqrt(np.maximum(np.sum(v * v, axis=axes), 1e-12))
        kernel = v * (g / norm) if initialized else v
        return [kernel, _pick(values, "bias", "layer/vars/0")] if has_bias else [kernel]

    return [dataclasses.replace(first, config={**first.config, "name": old.name}, adapter=adapt), *rest]


def _spectral(old: OldLayer, notes: list[str]) -> list[NewLayer]:
    first, *rest = _wrapped(old, notes)
    if rest:
        raise Untranslatable("it wraps a layer that becomes several layers in Keras 3")
    notes.append("Addons>SpectralNormalization became SpectralNormalization")
    inner = {"module": first.module, "class_name": first.class_name, "config": first.config, "registered_name": None}
    has_bias = first.config.get("use_bias", True)

    def adapt(values: Mapping[str, Any]) -> list[Any]:
        weights = [_pick(values, "kernel", "vars/0"), _pick(values, "sn_u", "vars/1")]
        return [*weights, _pick(values, "bias", "layer/vars/1")] if has_bias else weights

    config = {"name": old.name, "layer": inner, "power_iterations": old.config.get("power_iterations", 1)}
    return [NewLayer("SpectralNormalization", config, calls=old.calls, adapter=adapt)]


def _registered(old: OldLayer, notes: list[str]) -> list[NewLayer]:
    """Use kerasseg's own layer, under the name in the file, where Keras has no counterpart."""
    short = old.class_name.rpartition(">")[2]
    how = "import kerasseg.checkpoints.legacy before Keras loads a copy"
    notes.append(f"Addons>{short} is computed by kerasseg: {how}")
    config = {k: v for k, v in old.config.items() if not k.endswith(("_initializer", "_regularizer", "_constraint"))}
    if not isinstance(config.get("dtype", "float32"), str):
        config["dtype"] = config["dtype"]["config"]["name"]
    return [NewLayer(short, config, "kerasseg.checkpoints.legacy", old.class_name, old.calls)]


def _pick(values: Mapping[str, Any], old: str, new: str) -> Any:
    """Return a weight by its name in the old or the new layout."""
    if old not in values and new not in values:
        raise Untranslatable(f"its weight `{old}` is not in the file")
    return values[old if old in values else new]


ADDONS: Mapping[str, Callable[[OldLayer, list[str]], list[NewLayer]]] = {
    "InstanceNormalization": _native("GroupNormalization", groups=-1),
    "WeightNormalization": _weight,
    "SpectralNormalization": _spectral,
    **{n: _native(n) for n in ("GroupNormalization", "AdaptiveAveragePooling2D", "AdaptiveMaxPooling2D")},
    **dict.fromkeys(("FilterResponseNormalization", "TLU", "StochasticDepth"), _registered),
}
