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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2, tensor_bundle_pb2, trackable_object_graph_pb2

from kerasseg.checkpoints.provenance import OpenedModel
from kerasseg.checkpoints.savedmodel.allowed import check_operations
from kerasseg.checkpoints.savedmodel.bundle import Stored, read_index, refuse_pointer
from kerasseg.checkpoints.savedmodel.decisions import without_decisions
from kerasseg.checkpoints.savedmodel.fuse import fuse
from kerasseg.checkpoints.savedmodel.graph import Graph, Node, Tensor
from kerasseg.checkpoints.savedmodel.graphdef import Program
from kerasseg.checkpoints.savedmodel.layers import WEIGHTED
from kerasseg.checkpoints.savedmodel.messages import FLOATS
from kerasseg.checkpoints.savedmodel.names import clean
from kerasseg.checkpoints.savedmodel.parity import TOLERANCE, Agreement, agreement
from kerasseg.checkpoints.savedmodel.patterns import VARIABLES
from kerasseg.checkpoints.savedmodel.plausible import check_arguments
from kerasseg.checkpoints.savedmodel.rebuild import Builder, Rebuilt
from kerasseg.checkpoints.savedmodel.shaping import PLAIN
from kerasseg.checkpoints.savedmodel.signatures import (
    Signature,
    check_assets,
    choose_graph,
    choose_signature,
    frozen_variables,
    keras_outputs,
    writer_of,
)
from kerasseg.checkpoints.savedmodel.variables import Variable, find_variables
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.files import temporary_space

__all__ = ["Opened", "open_savedmodel"]

MAX_GRAPH = 512 << 20  # bytes of `saved_model.pb`; a frozen network of 31 million parameters has 124 million

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_INTEGERS = frozenset({"uint8", "int8", "uint16", "int16", "int32", "int64", "bool"})


@dataclass(frozen=True)
class Opened(OpenedModel):
    """A SavedModel as a Keras model. All layers are float32 and trainable.

    Attributes:
        signature: The rebuilt signature, whose order the model's outputs have.
        unused: Variables that the signature does not use, such as those of an optimizer.
    """

    signature: str = ""
    unused: tuple[str, ...] = ()


def open_savedmodel(path: str | Path, *, compare: bool = True) -> Opened:
    """Open a SavedModel as a native Keras model.

    Args:
        path: The folder that contains `saved_model.pb`.
        compare: Whether to compare the original with the rebuilt network on random input.

    Returns:
        The model and a description of its origin.

    Raises:
        CheckpointError: The folder is not a valid SavedModel, contains operations that are not allowed or have no Keras
            layer, or the rebuilt network computes different values.

    Example:
        ```python
        opened = open_savedmodel("unet-export")
        opened.model.get_layer("conv2d_19").trainable = False
        ```
    """
    folder = Path(path)
    try:
        return _open(folder, compare=compare)
    except CheckpointError as error:
        if error.path is None:
            error = CheckpointError(
                error.what, path=folder, found=error.found, expected=error.expected, remedy=error.remedy
            )
        raise error from error.__cause__
    except RecursionError as error:
        raise CheckpointError(
            "the network has more steps in a row than Keras can build", path=folder, expected="fewer than about 900"
        ) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A damaged file can fail in many more ways than have a message of their own.
        raise CheckpointError(
            "the graph is damaged or of an unknown kind",
            path=folder,
            found=f"{type(error).__name__}: {str(error).strip()[:200]}",
            remedy="Copy or download the folder again. If the error remains, please report it",
        ) from error


