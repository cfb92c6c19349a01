"""Building of a Keras model from a fused graph, with its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kerasseg.checkpoints.savedmodel.arithmetic import Dim, evaluate
from kerasseg.checkpoints.savedmodel.graph import Graph, Node, Tensor, scope
from kerasseg.checkpoints.savedmodel.names import Names
from kerasseg.checkpoints.savedmodel.patterns import LINEAR, VARIABLES
from kerasseg.checkpoints.savedmodel.variables import Variable
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["Builder", "Rebuilt", "refuse"]

MAX_ELEMENTS = 1 << 27  # of one tensor for one slice (half a gigabyte in float32)
MAX_STEPS = 5000  # a network on EfficientNetB7 has about 1,500, and each takes Keras 8 ms

_SOURCES = frozenset({"Const", "Placeholder", "PlaceholderWithDefault"}) | VARIABLES


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt model and how it was made.

    Attributes:
        model: The model, of native Keras layers.
        tensors: Key of a node -> symbolic tensor of its first output.
        notes: Differences from the original, one sentence each.
        used: Keys of the variables that are part of the model.
        steps: Key of a node -> the data tensors that it is computed from, for checking single steps.
        values: Tensor of the graph -> symbolic tensor.
    """

    model: keras.Model
    tensors: Mapping[str, Any]
    notes: tuple[str, ...]
    used: frozenset[str]
    steps: Mapping[str, tuple[Tensor, ...]]
    values: Mapping[Tensor, Any] = field(repr=False)

    def step(self, key: str) -> keras.Model:
        """Return the part of the model between the inputs of one step and its output."""
        return keras.Model([self.values[t] for t in self.steps[key]], self.tensors[key])


WEIGHT = object()  # marks values that depend only on variables


def refuse(node: Node, why: str, **details: Any) -> CheckpointError:
    """Return the error for a node without a Keras layer."""
    return CheckpointError(f"{node.op} at {node.where} cannot be rebuilt as a Keras layer: {why}", **details)


