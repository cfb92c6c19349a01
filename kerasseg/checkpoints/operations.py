"""TensorFlow operations without weights as Keras 3 layers, in one table for every file format.

Keras 2 files name a TensorFlow function (`math.reduce_mean`); SavedModels name the raw operation that the function wrote
(`Mean`). Names from a file are looked up only in these tables. An operation becomes a Keras layer where there is one, and
an operation of `keras.ops` otherwise.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np

from kerasseg.checkpoints.allowed import pairs, words
from kerasseg.checkpoints.savedmodel.arithmetic import line


class Untranslatable(Exception):  # noqa: N818 - control flow inside this package; users see CheckpointError
    """An operation or layer without a Keras 3 counterpart. The message is a sentence about it."""


class Ref(NamedTuple):
    """A tensor in a Keras 2 configuration: output `tensor` of call `node` of the layer `layer`."""

    layer: str
    node: int
    tensor: int


@dataclass(frozen=True)
class Expression:
    """A Keras 3 layer or operation, the arguments of its constructor (without the name) and of its call (`inputs`)."""

    class_name: str
    inputs: tuple[Any, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    module: str = "keras.layers"


Rule = Callable[..., Expression]

_TENSORS = words("x y a b condition bias values inputs")
_INTEGERS = words(
    "axis perm multiples shape ksize strides block_size num num_or_size_splits depth repeats batch_dims size paddings shift"
)
_FIRST = words("input input_tensor tensor value image images t params features logits indices a")


def is_tensor(value: Any) -> bool:
    """Return whether a value is computed by the network rather than a constant."""
    return isinstance(value, Ref | Expression | keras.KerasTensor)


def expression(function: str, arguments: Mapping[str, Any]) -> Expression:
    """Translate one call of a TensorFlow function (the name below `tf`); None as an argument means not given.

    Example:
        >>> expression("transpose", {"x": Ref("x", 0, 0), "perm": [0, 2, 1, 3]}).config
        {'dims': [2, 1, 3]}
    """
    rule = TABLE[short_name(function)]
    known = {}
    for parameter in inspect.signature(rule).parameters.values():
        name = parameter.name.lstrip("_")  # an argument without influence begins with `_`
        value = arguments.get(name)
        if value is None and parameter.default is parameter.empty:
            raise Untranslatable(f"its argument `{name}` is missing")
        flat = _flat(value)
        if name not in _TENSORS and any(is_tensor(v) for v in flat):
            raise Untranslatable(f"its argument `{name}` is computed by other operations")
        if value is not None and name in _INTEGERS and not all(_number(v) and isinstance(v, int) for v in flat):
            raise Untranslatable(f"its argument `{name}` is {value!r} and not a known integer")
        if value is not None:
            known[parameter.name] = list(value) if type(value) is tuple else value
    if str(known.get("data_format", "NHWC")) not in {"NHWC", "N...C"}:
        raise Untranslatable("it is channels-first")
    return rule(**known)


def _flat(value: Any) -> list[Any]:
    return [w for v in value for w in _flat(v)] if isinstance(value, list) or type(value) is tuple else [value]


def named(function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of a call by the names that `expression` takes, and those that it does not take.

    The first argument, which TensorFlow calls `input`, `image`, `value` and so on, is `x`.
    """
    if short_name(function) not in TABLE:
        raise Untranslatable(f"kerasseg does not translate the TensorFlow operation `tf.{function}`")
    names = [name.lstrip("_") for name in inspect.signature(TABLE[short_name(function)]).parameters]
    taken: dict[str, Any] = dict(zip(names, args, strict=False))
    others: dict[str, Any] = {}
    for name, value in kwargs.items():
        key = "x" if name in _FIRST - set(names) and "x" in names and "x" not in taken else name
        (taken if key in names else others)[key] = value
    return taken, others


def _op(class_name: str, *inputs: Any, module: str = "numpy", **config: Any) -> Expression:
    # Keras writes the same module paths into `.keras` files.
    return Expression(class_name, inputs, config, f"keras.src.ops.{module}")


def _layer(class_name: str, *inputs: Any, **config: Any) -> Expression:
    return Expression(class_name, inputs, config)


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


def _same(class_name: str, inputs: int, module: str) -> Rule:
    if inputs == 2:
        return lambda x, y: _op(class_name, x, y, module=module)
    return lambda x: _op(class_name, x, module=module)


def _activation(name: str) -> Rule:
    return lambda x: _layer("Activation", x, activation=name)


