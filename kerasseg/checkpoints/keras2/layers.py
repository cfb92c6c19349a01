"""Keras 2 layers as Keras 3 layers, argument by argument.

Most layers differ only in renamed arguments, or in arguments with neutral values (`groups=1`). Four compute something else
in Keras 3 and are translated to layers that keep the old computation:

- `hard_sigmoid` was `clip(0.2 x + 0.5, 0, 1)` and is now `clip(x / 6 + 0.5, 0, 1)`;
- bilinear `UpSampling2D` sampled at corners in Keras 2.0-2.3, and samples at pixel centres since;
- `ThresholdedReLU` was removed; `ReLU` has a threshold;
- layers used as activations (`activation=LeakyReLU()`) become separate layers.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from kerasseg.checkpoints.allowed import LAYERS, pairs, words
from kerasseg.checkpoints.keras2.layer_config import Adapter, NewLayer, OldLayer, after, native
from kerasseg.checkpoints.operations import Untranslatable

#: Set in `OldLayer.config` by the caller if the writer's bilinear upsampling sampled at corners.
LEGACY_BILINEAR = "__legacy_bilinear__"

#: Old name -> Keras 3 name. FixedDropout is from the EfficientNet package: a Dropout whose noise shape may contain None.
_SAME = dict(
    pairs(
        "BatchNormalizationV1:BatchNormalization BatchNormalizationV2:BatchNormalization Convolution2D:Conv2D "
        "SyncBatchNormalization:BatchNormalization Convolution2DTranspose:Conv2DTranspose AvgPool2D:AveragePooling2D "
        "Deconvolution2D:Conv2DTranspose SeparableConvolution2D:SeparableConv2D MaxPool2D:MaxPooling2D "
        "GlobalAvgPool2D:GlobalAveragePooling2D GlobalMaxPool2D:GlobalMaxPooling2D FixedDropout:Dropout"
    )
)
_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}}
_BOOKKEEPING = words(
    "batch_input_shape input_shape input_dtype input_dim input_length dynamic weights ragged "
    "query_shape key_shape value_shape"
)
#: Neutral values of arguments that Keras 3 does not have.
_SAYS_NOTHING: dict[str, tuple[Any, ...]] = {
    "groups": (1,),
    "fused": (True, False, None),
    "renorm_momentum": (0.99,),
    "implementation": (0, 1, 2),
    "interpolation": ("nearest",),
    # Depthwise and separable convolutions name their kernels differently; these belong to the base class.
    "kernel_initializer": (Ellipsis,),
    "kernel_regularizer": (Ellipsis,),
    "kernel_constraint": (Ellipsis,),
    LEGACY_BILINEAR: (Ellipsis,),
}
_PARTS = {"initializer": keras.initializers, "regularizer": keras.regularizers, "constraint": keras.constraints}
_ACTIVATION_LAYERS = frozenset({"ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax"})


def translate_layer(old: OldLayer, notes: list[str]) -> list[NewLayer]:
    """Translate one Keras 2 layer into Keras 3 layers, and append what changed to `notes`."""
    class_name = _SAME.get(old.class_name, old.class_name)
    if old.class_name == "ThresholdedReLU":
        notes.append("ThresholdedReLU became ReLU with a threshold")
        return [native(old, "ReLU", threshold=float(old.config.get("theta", 1.0)))]
    if class_name not in LAYERS:
        # Unchanged: `check_config` refuses it by name, or knows it as registered by the user.
        config = {k: v for k, v in old.config.items() if k not in {LEGACY_BILINEAR, "batch_input_shape"}}
        registered = old.class_name if ">" in old.class_name else None
        return [NewLayer(old.class_name, config, "", registered, old.calls)]
    config = dict(old.config)
    following: list[tuple[str, str, dict[str, Any]]] = []
    for key in ("activation", "recurrent_activation"):
        if key in config:
            config[key], more = _activation(config[key], notes)
            if more and key == "recurrent_activation":
                raise Untranslatable("its recurrent activation has no counterpart in Keras 3")
            following += more
    if class_name == "Activation" and following:  # the following layers replace it
        (_, first_class, first_config), *following = following
        head = native(old, first_class, **first_config)
        return [head, *(after(head, suffix, kind, **more_config) for suffix, kind, more_config in following)]
    if class_name == "UpSampling2D" and config.get(LEGACY_BILINEAR) and config.get("interpolation") == "bilinear":
        return _corner_bilinear(old, notes)
    if class_name == "UpSampling2D" and "interpolation" not in config:
        notes.append(
            "the file does not say how UpSampling2D interpolates (tf.keras before 1.14 never did): nearest is assumed"
        )
    adapter = _attention_weights(bool(config.get("use_bias", True))) if class_name == "MultiHeadAttention" else None
    arranged = {**native(old, class_name).config, **arguments(class_name, config, notes)}
    head = NewLayer(class_name, arranged, calls=old.calls, adapter=adapter)
    return [head, *(after(head, suffix, kind, **more_config) for suffix, kind, more_config in following)]


def _attention_weights(use_bias: bool) -> Adapter:
    """Match the weights of a MultiHeadAttention by name, because Keras 2 `.keras` files order them alphabetically."""
    parts = {"query": "_query_dense", "key": "_key_dense", "value": "_value_dense", "attention_output": "_output_dense"}

    def adapt(values: Mapping[str, Any]) -> list[Any]:
        def pick(part: str, role: str, number: int) -> Any:
            ends = (f"/{part}/{role}:0", f"{parts[part]}/vars/{number}")
            found = next((v for name, v in values.items() if f"/{name}".endswith(ends)), None)
            if found is None:
                raise Untranslatable(f"its weight `{part}/{role}` is not in the file")
            return found

        roles = [("kernel", 0), ("bias", 1)] if use_bias else [("kernel", 0)]
        return [pick(part, role, number) for part in parts for role, number in roles]

    return adapt


def arguments(class_name: str, config: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the configuration entries that the Keras 3 layer `class_name` accepts, without its name."""
    if class_name == "InputLayer":
        shape = config.get("batch_input_shape", config.get("batch_shape"))
        return {"batch_shape": shape, "dtype": _dtype(config.get("dtype")) or "float32"}
    known = {*inspect.signature(getattr(keras.layers, class_name).__init__).parameters, "name", "trainable", "dtype"}
    result: dict[str, Any] = {}
    for old_key, value in config.items():
        key = _RENAMED.get(class_name, {}).get(old_key, old_key)
        if key != old_key:
            notes.append(f"{class_name}: {old_key} was renamed to {key}")
        part = next((p for p in _PARTS if key.endswith(f"_{p}") or key == p), None)
        if key in _BOOKKEEPING:
            continue
        if key not in known:
            neutral = _SAYS_NOTHING.get(key, (None, False))
            if value not in neutral and Ellipsis not in neutral:
                raise Untranslatable(f"its argument {old_key}={value!r} has no counterpart in Keras 3")
            if key == "groups":
                notes.append(f"{class_name}: groups=1 dropped")
        elif key == "dtype":
            result[key] = _dtype(value)
        elif key == "axis" and isinstance(value, list | tuple) and len(value) == 1:
            result[key] = value[0]
        elif part:
            value = _part(value, part)
            if value is _UNKNOWN:
                notes.append(f"{class_name}: a custom {part} was dropped (used only in training)")
            else:
                result[key] = value
        else:
            result[key] = value
    if class_name.startswith("SpatialDropout"):
        result.pop("trainable", None)
    return {k: v for k, v in result.items() if k != "name"}