@dataclass
class Builder:
    """A model under construction.

    Attributes:
        graph: The result of `fuse`.
        variables: Key of a node -> its variable.
        load: Reads the value of a key in the variables file.
        handlers: Operation -> function that calls Keras; see `kerasseg.checkpoints.savedmodel.layers`.
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

    def __post_init__(self) -> None:
        scopes = []
        for node in self.graph.nodes.values():
            prefix = next((v.prefix for t in node.inputs if (v := self.variables.get(t.node)) is not None), "")
            if prefix and scope(node.name) and node.op in LINEAR:  # others write in nested scopes
                scopes.append((scope(node.name), prefix))
        self.names = Names((v.prefix for k, v in self.variables.items() if k in self.graph.nodes), scopes)

    def build(self, inputs: Mapping[str, Any], outputs: Sequence[str], name: str, *, named: bool = False) -> Rebuilt:
        """Build the model.

        Args:
            inputs: Signature name -> `keras.Input` tensor.
            outputs: Signature names, in the order of the model's outputs.
            name: The model's name.
            named: Whether to return several outputs by name.

        Raises:
            CheckpointError: An operation has no Keras layer, or a weight does not fit.
        """
        if len(self.graph.nodes) > MAX_STEPS + len(self.variables):
            raise CheckpointError(
                "the network is too large", found=f"{len(self.graph.nodes):,} steps", expected=f"at most {MAX_STEPS:,}"
            )
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
            self.notes.append(
                f"variables that scaled or shifted channels became depthwise convolutions of 1x1 ({loose})"
            )
        args = next(iter(inputs.values())) if len(inputs) == 1 else dict(inputs)
        gives: Any = dict(zip(outputs, results, strict=True)) if named else results
        model = keras.Model(args, results[0] if len(results) == 1 else gives, name=name)
        for variable, value, where in self._pending.values():
            _assign(variable, value(), where)
        tensors = {t.node: v for t, v in self.values.items() if t.output == 0 and isinstance(v, keras.KerasTensor)}
        values = {t: v for t, v in self.values.items() if isinstance(v, keras.KerasTensor)}
        steps = {
            key: sources
            for key in tensors
            if (sources := tuple(dict.fromkeys(t for t in self.graph.nodes[key].inputs if t in values)))
        }
        return Rebuilt(model, tensors, tuple(self.notes), frozenset(self._used), steps, values)

    def _visit(self, node: Node) -> None:
        here = Tensor(node.key)
        if here in self.values:
            return
        if node.op in VARIABLES:
            self.values[here] = WEIGHT
        elif node.op == "Const":
            self.values[here] = node.attrs["value"]
        elif node.op in _SOURCES:
            raise refuse(node, "it is not an input of the signature")
        else:
            values = [self.value(t) for t in node.inputs]
            if node.inputs and not any(isinstance(v, keras.KerasTensor) for v in values):
                arrays = None if any(v is WEIGHT for v in values) else evaluate(node, values)
                results: Any = arrays if arrays is not None else [WEIGHT]
            else:
                handler = self.handlers.get(node.op)
                if handler is None:
                    raise refuse(node, "no Keras layer computes it")
                results = self._handle(handler, node)
            for i, result in enumerate(results if isinstance(results, list) else [results]):
                self._bound(node, result)
                self.values[Tensor(node.key, i)] = result

    def _handle(self, handler: Callable[[Builder, Node], Any], node: Node) -> Any:
        try:
            return handler(self, node)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged graph may cause any error in Keras
            line = str(error).strip().splitlines() or [type(error).__name__]
            raise refuse(node, f"Keras says {line[0]}") from error

    def _bound(self, node: Node, result: Any) -> None:
        if isinstance(result, keras.KerasTensor):
            size = math.prod(n for n in result.shape[1:] if n is not None)
            if size > MAX_ELEMENTS:
                raise refuse(node, "its output is too large", found=f"{result.shape}")

    def value(self, tensor: Tensor) -> Any:
        """Return a symbolic tensor, an array (possibly of sizes) or `WEIGHT`."""
        if tensor not in self.values:
            raise refuse(self.graph[tensor], f"its output {tensor.output} is not known")
        return self.values[tensor]

    def data(self, node: Node, place: int = 0) -> Any:
        """Return an input that must be data."""
        value = self.value(node.inputs[place])
        if value is WEIGHT:
            names = sorted(self.variables[k].name for k in self._variables_of(node.inputs[place]))
            raise refuse(node, f"the variable {', '.join(names)!r} is used as data")
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
        """Make a layer, or reuse the one with the same weights, and call it.

        Args:
            node: The node that it replaces.
            kind: The layer's class.
            inputs: Symbolic tensor or list of them.
            weights: Attribute of the layer -> tensor with its value.
            config: Arguments of the class.
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
        keys = self._variables_of(tensor)
        self._used.update(keys)
        if self.graph[tensor].op not in _SOURCES:
            names = ", ".join(sorted(self.variables[k].name for k in keys))
            self.notes.append(f"{where} was computed from {names}; the result is stored as a plain weight")
        self._pending[id(variable)] = (variable, lambda: change(self._number(tensor)), where)

    def fixed(self, tensor: Tensor) -> np.ndarray:
        """Return the value of a tensor that depends on variables, as a constant of the model."""
        keys = self._variables_of(tensor)
        self._used.update(keys)
        names = ", ".join(sorted(self.variables[k].name for k in keys))
        self.notes.append(f"{names}: scales the input; its values became constants of a Rescaling layer")
        return self._number(tensor)

    def shape_of(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the shape of a weight."""
        node = self.graph[tensor]
        if node.op in VARIABLES:
            return tuple(node.attrs["shape"])
        return self._number(tensor).shape

    def _name(self, node: Node, weights: Any) -> str:
        for tensor in weights:
            for key in sorted(self._variables_of(tensor)):
                name = self.names.for_variables(self.variables[key].prefix)
                if name:
                    return name
        return self.names.for_node(node.name, node.op.lower())

    def _variables_of(self, tensor: Tensor) -> set[str]:
        found, stack, seen = set(), [tensor.node], set()
        while stack:
            key = stack.pop()
            if key not in seen:
                seen.add(key)
                node = self.graph.nodes[key]
                if node.op in VARIABLES:
                    found.add(key)
                stack.extend(t.node for t in node.inputs)
        return found

    def _number(self, tensor: Tensor, depth: int = 0) -> np.ndarray:
        node = self.graph[tensor]
        if node.op in VARIABLES:
            return self.load(self.variables[node.key].key)
        if node.op == "Const":
            return np.asarray(node.attrs["value"])
        if depth > 40 or node.op in _SOURCES:
            raise refuse(node, "it is part of a weight that cannot be computed")
        results = evaluate(node, [self._number(t, depth + 1) for t in node.inputs])
        if results is None:
            raise refuse(node, "it is part of a weight that cannot be computed")
        return results[tensor.output]


def _assign(variable: Any, value: np.ndarray, where: str) -> None:
    if math.prod(value.shape) != math.prod(variable.shape) or value.dtype.kind not in "fiu":
        raise CheckpointError(
            f"the weight {where} does not fit its layer", found=value.shape, expected=tuple(variable.shape)
        )
    variable.assign(value.reshape(variable.shape).astype("float32", copy=False))
