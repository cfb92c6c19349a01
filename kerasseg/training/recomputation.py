"""Less memory for training: the backward pass computes cheap activations again instead of keeping them.

Between two convolutions, the backward pass needs the input of BatchNorm and the output of ReLU. The second follows from the
first at a fraction of the cost of a convolution, and so do concatenated skip connections and weights in another precision.
Bulò, Porzi and Kontschieder describe this for BatchNorm ("In-place activated BatchNorm", CVPR 2018); here it is done on the
graph, so it needs no special layers.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import tensorflow as tf

_CHEAP = frozenset(
    ("AddV2", "BiasAdd", "Cast", "ConcatV2", "EnsureShape", "FusedBatchNormV3", "Identity", "LeakyRelu", "Mul", "Relu")
)
_EXISTING = frozenset(("Const", "Placeholder", "ReadVariableOp"))
_SHAPES = frozenset(("Const", "Fill", "Shape", "ShapeN", "Size"))
_DEPTH = 6
"""Maximum number of successive operations that are computed again for one activation."""


def recompute_activations(graph: tf.Graph, first: int, smallest: int = 2**20) -> int:
    """Make the backward pass compute large activations again that follow cheaply from others that it keeps anyway.

    Gradients stay the same bit for bit. Each repeated operation waits for the gradient that needs it; otherwise TensorFlow
    would run it during the forward pass and keep the result.

    Args:
        graph: Graph being traced for a processor. XLA would merge equal operations, and a GPU's BatchNorm kernel saves
            other values.
        first: Number of operations in the graph before the gradients were added.
        smallest: Minimum saving per activation in bytes; unknown dimensions count as 1.

    Returns:
        Bytes that are no longer kept.
    """
    operations = graph.get_operations()
    forward = {operation.name for operation in operations[:first]}
    uses: dict[str, list[tuple[Any, int]]] = {}
    for operation in operations[first:]:
        if _upstream(operation, forward):
            for index, tensor in enumerate(operation.inputs):
                uses.setdefault(tensor.name, []).append((operation, index))
    results = [tensor for operation in operations[:first] for tensor in operation.outputs]
    kept = {t.name for t in results if t.op.type in _EXISTING or (t.name in uses and t.op.type not in _CHEAP)}
    saved = 0
    for tensor in results:
        if tensor.name not in uses or tensor.name in kept:
            continue
        gain = _bytes(tensor) - _cost(tensor, kept)
        if gain < smallest:
            kept.add(tensor.name)
            continue
        saved += gain
        with graph.control_dependencies(_upstream(uses[tensor.name][0][0], forward)):
            again = _repeat(graph, tensor, kept)
        for operation, index in uses[tensor.name]:
            operation._update_input(index, again)
    return saved


def _upstream(operation: Any, forward: Collection[str]) -> list[Any]:
    """Return the inputs that are known only in the backward pass."""
    return [t for t in operation.inputs if t.op.name not in forward and t.op.type not in _SHAPES]


def _bytes(tensor: Any) -> int:
    sizes = tensor.shape.as_list() if tensor.shape.rank is not None else [0]
    return math.prod(1 if size is None else size for size in sizes) * int(tensor.dtype.size)


def _cost(tensor: Any, kept: Collection[str], depth: int = _DEPTH) -> int:
    """Return how many more bytes have to be kept so that a tensor can be computed again."""
    if tensor.name in kept:
        return 0
    own = _bytes(tensor)
    if tensor.op.type not in _CHEAP or tensor.value_index > 0 or depth == 0:
        return own
    return min(own, sum(_cost(source, kept, depth - 1) for source in _sources(tensor.op)))


def _sources(operation: Any) -> list[Any]:
    inputs = list(operation.inputs)
    if operation.type == "FusedBatchNormV3" and operation.get_attr("is_training"):
        # The mean and variance of the batch, which the kernel saves for its gradient.
        inputs[3:] = operation.outputs[3:5]
    return inputs


def _repeat(graph: tf.Graph, tensor: Any, kept: Collection[str], depth: int = _DEPTH) -> Any:
    """Repeat the operations that `_cost` assumes; return their result."""
    inputs = [
        _repeat(graph, source, kept, depth - 1)
        if source.name not in kept and _cost(source, kept, depth - 1) < _bytes(source)
        else source
        for source in _sources(tensor.op)
    ]
    attributes = {name: value for name, value in tensor.op.node_def.attr.items() if not name.startswith("_")}
    if "is_training" in attributes:
        attributes["is_training"] = tf.compat.v1.AttrValue(b=False)
    types, name = [output.dtype for output in tensor.op.outputs], f"{tensor.op.name}_again"
    return graph.create_op(tensor.op.type, inputs, types, name=name, attrs=attributes).outputs[tensor.value_index]
