"""Comparison of the original network with the rebuilt one.

Both receive the same random slice. Their outputs and some inner tensors must agree to 1e-5, because a sigmoid can hide
differences. Otherwise rounding may have grown in a deep network: then each step of the rebuilt model is run on the
original's values and must agree by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasseg.checkpoints.savedmodel.graph import VARIABLES, Graph, Node, Tensor
from kerasseg.checkpoints.savedmodel.messages import FLOATS
from kerasseg.checkpoints.savedmodel.rebuild import Rebuilt
from kerasseg.checkpoints.savedmodel.signatures import Slot
from kerasseg_tfrecords.errors import CheckpointError

TOLERANCE = 1e-5
"""Largest difference between two float32 computations of one network, relative to the largest value if beyond 1."""

_INSIDE = 12  # inner tensors to compare
_INSIDE_ELEMENTS = 1 << 20
_AT_ONCE = 1 << 26  # elements of the tensors held at the same time when checking single steps
_MILLISECONDS = 60_000  # for one run of the original network
_SIZES = (64, 128, 256, 572)  # image sizes to try if the size is not fixed


@dataclass(frozen=True, slots=True)
class Agreement:
    """The result of a comparison.

    Attributes:
        outputs: Largest absolute difference of the outputs.
        relative: Largest difference of all tensors, relative to the tensor's largest value if beyond 1.
        varies: Whether the original's output is not constant; otherwise the comparison means little.
        largest: Largest value of the original's outputs.
    """

    outputs: float
    relative: float
    varies: bool
    largest: float = 0.0


def agreement(
    graph: Graph, slots: Mapping[str, Slot], order: Sequence[str], rebuilt: Rebuilt, original: Original
) -> tuple[float, list[str]]:
    """Compare an unfolded network with inputs `slots` and outputs `order` with the model rebuilt from it.

    Returns:
        Largest absolute difference of the outputs, and remarks that explain it.
    """
    outputs = [graph.outputs[n] for n in order]
    inside = _inside(graph, rebuilt, [t.node for t in outputs])
    wanted = [*outputs, *(Tensor(k) for k in inside)]
    results = [rebuilt.values[t] for t in outputs]
    probe = keras.Model(rebuilt.model.inputs, [*results, *(rebuilt.values[Tensor(k)] for k in inside)])
    failed = CheckpointError("the network in the file takes no input")
    for images in _random_inputs(graph, slots):
        try:
            theirs = original(wanted, images)
            break
        except CheckpointError as error:  # perhaps another size
            failed = error
    else:
        raise failed
    found = difference(theirs, _forward(probe, [images[n] for n in slots]), len(order))
    remarks = [] if found.varies else ["the original's output is constant, so the comparison shows little"]
    if found.relative <= TOLERANCE:
        if found.outputs > TOLERANCE:
            remarks.append(f"the difference of {found.outputs:.2g} is rounding: the output reaches {found.largest:.3g}")
        return found.outputs, remarks
    worst, where = _worst_step(graph, rebuilt, images, original)
    if worst <= TOLERANCE:
        grown = f"rounding adds up to a difference of {found.outputs:.2g}"
        return found.outputs, [*remarks, f"{grown}; each single step agrees to {worst:.2g}"]
    what = "the rebuilt network computes different values than the original"
    seen = f"a difference of {found.outputs:.3g}, which begins at {where}"
    expected = f"at most {TOLERANCE:g}"
    raise CheckpointError(what, found=seen, expected=expected, remedy="Please report this with the code of the model")


def _inside(graph: Graph, rebuilt: Rebuilt, outputs: Sequence[str]) -> list[str]:
    """Return some small tensors, spread over the depth of the network."""
    small = []
    for key in (k for k in rebuilt.steps if k in graph.nodes and k not in outputs):
        shape, dtype = rebuilt.values[Tensor(key)].shape[1:], str(rebuilt.values[Tensor(key)].dtype)
        if all(shape) and math.prod(shape) <= _INSIDE_ELEMENTS and dtype == "float32":
            small.append(key)
    step = max(1, len(small) // _INSIDE)
    return small[step - 1 :: step][:_INSIDE]


def _worst_step(
    graph: Graph, rebuilt: Rebuilt, images: Mapping[str, np.ndarray], original: Original
) -> tuple[float, str]:
    """Return the largest relative difference of a step that starts from the original's values, and that step."""
    batches: list[list[str]] = [[]]
    size = 0
    for key in rebuilt.steps:
        if key not in graph.nodes or any(t.node not in graph.nodes for t in rebuilt.steps[key]):
            continue  # made during fusion; it is checked with the step that reads it
        if size > _AT_ONCE:
            batches.append([])
            size = 0
        batches[-1].append(key)
        size += math.prod(n or 64 for n in rebuilt.values[Tensor(key)].shape[1:])
    worst, where = 0.0, ""
    for keys in batches:
        wanted = list(dict.fromkeys(t for k in keys for t in (*rebuilt.steps[k], Tensor(k))))
        known = dict(zip(wanted, original(wanted, images), strict=True))
        with keras.device("cpu:0"):
            for key in keys:
                ours: Any = rebuilt.step(key)([known[t] for t in rebuilt.steps[key]], training=False)
                ours = ours[0] if isinstance(ours, (list, tuple)) else ours
                found = difference([known[Tensor(key)]], [keras.ops.convert_to_numpy(ours)], 1)
                worst, where = max((worst, where), (found.relative, graph.nodes[key].where))
    return worst, where