def _open(folder: Path, *, compare: bool) -> Opened:
    saved_model = _read(folder)
    chosen = choose_graph(saved_model)
    signature = choose_signature(chosen)
    programs = [(graph, Program(graph)) for graph in saved_model.meta_graphs]
    for graph, program in programs:
        check_assets(graph)
        wanted = [s.tensor for part in (signature.inputs, signature.outputs) for s in part.values()]
        check_operations(graph, program, wanted if graph is chosen else [])
    program = next(p for g, p in programs if g is chosen)

    values = _Values(folder / "variables" / "variables", chosen)
    stored, load = values.stored, values.load
    names = _names(stored, load)
    variables = find_variables(program, names)
    graph = program.unfold(_tensors(signature.inputs), _tensors(signature.outputs))
    check_arguments(graph)
    order, named = _output_order(signature, keras_outputs(folder))
    undecided = without_decisions(_with_shapes(graph, variables, stored), order)
    graph, order = undecided.graph, undecided.order

    builder = Builder(fuse(graph), variables, lambda key: _float(load(key)), {**PLAIN, **WEIGHTED})
    inputs = {name: _input(name, signature, graph) for name in signature.inputs}
    rebuilt = builder.build(inputs, order, clean(folder.resolve().name) or "savedmodel", named=named)

    notes = [*undecided.notes, *rebuilt.notes, *_notes(chosen, variables, rebuilt, graph)]
    found = None
    if compare:
        weights = {k: variables[k].key for k, n in graph.nodes.items() if n.op in VARIABLES}
        found = _compare(graph, signature, order, rebuilt, weights, load, chosen.graph_def.versions)
        notes.extend(_remarks(found))
    values.check_the_rest()
    # Keras 3 stores every variable twice, under two keys with the same name.
    used = {variables[k].name for k in rebuilt.used}
    unused = sorted({names.get(k, k) for k in stored if k != _OBJECT_GRAPH} - used)
    largest = None if found is None else found.outputs
    writer = writer_of(chosen, folder)
    return Opened(rebuilt.model, writer, "SavedModel", tuple(notes), largest, signature.name, tuple(unused))


def _read(folder: Path) -> Any:
    file = folder / "saved_model.pb"
    if not file.is_file():
        if (folder / "saved_model.pbtxt").is_file():
            raise CheckpointError(
                "the SavedModel is in text form", found="saved_model.pbtxt", expected="saved_model.pb"
            )
        raise CheckpointError("not a SavedModel", expected="a folder that holds saved_model.pb")
    size = file.stat().st_size
    if size > MAX_GRAPH:
        raise CheckpointError("the graph file is too large", path=file, found=f"{size:,} bytes")
    refuse_pointer(file)
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(file.read_bytes())
    except (DecodeError, RuntimeError) as error:
        raise CheckpointError(
            "the graph is damaged",
            path=file,
            found=f"{size:,} bytes that are not a SavedModel",
            remedy="Copy or download the folder again",
        ) from error
    return message


Load = Callable[[str], Any]


class _Values:
    """The values of a variables file, read one at a time; TensorFlow verifies their checksums.

    Attributes:
        stored: Contents of the file by key; empty for a frozen network, whose weights are constants in the graph.
    """

    def __init__(self, prefix: Path, meta_graph: Any) -> None:
        self._prefix = prefix
        self._reader: Any = None
        self._read: set[str] = set()
        self.stored: Mapping[str, Stored] = {}
        has_variables = any(n.op in VARIABLES for n in meta_graph.graph_def.node)
        if prefix.with_name("variables.index").is_file() or has_variables:
            header, entry = tensor_bundle_pb2.BundleHeaderProto, tensor_bundle_pb2.BundleEntryProto
            self.stored = read_index(prefix, header, entry)

    def load(self, key: str) -> Any:
        """Read one value.

        Raises:
            CheckpointError: It cannot be read, or its checksum does not match.
        """
        try:
            if self._reader is None:
                self._reader = tf.train.load_checkpoint(str(_plainly_named(self._prefix, self)))
            value = self._reader.get_tensor(key)
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            damaged = "Checksum does not match" in str(error)
            raise CheckpointError(
                f"the values of {key!r} are damaged" if damaged else f"the variable {key!r} cannot be read",
                path=self._prefix,
                found="a checksum that does not match" if damaged else str(error).splitlines()[0],
                remedy="Copy or download the folder again",
            ) from error
        self._read.add(key)
        return value

    def check_the_rest(self) -> None:
        """Verify the checksums of values that were not read, such as the second copies that Keras 3 stores."""
        for key in self.stored:
            if key not in self._read:
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


