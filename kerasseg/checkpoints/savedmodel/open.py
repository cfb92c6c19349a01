"""Opening of SavedModels as native, trainable Keras models.

The graph in `saved_model.pb` is read as data and rebuilt layer by layer. `tf.saved_model.load` is never called, because it
runs the file's restore function and initialisers. After every operation of the file has passed the allow-list, only the
inference network (unfolded, without functions, control edges and variables) runs for comparison with the rebuilt model.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

from kerasseg.checkpoints.allowed import check_sums, time_limit
from kerasseg.checkpoints.identify import refuse_pointer
from kerasseg.checkpoints.provenance import OpenedModel
from kerasseg.checkpoints.savedmodel import signatures
from kerasseg.checkpoints.savedmodel.allowed import check_arguments, check_operations
from kerasseg.checkpoints.savedmodel.bundle import FETCH_AGAIN, Stored, read_index
from kerasseg.checkpoints.savedmodel.fuse import fuse, without_decisions
from kerasseg.checkpoints.savedmodel.graph import VARIABLES, Graph
from kerasseg.checkpoints.savedmodel.graphdef import Program
from kerasseg.checkpoints.savedmodel.layers import WEIGHTED
from kerasseg.checkpoints.savedmodel.messages import FLOATS
from kerasseg.checkpoints.savedmodel.parity import Original, agreement
from kerasseg.checkpoints.savedmodel.rebuild import Builder, Rebuilt, clean
from kerasseg.checkpoints.savedmodel.shaping import PLAIN
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.files import temporary_space
from kerasseg_tfrecords.formats.weights import is_message
from kerasseg_tfrecords.isolation import memory_limit

MAX_GRAPH = 512 << 20  # bytes of `saved_model.pb`; a frozen network of 31 million parameters has 124 million
MAX_DESCRIPTION = 32 << 20  # bytes of it besides the values of constants; each may take a hundred in memory
MAX_OPERATIONS = 1_000_000  # in the file, most of which never run; one on EfficientNetB7 has about 100,000

_SECONDS = 120  # of processor time
_MAX_NAMES = 16 << 20  # bytes of the object graph in the variables file
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_INTEGERS = frozenset({"uint8", "int8", "uint16", "int16", "int32", "int64", "bool"})


def open_savedmodel(folder: Path, *, compare: bool = True) -> OpenedModel:
    """Open a SavedModel as a Keras model of float32, trainable layers.

    Args:
        folder: The folder that contains `saved_model.pb`.
        compare: Whether to compare the original with the rebuilt network on random input.

    Raises:
        CheckpointError: The folder is not a valid SavedModel, contains operations that are not allowed or have no Keras
            layer, or the rebuilt network computes different values. Damaged files may raise other errors, which
            `open_checkpoint` explains.
    """
    with time_limit(_SECONDS), np.errstate(all="ignore"):  # constants may overflow
        return _open(folder, compare=compare)


def _open(folder: Path, *, compare: bool) -> OpenedModel:
    saved_model = _read(folder)
    chosen = signatures.choose_graph(saved_model)
    signature = signatures.choose_signature(chosen)
    inputs, outputs = ({k: slot.tensor for k, slot in part.items()} for part in (signature.inputs, signature.outputs))
    programs = [(graph, Program(graph)) for graph in saved_model.meta_graphs]
    for graph, program in programs:
        signatures.check_assets(graph)
        check_operations(graph, program, [*inputs.values(), *outputs.values()] if graph is chosen else [])
    program = next(p for g, p in programs if g is chosen)

    values = _Values(folder / "variables" / "variables", chosen)
    names = _names(values)
    variables = signatures.find_variables(program, names)
    network = program.unfold(inputs, outputs)
    check_arguments(network)
    order, named = _output_order(list(outputs), signatures.keras_outputs(folder))
    network, order, decisions = without_decisions(_with_shapes(network, variables, values.stored), order)

    builder = Builder(fuse(network), variables, values.numbers, {**PLAIN, **WEIGHTED})
    images = {name: _input(name, slot, network) for name, slot in signature.inputs.items()}
    rebuilt = builder.build(images, order, clean(folder.resolve().name) or "savedmodel", named=named)

    notes = [*decisions, *rebuilt.notes, *_notes(chosen, variables, rebuilt, network)]
    largest = None
    check_sums(rebuilt.model)
    if compare:
        weights = {k: partial(values.numbers, variables[k].key) for k, n in network.nodes.items() if n.op in VARIABLES}
        original = Original(network, weights, chosen.graph_def.versions)
        largest, remarks = agreement(network, signature.inputs, order, rebuilt, original)
        notes.extend(remarks)
    values.check_the_rest()
    writer = signatures.writer_of(chosen, folder)
    return OpenedModel(rebuilt.model, writer, "SavedModel", tuple(notes), largest)


def _read(folder: Path) -> Any:
    file = folder / "saved_model.pb"
    if not file.is_file():
        expected = "saved_model.pb"
        raise CheckpointError("the SavedModel is in text form", found="saved_model.pbtxt", expected=expected)
    size = file.stat().st_size
    if size > MAX_GRAPH:
        raise CheckpointError("the graph file is too large", path=file, found=f"{size:,} bytes")
    refuse_pointer(file)
    kind = saved_model_pb2.SavedModel
    definitions: dict[str, bytes] = {}

    def define(definition: Any) -> None:
        if definition.name not in definitions:
            for needed in definition.dependencies:
                define(needed)
            definitions[definition.name] = definition.serialized_pb

    define(kind.DESCRIPTOR.file)
    if not is_message(file, kind.DESCRIPTOR.full_name, tuple(definitions.values())):
        found = f"{size:,} bytes that are not a SavedModel, or need more than {memory_limit() >> 20:,} MB of memory"
        raise CheckpointError("the graph is damaged", path=file, found=found, remedy=FETCH_AGAIN)
    message = kind.FromString(file.read_bytes())
    what = "the graph is too large"
    if sum(1 + len(nodes) for nodes in islice(_bodies(message), MAX_OPERATIONS + 1)) > MAX_OPERATIONS:
        raise CheckpointError(what, path=file, found=f"more than {MAX_OPERATIONS:,} operations")
    # Most of a frozen network are the values of constants.
    constants = (
        n.attr["value"].tensor for nodes in _bodies(message) for n in nodes if n.op == "Const" and "value" in n.attr
    )
    if size > MAX_DESCRIPTION and size - sum(len(c.tensor_content) for c in constants) > MAX_DESCRIPTION:
        raise CheckpointError(what, path=file, found=f"more than {MAX_DESCRIPTION:,} bytes besides constants")
    return message


def _bodies(message: Any) -> Iterator[Any]:
    """Yield the operations of each graph and each function."""
    for graph in message.meta_graphs:
        yield graph.graph_def.node
        yield from (function.node_def for function in graph.graph_def.library.function)


class _Values:
    """The values of a variables file, read one at a time; TensorFlow verifies their checksums.

    A frozen network, whose weights are constants in the graph, has none.
    """

    def __init__(self, prefix: Path, meta_graph: Any) -> None:
        self._prefix = prefix
        self._reader: Any = None
        self._read: set[str] = set()
        has_variables = any(n.op in VARIABLES for n in meta_graph.graph_def.node)
        exists = prefix.with_name("variables.index").is_file()
        self.stored: Mapping[str, Stored] = read_index(prefix) if exists or has_variables else {}

    def load(self, key: str) -> Any:
        try:
            if self._reader is None:
                self._reader = tf.train.load_checkpoint(str(_plainly_named(self._prefix, self)))
            value = self._reader.get_tensor(key)
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            damaged = "Checksum does not match" in str(error)
            what = f"the values of {key!r} are damaged" if damaged else f"the variable {key!r} cannot be read"
            found = "a checksum that does not match" if damaged else str(error).splitlines()[0]
            raise CheckpointError(what, path=self._prefix, found=found, remedy=FETCH_AGAIN) from error
        self._read.add(key)
        return value

    def numbers(self, key: str) -> np.ndarray:
        return np.asarray(self.load(key)).astype(np.float32, copy=False)

    def check_the_rest(self) -> None:
        """Verify the checksums of values that were not read, such as the second copies that Keras 3 stores."""
        for key in self.stored.keys() - self._read:
            self.load(key)


def _plainly_named(prefix: Path, owner: object) -> Path:
    """Return a path without `[`, which TensorFlow takes for a pattern; a link exists as long as `owner` does."""
    if "[" not in str(prefix):
        return prefix
    with temporary_space():
        folder = tempfile.mkdtemp(prefix="kerasseg-")
        weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
        link = Path(folder) / "variables"
        link.symlink_to(prefix.parent.resolve(), target_is_directory=True)
    return link / prefix.name


def _names(values: _Values) -> dict[str, str]:
    """Return key -> name of the variable, from the object graph that TensorFlow 2 stores with the variables."""
    if _OBJECT_GRAPH not in values.stored or values.stored[_OBJECT_GRAPH].size > _MAX_NAMES:
        return {}
    message = trackable_object_graph_pb2.TrackableObjectGraph()
    try:
        # As bytes, because a NumPy array would drop trailing zeros.
        message.ParseFromString(values.load(_OBJECT_GRAPH))
    except (DecodeError, RuntimeError, TypeError, ValueError):
        return {}  # layers are then named after their nodes
    return {a.checkpoint_key: a.full_name for n in message.nodes for a in n.attributes if a.full_name}


def _with_shapes(graph: Graph, variables: Mapping[str, signatures.Variable], stored: Mapping[str, Stored]) -> Graph:
    """Return the graph with the shapes of variables in the file, whatever the graph declares."""
    nodes = dict(graph.nodes)
    for key, node in graph.nodes.items():
        if node.op in VARIABLES:
            known = stored.get(variables[key].key) if key in variables else None
            if known is None:
                raise CheckpointError(f"the variable {node.where} has no value in the variables file")
            if known.dtype not in FLOATS:
                expected = "floating-point numbers"
                raise CheckpointError(f"the variable {node.where} holds {known.dtype}", expected=expected)
            nodes[key] = replace(node, attrs={**node.attrs, "shape": known.shape})
    return Graph(nodes, graph.inputs, graph.outputs)


def _input(name: str, slot: signatures.Slot, graph: Graph) -> Any:
    shape = slot.shape if slot.shape is not None else graph.nodes[graph.inputs[name]].attrs.get("shape")
    if shape is None or len(shape) < 2:
        raise CheckpointError(f"input {name!r} does not have the shape of an image", found=shape)
    dtype = "float32" if slot.dtype in FLOATS else slot.dtype
    if dtype not in _INTEGERS | {"float32"}:
        remedy = "Export the network without decoding of image files"
        raise CheckpointError(f"input {name!r} takes {slot.dtype}", expected="pixels", remedy=remedy)
    sizes = [None if n is None or n < 0 else n for n in shape[1:]]
    return keras.Input(sizes, dtype=dtype, name=clean(name) or "input")


def _output_order(names: list[str], preferred: Sequence[str]) -> tuple[list[str], bool]:
    """Return the output names in order, and whether they are named; Keras 3 names a list `output_0`, `output_1`."""
    if sorted(preferred) == sorted(names):
        return list(preferred), False
    return names, len(names) > 1 and not all(re.fullmatch(r"output_\d+", n) for n in names)


def _notes(meta_graph: Any, variables: Mapping[str, signatures.Variable], rebuilt: Rebuilt, graph: Graph) -> list[str]:
    """Return notes about the network as a whole."""
    notes = []
    types = {str(n.attrs.get(k)) for n in graph.nodes.values() for k in ("T", "dtype")}
    half = sorted(types & {"float16", "bfloat16"})
    if half:
        notes.append(f"computed in {' and '.join(half)} originally, rebuilt and compared in float32")
    fixed = signatures.frozen_variables(meta_graph)
    statistics = ("moving_mean", "moving_variance")
    frozen = sorted({v.prefix for k in rebuilt.used if (v := variables[k]).name in fixed and v.role not in statistics})
    if frozen:
        shown = ", ".join(frozen[:8]) + (f" and {len(frozen) - 8} more" if len(frozen) > 8 else "")
        notes.append(f"saved frozen, trainable now: {shown}")
    return notes
