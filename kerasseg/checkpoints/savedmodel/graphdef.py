"""Conversion of the protobuf messages of a SavedModel to a `Graph`.

The messages are untrusted. Nothing here imports or runs anything by name. Depths and counts are limited, so that a small
file cannot unfold into a large graph (by a function that calls itself, or functions that double at each level).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kerasseg.checkpoints.allowed import words
from kerasseg.checkpoints.savedmodel.graph import Graph, Node, Tensor, sort_from
from kerasseg.checkpoints.savedmodel.messages import FLOATS, attribute, operation
from kerasseg_tfrecords.errors import CheckpointError

MAX_NODES = 100_000  # in an unfolded graph; a U-Net++ on EfficientNet has about 10,000
MAX_DEPTH = 64  # nested calls; Keras writes about five

CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
"""Operations that only call a function."""

PASSED = words(
    "CheckNumerics DisableCopyOnRead Identity PlaceholderWithDefault PreventGradient ReadVariableOp Snapshot StopGradient"
)
"""Operations that return their first input, which a rebuilt network can omit."""


def damaged(what: str) -> CheckpointError:
    return CheckpointError(f"the graph is damaged: {what}")


@dataclass(frozen=True)
class Body:
    """The `NodeDef` messages of a function, or of the main graph (without a name), and the positions of its arguments."""

    name: str
    nodes: Mapping[str, Any]
    arguments: Mapping[str, int] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """Return the description of a node for messages."""
        return f"{name!r} in function {self.name!r}" if self.name else f"{name!r} in the main graph"

    def parse(self, text: str) -> tuple[str, int]:
        """Split `node:arg:1`, `node:1` or `argument` into node or argument, and output."""
        name, _, rest = text.partition(":")
        if name not in self.nodes and name not in self.arguments:
            raise damaged(f"it has no {self.place(name)}")
        argument, _, index = rest.rpartition(":")
        number = int(index or 0) if (index or "0").isdecimal() and len(index) < 6 else -1
        definition = operation(self.nodes[name].op) if argument and name in self.nodes else None
        if definition is not None and len(definition.output_arg) > 1:
            names = [a.name for a in definition.output_arg]
            number = names.index(argument) + number if argument in names else -1
        if number < 0:
            raise damaged(f"{self.place(name)} has no output {text!r}")
        return name, number

    def inputs(self, name: str) -> list[tuple[str, int]]:
        return [self.parse(i) for i in self.nodes[name].input if not i.startswith("^")]

    def order(self, roots: Iterable[str]) -> list[str]:
        """Return the nodes that the roots need, each after its inputs."""

        def inputs(name: str) -> list[str]:
            return [n for n, _ in self.inputs(name) if n not in self.arguments]

        try:
            return sort_from((root for root in roots if root not in self.arguments), inputs)
        except ValueError as error:
            raise damaged(f"it has {error} in {self.name or 'the main graph'}") from error


class Program:
    """A `MetaGraphDef` message whose signatures can be unfolded into graphs."""

    def __init__(self, meta_graph: Any) -> None:
        definition = meta_graph.graph_def
        self.main = Body("", {n.name: n for n in definition.node})
        self._functions = {f.signature.name: f for f in definition.library.function}
        if len(self.main.nodes) != len(definition.node) or len(self._functions) != len(definition.library.function):
            raise damaged("two of its nodes or functions have the same name")
        self._bodies: dict[str, Body] = {}

    @property
    def functions(self) -> Collection[str]:
        return self._functions.keys()

    def body(self, function: str) -> Body:
        if function not in self._bodies:
            if function not in self._functions:
                raise damaged(f"it calls function {function!r}, which it does not hold")
            message = self._functions[function]
            nodes = {n.name: n for n in message.node_def}
            arguments = {a.name: i for i, a in enumerate(message.signature.input_arg)}
            if len(nodes) != len(message.node_def) or arguments.keys() & nodes:
                raise damaged(f"two nodes of function {function!r} have the same name")
            self._bodies[function] = Body(function, nodes, arguments)
        return self._bodies[function]

    def callee(self, node: Any) -> str | None:
        """Return the function that a node calls, if it is a plain call."""
        if node.op in CALLS:
            return str(node.attr["f"].func.name)
        return str(node.op) if node.op in self._functions else None

    def returns(self, function: str) -> list[tuple[str, int]]:
        """Return the results of a function: nodes or arguments with their output."""
        message, body = self._functions[function], self.body(function)
        missing = [o.name for o in message.signature.output_arg if o.name not in message.ret]
        if missing:
            raise damaged(f"function {function!r} does not return {missing[0]!r}")
        return [body.parse(message.ret[o.name]) for o in message.signature.output_arg]

    def unfold(self, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Graph:
        """Return the graph between named tensors of the main graph (`serving_default_x:0`), with all calls inlined.

        Operations such as `Identity`, variable reads and casts between floating-point types are skipped, because
        everything is rebuilt in float32.
        """
        starts = {name: self.main.parse(text)[0] for name, text in inputs.items()}
        for name, key in starts.items():
            if not self.main.nodes[key].op.startswith("Placeholder"):
                kind = self.main.nodes[key].op
                raise CheckpointError(f"input {name!r} of the signature is {kind}, not a placeholder")
        unfolding = _Unfolding(self, frozenset(starts.values()))
        wanted = [self.main.parse(text) for text in outputs.values()]
        found = unfolding.inline(self.main, [*((k, 0) for k in starts.values()), *wanted], [], "", ())
        return Graph(unfolding.nodes, starts, dict(zip(outputs, found[len(starts) :], strict=True))).live()


class _Unfolding:
    """A graph under construction."""

    def __init__(self, program: Program, starts: frozenset[str]) -> None:
        self.program = program
        self.starts = starts
        self.nodes: dict[str, Node] = {}
        self.visited = 0

    def inline(
        self,
        body: Body,
        wanted: Sequence[tuple[str, int]],
        arguments: Sequence[Tensor],
        prefix: str,
        stack: tuple[str, ...],
    ) -> list[Tensor]:
        """Copy the part of a body that `wanted` needs into the graph; return its tensors there."""
        copies: dict[str, str | list[Tensor]] = {}  # the key of a node's copy, or the tensors that replace its outputs

        def pick(name: str, output: int) -> Tensor:
            if name in body.arguments:
                return arguments[body.arguments[name]]
            made = copies[name]
            if isinstance(made, str):
                return Tensor(made, output)
            if output >= len(made):
                raise damaged(f"{body.place(name)} has no output {output}")
            return made[output]

        for name in body.order(n for n, _ in wanted):
            self.visited += 1
            if self.visited > MAX_NODES:
                raise CheckpointError("the graph is too large", found=f"more than {MAX_NODES:,} operations")
            inputs = [pick(*i) for i in body.inputs(name)]
            copies[name] = self._copy(body, name, inputs, prefix, stack)
        return [pick(*w) for w in wanted]

    def _copy(
        self, body: Body, name: str, inputs: list[Tensor], prefix: str, stack: tuple[str, ...]
    ) -> str | list[Tensor]:
        message = body.nodes[name]
        function = self.program.callee(message)
        if function is not None:
            if function in stack or len(stack) >= MAX_DEPTH:
                raise damaged(f"function {function!r} calls itself at {body.place(name)}")
            callee = self.program.body(function)
            if len(inputs) != len(callee.arguments):
                raise damaged(f"{body.place(name)} calls {function!r} with other arguments")
            return self.inline(callee, self.program.returns(function), inputs, f"{prefix}{name}/", (*stack, function))
        if message.op in PASSED and inputs and not (not body.name and name in self.starts):
            return inputs[:1]
        if message.op == "IdentityN":
            return inputs
        where = body.place(name)
        attrs = {k: attribute(v, where) for k, v in message.attr.items() if not k.startswith("_")}
        if message.op == "Cast" and {attrs.get("SrcT"), attrs.get("DstT")} <= FLOATS and inputs:
            return inputs[:1]
        key = f"{prefix}{name}"
        self.nodes[key] = Node(key, message.op, tuple(inputs), attrs, name, where, message)
        return key
