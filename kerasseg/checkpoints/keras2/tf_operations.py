"""TensorFlow operations between Keras-2 layers (`x * y`, `tf.concat`, `tf.nn.relu`) as native Keras 3 layers.

Keras 2 kept them as `TFOpLambda` and `SlicingOpLambda`, by the name of a TensorFlow function that it looked up and called.
Here the name is looked up in the table at the end of this file, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kerasseg.checkpoints.keras2.layer_config import Call, NewLayer, OldLayer, Ref, Untranslatable, layer_name, native

__all__ = ["OPERATION_CLASSES", "translate_operation"]

OPERATION_CLASSES = frozenset({"TFOpLambda", "SlicingOpLambda"})
_NUMPY = "keras.src.ops.numpy"  # where Keras itself says that these operations live, in every `.keras` file it writes


def translate_operation(old: OldLayer) -> list[NewLayer]:
    """The Keras 3 layers of one TensorFlow operation.

    Raises:
        Untranslatable: If it is none of those in the table, or is used in a way that the table does not cover.
    """
    function = str(old.config.get("function", ""))
    rule = _RULES.get(function.removeprefix("compat.v1."))
    if rule is None:
        raise Untranslatable(f"the TensorFlow operation `tf.{function}` is not one that kerasseg translates")
    return [rule(old)]


Rule = Callable[[OldLayer], NewLayer]


def _arguments(old: OldLayer, *names: str, **defaults: Any) -> dict[str, Any]:
    """The call's arguments by name: those by position under `names`."""
    call = old.call
    given = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
    return defaults | {k: v for k, v in given.items() if v is not None}


def _operation(old: OldLayer, class_name: str, args: tuple[Any, ...], **config: Any) -> NewLayer:
    """One of Keras' own operations as a node; these have a name and no `trainable`."""
    return NewLayer(class_name, {"name": layer_name(old.name), **config}, module=_NUMPY, calls=(Call(args),))


def _with_calls(layer: NewLayer, *args: Any) -> NewLayer:
    return NewLayer(layer.class_name, layer.config, layer.module, layer.registered_name, (Call(args),))


def _activation(name: str) -> Rule:
    def rule(old: OldLayer) -> NewLayer:
        extra = {k: v for k, v in old.call.kwargs.items() if v is not None}
        # tf.nn.gelu(approximate=False) and tf.nn.silu(beta=1.0) say what they are anyhow.
        if any(v not in (False, 1.0) for v in extra.values()):
            raise Untranslatable(f"`{name}` with {extra} is not what the Keras activation computes")
        return native(old, "Activation", activation=name)

    return rule


def _layer(class_name: str, **arguments: tuple[str, Any]) -> Rule:
    """A layer whose argument `k` is the operation's argument `arguments[k][0]`, by default `arguments[k][1]`."""

    def rule(old: OldLayer) -> NewLayer:
        given = _arguments(old, "x")
        return native(old, class_name, **{k: given.get(theirs, default) for k, (theirs, default) in arguments.items()})

    return rule


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _binary(merge: str, scalar: Callable[[float, bool], tuple[float, float] | None]) -> Rule:
    """Two tensors, or a tensor and a number: `scalar(number, number_first)` is (scale, offset) of a `Rescaling`."""

    def rule(old: OldLayer) -> NewLayer:
        given = _arguments(old, "x", "y")
        x, y = given.get("x"), given.get("y")
        if isinstance(x, Ref) and isinstance(y, Ref):
            if merge == "Divide":
                return _operation(old, "Divide", (x, y))
            return _with_calls(native(old, merge), [x, y])
        tensor, number = (x, y) if isinstance(x, Ref) else (y, x)
        line = scalar(float(number), not isinstance(x, Ref)) if _is_number(number) else None  # type: ignore[arg-type]
        if line is None or not isinstance(tensor, Ref):
            raise Untranslatable("one of its inputs is neither a tensor of the network nor a number")
        return _with_calls(native(old, "Rescaling", scale=line[0], offset=line[1]), tensor)

    return rule


def _pick(merge: str) -> Rule:
    def rule(old: OldLayer) -> NewLayer:
        given = _arguments(old, "x", "y")
        if isinstance(given.get("x"), Ref) and isinstance(given.get("y"), Ref):
            return _with_calls(native(old, merge), [given["x"], given["y"]])
        return _operation(old, merge, (given.get("x"), given.get("y")))

    return rule


def _concat(old: OldLayer) -> NewLayer:
    given = _arguments(old, "values", "axis")
    if not isinstance(given["values"], list):
        raise Untranslatable("its inputs are no list of tensors")
    return _with_calls(native(old, "Concatenate", axis=given.get("axis", -1)), given["values"])


def _resize(old: OldLayer) -> NewLayer:
    given = _arguments(old, "images", "size", method="bilinear")
    size, method = given.get("size"), given["method"]
    if not isinstance(size, list) or not all(isinstance(n, int) for n in size):
        raise Untranslatable("its size is computed by other operations")
    if given.get("antialias") or given.get("preserve_aspect_ratio") or method not in {"bilinear", "nearest", "bicubic"}:
        raise Untranslatable(f"resizing with method={method!r} and its other arguments has no Keras layer")
    if method == "bicubic":
        raise Untranslatable("TensorFlow's and Keras' bicubic resizing differ")
    return native(old, "Resizing", height=size[0], width=size[1], interpolation=method)


