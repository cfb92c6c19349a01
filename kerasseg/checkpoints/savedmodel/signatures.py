"""The graph, signature, variables, writer and assets of a SavedModel.

The names of variables and their keys in the variables file come from the file's restore function, where `RestoreV2` reads
keys and `AssignVariableOp` assigns each to a variable. It is read here, not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from kerasseg.checkpoints.savedmodel import NETWORK_SIGNATURE
from kerasseg.checkpoints.savedmodel.graph import VARIABLES
from kerasseg.checkpoints.savedmodel.graphdef import PASSED, Body, Program
from kerasseg.checkpoints.savedmodel.messages import attribute, type_name
from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.sources.tree import natural_key

_PREFERRED = (NETWORK_SIGNATURE, "serving_default", "serve")
_MAX_METADATA = 16 << 20
_ASSIGN = frozenset({"AssignVariableOp", "Assign"})
_HOPS = 8  # maximum length of a chain of `PASSED` operations, which may be a cycle in a damaged file


@dataclass(frozen=True, slots=True)
class Slot:
    """One input or output: its name in the main graph (`serving_default_x:0`), type (`float32`) and shape.

    The shape has None for sizes that are not fixed, and is None if the rank is unknown.
    """

    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Signature:
    """A way to call the network, for instance `serving_default`, with inputs and outputs by name."""

    name: str
    inputs: Mapping[str, Slot]
    outputs: Mapping[str, Slot]


def choose_graph(saved_model: Any) -> Any:
    graphs = list(saved_model.meta_graphs)
    if not graphs:
        raise CheckpointError("the SavedModel is empty: it holds no graph")
    found = [sorted(g.meta_info_def.tags) for g in graphs]
    for tags in (["serve"], ["gpu", "serve"], []):
        if tags in found:
            return graphs[found.index(tags)]
    if len(graphs) == 1:
        return graphs[0]
    what = "the SavedModel holds several graphs and none for inference"
    raise CheckpointError(what, found=found, expected="['serve']")


def choose_signature(meta_graph: Any) -> Signature:
    usable = {
        name: message
        for name, message in sorted(meta_graph.signature_def.items())
        if not name.startswith("__") and message.inputs and message.outputs
    }
    name = next((n for n in _PREFERRED if n in usable), next(iter(usable)) if len(usable) == 1 else None)
    if name is None and not usable:
        found = "weights without a network, as Keras 2 writes with save_traces=False"
        remedy = "Save the model again with model.export(path), or as a .keras file"
        raise CheckpointError("the SavedModel has no signature to call", found=found, remedy=remedy)
    if name is None:
        what = "the SavedModel has several signatures"
        how = "Save it with only the required signature: signatures={'serving_default': ...}"
        raise CheckpointError(what, found=", ".join(usable), expected=" or ".join(_PREFERRED[1:]), remedy=how)
    message = usable[name]
    inputs = {k: _slot(name, k, v) for k, v in sorted(message.inputs.items())}
    outputs = {k: _slot(name, k, v) for k, v in sorted(message.outputs.items(), key=lambda i: natural_key(i[0]))}
    return Signature(name, inputs, outputs)


def _slot(signature: str, name: str, info: Any) -> Slot:
    if info.WhichOneof("encoding") != "name":
        raise CheckpointError(f"{name!r} of signature {signature!r} is sparse or composite", expected="a plain tensor")
    shape = info.tensor_shape
    sizes = None if shape.unknown_rank else tuple(None if d.size < 0 else int(d.size) for d in shape.dim)
    return Slot(info.name, type_name(info.dtype), sizes)


def writer_of(meta_graph: Any, folder: Path) -> str:
    """Describe the writer of a SavedModel, for instance `Keras 3 export (TensorFlow 2.21.0)`."""
    version = meta_graph.meta_info_def.tensorflow_version
    suffix = f" (TensorFlow {version})" if version else ""
    objects = meta_graph.object_graph_def.nodes
    if (folder / "keras_metadata.pb").is_file() or any("tf_keras" in n.user_object.identifier for n in objects):
        return f"Keras 2 SavedModel{suffix}"
    if objects and {"_all_variables", "_misc_assets"} & {c.local_name for c in objects[0].children}:
        return f"Keras 3 export{suffix}"
    kind = "TensorFlow 1 SavedModel" if version.startswith("1.") or not objects else "TensorFlow SavedModel"
    return f"{kind}{suffix}"


def frozen_variables(meta_graph: Any) -> frozenset[str]:
    """Return the names of variables that Keras listed as not trainable, including moving statistics."""
    nodes = meta_graph.object_graph_def.nodes
    lists = {c.local_name: c.node_id for c in nodes[0].children} if nodes else {}
    if not {"variables", "trainable_variables"} <= lists.keys():
        return frozenset()

    def members(name: str) -> set[int]:
        return {c.node_id for c in nodes[lists[name]].children}

    fixed = [nodes[i] for i in members("variables") - members("trainable_variables")]
    return frozenset(n.variable.name.removesuffix(":0") for n in fixed if n.WhichOneof("kind") == "variable")


def check_assets(meta_graph: Any) -> None:
    """Refuse assets with a path outside their folder. Assets are never opened."""
    for name in (a.filename for a in meta_graph.asset_file_def):
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
            what = "an asset of the SavedModel is outside its folder"
            raise CheckpointError(what, found=name, expected="a file name")


def keras_outputs(folder: Path) -> tuple[str, ...]:
    """Return the order of a Keras 2 model's outputs, by layer, from `keras_metadata.pb`; empty if it is not stored.

    The signature of a SavedModel names its outputs without an order. The file is searched for the JSON configuration of
    the model, which is read only as data.
    """
    path = folder / "keras_metadata.pb"
    if not path.is_file() or path.stat().st_size > _MAX_METADATA:
        return ()
    for text in _texts(path.read_bytes()):
        try:
            return tuple(str(layer[0]) for layer in parse_json(text)["config"]["output_layers"])
        except (ValueError, TypeError, IndexError, KeyError):
            continue  # not a network
    return ()


def _texts(data: bytes) -> list[bytes]:
    """Return field 5 (`metadata`) of each node of a `SavedMetadata` message, which only Keras 2 defines."""

    def fields(message: bytes, number: int) -> list[bytes]:
        parsed = Empty()
        parsed.ParseFromString(message)
        wanted = [f for f in UnknownFieldSet(parsed) if (f.field_number, f.wire_type) == (number, 2)]
        return [f.data for f in wanted]

    try:
        return [text for node in fields(data, 1) for text in fields(node, 5)]
    except DecodeError:
        return []


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
