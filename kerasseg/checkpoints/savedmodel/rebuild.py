"""Building of a Keras model from a fused graph, with its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kerasseg.checkpoints.savedmodel.arithmetic import Budget, Dim, evaluate
from kerasseg.checkpoints.savedmodel.graph import VARIABLES, Graph, Node, Tensor, scope
from kerasseg.checkpoints.savedmodel.patterns import LINEAR
from kerasseg.checkpoints.savedmodel.signatures import Variable
from kerasseg_tfrecords.errors import CheckpointError

_LONGEST = 100  # characters of a name

# Scopes that TensorFlow's own functions open within the scope of a layer.
_INNER = frozenset({"Gelu", "LogSigmoid", "Repeat", "Tensordot", "batchnorm", "clip_by_value", "moments", "resize"})
MAX_ELEMENTS = 1 << 27  # of one tensor for one slice (half a gigabyte in float32)
MAX_STEPS = 5000  # a network on EfficientNetB7 has about 1,500, and each takes Keras 8 ms

_SOURCES = frozenset({"Const", "Placeholder", "PlaceholderWithDefault"}) | VARIABLES


def clean(text: str) -> str:
    """Return a name that is valid for Keras, file formats and terminals, such as `block_1_conv_0` for `block 1/conv:0`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:_LONGEST].strip("_")