def _silu(x: Any, beta: float = 1.0) -> Expression:
    if beta != 1.0:
        raise Untranslatable(f"`silu` with beta={beta} differs from the Keras activation")
    return _layer("Activation", x, activation="silu")


def _log_softmax(x: Any, axis: int = -1) -> Expression:
    if axis != -1:
        raise Untranslatable(f"`log_softmax` over axis {axis} differs from the Keras activation")
    return _layer("Activation", x, activation="log_softmax")


def _gelu(x: Any, approximate: bool = False) -> Expression:
    if approximate:
        return _op("Gelu", x, module="nn", approximate=True)
    return _layer("Activation", x, activation="gelu")


def _merge(class_name: str, operation: str | None = None, *, affine: bool = False) -> Rule:
    """Two inputs; with a constant one, an affine operation is a `Rescaling`."""
    name = operation or class_name

    def rule(x: Any, y: Any) -> Expression:
        if is_tensor(x) and is_tensor(y):
            ranks = [len(v.shape) if isinstance(v, keras.KerasTensor) else None for v in (x, y)]
            if operation is not None or ranks[0] != ranks[1]:  # layers broadcast differently from NumPy
                return _op(name, x, y)
            return _layer(class_name, [x, y])
        tensor, other = (x, y) if is_tensor(x) else (y, x)
        constant = _channels(other)
        if not is_tensor(tensor) or (constant is None and not isinstance(other, np.ndarray)):
            raise Untranslatable("one of its inputs is neither a tensor of the network nor a number")
        number = np.asarray(constant, np.float64)
        if affine and constant is not None and (name != "Divide" or (is_tensor(x) and np.all(number))):
            scale, offset = (v.tolist() for v in line(name, number, first=not is_tensor(x)))
            return _layer("Rescaling", tensor, scale=scale, offset=offset)
        if name == "Divide" and is_tensor(x):
            raise Untranslatable("it divides by zero")
        return _op(name, x, y)

    return rule


_add = _merge("Add", affine=True)


def _reduce(class_name: str, pooling: str | None = None) -> Rule:
    def rule(x: Any, axis: Any = None, keepdims: bool = False) -> Expression:
        axes = axis if isinstance(axis, list) else [] if axis is None else [axis]
        # Without a shape: tensors of an image network that are reduced over these axes.
        rank = len(x.shape) if isinstance(x, keras.KerasTensor) else 4
        if pooling and rank == 4 and sorted(n % 4 for n in axes) == [1, 2]:
            return _layer(pooling, x, keepdims=bool(keepdims))
        return _op(class_name, x, axis=axis, keepdims=bool(keepdims))

    return rule


def _concat(values: Any, axis: int = -1) -> Expression:
    tensors = _all_tensors(values)
    return tensors[0] if len(tensors) == 1 else _layer("Concatenate", tensors, axis=axis)


def _all_tensors(values: Any) -> list[Any]:
    if not isinstance(values, list) or not all(is_tensor(v) for v in values):
        raise Untranslatable("it concatenates constants with data")
    return values


def _split(x: Any, num_or_size_splits: Any, axis: int = 0, _num: Any = None) -> Expression:
    parts = num_or_size_splits
    if isinstance(parts, list):
        if parts.count(-1) and parts.index(-1) != len(parts) - 1:
            raise Untranslatable("the size of one of its parts is unspecified")
        parts = np.cumsum(parts[:-1]).tolist()
    return _op("Split", x, indices_or_sections=parts, axis=axis)


def _transpose(x: Any, perm: list[int], _conjugate: bool = False) -> Expression:
    if perm == list(range(len(perm))):
        return _layer("Identity", x)
    return _layer("Permute", x, dims=perm[1:]) if perm[0] == 0 else _op("Transpose", x, axes=perm)


def _tile(x: Any, multiples: list[int]) -> Expression:
    if multiples[0] != 1:
        raise Untranslatable("it repeats the batch axis")
    return _op("Tile", x, repeats=multiples)


def _reshape(x: Any, shape: Any) -> Expression:
    if not (isinstance(shape, list) and shape and shape[0] == -1):
        raise Untranslatable("its shape mixes slices or is computed by other operations")
    return _layer("Reshape", x, target_shape=shape[1:])


def _pad(x: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0) -> Expression:
    if not isinstance(paddings, list) or any(not isinstance(row, list) or len(row) != 2 for row in paddings):
        raise Untranslatable(f"its argument `paddings` is {paddings!r}")
    if mode.upper() != "CONSTANT":
        return _op("Pad", x, pad_width=paddings, mode=mode.lower())
    if constant_values == 0 and len(paddings) == 4 and paddings[0] == paddings[3] == [0, 0]:
        return _layer("ZeroPadding2D", x, padding=[paddings[1], paddings[2]])
    value = () if constant_values == 0 else (float(constant_values),)
    return _op("Pad", x, *value, pad_width=paddings)


