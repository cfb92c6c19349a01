"""TensorFlow operations without weights as Keras 3 layers, in one table for every file format.

Keras 2 files name a TensorFlow function (`math.reduce_mean`); SavedModels name the raw operation that the function wrote
(`Mean`). Names from a file are looked up only in these tables. An operation becomes a Keras layer where there is one, and
an operation of `keras.ops` otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np

__all__ = ["RAW", "TABLE", "Expression", "Raw", "Ref", "Untranslatable", "expression", "is_tensor"]


class Untranslatable(Exception):  # noqa: N818 - control flow inside this package; users see CheckpointError
    """An operation or layer without a Keras 3 counterpart. The message is a sentence about it."""


class Ref(NamedTuple):
    """A tensor in a Keras 2 configuration: output `tensor` of call `node` of the layer `layer`."""

    layer: str
    node: int
    tensor: int


@dataclass(frozen=True)
class Expression:
    """A Keras 3 layer or operation and its inputs.

    Attributes:
        class_name: For instance `Permute`.
        inputs: Positional arguments of the call: tensors, expressions, constants, or lists of them.
        config: Arguments of the constructor, without the name.
        module: The module of the class.
    """

    class_name: str
    inputs: tuple[Any, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    module: str = "keras.layers"

    @property
    def is_layer(self) -> bool:
        return self.module == "keras.layers"


Arguments = Mapping[str, Any]
Rule = Callable[[Arguments], Expression]


def is_tensor(value: Any) -> bool:
    """Return whether a value is computed by the network rather than a constant."""
    return isinstance(value, Ref | Expression | keras.KerasTensor)


def expression(function: str, arguments: Arguments) -> Expression:
    """Translate one call of a TensorFlow function.

    Args:
        function: The name below `tf`, for instance `math.square`.
        arguments: Its arguments by name; None means not given.

    Raises:
        Untranslatable: The function is not in the table, or an argument has no counterpart.

    Example:
        >>> expression("transpose", {"a": Ref("x", 0, 0), "perm": [0, 2, 1, 3]}).config
        {'dims': [2, 1, 3]}
    """
    rule = TABLE.get(function)
    if rule is None:
        raise Untranslatable(f"kerasseg does not translate the TensorFlow operation `tf.{function}`")
    return rule[1]({k: v for k, v in arguments.items() if v is not None})


def _op(class_name: str, *inputs: Any, module: str = "numpy", **config: Any) -> Expression:
    # Keras writes the same module paths into `.keras` files.
    return Expression(class_name, inputs, config, f"keras.src.ops.{module}")


def _layer(class_name: str, *inputs: Any, **config: Any) -> Expression:
    return Expression(class_name, inputs, config)


def _need(a: Arguments, *names: str) -> list[Any]:
    missing = [n for n in names if n not in a]
    if missing:
        raise Untranslatable(f"its argument `{missing[0]}` is missing")
    return [a[n] for n in names]


def _static(a: Arguments, name: str, default: Any = None) -> Any:
    """Return an argument that must be a number, a text or a list of them."""
    value = a.get(name, default)
    if _holds_tensor(value):
        raise Untranslatable(f"its argument `{name}` is computed by other operations")
    return value


def _holds_tensor(value: Any) -> bool:
    return is_tensor(value) or (isinstance(value, list | tuple) and any(_holds_tensor(v) for v in value))


def _integers(a: Arguments, name: str, default: Any = None) -> Any:
    value = _static(a, name, default)
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
        raise Untranslatable(f"its argument `{name}` is {value!r} and not a known integer")
    return list(value) if isinstance(value, tuple) else value


def _rank(value: Any) -> int | None:
    return len(value.shape) if isinstance(value, keras.KerasTensor) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _channels(value: Any) -> float | list[float] | None:
    """Return a number or one number per channel; None for anything else."""
    if _number(value):
        return float(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, list) and value and all(_number(v) for v in value):
        return [float(v) for v in value]
    return None


def _plain(class_name: str, arguments: str = "x", module: str = "numpy") -> Rule:
    return lambda a: _op(class_name, *_need(a, *arguments.split()), module=module)


def _activation(name: str, **defaults: Any) -> Rule:
    def rule(a: Arguments) -> Expression:
        others = {k: v for k, v in a.items() if k != "x"}
        if any(k not in defaults or v != defaults[k] for k, v in others.items()):
            raise Untranslatable(f"`{name}` with {others} differs from the Keras activation")
        return _layer("Activation", *_need(a, "x"), activation=name)

    return rule


def _gelu(a: Arguments) -> Expression:
    if a.get("approximate"):
        return _op("Gelu", *_need(a, "x"), module="nn", approximate=True)
    return _layer("Activation", *_need(a, "x"), activation="gelu")


def _leaky_relu(a: Arguments) -> Expression:
    return _layer("LeakyReLU", *_need(a, "x"), negative_slope=_static(a, "alpha", 0.2))


def _merge(class_name: str, operation: str | None = None, line: Any = None) -> Rule:
    """Two inputs. `line(number, first)` returns the `Rescaling` (scale, offset) equivalent to a constant input."""

    def rule(a: Arguments) -> Expression:
        x, y = _need(a, "x", "y")
        if is_tensor(x) and is_tensor(y):
            if operation is not None or _rank(x) != _rank(y):  # layers broadcast differently from NumPy
                return _op(operation or class_name, x, y)
            return _layer(class_name, [x, y])
        tensor, other = (x, y) if is_tensor(x) else (y, x)
        constant = _channels(other)
        if not is_tensor(tensor) or (constant is None and not isinstance(other, np.ndarray)):
            raise Untranslatable("one of its inputs is neither a tensor of the network nor a number")
        if line is not None and constant is not None:
            values = line(np.asarray(constant, np.float64), not is_tensor(x))
            if values is not None:
                scale, offset = (np.asarray(v, np.float64).tolist() for v in values)
                return _layer("Rescaling", tensor, scale=scale, offset=offset)
        if line is _quotient and is_tensor(x):
            raise Untranslatable("it divides by zero")
        return _op(operation or class_name, x, y)

    return rule


def _bias_add(a: Arguments) -> Expression:
    if _static(a, "data_format", "NHWC") not in {"NHWC", "N...C"}:
        raise Untranslatable("it is channels-first")
    x, bias = _need(a, "value", "bias")
    return _merge("Add", line=_line(1.0, 1.0))({"x": x, "y": bias})


def _quotient(number: np.ndarray, first: bool) -> tuple[Any, Any] | None:
    return None if first or not np.all(number) else (1.0 / number, 0.0)


def _add_all(a: Arguments) -> Expression:
    (values,) = _need(a, "inputs")
    return values[0] if len(values) == 1 else _layer("Add", list(values))


def _reduce(class_name: str, pooling: str | None = None) -> Rule:
    def rule(a: Arguments) -> Expression:
        (x,) = _need(a, "input_tensor")
        axis, keep = _static(a, "axis"), bool(_static(a, "keepdims", default=False))
        axes = axis if isinstance(axis, list | tuple) else [] if axis is None else [axis]
        if axis is not None:
            _integers(a, "axis")
        rank = _rank(x) or 4  # tensors of an image network that are reduced over these axes
        if pooling and rank == 4 and sorted(n % 4 for n in axes) == [1, 2]:
            return _layer(pooling, x, keepdims=keep)
        return _op(class_name, x, axis=axis, keepdims=keep)

    return rule


def _l2_normalize(a: Arguments) -> Expression:
    (x,) = _need(a, "x")
    # TensorFlow bounds the sum of squares, Keras the norm.
    epsilon = float(_static(a, "epsilon", 1e-12)) ** 0.5
    return _op("Normalize", x, module="nn", axis=_static(a, "axis", -1), order=2, epsilon=epsilon)


def _concat(a: Arguments) -> Expression:
    values = _tensors(a)
    return values[0] if len(values) == 1 else _layer("Concatenate", values, axis=_integers(a, "axis", -1))


def _stack(a: Arguments) -> Expression:
    return _op("Stack", _tensors(a), axis=_integers(a, "axis", 0))


def _tensors(a: Arguments) -> list[Any]:
    (values,) = _need(a, "values")
    if not isinstance(values, list) or not all(is_tensor(v) for v in values):
        raise Untranslatable("it concatenates constants with data")
    return values


def _split(a: Arguments) -> Expression:
    (value,) = _need(a, "value")
    axis, parts = _integers(a, "axis", 0), _integers(a, "num_or_size_splits")
    if isinstance(parts, list):
        if parts.count(-1) and parts.index(-1) != len(parts) - 1:
            raise Untranslatable("the size of one of its parts is unspecified")
        parts = np.cumsum(parts[:-1]).tolist()
    return _op("Split", value, indices_or_sections=parts, axis=axis)


def _unstack(a: Arguments) -> Expression:
    num = _integers(a, "num") if "num" in a else None
    return _op("Unstack", *_need(a, "value"), module="core", num=num, axis=_integers(a, "axis", 0))


def _transpose(a: Arguments) -> Expression:
    x, order = a.get("a"), _integers(a, "perm")
    if order == list(range(len(order))):
        return _layer("Identity", x)
    if order[0] == 0:
        return _layer("Permute", x, dims=order[1:])
    return _op("Transpose", x, axes=order)


def _tile(a: Arguments) -> Expression:
    times = _integers(a, "multiples")
    if times[0] != 1:
        raise Untranslatable("it repeats the batch axis")
    return _op("Tile", *_need(a, "input"), repeats=times)


def _repeat(a: Arguments) -> Expression:
    if "axis" not in a:
        raise Untranslatable("it repeats a flattened tensor")
    return _op("Repeat", *_need(a, "input"), repeats=_integers(a, "repeats"), axis=_integers(a, "axis"))


def _expand_dims(a: Arguments) -> Expression:
    axis = _integers(a, "axis")
    return _op("ExpandDims", *_need(a, "input"), axis=axis[0] if isinstance(axis, list) else axis)


def _squeeze(a: Arguments) -> Expression:
    axis = _integers(a, "axis") if a.get("axis") not in (None, []) else None
    return _op("Squeeze", *_need(a, "input"), axis=axis)


def _flip(axis: int) -> Rule:
    return lambda a: _op("Flip", *_need(a, "image"), axis=axis)


def _reshape(a: Arguments) -> Expression:
    shape = _integers(a, "shape")
    if not (isinstance(shape, list) and shape and shape[0] == -1):
        raise Untranslatable("its shape mixes slices or is computed by other operations")
    return _layer("Reshape", *_need(a, "tensor"), target_shape=shape[1:])


def _pad(a: Arguments) -> Expression:
    (x,) = _need(a, "tensor")
    pads = _integers_2d(a, "paddings")
    mode, value = str(_static(a, "mode", "CONSTANT")), _static(a, "constant_values", 0)
    if mode.upper() != "CONSTANT":
        return _op("Pad", x, pad_width=pads, mode=mode.lower())
    if value == 0 and len(pads) == 4 and pads[0] == pads[3] == [0, 0]:
        return _layer("ZeroPadding2D", x, padding=[pads[1], pads[2]])
    return _op("Pad", x, pad_width=pads) if value == 0 else _op("Pad", x, float(value), pad_width=pads)


def _integers_2d(a: Arguments, name: str) -> list[list[int]]:
    value = _static(a, name)
    if not isinstance(value, list) or any(_integers({"row": row}, "row") is None or len(row) != 2 for row in value):
        raise Untranslatable(f"its argument `{name}` is {value!r}")
    return value


def _pool(class_name: str) -> Rule:
    def rule(a: Arguments) -> Expression:
        if str(_static(a, "data_format", "NHWC")) != "NHWC":
            raise Untranslatable("it is channels-first")
        size, strides = _window(a, "ksize"), _window(a, "strides")
        padding = _static(a, "padding")
        if not isinstance(padding, str) or padding.lower() not in {"same", "valid"}:
            raise Untranslatable(f"its padding is {padding!r}")
        return _layer(class_name, *_need(a, "input"), pool_size=size, strides=strides, padding=padding.lower())

    return rule


def _window(a: Arguments, name: str) -> list[int]:
    """Return rows and columns of an argument that is one number, two, or one per axis."""
    value = _integers(a, name)
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) == 4 and numbers[0] == numbers[3] == 1:
        return numbers[1:3]
    if len(numbers) not in {1, 2}:
        raise Untranslatable(f"its {name} are {value}")
    return numbers * 2 if len(numbers) == 1 else numbers


def _blocks(class_name: str) -> Rule:
    def rule(a: Arguments) -> Expression:
        if str(_static(a, "data_format", "NHWC")) != "NHWC":
            raise Untranslatable("it is channels-first")
        return _op(class_name, *_need(a, "input"), module="nn", block_size=_integers(a, "block_size"))

    return rule


def _clip(a: Arguments) -> Expression:
    low, high = _static(a, "clip_value_min"), _static(a, "clip_value_max")
    if not (_number(low) and _number(high)):
        raise Untranslatable("its bounds are not numbers")
    return _op("Clip", *_need(a, "t"), x_min=low, x_max=high)


def _matmul(a: Arguments) -> Expression:
    def side(name: str) -> Any:
        (value,) = _need(a, name)
        flags = [_static(a, f"{kind}_{name}", default=False) for kind in ("transpose", "adjoint")]
        return _op("Swapaxes", value, axis1=-2, axis2=-1) if any(flags) else value

    if any(_static(a, f"{name}_is_sparse", default=False) for name in "ab"):
        raise Untranslatable("one of its matrices is sparse")
    left, right = side("a"), side("b")
    if not (is_tensor(left) and is_tensor(right)):
        raise Untranslatable("one of its matrices is a constant")
    return _op("Matmul", left, right)


def _einsum(a: Arguments) -> Expression:
    equation, inputs = _need(a, "equation", "inputs")
    if not all(is_tensor(v) for v in inputs):
        raise Untranslatable("one of its inputs is a constant")
    return _op("Einsum", *inputs, subscripts=equation)


def _gather(a: Arguments) -> Expression:
    if _integers(a, "batch_dims", 0) or "axis" not in a:
        raise Untranslatable("it selects slices by index")
    indices = _static(a, "indices")
    if not isinstance(indices, int | list):
        raise Untranslatable("its indices are not known integers")
    return _op("Take", *_need(a, "params"), indices, axis=_integers(a, "axis"))


def _cast(a: Arguments) -> Expression:
    dtype = str(_static(a, "dtype"))
    if dtype in {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16"}:
        return _op("Cast", *_need(a, "x"), module="core", dtype=dtype)
    if dtype not in {"float16", "bfloat16", "float32", "float64"}:
        raise Untranslatable("it casts to a type other than floating point or integer")
    return _op("Cast", *_need(a, "x"), module="core", dtype="float32")


def _one_hot(a: Arguments) -> Expression:
    if a.get("on_value", 1) != 1 or a.get("off_value", 0) != 0:
        raise Untranslatable("its values are not 0 and 1")
    return _op(
        "OneHot", *_need(a, "indices"), module="nn", num_classes=_integers(a, "depth"), axis=_integers(a, "axis", -1)
    )


def _resize(a: Arguments) -> Expression:
    size, method = _static(a, "size"), str(_static(a, "method", "bilinear")).lower()
    if _static(a, "antialias") or _static(a, "preserve_aspect_ratio") or method not in {"bilinear", "nearest"}:
        raise Untranslatable(f"resizing with method={method!r} and its other arguments has no Keras layer")
    if not (isinstance(size, list) and len(size) == 2):
        raise Untranslatable(f"its size is {size!r}")
    rows, columns = _integers(a, "size")
    return _layer("Resizing", *_need(a, "images"), height=rows, width=columns, interpolation=method)


def _identity(a: Arguments) -> Expression:
    return _layer("Identity", a.get("input", a.get("x")))


def _line(scale: float, sign: float, *, swapped: bool = False) -> Any:
    return lambda number, first: (-scale, number) if swapped and first else (scale, sign * number)


def _argmax(class_name: str) -> Rule:
    return lambda a: _op(class_name, *_need(a, "input"), axis=_integers(a, "axis", 0))


_UNARY = {
    "abs math.abs": "Absolute",
    "ceil math.ceil": "Ceil",
    "cos math.cos": "Cos",
    "math.expm1": "Expm1",
    "floor math.floor": "Floor",
    "math.is_finite": "Isfinite",
    "math.log": "Log",
    "math.log1p": "Log1p",
    "math.logical_not logical_not": "LogicalNot",
    "negative math.negative __operators__.neg": "Negative",
    "ones_like": "OnesLike",
    "math.reciprocal": "Reciprocal",
    "round math.round": "Round",
    "sign math.sign": "Sign",
    "sin math.sin": "Sin",
    "sqrt math.sqrt": "Sqrt",
    "square math.square": "Square",
    "zeros_like": "ZerosLike",
}
_ACTIVATIONS = ("relu", "relu6", "elu", "selu", "sigmoid", "tanh", "softplus", "softsign")
_COMPARISONS = {
    "equal": "Equal",
    "greater": "Greater",
    "greater_equal": "GreaterEqual",
    "less": "Less",
    "less_equal": "LessEqual",
    "logical_and": "LogicalAnd",
    "logical_or": "LogicalOr",
    "not_equal": "NotEqual",
}
_REDUCTION = "input_tensor axis keepdims"
_POOLING = "input ksize strides padding data_format"

#: Names of functions, their arguments by position, and the rule that translates them.
_ROWS: tuple[tuple[str, str, Rule], ...] = (
    *((names, "x", _plain(class_name)) for names, class_name in _UNARY.items()),
    *((f"nn.{name} math.{name} {name}", "x", _activation(name)) for name in _ACTIVATIONS),
    *((f"{name} math.{name}", "x y", _plain(class_name, "x y")) for name, class_name in _COMPARISONS.items()),
    ("math.erf", "x", _plain("Erf", module="math")),
    ("math.rsqrt", "x", _plain("Rsqrt", module="math")),
    ("math.erfc", "x", lambda a: _op("Subtract", 1.0, _op("Erf", *_need(a, "x"), module="math"))),
    ("nn.gelu", "x approximate", _gelu),
    ("nn.silu nn.swish keras.activations.swish", "x beta", _activation("silu", beta=1.0)),
    ("nn.log_softmax math.log_softmax", "x axis", _activation("log_softmax", axis=-1)),
    ("math.log_sigmoid", "x", _activation("log_sigmoid")),
    ("exp math.exp", "x", _activation("exponential")),
    ("nn.softmax math.softmax", "x axis", lambda a: _layer("Softmax", *_need(a, "x"), axis=_integers(a, "axis", -1))),
    ("nn.leaky_relu", "x alpha", _leaky_relu),
    ("identity stop_gradient", "input", _identity),
    ("add math.add __operators__.add", "x y", _merge("Add", line=_line(1.0, 1.0))),
    ("nn.bias_add", "value bias data_format", _bias_add),
    ("subtract math.subtract __operators__.subtract", "x y", _merge("Subtract", line=_line(1.0, -1.0, swapped=True))),
    ("multiply math.multiply __operators__.multiply", "x y", _merge("Multiply", line=lambda n, _: (n, 0.0))),
    ("divide math.divide truediv math.truediv realdiv", "x y", _merge("", "Divide", line=_quotient)),
    ("__operators__.truediv", "x y", _merge("", "Divide", line=_quotient)),
    ("math.divide_no_nan", "x y", _merge("", "DivideNoNan")),
    ("math.floordiv __operators__.floordiv", "x y", _merge("", "FloorDivide")),
    ("math.mod math.floormod __operators__.mod", "x y", _merge("", "Mod")),
    ("maximum math.maximum", "x y", _merge("Maximum")),
    ("minimum math.minimum", "x y", _merge("Minimum")),
    ("pow math.pow __operators__.pow", "x y", _merge("", "Power")),
    ("math.squared_difference", "x y", lambda a: _op("Square", _op("Subtract", *_need(a, "x", "y")))),
    ("math.add_n add_n", "inputs", _add_all),
    ("where", "condition x y", _plain("Where", "condition x y")),
    ("reduce_mean math.reduce_mean", _REDUCTION, _reduce("Mean", "GlobalAveragePooling2D")),
    ("reduce_max math.reduce_max", _REDUCTION, _reduce("Max", "GlobalMaxPooling2D")),
    ("reduce_min math.reduce_min", _REDUCTION, _reduce("Min")),
    ("reduce_sum math.reduce_sum", _REDUCTION, _reduce("Sum")),
    ("reduce_prod math.reduce_prod", _REDUCTION, _reduce("Prod")),
    ("math.reduce_std", _REDUCTION, _reduce("Std")),
    ("math.reduce_variance", _REDUCTION, _reduce("Var")),
    ("argmax math.argmax", "input axis output_type", _argmax("Argmax")),
    ("argmin math.argmin", "input axis output_type", _argmax("Argmin")),
    ("math.l2_normalize nn.l2_normalize linalg.l2_normalize", "x axis epsilon", _l2_normalize),
    ("matmul linalg.matmul", "a b transpose_a transpose_b adjoint_a adjoint_b", _matmul),
    ("einsum", "equation inputs", _einsum),
    ("concat", "values axis", _concat),
    ("stack", "values axis", _stack),
    ("split", "value num_or_size_splits axis num", _split),
    ("unstack", "value num axis", _unstack),
    ("transpose", "a perm conjugate", _transpose),
    ("tile", "input multiples", _tile),
    ("repeat", "input repeats axis", _repeat),
    ("expand_dims", "input axis", _expand_dims),
    ("squeeze", "input axis", _squeeze),
    ("reverse", "tensor axis", lambda a: _op("Flip", *_need(a, "tensor"), axis=_integers(a, "axis"))),
    ("image.flip_left_right", "image", _flip(-2)),
    ("image.flip_up_down", "image", _flip(-3)),
    ("reshape", "tensor shape", _reshape),
    ("pad", "tensor paddings mode constant_values", _pad),
    ("nn.max_pool2d nn.max_pool", _POOLING, _pool("MaxPooling2D")),
    ("nn.avg_pool2d nn.avg_pool", _POOLING, _pool("AveragePooling2D")),
    ("nn.depth_to_space", "input block_size data_format", _blocks("DepthToSpace")),
    ("nn.space_to_depth", "input block_size data_format", _blocks("SpaceToDepth")),
    ("clip_by_value", "t clip_value_min clip_value_max", _clip),
    ("gather", "params indices validate_indices axis batch_dims", _gather),
    ("cast", "x dtype", _cast),
    ("one_hot", "indices depth on_value off_value axis", _one_hot),
    ("image.resize", "images size method preserve_aspect_ratio antialias", _resize),
)

#: Function below `tf` -> (its arguments by position, rule).
TABLE: Mapping[str, tuple[str, Rule]] = {
    name: (arguments, rule) for names, arguments, rule in _ROWS for name in names.split()
}


class Raw(NamedTuple):
    """A raw operation as a function call.

    Attributes:
        function: The entry in `TABLE`.
        inputs: The argument for each input, in order; `*values` takes any number.
        attributes: Attribute -> argument.
    """

    function: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, str]


def _raw(text: str) -> Raw:
    function, *words = text.split()
    attributes = dict(w.split(">") for w in words if ">" in w)
    return Raw(function, tuple(w for w in words if ">" not in w), attributes)


_POOL = "input ksize>ksize strides>strides padding>padding data_format>data_format"
_REDUCED = "input_tensor axis keep_dims>keepdims"
_MATRICES = "matmul a b adj_x>adjoint_a adj_y>adjoint_b"

#: Raw operation in a SavedModel graph -> the equivalent function in `TABLE`.
RAW: Mapping[str, Raw] = {
    op: _raw(text)
    for op, text in {
        "Abs": "abs x",
        "Add": "add x y",
        "AddN": "add_n *inputs",
        "AddV2": "add x y",
        "ArgMax": "argmax input axis",
        "ArgMin": "argmin input axis",
        "AvgPool": f"nn.avg_pool2d {_POOL}",
        "BatchMatMul": _MATRICES,
        "BatchMatMulV2": _MATRICES,
        "BatchMatMulV3": _MATRICES,
        "BiasAdd": "add x y",
        "BiasAddV1": "add x y",
        "Ceil": "ceil x",
        "ClipByValue": "clip_by_value t clip_value_min clip_value_max",
        "Concat": "concat axis *values",
        "ConcatV2": "concat *values axis",
        "Cos": "cos x",
        "DepthToSpace": "nn.depth_to_space input block_size>block_size data_format>data_format",
        "Div": "divide x y",
        "DivNoNan": "math.divide_no_nan x y",
        "Equal": "equal x y",
        "Erf": "math.erf x",
        "Erfc": "math.erfc x",
        "Exp": "exp x",
        "ExpandDims": "expand_dims input axis",
        "Expm1": "math.expm1 x",
        "Floor": "floor x",
        "FloorDiv": "math.floordiv x y",
        "FloorMod": "math.mod x y",
        "GatherV2": "gather params indices axis batch_dims>batch_dims",
        "Greater": "greater x y",
        "GreaterEqual": "greater_equal x y",
        "IsFinite": "math.is_finite x",
        "Inv": "math.reciprocal x",
        "Less": "less x y",
        "LessEqual": "less_equal x y",
        "Log": "math.log x",
        "Log1p": "math.log1p x",
        "LogicalAnd": "logical_and x y",
        "LogicalNot": "logical_not x",
        "LogicalOr": "logical_or x y",
        "Max": f"reduce_max {_REDUCED}",
        "MaxPool": f"nn.max_pool2d {_POOL}",
        "Maximum": "maximum x y",
        "Mean": f"reduce_mean {_REDUCED}",
        "Min": f"reduce_min {_REDUCED}",
        "Minimum": "minimum x y",
        "MirrorPad": "pad tensor paddings mode>mode",
        "Mul": "multiply x y",
        "Neg": "negative x",
        "NotEqual": "not_equal x y",
        "OnesLike": "ones_like x",
        "Pack": "stack *values axis>axis",
        "Pad": "pad tensor paddings",
        "PadV2": "pad tensor paddings constant_values",
        "Pow": "pow x y",
        "Prod": f"reduce_prod {_REDUCED}",
        "RealDiv": "divide x y",
        "Reciprocal": "math.reciprocal x",
        "ReverseV2": "reverse tensor axis",
        "Round": "round x",
        "Rsqrt": "math.rsqrt x",
        "Select": "where condition x y",
        "SelectV2": "where condition x y",
        "Sign": "sign x",
        "Sin": "sin x",
        "SpaceToDepth": "nn.space_to_depth input block_size>block_size data_format>data_format",
        "Split": "split axis value num_split>num_or_size_splits",
        "SplitV": "split value num_or_size_splits axis",
        "Sqrt": "sqrt x",
        "Square": "square x",
        "SquaredDifference": "math.squared_difference x y",
        "Sub": "subtract x y",
        "Sum": f"reduce_sum {_REDUCED}",
        "Tile": "tile input multiples",
        "Transpose": "transpose a perm",
        "Unpack": "unstack value num>num axis>axis",
        "ZerosLike": "zeros_like x",
    }.items()
}