class Names:
    """Gives each layer a unique name: that of its variables (their prefix), else that of its scope in the graph.

    Pairs of scope and prefix show whether the writer numbered scopes again, as Keras 3 does (`functional/conv2d_19_1`).
    """

    def __init__(self, prefixes: Iterable[str], scopes: Iterable[tuple[str, str]]) -> None:
        self._used: set[str] = set()
        paths = sorted(set(prefixes))
        last = [p.rpartition("/")[2] for p in paths]
        self._by_prefix = {p: short if last.count(short) == 1 else p for p, short in zip(paths, last, strict=True)}
        pairs = [(s.rpartition("/")[2], p.rpartition("/")[2]) for s, p in scopes if s]
        self._numbered = bool(pairs) and all(re.fullmatch(re.escape(p) + r"_\d+", s) for s, p in pairs)
        # Names of variables are reserved, whatever the order of the layers.
        self._reserved = {clean(n) for n in self._by_prefix.values()}

    def for_variables(self, prefix: str) -> str | None:
        """Return the name of the layer of variables with this prefix."""
        name = clean(self._by_prefix.get(prefix, prefix))
        return self._free(name, reserved=False) if name else None

    def for_node(self, name: str, default: str) -> str:
        """Return the name of a layer without variables, from its node's name."""
        path = scope(name)
        while "/" in path and re.sub(r"_\d+$", "", path.rpartition("/")[2]) in _INNER:
            path = scope(path)
        layer = path.rpartition("/")[2]
        if self._numbered:
            layer = re.sub(r"_\d+$", "", layer)
        return self._free(clean(layer) or default, reserved=True)

    def _free(self, name: str, *, reserved: bool) -> str:
        taken = self._used | self._reserved if reserved else self._used
        free, number = name, 0
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        self._used.add(free)
        return free


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt model, its differences from the original, and the keys of its variables.

    Attributes:
        steps: Key of a node -> the data tensors that it is computed from, for checking single steps.
        values: Tensor of the graph -> symbolic tensor.
    """

    model: keras.Model
    notes: tuple[str, ...]
    used: frozenset[str]
    steps: Mapping[str, tuple[Tensor, ...]]
    values: Mapping[Tensor, Any] = field(repr=False)

    def step(self, key: str) -> keras.Model:
        """Return the part of the model between the inputs of one step and its output."""
        return keras.Model([self.values[t] for t in self.steps[key]], self.values[Tensor(key)])


WEIGHT = object()  # marks values that depend only on variables


def refuse(node: Node, why: str, **details: Any) -> CheckpointError:
    return CheckpointError(f"{node.op} at {node.where} cannot be rebuilt as a Keras layer: {why}", **details)


@dataclass
class Builder:
    """A model under construction from the result of `fuse`.

    Handlers call Keras for an operation; see `kerasseg.checkpoints.savedmodel.layers`.
    """

    graph: Graph
    variables: Mapping[str, Variable]
    load: Callable[[str], np.ndarray]
    handlers: Mapping[str, Callable[[Builder, Node], Any]]
    values: dict[Tensor, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _layers: dict[Tensor, tuple[Any, Any]] = field(default_factory=dict)
    _pending: dict[int, tuple[Any, Callable[[], np.ndarray], str]] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _constants: Budget = field(default_factory=Budget)
    _weights: Budget = field(default_factory=lambda: Budget(1 << 30, least=1 << 14))

    def __post_init__(self) -> None:
        scopes = []
        for node in self.graph.nodes.values():
            prefix = next((v.prefix for t in node.inputs if (v := self.variables.get(t.node)) is not None), "")
            if prefix and scope(node.name) and node.op in LINEAR:  # others write in nested scopes
                scopes.append((scope(node.name), prefix))
        self.names = Names((v.prefix for k, v in self.variables.items() if k in self.graph.nodes), scopes)

    def build(self, inputs: Mapping[str, Any], outputs: Sequence[str], name: str, *, named: bool = False) -> Rebuilt:
        """Build the model from `keras.Input` tensors by signature name; several outputs are a list, or `named`."""
        found = len(self.graph.nodes)
        if found > MAX_STEPS + len(self.variables):
            most = f"at most {MAX_STEPS:,}"
            raise CheckpointError("the network is too large", found=f"{found:,} steps", expected=most)
        for key, tensor in inputs.items():
            self.values[Tensor(self.graph.inputs[key])] = tensor
        for node in self.graph.nodes.values():
            self._visit(node)
        results = []
        for key in outputs:
            value = self.value(self.graph.outputs[key])
            if not isinstance(value, keras.KerasTensor):
                raise CheckpointError(f"output {key!r} of the signature does not depend on its input")
            results.append(value)
        loose = sum(n.op == "channelwise" for n in self.graph.nodes.values())
        if loose:
            what = "variables that scaled or shifted channels became depthwise convolutions of 1x1"
            self.notes.append(f"{what} ({loose})")
        args = next(iter(inputs.values())) if len(inputs) == 1 else dict(inputs)
        gives: Any = dict(zip(outputs, results, strict=True)) if named else results
        model = keras.Model(args, results[0] if len(results) == 1 else gives, name=name)
        for variable, read, where in self._pending.values():
            weight = read()
            if math.prod(weight.shape) != math.prod(variable.shape) or weight.dtype.kind not in "fiu":
                what = f"the weight {where} does not fit its layer"
                raise CheckpointError(what, found=weight.shape, expected=tuple(variable.shape))
            variable.assign(weight.reshape(variable.shape).astype("float32", copy=False))
        values = {t: v for t, v in self.values.items() if isinstance(v, keras.KerasTensor)}
        keys = [t.node for t in values if t.output == 0]
        sources = {k: tuple(dict.fromkeys(t for t in self.graph.nodes[k].inputs if t in values)) for k in keys}
        steps = {k: found for k, found in sources.items() if found}
        return Rebuilt(model, tuple(self.notes), frozenset(self._used), steps, values)

    def _visit(self, node: Node) -> None:
        if Tensor(node.key) in self.values:
            return
        results = self._results(node)
        for i, result in enumerate(results if isinstance(results, list) else [results]):
            shape = result.shape[1:] if isinstance(result, keras.KerasTensor) else ()
            if math.prod(n for n in shape if n is not None) > MAX_ELEMENTS:
                raise refuse(node, "its output is too large", found=f"{result.shape}")
            self.values[Tensor(node.key, i)] = result

    def _results(self, node: Node) -> Any:
        if node.op in VARIABLES:
            return WEIGHT
        if node.op == "Const":
            return node.attrs["value"]
        if node.op in _SOURCES:
            raise refuse(node, "it is not an input of the signature")
        values = [self.value(t) for t in node.inputs]
        if node.inputs and not any(isinstance(v, keras.KerasTensor) for v in values):
            arrays = None if any(v is WEIGHT for v in values) else evaluate(node, values, self._constants)
            return WEIGHT if arrays is None else arrays
        if node.op not in self.handlers:
            raise refuse(node, "no Keras layer computes it")
        try:
            return self.handlers[node.op](self, node)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged graph may cause any error in Keras
            line = str(error).strip().splitlines() or [type(error).__name__]
            raise refuse(node, f"Keras says {line[0]}") from error

    def value(self, tensor: Tensor) -> Any:
        """Return a symbolic tensor, an array (possibly of sizes) or `WEIGHT`."""
        if tensor not in self.values:
            raise refuse(self.graph[tensor], f"its output {tensor.output} is not known")
        return self.values[tensor]

    def data(self, node: Node, place: int = 0) -> Any:
        value = self.value(node.inputs[place])
        if value is WEIGHT:
            raise refuse(node, f"the variable {self._named(node.inputs[place])!r} is used as data")
        return value

    def array(self, node: Node, place: int) -> np.ndarray:
        """Return an input that must be known, except for sizes that are `Dim`s."""
        value = self.value(node.inputs[place])
        if not isinstance(value, np.ndarray):
            raise refuse(node, f"its input {place} is computed while it runs")
        return value

    def integers(self, node: Node, place: int) -> tuple[int, ...]:
        """Return an input that must consist of known integers."""
        array = np.atleast_1d(self.array(node, place))
        if any(isinstance(n, Dim) for n in array.flat):
            raise refuse(node, f"its input {place} depends on the size of the image")
        return tuple(int(n) for n in array.flat)

    def layer(
        self,
        node: Node,
        kind: Callable[..., Any],
        inputs: Any,
        weights: Mapping[str, Tensor] | None = None,
        **config: Any,
    ) -> Any:
        """Make a layer in the place of a node, or reuse the one with the same weights, and call it.

        `weights` has the tensor with the value of each of the layer's variables, by attribute.
        """
        weights = weights or {}
        first = next(iter(weights.values()), None)
        signature = (kind, tuple(weights.items()), repr(sorted(config.items())))
        if first is not None and first in self._layers:
            layer, known = self._layers[first]
            if known != signature:
                raise refuse(node, f"its variables also belong to layer {layer.name!r}, which is another")
            return layer(inputs)
        layer = kind(name=self._name(node, weights.values()), **config)
        output = layer(inputs)
        if first is not None:
            self._layers[first] = (layer, signature)
        for attribute, tensor in weights.items():
            self.assign(getattr(layer, attribute), tensor, f"{layer.name}/{attribute}")
        return output

    def assign(
        self, variable: Any, tensor: Tensor, where: str, change: Callable[[np.ndarray], np.ndarray] = np.asarray
    ) -> None:
        """Assign the value of a tensor to a layer's variable once the model is built."""
        self._used.update(self.graph.variables_of(tensor))
        if self.graph[tensor].op not in _SOURCES:
            names = self._named(tensor)
            self.notes.append(f"{where} was computed from {names}; the result is stored as a plain weight")
        self._pending[id(variable)] = (variable, lambda: change(self._number(tensor)), where)

    def fixed(self, tensor: Tensor) -> np.ndarray:
        """Return the value of a tensor that depends on variables, as a constant of the model."""
        self._used.update(self.graph.variables_of(tensor))
        self.notes.append(f"{self._named(tensor)}: scales the input; its values became constants of a Rescaling layer")
        return self._number(tensor)

    def shape_of(self, tensor: Tensor) -> tuple[int, ...]:
        node = self.graph[tensor]
        if node.op in VARIABLES:
            return tuple(node.attrs["shape"])
        return self._number(tensor).shape

    def _name(self, node: Node, weights: Any) -> str:
        for tensor in weights:
            for key in self.graph.variables_of(tensor):
                name = self.names.for_variables(self.variables[key].prefix)
                if name:
                    return name
        return self.names.for_node(node.name, node.op.lower())

    def _named(self, tensor: Tensor) -> str:
        return ", ".join(sorted(self.variables[k].name for k in self.graph.variables_of(tensor)))

    def _number(self, tensor: Tensor, depth: int = 0) -> np.ndarray:
        node = self.graph[tensor]
        if node.op in VARIABLES:
            return self.load(self.variables[node.key].key)
        if node.op == "Const":
            return np.asarray(node.attrs["value"])
        results = None
        if depth <= 40 and node.op not in _SOURCES:
            results = evaluate(node, [self._number(t, depth + 1) for t in node.inputs], self._weights)
        if results is None:
            raise refuse(node, "it is part of a weight that cannot be computed")
        return results[tensor.output]