def _pool(class_name: str) -> Rule:
    def rule(x: Any, ksize: Any, strides: Any, padding: Any, data_format: str = "NHWC") -> Expression:  # noqa: ARG001
        if not isinstance(padding, str) or padding.lower() not in {"same", "valid"}:
            raise Untranslatable(f"its padding is {padding!r}")
        config = {"pool_size": _window("ksize", ksize), "strides": _window("strides", strides)}
        return _layer(class_name, x, **config, padding=padding.lower())

    return rule


def _window(name: str, value: Any) -> list[int]:
    """Return rows and columns of an argument that is one number, two, or one per axis."""
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) == 4 and numbers[0] == numbers[3] == 1:
        return numbers[1:3]
    if len(numbers) not in {1, 2}:
        raise Untranslatable(f"its {name} are {value}")
    return numbers * 2 if len(numbers) == 1 else numbers


def _blocks(class_name: str) -> Rule:
    def rule(x: Any, block_size: int, data_format: str = "NHWC") -> Expression:  # noqa: ARG001
        return _op(class_name, x, module="nn", block_size=block_size)

    return rule


def _clip(x: Any, clip_value_min: Any, clip_value_max: Any) -> Expression:
    if not (_number(clip_value_min) and _number(clip_value_max)):
        raise Untranslatable("its bounds are not numbers")
    return _op("Clip", x, x_min=clip_value_min, x_max=clip_value_max)


def _matmul(
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
    a_is_sparse: bool = False,
    b_is_sparse: bool = False,
) -> Expression:
    if a_is_sparse or b_is_sparse:
        raise Untranslatable("one of its matrices is sparse")
    if not (is_tensor(a) and is_tensor(b)):
        raise Untranslatable("one of its matrices is a constant")
    turned = zip((a, b), (transpose_a or adjoint_a, transpose_b or adjoint_b), strict=True)
    return _op("Matmul", *(_op("Swapaxes", x, axis1=-2, axis2=-1) if turn else x for x, turn in turned))


def _einsum(equation: str, inputs: list[Any]) -> Expression:
    if not all(is_tensor(v) for v in inputs):
        raise Untranslatable("one of its inputs is a constant")
    return _op("Einsum", *inputs, subscripts=equation)


def _gather(x: Any, indices: Any, _validate: Any = None, axis: int | None = None, batch_dims: int = 0) -> Expression:
    if batch_dims or axis is None:
        raise Untranslatable("it selects slices by index")
    if not isinstance(indices, int | list):
        raise Untranslatable("its indices are not known integers")
    return _op("Take", x, indices, axis=axis)


