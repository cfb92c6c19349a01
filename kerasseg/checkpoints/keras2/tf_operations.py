"""TensorFlow operations in Keras 2 networks (`x * y`, `tf.concat`, `tf.nn.relu`) as native Keras 3 layers.

Keras 2 stored them as `TFOpLambda` and `SlicingOpLambda` layers with the name of a TensorFlow function. The name is looked
up only in the table of `kerasseg.checkpoints.operations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kerasseg.checkpoints.keras2.layer_config import Call, NewLayer, OldLayer, map_refs
from kerasseg.checkpoints.operations import Expression, Ref, Untranslatable, expression, named, short_name
from kerasseg.checkpoints.savedmodel.arithmetic import Dim

OPERATION_CLASSES = frozenset({"TFOpLambda", "SlicingOpLambda"})

#: Values of keywords that only state the default.
_DEFAULTS: tuple[Any, ...] = (None, False, "NHWC")

#: The shape of a tensor; with True, the shape for an image of a usual size where the size is not fixed.
ShapeOf = Callable[[Ref, bool], tuple[int | None, ...]]


class Sizes:
    """Values of tensors that hold sizes of other tensors, such as the results of `tf.shape`."""

    def __init__(self, shape_of: ShapeOf) -> None:
        self.shape_of = shape_of
        self.sources: dict[str, Ref] = {}  # of each `Dim`
        self._known: dict[Ref, np.ndarray] = {}

    def add(self, old: OldLayer) -> bool:
        """Evaluate a layer that computes only with sizes; return whether `old` is one."""
        function = short_name(str(old.config.get("function", "")))
        if function not in {"shape", *_SIZE_FUNCTIONS} or not old.calls:
            return False
        call = old.call
        if function == "shape":
            ref = call.args[0]
            self.sources[repr(ref)] = ref
            sizes = enumerate(self.shape_of(ref, False))
            value: Any = np.array([Dim(repr(ref), i) if n is None else n for i, n in sizes], object)
        else:
            args, kwargs = [self._held(a) for a in call.args], {k: self._held(v) for k, v in call.kwargs.items()}
            if not any(isinstance(v, np.ndarray) for v in (*args, *kwargs.values())):
                return False
            try:
                value = _SIZE_FUNCTIONS[function](*args, **kwargs)
            except (TypeError, ValueError, IndexError, KeyError) as error:
                raise Untranslatable("it computes a size in an unsupported way") from error
        self._known[Ref(old.name, 0, 0)] = np.asarray(value, object)
        return True

    def _held(self, value: Any) -> Any:
        """Return a known size as an array and any other value unchanged."""
        if isinstance(value, Ref):
            return self._known.get(value, value)
        if isinstance(value, list) and any(isinstance(v, Ref) and v in self._known for v in value):
            parts = [self._known[v].item() if isinstance(v, Ref) else v for v in value]
            return np.array(parts, object)
        return value

    def known(self, value: Any) -> Any:
        """Replace references to sizes in `value` by numbers, or by `Dim`s where the size is not fixed."""
        return map_refs(value, lambda ref: self._known[ref].tolist() if ref in self._known else ref)


def _slices(x: np.ndarray, slice_spec: Any) -> Any:
    spec = slice_spec if isinstance(slice_spec, list) else [slice_spec]
    return x[tuple(slice(s["start"], s["stop"], s["step"]) if isinstance(s, dict) else s for s in spec)]


_SIZE_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "getitem": _slices,
    "multiply": lambda x, y: x * y,
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "cast": lambda x, **_: x,
    "stack": lambda values, **_: np.asarray(values),
    "identity": lambda x: x,
}


def translate_operation(old: OldLayer, sizes: Sizes) -> list[NewLayer]:
    """Translate one TensorFlow operation into Keras 3 layers, given the sizes known so far."""
    function = str(old.config.get("function", "")).removeprefix("compat.v1.")
    rows = [_flatten(_expression(function, call, sizes), old.name, node) for node, call in enumerate(old.calls)]
    if not rows or any([r[:3] for r in row] != [r[:3] for r in rows[0]] for row in rows):
        raise Untranslatable("it is called several times with different arguments")
    chain = []
    for place, (class_name, config, module, _) in enumerate(rows[0]):
        name = old.name if place == len(rows[0]) - 1 else f"{old.name}_{place}"
        kept = ("trainable", "dtype") if module == "keras.layers" else ()
        base: dict[str, Any] = {k: old.config[k] for k in kept if k in old.config}
        calls = tuple(row[place][3] for row in rows)
        chain.append(NewLayer(class_name, {"name": name, **base, **config}, module, None, calls))
    return chain


def _flatten(value: Expression, name: str, node: int) -> list[tuple[str, dict[str, Any], str, Call]]:
    """Return the layers of call `node`, each after its inputs; inner ones are named `name_0`, `name_1`, ..."""
    rows: list[tuple[str, dict[str, Any], str, Call]] = []

    def visit(v: Any) -> Any:
        if isinstance(v, Expression):
            inputs = tuple(visit(i) for i in v.inputs)
            rows.append((v.class_name, dict(v.config), v.module, Call(inputs)))
            return Ref(f"{name}_{len(rows) - 1}", node, 0)
        return [visit(i) for i in v] if isinstance(v, list) else v

    visit(value)
    return rows


def _expression(function: str, call: Call, sizes: Sizes) -> Expression:
    if function == "__operators__.getitem":
        return _getitem(call.args[0], call.kwargs.get("slice_spec"), sizes)
    if function == "slice":
        return _slice(call, sizes)
    arguments, others = named(function, call.args, call.kwargs)
    for name, value in others.items():
        if isinstance(value, list | dict) or value not in _DEFAULTS:
            raise Untranslatable(f"its argument {name}={value!r} has no counterpart in Keras 3")
    arguments = {name: sizes.known(value) for name, value in arguments.items()}
    if function == "image.resize" and isinstance(arguments.get("size"), list):
        factors = [_factor(arguments["x"], axis, n, sizes) for axis, n in enumerate(arguments["size"], 1)]
        if any(isinstance(n, Dim) for n in arguments["size"]):
            return _upsample(arguments, factors)
    if function == "reshape" and isinstance(arguments.get("shape"), list):
        arguments["shape"] = [-1 if isinstance(n, Dim) else n for n in arguments["shape"]]
        if arguments["shape"][1:].count(-1) > 1:
            raise Untranslatable("its shape depends on more than one size of the image")
    if function == "image.per_image_standardization":
        shape = sizes.shape_of(arguments["x"], False)[1:]
        if None in shape:
            raise Untranslatable("it depends on the size of the image, which is not fixed")
        arguments["pixels"] = math.prod(n or 1 for n in shape)
    return expression(function, arguments)


def _factor(image: Any, axis: int, size: Any, sizes: Sizes) -> int | None:
    """Return the factor between a size that is not fixed and the image's axis, or None."""
    if not isinstance(size, Dim) or not isinstance(image, Ref):
        return None
    if size.source == repr(image):
        return size.factor if (size.axis, size.offset) == (axis, 0) and size.factor >= 1 else None
    wanted = sizes.shape_of(sizes.sources[size.source], True)[size.axis]
    have = sizes.shape_of(image, True)[axis]
    if not wanted or not have or size.offset or (wanted * size.factor) % have:
        return None
    return wanted * size.factor // have


