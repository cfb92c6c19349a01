"""Layers of Keras 2, argument by argument, as layers of Keras 3.

Most layers differ by arguments that were renamed, or are written down although they say nothing (`groups=1`). Four differ
in what they compute, and are spelled out in layers that compute the old thing:

- `hard_sigmoid` was `clip(0.2 x + 0.5, 0, 1)` and is `clip(x / 6 + 0.5, 0, 1)`;
- bilinear `UpSampling2D` of Keras 2.0-2.3 sampled at corners, later ones sample at pixel centres;
- `ThresholdedReLU` is gone; `ReLU` has a threshold;
- layer objects as activations (`activation=LeakyReLU()`) follow their layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from kerasseg.checkpoints.allowed import LAYERS
from kerasseg.checkpoints.keras2.layer_config import Adapter, NewLayer, OldLayer, Untranslatable, after, native

__all__ = ["LEGACY_BILINEAR", "arguments", "translate_layer"]

#: Set in `OldLayer.config` by the caller where the writer's bilinear upsampling sampled at corners.
LEGACY_BILINEAR = "__legacy_bilinear__"

_SAME = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "Convolution2D": "Conv2D",
    "Convolution2DTranspose": "Conv2DTranspose",
    "Deconvolution2D": "Conv2DTranspose",
    "SeparableConvolution2D": "SeparableConv2D",
    "AvgPool2D": "AveragePooling2D",
    "MaxPool2D": "MaxPooling2D",
    "GlobalAvgPool2D": "GlobalAveragePooling2D",
    "GlobalMaxPool2D": "GlobalMaxPooling2D",
    "FixedDropout": "Dropout",  # of the EfficientNet package: Dropout with a noise shape that may hold None
}
_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}}
_BOOKKEEPING = frozenset(
    {"batch_input_shape", "input_shape", "input_dtype", "input_dim", "input_length", "dynamic", "weights", "ragged"}
) | {"query_shape", "key_shape", "value_shape"}
#: Values with which an argument that Keras 3 does not know says nothing.
_SAYS_NOTHING: dict[str, tuple[Any, ...]] = {
    "groups": (1,),
    "fused": (True, False, None),
    "renorm": (False,),
    "renorm_clipping": (None,),
    "renorm_momentum": (0.99,),
    "virtual_batch_size": (None,),
    "adjustment": (None,),
    "implementation": (0, 1, 2),
    "interpolation": ("nearest",),
    # A depthwise or separable convolution has kernels with other names; these belong to the class it derives from.
    "kernel_initializer": (Ellipsis,),
    "kernel_regularizer": (Ellipsis,),
    "kernel_constraint": (Ellipsis,),
    "filters": (None,),
    LEGACY_BILINEAR: (Ellipsis,),
}
_PARTS = {"initializer": keras.initializers, "regularizer": keras.regularizers, "constraint": keras.constraints}
_DISTRIBUTIONS = {"normal": "truncated_normal"}
_ACTIVATION_LAYERS = frozenset({"ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax"})


def translate_layer(old: OldLayer, notes: list[str]) -> list[NewLayer]:
    """The layers of Keras 3 that compute what one layer of Keras 2 computed; `notes` collects what changed, in words.

    Raises:
        Untranslatable: If it has arguments that Keras 3 has no counterpart for.
    """
    class_name = _SAME.get(old.class_name, old.class_name)
    if old.class_name == "ThresholdedReLU":
        notes.append("ThresholdedReLU became ReLU with a threshold")
        return [native(old, "ReLU", threshold=float(old.config.get("theta", 1.0)))]
    if class_name not in LAYERS:
        # Left as it is: the gate refuses it by name, or knows it as registered by the user.
        return [_foreign(old)]
    config = dict(old.config)
    following: list[tuple[str, str, dict[str, Any]]] = []
    for key in ("activation", "recurrent_activation"):
        if key in config:
            config[key], more = _activation(config[key], notes)
            if more and key == "recurrent_activation":
                raise Untranslatable("its recurrent activation has no counterpart in Keras 3")
            following += more
    if class_name == "Activation" and following:  # nothing is left of it but what follows
        (_, first_class, first_config), *following = following
        head = native(old, first_class, **first_config)
        return [head, *(after(head, suffix, kind, **more_config) for suffix, kind, more_config in following)]
    if class_name == "UpSampling2D" and config.get(LEGACY_BILINEAR) and config.get("interpolation") == "bilinear":
        return _corner_bilinear(old, notes)
    if class_name == "UpSampling2D" and "interpolation" not in config:
        notes.append(
            "the file does not say how UpSampling2D interpolates (tf.keras before 1.14 never did): nearest is assumed"
        )
    head = native(old, class_name)
    head.config.update(arguments(class_name, config, notes))
    adapter = _attention_weights(bool(config.get("use_bias", True))) if class_name == "MultiHeadAttention" else None
    head = NewLayer(class_name, head.config, calls=old.calls, adapter=adapter)
    return [head, *(after(head, suffix, kind, **more_config) for suffix, kind, more_config in following)]


def _attention_weights(use_bias: bool) -> Adapter:
    """The weights of a MultiHeadAttention by name: `.keras` files of Keras 2 have them in alphabetical order."""
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


def _foreign(old: OldLayer) -> NewLayer:
    config = {k: v for k, v in old.config.items() if k not in {LEGACY_BILINEAR, "batch_input_shape"}}
    registered = old.class_name if ">" in old.class_name else None
    return NewLayer(old.class_name, config, module="", registered_name=registered, calls=old.calls)


def arguments(class_name: str, config: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Those entries of a Keras 2 configuration that the Keras 3 layer `class_name` knows, without its name.

    Raises:
        Untranslatable: If an entry that Keras 3 does not know says something.
    """
    if class_name == "InputLayer":
        shape = config.get("batch_input_shape", config.get("batch_shape"))
        return {"batch_shape": shape, "dtype": _dtype(config.get("dtype")) or "float32"}
    known = set(inspect.signature(getattr(keras.layers, class_name).__init__).parameters) | {
        "name",
        "trainable",
        "dtype",
    }
    result: dict[str, Any] = {}
    for old_key, value in config.items():
        key = _RENAMED.get(class_name, {}).get(old_key, old_key)
        if key != old_key:
            notes.append(f"{class_name}: {old_key} is called {key} now")
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
                notes.append(f"{class_name}: a custom {part} was dropped, which only training would use")
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
    """An initializer, regularizer or constraint as Keras 3 writes it; `_UNKNOWN` for a custom one."""
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
    if "distribution" in config:
        config["distribution"] = _DISTRIBUTIONS.get(config["distribution"], config["distribution"])
    return {
        "module": f"keras.{kind}s",
        "class_name": value["class_name"],
        "config": config,
        "registered_name": None,
    }