def _cast(x: Any, dtype: Any) -> Expression:
    if str(dtype) in {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16"}:
        return _op("Cast", x, module="core", dtype=str(dtype))
    if str(dtype) not in {"float16", "bfloat16", "float32", "float64"}:
        raise Untranslatable("it casts to a type other than floating point or integer")
    return _op("Cast", x, module="core", dtype="float32")


def _one_hot(x: Any, depth: int, on_value: Any = 1, off_value: Any = 0, axis: int = -1) -> Expression:
    if on_value != 1 or off_value != 0:
        raise Untranslatable("its values are not 0 and 1")
    return _op("OneHot", x, module="nn", num_classes=depth, axis=axis)


def _resize(
    x: Any, size: Any, method: Any = "bilinear", preserve_aspect_ratio: bool = False, antialias: bool = False
) -> Expression:
    method = str(method).lower()
    if antialias or preserve_aspect_ratio or method not in {"bilinear", "nearest"}:
        raise Untranslatable(f"resizing with method={method!r} and its other arguments has no Keras layer")
    if not (isinstance(size, list) and len(size) == 2):
        raise Untranslatable(f"its size is {size!r}")
    return _layer("Resizing", x, height=size[0], width=size[1], interpolation=method)


def _standardization(x: Any, pixels: int) -> Expression:
    mean, std = (_op(name, x, axis=[-3, -2, -1], keepdims=True) for name in ("Mean", "Std"))
    return _op("Divide", _op("Subtract", x, mean), _op("Maximum", std, pixels**-0.5))


_PREFIX = re.compile(r"(compat\.v1\.)?(math\.|nn\.|linalg\.|__operators__\.|keras\.activations\.)?")


def short_name(function: str) -> str:
    """Return the name under which `TABLE` lists a function, which has several in TensorFlow.

    >>> [short_name(n) for n in ("math.abs", "abs", "compat.v1.nn.relu", "__operators__.add", "image.resize")]
    ['abs', 'abs', 'relu', 'add', 'image.resize']
    """
    return _PREFIX.sub("", function, count=1)


#: Functions that Keras has as an operation: its module, the number of inputs, and `function:Operation`.
_SAME = {
    ("numpy", 1): "abs:Absolute ceil:Ceil cos:Cos expm1:Expm1 floor:Floor is_finite:Isfinite log:Log log1p:Log1p "
    "logical_not:LogicalNot neg:Negative negative:Negative ones_like:OnesLike reciprocal:Reciprocal round:Round sign:Sign "
    "sin:Sin sqrt:Sqrt square:Square zeros_like:ZerosLike",
    ("numpy", 2): "equal:Equal greater:Greater greater_equal:GreaterEqual less:Less less_equal:LessEqual "
    "logical_and:LogicalAnd logical_or:LogicalOr not_equal:NotEqual",
    ("math", 1): "erf:Erf rsqrt:Rsqrt",
}
#: Functions that Keras has as an activation without parameters, or under another name.
_ACTIVATIONS = "relu relu6 elu selu sigmoid tanh softplus softsign log_sigmoid exp:exponential"

#: Names of functions, and the rule that translates them, whose parameters have the names and order of TensorFlow's.
_ROWS: tuple[tuple[str, Rule], ...] = (
    *((name, _same(c, inputs, module)) for (module, inputs), text in _SAME.items() for name, c in pairs(text)),
    *((name, _activation(activation)) for name, activation in pairs(_ACTIVATIONS)),
    ("erfc", lambda x: _op("Subtract", 1.0, _op("Erf", x, module="math"))),
    ("gelu", _gelu),
    ("silu swish", _silu),
    ("log_softmax", _log_softmax),
    ("softmax", lambda x, axis=-1: _layer("Softmax", x, axis=axis)),
    ("leaky_relu", lambda x, alpha=0.2: _layer("LeakyReLU", x, negative_slope=alpha)),
    ("identity stop_gradient", lambda x: _layer("Identity", x)),
    ("add", _add),
    ("bias_add", lambda x, bias, data_format="NHWC": _add(x, bias)),  # noqa: ARG005
    ("subtract", _merge("Subtract", affine=True)),
    ("multiply", _merge("Multiply", affine=True)),
    ("divide truediv realdiv", _merge("", "Divide", affine=True)),
    *((name, _merge("", c)) for name, c in pairs("divide_no_nan:DivideNoNan floordiv:FloorDivide pow:Power")),
    ("mod floormod", _merge("", "Mod")),
    *((name, _merge(name.title())) for name in ("maximum", "minimum")),
    ("squared_difference", lambda x, y: _op("Square", _op("Subtract", x, y))),
    ("add_n", lambda inputs: inputs[0] if len(inputs) == 1 else _layer("Add", list(inputs))),
    ("where", lambda condition, x, y: _op("Where", condition, x, y)),
    ("reduce_mean", _reduce("Mean", "GlobalAveragePooling2D")),
    ("reduce_max", _reduce("Max", "GlobalMaxPooling2D")),
    *((f"reduce_{name}", _reduce(c)) for name, c in pairs("min:Min sum:Sum prod:Prod std:Std variance:Var")),
    ("argmax", lambda x, axis=0, _output_type=None: _op("Argmax", x, axis=axis)),
    ("argmin", lambda x, axis=0, _output_type=None: _op("Argmin", x, axis=axis)),
    # TensorFlow bounds the sum of squares, Keras the norm.
    (
        "l2_normalize",
        lambda x, axis=-1, epsilon=1e-12: _op(
            "Normalize", x, module="nn", axis=axis, order=2, epsilon=float(epsilon) ** 0.5
        ),
    ),
    ("matmul", _matmul),
    ("einsum", _einsum),
    ("concat", _concat),
    ("stack", lambda values, axis=0: _op("Stack", _all_tensors(values), axis=axis)),
    ("split", _split),
    ("unstack", lambda x, num=None, axis=0: _op("Unstack", x, module="core", num=num, axis=axis)),
    ("transpose", _transpose),
    ("tile", _tile),
    ("repeat", lambda x, repeats, axis: _op("Repeat", x, repeats=repeats, axis=axis)),
    ("expand_dims", lambda x, axis: _op("ExpandDims", x, axis=axis[0] if isinstance(axis, list) else axis)),
    ("squeeze", lambda x, axis=None: _op("Squeeze", x, axis=axis or None if isinstance(axis, list) else axis)),
    ("reverse", lambda x, axis: _op("Flip", x, axis=axis)),
    ("roll", lambda x, shift, axis: _op("Roll", x, shift=shift, axis=axis)),
    ("image.flip_left_right", lambda x: _op("Flip", x, axis=-2)),
    ("image.flip_up_down", lambda x: _op("Flip", x, axis=-3)),
    ("reshape", _reshape),
    ("pad", _pad),
    ("max_pool2d max_pool", _pool("MaxPooling2D")),
    ("avg_pool2d avg_pool", _pool("AveragePooling2D")),
    ("depth_to_space", _blocks("DepthToSpace")),
    ("space_to_depth", _blocks("SpaceToDepth")),
    ("clip_by_value", _clip),
    ("gather", _gather),
    ("cast", _cast),
    ("one_hot", _one_hot),
    ("image.per_image_standardization", _standardization),
    ("image.resize", _resize),
)

#: `short_name` of a function below `tf` -> its rule.
TABLE: Mapping[str, Rule] = {name: rule for names, rule in _ROWS for name in names.split()}


class Raw(NamedTuple):
    """A raw operation as a call of a function in `TABLE`, with the arguments that its inputs and attributes are."""

    function: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, str]


