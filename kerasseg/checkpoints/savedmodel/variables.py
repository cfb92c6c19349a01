"""Names of a graph's variables and their keys in the variables file.

They come from the file's restore function, where `RestoreV2` reads keys and `AssignVariableOp` assigns each to a variable.
It is read here, not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kerasseg.checkpoints.savedmodel.graph import VARIABLES
from kerasseg.checkpoints.savedmodel.graphdef import PASSED, Body, Program
from kerasseg.checkpoints.savedmodel.messages import attribute

__all__ = ["Variable", "find_variables"]

_ASSIGN = frozenset({"AssignVariableOp", "Assign"})
_HOPS = 8  # maximum length of a chain of `PASSED` operations, which may be a cycle in a damaged file


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the main graph: its key in the variables file, and its name in the model (`conv2d_19/kernel`)."""

    key: str
    name: str

    @property
    def prefix(self) -> str:
        """The layer's name, possibly with a path: `conv2d_19`."""
        return self.name.rpartition("/")[0]

    @property
    def role(self) -> str:
        """Its role in the layer: `kernel`."""
        return self.name.rpartition("/")[2]


def find_variables(program: Program, names: Mapping[str, str]) -> dict[str, Variable]:
    """Return the variables of the main graph by node name; `names` has the names in the file's object graph by key."""
    found: dict[str, Variable] = {}
    for node, key in _restored(program):
        message = program.main.nodes[node]
        shared = attribute(message.attr["shared_name"], node) or node
        name = names.get(key) or (shared if key.endswith("VARIABLE_VALUE") else key)
        found.setdefault(node, Variable(key, name.removesuffix(":0")))
    for node, variable in _by_name(program, names):
        found.setdefault(node, variable)
    return found


def _by_name(program: Program, names: Mapping[str, str]) -> Iterator[tuple[str, Variable]]:
    """Find variables that the restore function does not reach, by the name that graph and file both use.

    `tf.saved_model.save` of a module with a Keras 3 network restores into separate variables of the main graph
    (`Variable_33`) instead of those that the signature reads (`encoder_1_conv_1/kernel`).
    """
    keys: dict[str, list[str]] = {}
    for key, name in names.items():
        keys.setdefault(name.removesuffix(":0"), []).append(key)
    for node, message in program.main.nodes.items():
        if message.op in VARIABLES:
            name = (attribute(message.attr["shared_name"], node) or node).removesuffix(":0")
            if len(keys.get(name, ())) == 1:  # otherwise the name is ambiguous
                yield node, Variable(keys[name][0], name)


def _restored(program: Program) -> Iterator[tuple[str, str]]:
    """Yield (node of the variable in the main graph, key)."""
    yield from ((node, key) for node, key in _assigned(program.main) if isinstance(node, str))
    for name, message in program.main.nodes.items():
        function = program.callee(message)
        if function is None or function not in program.functions:
            continue
        inputs = program.main.inputs(name)
        for argument, key in _assigned(program.body(function)):
            if isinstance(argument, int) and argument < len(inputs):
                node = _through(program.main, inputs[argument][0])
                if isinstance(node, str) and program.main.nodes[node].op in VARIABLES:
                    yield node, key


def _assigned(body: Body) -> Iterator[tuple[str | int, str]]:
    """Yield (variable, key) for each assignment of a restored value; the variable of an argument is its position."""
    keys: dict[str, Any] = {}
    for message in body.nodes.values():
        if message.op not in _ASSIGN or len(message.input) < 2:
            continue
        (target, _), (value, output) = body.inputs(message.name)[:2]
        for _ in range(_HOPS):
            if value in body.nodes and body.nodes[value].op in PASSED | {"Cast"} and body.inputs(value):
                value, output = body.inputs(value)[0]
        if value not in body.nodes or body.nodes[value].op != "RestoreV2":
            continue
        if value not in keys:
            constant, _ = body.inputs(value)[1]
            keys[value] = attribute(body.nodes[constant].attr["value"], constant) if constant in body.nodes else None
        table = keys[value]
        variable = _through(body, target)
        known = isinstance(variable, int) or body.nodes[variable].op in VARIABLES
        if table is not None and table.ndim == 1 and output < len(table) and known:
            yield variable, bytes(table[output]).decode("utf-8", "replace")


def _through(body: Body, name: str) -> str | int:
    for _ in range(_HOPS):
        if name in body.nodes and body.nodes[name].op in PASSED and body.inputs(name):
            name = body.inputs(name)[0][0]
    return body.arguments.get(name, name)
