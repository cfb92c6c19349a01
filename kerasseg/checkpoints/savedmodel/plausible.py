"""Checks of argument ranges before TensorFlow sees a graph.

An allowed operation may still have a stride of two thousand million or too few inputs. TensorFlow's own checks are
incomplete, and some such graphs crash the process.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kerasseg.checkpoints.savedmodel.graph import Graph, Node
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["check_arguments"]

_MANY = 10_000

_ARITY: Mapping[int, str] = {
    0: "Const NoOp Placeholder VarHandleOp Variable VariableV2",
    1: "Abs AvgPool Cast Ceil CheckNumerics Cos DepthToSpace DisableCopyOnRead Elu Erf Erfc Exp Expm1 Floor Identity Inv "
    "IsFinite LeakyRelu Log Log1p LogSoftmax LogicalNot MaxPool Neg OnesLike PreventGradient ReadVariableOp Reciprocal "
    "Relu Relu6 Round Rsqrt Selu Shape Sigmoid Sign Sin Snapshot Softmax Softplus Softsign SpaceToDepth Sqrt Square "
    "Squeeze StopGradient Tanh Unpack ZerosLike",
    2: "Add AddV2 ArgMax ArgMin BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd BiasAddV1 BroadcastTo Conv2D "
    "DepthwiseConv2dNative Div DivNoNan Equal ExpandDims Fill FloorDiv FloorMod Greater GreaterEqual Less "
    "LessEqual LogicalAnd LogicalOr MatMul Max Maximum Mean Min Minimum MirrorPad Mul NotEqual Pad Pow Prod "
    "RealDiv Reshape ResizeBicubic ResizeBilinear ResizeNearestNeighbor ReverseV2 Split SquaredDifference Sub "
    "Sum Tile Transpose",
    3: "BatchToSpaceND ClipByValue Conv2DBackpropInput GatherV2 PadV2 Range Select SelectV2 Slice SpaceToBatchND SplitV",
    4: "StridedSlice",
    5: "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3",
}
_INPUTS = {op: count for count, ops in _ARITY.items() for op in ops.split()}
_AT_LEAST = {"AddN": 1, "Concat": 2, "ConcatV2": 2, "Einsum": 1, "Pack": 1}

_OUTPUTS = {"FusedBatchNorm": 5, "FusedBatchNormV2": 5, "FusedBatchNormV3": 6}
_COUNTED = {"Split": "num_split", "SplitV": "num_split", "Unpack": "num"}

# Valid ranges of attributes that are integers or lists of integers.
_ATTRIBUTES: Mapping[str, tuple[int, int]] = {
    "axis": (-16, 16),
    "block_size": (1, 1024),
    "dilations": (1, _MANY),
    "explicit_paddings": (0, _MANY),
    "ksize": (1, _MANY),
    "num": (1, _MANY),
    "num_split": (1, _MANY),
    "squeeze_dims": (-16, 16),
    "strides": (1, _MANY),
}

_AXIS, _SIZE, _PAD, _SHAPE = (-16, 16), (1, 1 << 16), (0, _MANY), (-1, (1 << 31) - 1)

# Operation -> input -> valid range of its numbers, if constant.
_ARGUMENTS: Mapping[str, Mapping[int, tuple[int, int]]] = {
    "ArgMax": {1: _AXIS},
    "ArgMin": {1: _AXIS},
    "BatchToSpaceND": {1: (1, _MANY), 2: _PAD},
    "BroadcastTo": {1: _SHAPE},
    "Concat": {0: _AXIS},
    "ConcatV2": {-1: _AXIS},
    "Conv2DBackpropInput": {0: (0, 1 << 24)},
    "ExpandDims": {1: _AXIS},
    "Fill": {0: (0, 1 << 24)},
    "GatherV2": {2: _AXIS},
    "MirrorPad": {1: _PAD},
    "Pad": {1: _PAD},
    "PadV2": {1: _PAD},
    "Reshape": {1: _SHAPE},
    "ResizeBicubic": {1: _SIZE},
    "ResizeBilinear": {1: _SIZE},
    "ResizeNearestNeighbor": {1: _SIZE},
    "ReverseV2": {1: _AXIS},
    "Slice": {1: (0, 1 << 24), 2: (-1, 1 << 24)},
    "SpaceToBatchND": {1: (1, _MANY), 2: _PAD},
    "Split": {0: _AXIS},
    "SplitV": {1: (-1, 1 << 24), 2: _AXIS},
    "StridedSlice": {3: (-_MANY, _MANY)},
    "Tile": {1: (0, _MANY)},
    "Transpose": {1: _AXIS},
    **{op: {1: _AXIS} for op in ("Max", "Mean", "Min", "Prod", "Sum")},
}


def check_arguments(graph: Graph) -> None:
    """Refuse a graph in which an operation has a wrong number of inputs or arguments out of range.

    Raises:
        CheckpointError: Names the operation, its node and the problem.
    """
    for node in graph.nodes.values():
        fewest = _INPUTS.get(node.op, _AT_LEAST.get(node.op, 0))
        placeholder = node.op == "PlaceholderWithDefault"
        if len(node.inputs) < fewest or (node.op in _INPUTS and len(node.inputs) > fewest and not placeholder):
            raise _damaged(node, f"{len(node.inputs)} inputs", f"{fewest}")
        for tensor in node.inputs:
            _check_output(graph.nodes[tensor.node], tensor.output)
        for name, (low, high) in _ATTRIBUTES.items():
            value = node.attrs.get(name)
            numbers = value if isinstance(value, tuple) else () if value is None else (value,)
            if any(not isinstance(n, int) or not low <= n <= high for n in numbers):
                raise _damaged(node, f"{name}={value}", f"{low} to {high}")
        for place, (low, high) in _ARGUMENTS.get(node.op, {}).items():
            array = graph.constant(node.inputs[place])
            if array is not None and not _within(array, low, high):
                raise _damaged(node, f"input {place} is {np.asarray(array).ravel()[:4].tolist()}", f"{low} to {high}")
    for tensor in graph.outputs.values():
        _check_output(graph.nodes[tensor.node], tensor.output)


def _within(array: np.ndarray, low: int, high: int) -> bool:
    return array.dtype.kind in "iu" and bool(((array >= low) & (array <= high)).all())


def _check_output(node: Node, output: int) -> None:
    count = node.attrs.get(_COUNTED[node.op], 1) if node.op in _COUNTED else _OUTPUTS.get(node.op, 1)
    if not isinstance(count, int) or not 0 <= output < count:
        raise _damaged(node, f"output {output} is read", f"{count} outputs")


def _damaged(node: Node, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the graph is damaged: {node.op} at {node.where} has invalid arguments", found=found, expected=expected
    )