def _random_inputs(graph: Graph, slots: Mapping[str, Slot], seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yield random inputs of one slice for each size to try: normal values, or all values of a byte."""
    shapes = {k: _sizes(s.shape or graph.nodes[graph.inputs[k]].attrs["shape"]) or [] for k, s in slots.items()}
    free = any(n is None for shape in shapes.values() for n in shape[1:])
    for size in _SIZES if free else _SIZES[:1]:
        rng = np.random.default_rng(seed)
        filled = {k: [1 if i == 0 and n is None else n or size for i, n in enumerate(s)] for k, s in shapes.items()}
        yield {name: _random(slots[name].dtype, shape, rng) for name, shape in filled.items()}


def _random(dtype: str, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith(("int", "uint")):
        return rng.integers(0, 128 if dtype == "int8" else 256, shape).astype(dtype)
    return rng.standard_normal(shape).astype(np.float32)


def difference(original: Sequence[np.ndarray], rebuilt: Sequence[np.ndarray], outputs: int) -> Agreement:
    """Compare tensors pair by pair; the first `outputs` of them are outputs of the network, the others inner tensors."""
    largest = relative = highest = 0.0
    varies = False
    for i, (a, b) in enumerate(zip(original, rebuilt, strict=True)):
        if a.shape != b.shape:
            return Agreement(np.inf, np.inf, varies=True)
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        same = (a64 == b64) | (np.isnan(a64) & np.isnan(b64))
        worst = float(np.nan_to_num(np.where(same, 0.0, np.abs(a64 - b64)), nan=np.inf).max(initial=0.0))
        finite = a64[np.isfinite(a64)]
        reached = float(np.abs(finite).max(initial=0.0))
        relative = max(relative, worst / max(1.0, reached))
        if i < outputs:
            largest, highest = max(largest, worst), max(highest, reached)
            varies |= bool(finite.size) and float(np.ptp(finite)) > 1e-6
    return Agreement(largest, relative, varies, highest)


def _forward(model: keras.Model, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Compute the outputs of a model at inference on the CPU, where float32 is not reduced in precision."""
    if keras.backend.backend() != "tensorflow":
        with keras.device("cpu:0"):
            found = model(list(images), training=False)
        return [keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(found)]
    # As one graph, because eager execution keeps every layer's output (400 MB for 31 million parameters). As a concrete
    # function, because TensorFlow warns about functions that are traced repeatedly.
    specifications = [tf.TensorSpec(i.shape, i.dtype) for i in images]
    with tf.device("/CPU:0"):
        call = tf.function(lambda *values: model(list(values), training=False), autograph=False)
        found = call.get_concrete_function(*specifications)(*(tf.constant(i) for i in images))
    return [np.asarray(t) for t in keras.tree.flatten(found)]


class Original:
    """The network of the file as a purely arithmetic graph.

    It is rewritten from the unfolded graph: placeholders for inputs and variables, no functions, resources or control
    edges, and only operations from the allow-list. Half precision is computed in float32. `weights` reads the value of each
    variable's node, and `versions` are those of the file's `GraphDef`.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, Callable[[], np.ndarray]], versions: Any) -> None:
        self._inputs, self._weights = graph.inputs, weights
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
            message.attr["shape"].shape.CopyFrom(tf.TensorShape(_sizes(node.attrs.get("shape"))).as_proto())
            return
        message.op = node.op
        if node.op == "Const":
            value = np.asarray(node.attrs["value"])
            value = value.astype(np.float32) if value.dtype.kind == "f" else value
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
        feeds |= {f"{self._short[key]}:0": value() for key, value in self._weights.items()}
        fetches = [f"{self._short[t.node]}:{t.output}" for t in wanted]
        try:
            with tf.compat.v1.Session(graph=self._graph, config=config) as session:
                return list(session.run(fetches, feeds, tf.compat.v1.RunOptions(timeout_in_ms=_MILLISECONDS)))
        except (tf.errors.OpError, ValueError, TypeError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise CheckpointError("TensorFlow cannot run the network in the file", found=" ".join(lines[:3])) from error


def _sizes(shape: Sequence[int | None] | None) -> list[int | None] | None:
    return None if shape is None else [None if n is None or n < 0 else n for n in shape]


_NARROW = frozenset(tf.as_dtype(t).as_datatype_enum for t in ("float16", "bfloat16", "float64"))