def _names(stored: Mapping[str, Stored], load: Load) -> dict[str, str]:
    """Return key -> name of the variable, from the object graph that TensorFlow 2 stores with the variables."""
    if _OBJECT_GRAPH not in stored:
        return {}
    message = trackable_object_graph_pb2.TrackableObjectGraph()
    try:
        message.ParseFromString(load(_OBJECT_GRAPH))  # bytes, because a NumPy array would drop trailing zeros
    except (DecodeError, RuntimeError, TypeError, ValueError):
        return {}  # layers are then named after their nodes
    return {a.checkpoint_key: a.full_name for n in message.nodes for a in n.attributes if a.full_name}


def _tensors(slots: Mapping[str, Any]) -> dict[str, str]:
    return {name: slot.tensor for name, slot in slots.items()}


def _with_shapes(graph: Graph, variables: Mapping[str, Variable], stored: Mapping[str, Stored]) -> Graph:
    """Return the graph with the shapes of variables in the file, whatever the graph declares."""
    nodes = dict(graph.nodes)
    for key, node in graph.nodes.items():
        if node.op in VARIABLES:
            known = stored.get(variables[key].key) if key in variables else None
            if known is None:
                raise CheckpointError(f"the variable {node.where} has no value in the variables file")
            if known.dtype not in FLOATS:
                raise CheckpointError(
                    f"the variable {node.where} holds {known.dtype}", expected="floating-point numbers"
                )
            nodes[key] = replace(node, attrs={**node.attrs, "shape": known.shape})
    return Graph(nodes, graph.inputs, graph.outputs)


def _float(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float32, copy=False)


def _input(name: str, signature: Signature, graph: Graph) -> Any:
    slot = signature.inputs[name]
    shape = slot.shape if slot.shape is not None else graph.nodes[graph.inputs[name]].attrs.get("shape")
    if shape is None or len(shape) < 2:
        raise CheckpointError(f"input {name!r} does not have the shape of an image", found=shape)
    dtype = "float32" if slot.dtype in FLOATS else slot.dtype
    if dtype not in _INTEGERS | {"float32"}:
        raise CheckpointError(
            f"input {name!r} takes {slot.dtype}",
            expected="pixels",
            remedy="Export the network without decoding of image files",
        )
    sizes = [None if n is None or n < 0 else n for n in shape[1:]]
    return keras.Input(sizes, dtype=dtype, name=clean(name) or "input")


def _output_order(signature: Signature, preferred: Sequence[str]) -> tuple[list[str], bool]:
    """Return the output names in order, and whether they are named; Keras 3 names a list `output_0`, `output_1`."""
    names = list(signature.outputs)
    if sorted(preferred) == sorted(names):
        return list(preferred), False
    return names, len(names) > 1 and not all(re.fullmatch(r"output_\d+", n) for n in names)


def _notes(meta_graph: Any, variables: Mapping[str, Variable], rebuilt: Rebuilt, graph: Graph) -> list[str]:
    """Return notes about the network as a whole."""
    notes = []
    half = sorted({str(n.attrs[k]) for n in graph.nodes.values() for k in ("T", "dtype") if n.attrs.get(k) in _HALF})
    if half:
        notes.append(f"computed in {' and '.join(half)} originally, rebuilt and compared in float32")
    fixed = frozen_variables(meta_graph)
    statistics = ("moving_mean", "moving_variance")
    frozen = sorted({v.prefix for k in rebuilt.used if (v := variables[k]).name in fixed and v.role not in statistics})
    if frozen:
        shown = ", ".join(frozen[:8]) + (f" and {len(frozen) - 8} more" if len(frozen) > 8 else "")
        notes.append(f"saved frozen, trainable now: {shown}")
    return notes


def _remarks(found: Agreement) -> list[str]:
    """Return remarks that explain the largest difference."""
    remarks = []
    if not found.varies:
        remarks.append("the original's output is constant, so the comparison shows little")
    if found.step is not None:
        grown = f"rounding adds up to a difference of {found.outputs:.2g}"
        remarks.append(f"{grown}; each single step agrees to {found.step:.2g}")
    elif found.outputs > TOLERANCE:
        remarks.append(f"the difference of {found.outputs:.2g} is rounding: the output reaches {found.largest:.3g}")
    return remarks


_HALF = frozenset({"float16", "bfloat16"})


