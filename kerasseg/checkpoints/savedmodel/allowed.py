"""The operations allowed in each part of a SavedModel, and the ranges of their arguments.

Nothing in a file runs before the whole file has passed. There are three lists of operations:

- signatures may only compute numbers from numbers (`NETWORK`);
- initialisers may also assign variables (`INITIALISER`);
- code for saving, restoring and training, which never runs here, may use the bookkeeping that Keras writes (`ELSEWHERE`).

Any other operation is refused by name, even in functions that nothing calls. An allowed one may still have a stride of two
thousand million or too few inputs. TensorFlow's own checks are incomplete, and some such graphs crash the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from kerasseg.checkpoints.allowed import words
from kerasseg.checkpoints.savedmodel.graph import Graph, Node
from kerasseg.checkpoints.savedmodel.graphdef import CALLS, PASSED, Body, Program
from kerasseg.checkpoints.savedmodel.messages import operation
from kerasseg_tfrecords.errors import CheckpointError

NETWORK = (
    CALLS
    | PASSED
    | words(
        """
        Const NoOp Placeholder VarHandleOp Variable VariableV2 IdentityN
        BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd BiasAddV1 Conv2D Conv2DBackpropInput DepthwiseConv2dNative
        Einsum MatMul
        AvgPool FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 MaxPool
        Elu LeakyRelu LogSoftmax Relu Relu6 Selu Sigmoid Softmax Softplus Softsign Tanh
        Abs Add AddN AddV2 Ceil ClipByValue Cos Div DivNoNan Erf Erfc Exp Expm1 Floor FloorDiv FloorMod Inv Log Log1p
        Maximum Minimum Mul Neg Pow RealDiv Reciprocal Round Rsqrt Sign Sin Sqrt Square SquaredDifference Sub
        ArgMax ArgMin Bitcast BitwiseAnd Equal Greater GreaterEqual IsFinite Less LessEqual LogicalAnd LogicalNot
        LogicalOr NotEqual OneHot Select SelectV2
        Max Mean Min Prod Sum
        BatchToSpaceND BroadcastTo Cast Concat ConcatV2 DepthToSpace ExpandDims Fill GatherV2 MirrorPad OnesLike Pack
        Pad PadV2 Range Reshape ReverseV2 Roll Shape Slice SpaceToBatchND SpaceToDepth Split SplitV Squeeze StridedSlice
        Tile Transpose Unpack ZerosLike
        ResizeBicubic ResizeBilinear ResizeNearestNeighbor
        """
    )
)
"""Operations for signatures. Each computes its outputs from its inputs, without side effects; variables are only read."""

INITIALISER = NETWORK | words("Assign AssignVariableOp IsVariableInitialized VarIsInitializedOp")
"""Operations for initialisers: Keras writes an empty one."""

# In this order: saving and restoring (values are read from the variables file directly); adapting a Normalization layer;
# training (dropout, moving statistics, optimizers, metrics, losses); gradients of what NETWORK holds; branches and loops
# (the functions that they call are checked like all others); checks, and other operations of losses and custom layers.
ELSEWHERE = INITIALISER | words(
    """
    MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch StringJoin
    IteratorGetNext
    AssignAddVariableOp AssignSubVariableOp AssignAdd AssignSub BroadcastGradientArgs ConcatOffset DestroyResourceOp
    DynamicStitch InvertPermutation L2Loss RandomStandardNormal RandomUniform RandomUniformInt StatelessRandomGetAlg
    StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormalV2 StatelessRandomUniform
    StatelessRandomUniformV2 StatelessRandomUniformFullIntV2 StatelessTruncatedNormalV2 TruncatedNormal
    RngReadAndSkip BitwiseXor SparseSoftmaxCrossEntropyWithLogits SoftmaxCrossEntropyWithLogits Xdivy Xlogy
    ApplyAdam ApplyGradientDescent ApplyMomentum ApplyRMSProp ResourceApplyAdam ResourceApplyGradientDescent
    ResourceApplyKerasMomentum ResourceApplyMomentum ResourceApplyRMSProp ResourceApplyAdagradV2
    ResourceApplyAdaMax ResourceApplyAdamWithAmsgrad
    AvgPoolGrad BiasAddGrad Conv2DBackpropFilter DepthwiseConv2dNativeBackpropFilter
    DepthwiseConv2dNativeBackpropInput EluGrad FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3
    LeakyReluGrad MaxPoolGrad MirrorPadGrad Relu6Grad ReluGrad ResizeBilinearGrad ResizeNearestNeighborGrad RsqrtGrad
    SeluGrad SigmoidGrad SoftplusGrad SoftsignGrad SqrtGrad StridedSliceGrad TanhGrad
    Case If StatelessCase StatelessIf StatelessWhile While Merge Switch Enter Exit LoopCond NextIteration
    Acos Acosh All Any Asin Asinh Assert Atan Atan2 Atanh Cosh Cumprod Cumsum Diag DiagPart
    EnsureShape GatherNd IsInf IsNan LinSpace MatrixBandPart MulNoNan OneHot Rank ScatterNd Sinh
    Size Tan TopKV2 Unique Where
    """
)
"""Operations in parts that never run."""

_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("PyFunc", "PyFuncStateless", "EagerPyFunc"), "runs Python code"),
    **dict.fromkeys(("DecodePng", "DecodeJpeg", "DecodeImage"), "decodes image files"),
    **dict.fromkeys(("Print", "PrintV2"), "prints"),
    "ReadFile": "reads a file",
    "WriteFile": "writes a file",
    "MatchingFiles": "lists files",
    "LoadLibrary": "loads machine code",
    "RemoteCall": "runs on another machine",
    "XlaLaunch": "runs compiled code",
    "XlaHostCompute": "runs code on the host",
    "XlaCallModule": "runs a program in a language that cannot be read here",
    "Conv3D": "belongs to a 3-D network; kerasseg works on 2-D slices",
    "HashTableV2": "looks words up",
}

_SHOWN = 4
_MANY, _LARGE = 10_000, 1 << 24

# Valid ranges of attributes that are integers or lists of integers.
_ATTRIBUTES: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("axis", "squeeze_dims"), (-16, 16)),
    **dict.fromkeys(("dilations", "ksize", "num", "num_split", "strides"), (1, _MANY)),
    "block_size": (1, 1024),
    "explicit_paddings": (0, _MANY),
}

_AXIS, _SIZE, _PAD, _SHAPE = (-16, 16), (1, 1 << 16), (0, _MANY), (-1, (1 << 31) - 1)

# Operation -> input -> valid range of its numbers, if constant.
_ARGUMENTS: Mapping[str, Mapping[int, tuple[int, int]]] = {
    **{op: {0: _AXIS} for op in ("Concat", "Split")},
    **{op: {1: _AXIS} for op in ("ArgMax", "ArgMin", "ExpandDims", "Max", "Mean", "Min", "Prod", "ReverseV2", "Sum")},
    **{op: {1: _PAD} for op in ("MirrorPad", "Pad", "PadV2")},
    **{op: {1: _SHAPE} for op in ("BroadcastTo", "Reshape")},
    **{op: {1: _SIZE} for op in ("ResizeBicubic", "ResizeBilinear", "ResizeNearestNeighbor")},
    **{op: {1: (1, _MANY), 2: _PAD} for op in ("BatchToSpaceND", "SpaceToBatchND")},
    **{op: {0: (0, _LARGE)} for op in ("Conv2DBackpropInput", "Fill")},
    "ConcatV2": {-1: _AXIS},
    "GatherV2": {2: _AXIS},
    "Slice": {1: (0, _LARGE), 2: (-1, _LARGE)},
    "SplitV": {1: (-1, _LARGE), 2: _AXIS},
    "StridedSlice": {3: (-_MANY, _MANY)},
    "Tile": {1: (0, _MANY)},
    "Transpose": {1: _AXIS},
}


def check_operations(meta_graph: Any, program: Program, signature: Iterable[str]) -> None:
    """Refuse a `MetaGraphDef` with operations that are not allowed where they occur; `signature` names required tensors."""
    network = _reachable(meta_graph, program, [t.partition(":")[0] for t in signature])
    initialisers = _reachable(meta_graph, program, _initialisers(meta_graph), _resource_functions(meta_graph))
    found: dict[str, None] = {}
    for body in (program.main, *map(program.body, program.functions)):
        for name, node in body.nodes.items():
            place = (body.name, name)
            if node.op in program.functions:
                continue  # a call of a function, whose body is checked separately
            if place in network:
                allowed, part = NETWORK, "the network"
            elif place in initialisers:
                allowed, part = INITIALISER, "an initialiser"
            else:
                allowed, part = ELSEWHERE, "outside the network"
            if node.op not in allowed:
                reason = _REASONS.get(node.op)
                found[f"{node.op} at {body.place(name)}, {part}" + (f": it {reason}" if reason else "")] = None
    if found:
        shown = "; ".join(list(found)[:_SHOWN]) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        what = "the SavedModel holds operations that are not allowed; nothing was run"
        expected = "only operations that compute the output from the input"
        remedy = "Export the network without them, or ask its author for a .keras file"
        raise CheckpointError(what, found=shown, expected=expected, remedy=remedy)


def _initialisers(meta_graph: Any) -> Iterator[str]:
    """Yield the nodes that loading a SavedModel would run: init operations of both kinds, and table initialisers."""
    for name, signature in meta_graph.signature_def.items():
        if name == "__saved_model_init_op":
            yield from (t.name.partition(":")[0] for t in signature.outputs.values())
    for name in ("saved_model_main_op", "legacy_init_op", "main_op", "table_initializer", "init_op", "local_init_op"):
        if name in meta_graph.collection_def:
            collection = meta_graph.collection_def[name]
            yield from (v.partition(":")[0] for v in collection.node_list.value)
            yield from (v.decode("utf-8", "replace").partition(":")[0] for v in collection.bytes_list.value)


def _resource_functions(meta_graph: Any) -> Iterator[str]:
    """Yield the functions that restored resources, such as lookup tables, would run while loading."""
    nodes = meta_graph.object_graph_def.nodes
    for child in (child for node in nodes for child in node.children):
        if child.local_name in {"_create_resource", "_initialize"} and 0 <= child.node_id < len(nodes):
            node = nodes[child.node_id]
            yield from (*node.function.concrete_functions, node.bare_concrete_function.concrete_function_name)


def _reachable(
    meta_graph: Any, program: Program, roots: Iterable[str], functions: Iterable[str] = ()
) -> set[tuple[str, str]]:
    """Return all nodes that nodes and functions need, as (function, node): through data, control, calls and gradients."""
    gradients: dict[str, set[str]] = {}
    for gradient in meta_graph.graph_def.library.gradient:
        gradients.setdefault(gradient.function_name, set()).add(gradient.gradient_func)
    seen: set[tuple[str, str]] = set()
    entered: set[str] = set()
    stack: list[tuple[Body, str]] = [(program.main, root) for root in roots]

    def enter(function: str) -> None:
        waiting = [function]
        while waiting:
            name = waiting.pop()
            if name in program.functions and name not in entered:
                entered.add(name)
                body = program.body(name)
                stack.extend((body, node) for node in body.nodes)
                waiting.extend(gradients.get(name, ()))

    for function in functions:
        enter(function)
    while stack:
        body, name = stack.pop()
        if name not in body.nodes or (body.name, name) in seen:
            continue
        seen.add((body.name, name))
        node = body.nodes[name]
        stack.extend((body, i.removeprefix("^").partition(":")[0]) for i in node.input)
        enter(node.op)
        for value in node.attr.values():
            for function in (value.func, *value.list.func):
                enter(function.name)
    return seen


def check_arguments(graph: Graph) -> None:
    """Refuse a graph in which an operation has a wrong number of inputs or arguments out of range."""
    for node in graph.nodes.values():
        inputs = operation(node.op).input_arg
        several = sum(bool(a.number_attr or a.type_list_attr) for a in inputs)
        if len(node.inputs) < len(inputs) or (len(node.inputs) > len(inputs) and not several):
            raise _damaged(node, f"{len(node.inputs)} inputs", f"{len(inputs)}")
        for tensor in node.inputs:
            _check_output(graph[tensor], tensor.output)
        for name, (low, high) in _ATTRIBUTES.items():
            value = node.attrs.get(name)
            numbers = value if isinstance(value, tuple) else () if value is None else (value,)
            if any(not isinstance(n, int) or not low <= n <= high for n in numbers):
                raise _damaged(node, f"{name}={value}", f"{low} to {high}")
        for place, (low, high) in _ARGUMENTS.get(node.op, {}).items():
            array = graph.constant(node.inputs[place])
            if array is not None and not (array.dtype.kind in "iu" and ((array >= low) & (array <= high)).all()):
                raise _damaged(node, f"input {place} is {np.asarray(array).ravel()[:4].tolist()}", f"{low} to {high}")
    for tensor in graph.outputs.values():
        _check_output(graph[tensor], tensor.output)


def _check_output(node: Node, output: int) -> None:
    outputs = operation(node.op).output_arg
    count = sum(node.attrs.get(a.number_attr, 1) if a.number_attr else 1 for a in outputs)
    if not 0 <= output < count:
        raise _damaged(node, f"output {output} is read", f"{count} outputs")


def _damaged(node: Node, found: str, expected: str) -> CheckpointError:
    what = f"the graph is damaged: {node.op} at {node.where} has invalid arguments"
    return CheckpointError(what, found=found, expected=expected)