def _dtype(value: Any) -> Any:
    if isinstance(value, dict):  # a mixed-precision policy: Policy, PolicyV1, DTypePolicy
        value = (value.get("config") or {}).get("name")
    return value if isinstance(value, str) else None


_UNKNOWN = object()


def _part(value: Any, kind: str) -> Any:
    """Return an initializer, regularizer or constraint in Keras 3 form; `_UNKNOWN` for a custom one."""
    if value is None or isinstance(value, str):
        known = value is None or (value.isidentifier() and hasattr(_PARTS[kind], value))
        return value if known else _UNKNOWN
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        return _UNKNOWN
    cls = getattr(_PARTS[kind], value["class_name"], None)
    if not isinstance(cls, type):
        return _UNKNOWN
    accepted = inspect.signature(cls).parameters
    config = {k: v for k, v in (value.get("config") or {}).items() if k in accepted}
    if config.get("distribution") == "normal":
        config["distribution"] = "truncated_normal"
    return {"module": f"keras.{kind}s", "class_name": value["class_name"], "config": config, "registered_name": None}


#: TensorFlow Addons activation -> Keras 3 activation with the same defaults. `sparsemax` is left out, because Keras 3.15
#: computes a wrong threshold if more than one entry is kept; `legacy` has its own.
_ADDONS = {"gelu": "gelu", "mish": "mish"} | {f"{n}shrink": f"{n}_shrink" for n in ("hard", "soft", "tanh")}