#: What the activations of TensorFlow Addons are called in Keras 3, with the defaults both have. Not `sparsemax`: that of
#: Keras 3.15 finds a wrong threshold wherever more than one entry is kept, so `legacy` has its own.
_ADDONS = {
    "gelu": "gelu",
    "mish": "mish",
    "hardshrink": "hard_shrink",
    "softshrink": "soft_shrink",
    "tanhshrink": "tanh_shrink",
}


def _activation(value: Any, notes: list[str]) -> tuple[Any, list[tuple[str, str, dict[str, Any]]]]:
    """The activation as Keras 3 names it, and the layers `(suffix, class, config)` that must follow instead."""
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
            "hard_sigmoid of Keras 2, clip(0.2 x + 0.5, 0, 1), became Rescaling and ReLU: Keras 3 defines another"
        )
        return "linear", [
            ("hard", "Rescaling", {"scale": 0.2, "offset": 0.5}),
            ("sigmoid", "ReLU", {"max_value": 1.0}),
        ]
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
    """Bilinear upsampling that samples at corners, as TensorFlow 1 did.

    For a factor of 2 it is out[2 i] = x[i], out[2 i + 1] = (x[i] + x[i + 1]) / 2: nearest upsampling followed by the mean
    over a pixel and its right and lower neighbours (`same` padding leaves the missing neighbour out, which repeats the
    border as the original does). Factors that are powers of 2 are made of such steps, exactly.
    """
    rows, columns = old.config["size"] if isinstance(old.config["size"], list | tuple) else [old.config["size"]] * 2
    if rows & (rows - 1) or columns & (columns - 1) or min(rows, columns) < 1:
        raise Untranslatable(f"its bilinear upsampling by {rows}x{columns} sampled at corners, which Keras 3 cannot do")
    notes.append(
        "bilinear UpSampling2D of Keras 2.0-2.3 sampled at corners: nearest upsampling and AveragePooling2D do now"
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