def _pad(old: OldLayer) -> NewLayer:
    given = _arguments(old, "tensor", "paddings", mode="CONSTANT", constant_values=0)
    pads = given.get("paddings")
    if not (isinstance(pads, list) and len(pads) == 4 and pads[0] == [0, 0] and pads[3] == [0, 0]):
        raise Untranslatable("it pads other axes than rows and columns")
    mode = str(given["mode"]).lower()
    if mode == "constant" and given["constant_values"] == 0:
        return native(old, "ZeroPadding2D", padding=[pads[1], pads[2]])
    return _operation(old, "Pad", tuple(old.call.tensors), pad_width=pads, mode=mode)


def _clip(old: OldLayer) -> NewLayer:
    given = _arguments(old, "t", "clip_value_min", "clip_value_max")
    low, high = given.get("clip_value_min"), given.get("clip_value_max")
    if not (_is_number(low) and _is_number(high)):
        raise Untranslatable("its bounds are no numbers")
    return _operation(old, "Clip", tuple(old.call.tensors), x_min=low, x_max=high)


def _reduce(pooling: str, operation: str) -> Rule:
    def rule(old: OldLayer) -> NewLayer:
        given = _arguments(old, "input_tensor", "axis", keepdims=False)
        axis, keep = given.get("axis"), bool(given["keepdims"])
        if axis in ([1, 2], (1, 2)) and pooling:
            return native(old, pooling, keepdims=keep)
        return _operation(old, operation, tuple(old.call.tensors), axis=axis, keepdims=keep)

    return rule


def _getitem(old: OldLayer) -> NewLayer:
    spec = old.call.kwargs.get("slice_spec")
    if not isinstance(spec, list):
        raise Untranslatable("its slices are not described")

    def part(item: Any) -> Any:
        if isinstance(item, dict) and set(item) <= {"start", "stop", "step"}:
            if all(n is None or isinstance(n, int) for n in item.values()):
                full = {"start": None, "stop": None, "step": None} | item
                return {"class_name": "__slice__", "config": full}
        elif isinstance(item, dict) and item.get("value") == "Ellipsis":
            return {"class_name": "__ellipsis__", "config": {}}
        elif isinstance(item, int) or item is None:
            return item
        raise Untranslatable("its slices depend on other tensors")

    return _operation(old, "GetItem", (old.call.tensors[0], [part(item) for item in spec]))


def _reshape(old: OldLayer) -> NewLayer:
    shape = _arguments(old, "tensor", "shape").get("shape")
    if not (isinstance(shape, list) and shape and shape[0] == -1 and all(isinstance(n, int) for n in shape)):
        raise Untranslatable("its shape is computed by other operations")
    return native(old, "Reshape", target_shape=shape[1:])


def _cast(old: OldLayer) -> NewLayer:
    # Weights and activations are floats on both sides of it.
    if _arguments(old, "x", "dtype").get("dtype") not in {"float32", "float16", "bfloat16"}:
        raise Untranslatable("it turns numbers into something that is no floating-point number")
    return native(old, "Identity")


_ADD = _binary("Add", lambda number, _: (1.0, number))
_SUBTRACT = _binary("Subtract", lambda number, first: (-1.0, number) if first else (1.0, -number))
_MULTIPLY = _binary("Multiply", lambda number, _: (number, 0.0))
_DIVIDE = _binary("Divide", lambda number, first: None if first or number == 0 else (1.0 / number, 0.0))

_RULES: dict[str, Rule] = {
    **{name: _activation(name.rpartition(".")[2]) for name in ("nn.relu", "nn.relu6", "nn.elu", "nn.selu", "nn.gelu")},
    **{
        f"{home}.{name}": _activation(name)
        for home in ("nn", "math")
        for name in ("sigmoid", "tanh", "softplus", "softsign")
    },
    **{name: _activation("silu") for name in ("nn.silu", "nn.swish", "keras.activations.swish")},
    "math.exp": _activation("exponential"),
    "identity": _layer("Identity"),
    "stop_gradient": _layer("Identity"),
    "nn.softmax": _layer("Softmax", axis=("axis", -1)),
    "math.softmax": _layer("Softmax", axis=("axis", -1)),
    "nn.leaky_relu": _layer("LeakyReLU", negative_slope=("alpha", 0.2)),
    **dict.fromkeys(("__operators__.add", "math.add", "add"), _ADD),
    **dict.fromkeys(("__operators__.subtract", "math.subtract", "subtract"), _SUBTRACT),
    **dict.fromkeys(("__operators__.multiply", "math.multiply", "multiply"), _MULTIPLY),
    **dict.fromkeys(("__operators__.truediv", "math.truediv", "math.divide", "divide", "realdiv"), _DIVIDE),
    **dict.fromkeys(("math.maximum", "maximum"), _pick("Maximum")),
    **dict.fromkeys(("math.minimum", "minimum"), _pick("Minimum")),
    "concat": _concat,
    "image.resize": _resize,
    "pad": _pad,
    "clip_by_value": _clip,
    "math.reduce_mean": _reduce("GlobalAveragePooling2D", "Mean"),
    "math.reduce_max": _reduce("GlobalMaxPooling2D", "Max"),
    "math.reduce_sum": _reduce("", "Sum"),
    "__operators__.getitem": _getitem,
    "reshape": _reshape,
    "cast": _cast,
}