def _activation(value: Any, notes: list[str]) -> tuple[Any, list[tuple[str, str, dict[str, Any]]]]:
    """Return the Keras 3 name of the activation, or "linear" and layers `(suffix, class, config)` that replace it."""
    if isinstance(value, dict):
        if value.get("class_name") in _ACTIVATION_LAYERS:
            kind = str(value["class_name"])
            inner = arguments(kind, dict(value.get("config") or {}), notes)
            return "linear", [(kind.lower(), kind, inner)]
        name = value.get("config") if value.get("class_name") == "function" else value.get("class_name")
    else:
        name = value
    if not isinstance(name, str):
        return value, []
    if name == "hard_sigmoid":
        notes.append(
            "hard_sigmoid of Keras 2, clip(0.2 x + 0.5, 0, 1), which Keras 3 defines differently, became Rescaling and ReLU"
        )
        steps = [("hard", "Rescaling", {"scale": 0.2, "offset": 0.5}), ("sigmoid", "ReLU", {"max_value": 1.0})]
        return "linear", steps
    package, _, short = name.rpartition(">")
    if package == "Addons":
        if short in _ADDONS:
            notes.append(f"Addons>{short} became the activation {_ADDONS[short]}")
            return _ADDONS[short], []
        return {"module": "builtins", "class_name": "function", "config": name, "registered_name": "function"}, []
    if isinstance(value, dict) and value.get("class_name") == "function" and not hasattr(keras.activations, name):
        return value, []
    return name, []


def _corner_bilinear(old: OldLayer, notes: list[str]) -> list[NewLayer]:
    """Return bilinear upsampling that samples at corners, as TensorFlow 1 did.

    For a factor of 2 it is out[2 i] = x[i], out[2 i + 1] = (x[i] + x[i + 1]) / 2: nearest upsampling followed by the mean
    over each pixel and its right and lower neighbours. `same` padding omits missing neighbours, which repeats the border
    as in the original. Larger powers of 2 are exact compositions of such steps.
    """
    rows, columns = old.config["size"] if isinstance(old.config["size"], list | tuple) else [old.config["size"]] * 2
    if rows & (rows - 1) or columns & (columns - 1) or min(rows, columns) < 1:
        raise Untranslatable(f"its bilinear upsampling by {rows}x{columns} sampled at corners, which Keras 3 cannot do")
    notes.append(
        "bilinear UpSampling2D of Keras 2.0-2.3, which sampled at corners, became nearest upsampling and AveragePooling2D"
    )
    chain: list[NewLayer] = []
    while max(rows, columns) > 1:
        step = [2 if rows > 1 else 1, 2 if columns > 1 else 1]
        rows, columns = rows // step[0], columns // step[1]
        up: dict[str, Any] = {"size": step, "interpolation": "nearest"}
        mean = {"pool_size": step, "strides": [1, 1], "padding": "same"}
        chain.append(
            after(chain[0], f"up_{len(chain)}", "UpSampling2D", **up) if chain else native(old, "UpSampling2D", **up)
        )
        chain.append(after(chain[0], f"mean_{len(chain)}", "AveragePooling2D", **mean))
    return chain or [native(old, "Identity")]


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


#: Layers of TensorFlow Addons: native ones where they exist, else those of `legacy`.
ADDONS: Mapping[str, Callable[[OldLayer, list[str]], list[NewLayer]]] = {
    "InstanceNormalization": _native("GroupNormalization", groups=-1),
    "WeightNormalization": _weight,
    "SpectralNormalization": _spectral,
    **{n: _native(n) for n in ("GroupNormalization", "AdaptiveAveragePooling2D", "AdaptiveMaxPooling2D")},
    **dict.fromkeys(("FilterResponseNormalization", "TLU", "StochasticDepth"), _registered),
}