def _upsample(arguments: Mapping[str, Any], factors: list[int | None]) -> Expression:
    method = arguments.get("method", "bilinear")
    if None in factors or method not in {"bilinear", "nearest"} or arguments.get("antialias"):
        raise Untranslatable("its size is computed by other operations and is not a multiple of the size of its input")
    return Expression("UpSampling2D", (arguments["x"],), {"size": factors, "interpolation": method})


def _getitem(x: Ref, spec: Any, sizes: Sizes) -> Expression:
    def part(item: Any) -> Any:
        if isinstance(item, dict) and {"start", "stop", "step"} == item.keys():
            if all(n is None or isinstance(n, int) for n in item.values()):
                return {"class_name": "__slice__", "config": dict(item)}
        elif isinstance(item, dict) and (item.get("class_name") == "__ellipsis__" or item.get("value") == "Ellipsis"):
            return Ellipsis
        elif isinstance(item, int) or (item is None and isinstance(spec, list)):
            return item
        raise Untranslatable("its slices depend on other tensors")

    key = [part(item) for item in (spec if isinstance(spec, list) else [spec])]
    if Ellipsis in key:  # Keras cannot save an Ellipsis
        place = key.index(Ellipsis)
        rank = len(sizes.shape_of(x, False))
        full = {"class_name": "__slice__", "config": {"start": None, "stop": None, "step": None}}
        key[place : place + 1] = [full] * (rank - sum(k is not None for k in key) + 1)
    return Expression("GetItem", (x, key), {}, "keras.src.ops.numpy")


def _slice(call: Call, sizes: Sizes) -> Expression:
    begin, size = call.kwargs.get("begin"), call.kwargs.get("size")
    if not (isinstance(begin, list) and isinstance(size, list) and all(isinstance(n, int) for n in begin + size)):
        raise Untranslatable("its slices depend on other tensors")
    ends = [None if n == -1 else first + n for first, n in zip(begin, size, strict=True)]
    spec = [{"start": first, "stop": end, "step": None} for first, end in zip(begin, ends, strict=True)]
    return _getitem(call.args[0], spec, sizes)