def _compare(
    graph: Graph,
    signature: Signature,
    order: Sequence[str],
    rebuilt: Rebuilt,
    weights: Mapping[str, str],
    load: Load,
    versions: Any,
) -> Agreement:
    slots = {
        name: replace(slot, shape=slot.shape or graph.nodes[graph.inputs[name]].attrs["shape"])
        for name, slot in signature.inputs.items()
    }
    original = _Original(graph, weights, load, versions)
    return agreement(graph, slots, order, rebuilt, original, _forward)


def _forward(model: keras.Model, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    if keras.backend.backend() != "tensorflow":
        with keras.device("cpu:0"):
            found = model(list(images), training=False)
        return [keras.ops.convert_to_numpy(t) for t in (found if isinstance(found, (list, tuple)) else [found])]
    # As one graph, because eager execution keeps every layer's output (400 MB for 31 million parameters). As a concrete
    # function, because TensorFlow warns about functions that are traced repeatedly.
    specifications = [tf.TensorSpec(i.shape, i.dtype) for i in images]
    with tf.device("/CPU:0"):
        call = tf.function(lambda *values: model(list(values), training=False), autograph=False)
        found = call.get_concrete_function(*specifications)(*(tf.constant(i) for i in images))
    return [np.asarray(t) for t in (found if isinstance(found, (list, tuple)) else [found])]


class _Original:
    """The network of the file as a purely arithmetic graph.

    It is rewritten from the unfolded graph: placeholders for inputs and variables, no functions, resources or control
    edges, and only operations from the allow-list. Half precision is computed in float32.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, str], load: Load, versions: Any) -> None:
        self._inputs = graph.inputs
        self._weights, self._load = weights, load
        definition = tf.compat.v1.GraphDef()
        definition.versions.producer = versions.producer
        self._short = {key: f"n{i}" for i, key in enumerate(graph.nodes)}
        for key, node in graph.nodes.items():
            message = definition.node.add()
            message.name = self._short[key]
            self._write(node, message)
        self._graph = tf.Graph()
        try:
            with self._graph.as_default():
                tf.graph_util.import_graph_def(definition, name="")
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise CheckpointError("the graph is damaged", found=str(error).strip().splitlines()[0]) from error

    def _write(self, node: Node, message: Any) -> None:
        if node.op in VARIABLES or node.op.startswith("Placeholder"):
            kind = "float32" if node.op in VARIABLES else str(node.attrs["dtype"])
            message.op = "Placeholder"
            message.attr["dtype"].type = tf.as_dtype("float32" if kind in FLOATS else kind).as_datatype_enum
            shape = node.attrs.get("shape")
            if shape is None:
                message.attr["shape"].shape.unknown_rank = True
            else:
                message.attr["shape"].shape.SetInParent()
                for size in shape:
                    message.attr["shape"].shape.dim.add().size = size
            return
        message.op = node.op
        if node.op == "Const":
            value = np.asarray(node.attrs["value"])
            value = _float(value) if value.dtype.kind == "f" else value
            message.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
            message.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
            return
        message.input.extend(f"{self._short[t.node]}:{t.output}" for t in node.inputs)
        for name, value in node.message.attr.items():
            if not name.startswith("_"):
                message.attr[name].CopyFrom(value)
                if value.type in _NARROW:
                    message.attr[name].type = tf.float32.as_datatype_enum

    def __call__(self, wanted: Sequence[Tensor], images: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the wanted tensors for these inputs, computed on the CPU."""
        config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
        # The graph optimiser rewrites graphs and has removed requested tensors.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        feeds = {f"{self._short[self._inputs[k]]}:0": v for k, v in images.items()}
        feeds |= {f"{self._short[k]}:0": _float(self._load(key)) for k, key in self._weights.items()}
        fetches = [f"{self._short[t.node]}:{t.output}" for t in wanted]
        try:
            with tf.compat.v1.Session(graph=self._graph, config=config) as session:
                return list(session.run(fetches, feeds))
        except (tf.errors.OpError, ValueError, TypeError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise CheckpointError("TensorFlow cannot run the network in the file", found=" ".join(lines[:3])) from error


_NARROW = frozenset(tf.as_dtype(t).as_datatype_enum for t in ("float16", "bfloat16", "float64"))