#: Inputs (`attribute>argument` for attributes), and `Operation:function` for the raw operations that have them.
_RAW_ROWS = {
    "x": "Abs:abs Ceil:ceil Cos:cos Erf:erf Erfc:erfc Exp:exp Expm1:expm1 Floor:floor Inv:reciprocal IsFinite:is_finite "
    "Log:log Log1p:log1p LogicalNot:logical_not Neg:negative OnesLike:ones_like Reciprocal:reciprocal Round:round "
    "Rsqrt:rsqrt Sign:sign Sin:sin Sqrt:sqrt Square:square ZerosLike:zeros_like",
    "x y": "Add:add AddV2:add BiasAdd:add BiasAddV1:add Div:divide DivNoNan:divide_no_nan Equal:equal FloorDiv:floordiv "
    "FloorMod:mod Greater:greater GreaterEqual:greater_equal Less:less LessEqual:less_equal LogicalAnd:logical_and "
    "LogicalOr:logical_or Maximum:maximum Minimum:minimum Mul:multiply NotEqual:not_equal Pow:pow RealDiv:divide "
    "SquaredDifference:squared_difference Sub:subtract",
    "x axis keep_dims>keepdims": "Max:reduce_max Mean:reduce_mean Min:reduce_min Prod:reduce_prod Sum:reduce_sum",
    "x axis": "ArgMax:argmax ArgMin:argmin ExpandDims:expand_dims ReverseV2:reverse",
    "condition x y": "Select:where SelectV2:where",
    "a b adj_x>adjoint_a adj_y>adjoint_b": "BatchMatMul:matmul BatchMatMulV2:matmul BatchMatMulV3:matmul",
    "x ksize>ksize strides>strides padding>padding data_format>data_format": "AvgPool:avg_pool2d MaxPool:max_pool2d",
    "x block_size>block_size data_format>data_format": "DepthToSpace:depth_to_space SpaceToDepth:space_to_depth",
    "*inputs": "AddN:add_n",
    "x clip_value_min clip_value_max": "ClipByValue:clip_by_value",
    "axis *values": "Concat:concat",
    "*values axis": "ConcatV2:concat",
    "x indices axis batch_dims>batch_dims": "GatherV2:gather",
    "x paddings mode>mode": "MirrorPad:pad",
    "*values axis>axis": "Pack:stack",
    "x paddings": "Pad:pad",
    "x paddings constant_values": "PadV2:pad",
    "axis x num_split>num_or_size_splits": "Split:split",
    "x num_or_size_splits axis": "SplitV:split",
    "x multiples": "Tile:tile",
    "x squeeze_dims>axis": "Squeeze:squeeze",
    "x shift axis": "Roll:roll",
    "x perm": "Transpose:transpose",
    "x num>num axis>axis": "Unpack:unstack",
}
#: Raw operation in a SavedModel graph -> the equivalent function in `TABLE`.
RAW: Mapping[str, Raw] = {
    op: Raw(function, tuple(w for w in row if ">" not in w), dict(w.split(">") for w in row if ">" in w))
    for row, names in ((text.split(), names) for text, names in _RAW_ROWS.items())
    for op, function in pairs(names)
}
