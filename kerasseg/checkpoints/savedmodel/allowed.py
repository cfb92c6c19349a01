"""The operations allowed in each part of a SavedModel.

Nothing in a file runs before the whole file has passed. There are three lists:

- signatures may only compute numbers from numbers (`NETWORK`);
- initialisers may also assign variables (`INITIALISER`);
- code for saving, restoring and training, which never runs here, may use the bookkeeping that Keras writes (`ELSEWHERE`).

Any other operation is refused by name, even in functions that nothing calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kerasseg.checkpoints.savedmodel.graphdef import CALLS, PASSED, Body, Program
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["ELSEWHERE", "INITIALISER", "NETWORK", "check_operations"]


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


NETWORK = (
    CALLS
    | PASSED
    | _words(
        # Sources. Variables are read, never assigned.
        "Const NoOp Placeholder VarHandleOp Variable VariableV2 IdentityN",
        # Linear layers.
        "BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd BiasAddV1 Conv2D Conv2DBackpropInput DepthwiseConv2dNative",
        "Einsum MatMul",
        # Normalisation and pooling.
        "AvgPool FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 MaxPool",
        # Activations.
        "Elu LeakyRelu LogSoftmax Relu Relu6 Selu Sigmoid Softmax Softplus Softsign Tanh",
        # Arithmetic.
        "Abs Add AddN AddV2 Ceil ClipByValue Cos Div DivNoNan Erf Erfc Exp Expm1 Floor FloorDiv FloorMod Inv Log Log1p",
        "Maximum Minimum Mul Neg Pow RealDiv Reciprocal Round Rsqrt Sign Sin Sqrt Square SquaredDifference Sub",
        # Comparison and choice.
        "ArgMax ArgMin Bitcast BitwiseAnd Equal Greater GreaterEqual IsFinite Less LessEqual LogicalAnd LogicalNot",
        "LogicalOr NotEqual OneHot Select SelectV2",
        # Reduction.
        "Max Mean Min Prod Sum",
        # Shape.
        "BatchToSpaceND BroadcastTo Cast Concat ConcatV2 DepthToSpace ExpandDims Fill GatherV2 MirrorPad OnesLike Pack",
        "Pad PadV2 Range Reshape ReverseV2 Shape Slice SpaceToBatchND SpaceToDepth Split SplitV Squeeze StridedSlice Tile",
        "Transpose Unpack ZerosLike",
        # Resizing.
        "ResizeBicubic ResizeBilinear ResizeNearestNeighbor",
    )
)
"""Operations for signatures. Each computes its outputs from its inputs, without side effects."""

INITIALISER = NETWORK | _words("Assign AssignVariableOp IsVariableInitialized VarIsInitializedOp")
"""Operations for initialisers: Keras writes an empty one."""

ELSEWHERE = INITIALISER | _words(
    # Saving and restoring; values are read from the variables file directly.
    "MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch StringJoin",
    # Adapting a Normalization layer to data.
    "IteratorGetNext",
    # Training: dropout, moving statistics, optimizers, metrics, losses.
    "AssignAddVariableOp AssignSubVariableOp AssignAdd AssignSub BroadcastGradientArgs ConcatOffset DestroyResourceOp",
    "DynamicStitch InvertPermutation L2Loss RandomStandardNormal RandomUniform RandomUniformInt StatelessRandomGetAlg",
    "StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormalV2 StatelessRandomUniform",
    "StatelessRandomUniformV2 StatelessRandomUniformFullIntV2 StatelessTruncatedNormalV2 TruncatedNormal",
    "RngReadAndSkip BitwiseXor SparseSoftmaxCrossEntropyWithLogits SoftmaxCrossEntropyWithLogits Xdivy Xlogy",
    "ApplyAdam ApplyGradientDescent ApplyMomentum ApplyRMSProp ResourceApplyAdam ResourceApplyGradientDescent",
    "ResourceApplyKerasMomentum ResourceApplyMomentum ResourceApplyRMSProp ResourceApplyAdagradV2",
    "ResourceApplyAdaMax ResourceApplyAdamWithAmsgrad",
    # Gradients of what NETWORK holds.
    "AvgPoolGrad BiasAddGrad Conv2DBackpropFilter DepthwiseConv2dNativeBackpropFilter",
    "DepthwiseConv2dNativeBackpropInput EluGrad FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3",
    "LeakyReluGrad MaxPoolGrad MirrorPadGrad Relu6Grad ReluGrad ResizeBilinearGrad ResizeNearestNeighborGrad RsqrtGrad",
    "SeluGrad SigmoidGrad SoftplusGrad SoftsignGrad SqrtGrad StridedSliceGrad TanhGrad",
    # Branches and loops; the functions that they call are checked like all others.
    "Case If StatelessCase StatelessIf StatelessWhile While Merge Switch Enter Exit LoopCond NextIteration",
    # Checks, and other operations of losses, metrics and custom layers.
    "Acos Acosh All Any Asin Asinh Assert Atan Atan2 Atanh Cosh Cumprod Cumsum Diag DiagPart",
    "EnsureShape GatherNd IsInf IsNan LinSpace MatrixBandPart MulNoNan OneHot Rank ScatterNd Sinh",
    "Size Tan TopKV2 Unique Where",
)
"""Operations in parts that never run."""

_REASONS: Mapping[str, str] = {
    "ReadFile": "reads a file",
    "WriteFile": "writes a file",
    "PyFunc": "runs Python code",
    "PyFuncStateless": "runs Python code",
    "EagerPyFunc": "runs Python code",
    "MatchingFiles": "lists files",
    "LoadLibrary": "loads machine code",
    "PrintV2": "prints",
    "Print": "prints",
    "RemoteCall": "runs on another machine",
    "XlaLaunch": "runs compiled code",
    "XlaHostCompute": "runs code on the host",
    "XlaCallModule": "runs a program in a language that cannot be read here",
    "Conv3D": "belongs to a 3-D network; kerasseg works on 2-D slices",
    "HashTableV2": "looks words up",
    "DecodePng": "decodes image files",
    "DecodeJpeg": "decodes image files",
    "DecodeImage": "decodes image files",
}

_SHOWN = 4


def check_operations(meta_graph: Any, program: Program, signature: Iterable[str]) -> None:
    """Refuse a MetaGraph with operations that are not allowed where they occur.

    Args:
        meta_graph: A `MetaGraphDef` message.
        program: Its index.
        signature: The required tensors of the main graph.

    Raises:
        CheckpointError: Names each such operation, its node, its function and the reason.
    """
    network = reachable(meta_graph, program, [t.partition(":")[0] for t in signature])
    initialisers = reachable(meta_graph, program, _initialisers(meta_graph))
    found: dict[str, None] = {}
    for body in _bodies(program):
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
        raise CheckpointError(
            "the SavedModel holds operations that are not allowed; nothing was run",
            found=shown,
            expected="only operations that compute the output from the input",
            remedy="Export the network without them, or ask its author for a .keras file",
        )


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
    for node in meta_graph.object_graph_def.nodes:
        # Restored resources such as lookup tables run functions of these names while loading.
        for child in node.children:
            if child.local_name in {"_create_resource", "_initialize"}:
                yield f"{_OBJECT}{child.node_id}"


_OBJECT = "\0object "


def reachable(meta_graph: Any, program: Program, roots: Iterable[str]) -> set[tuple[str, str]]:
    """Return all nodes that the roots need, as (function, node): through data, control, calls and gradients."""
    gradients: dict[str, set[str]] = {}
    for gradient in meta_graph.graph_def.library.gradient:
        gradients.setdefault(gradient.function_name, set()).add(gradient.gradient_func)
    seen: set[tuple[str, str]] = set()
    entered: set[str] = set()
    stack: list[tuple[Body, str]] = []

    def enter(function: str) -> None:
        waiting = [function]
        while waiting:
            name = waiting.pop()
            if name in program.functions and name not in entered:
                entered.add(name)
                body = program.body(name)
                stack.extend((body, node) for node in body.nodes)
                waiting.extend(gradients.get(name, ()))

    for root in roots:
        if root.startswith(_OBJECT):
            for function in _functions_of(meta_graph, int(root.removeprefix(_OBJECT))):
                enter(function)
        else:
            stack.append((program.main, root))
    while stack:
        body, name = stack.pop()
        if name not in body.nodes or (body.name, name) in seen:
            continue
        seen.add((body.name, name))
        node = body.nodes[name]
        stack.extend((body, i.removeprefix("^").partition(":")[0]) for i in node.input)
        enter(node.op)
        for value in node.attr.values():
            kind = value.WhichOneof("value")
            if kind == "func":
                enter(value.func.name)
            elif kind == "list":
                for function in value.list.func:
                    enter(function.name)
    return seen


def _functions_of(meta_graph: Any, index: int) -> list[str]:
    nodes = meta_graph.object_graph_def.nodes
    if not 0 <= index < len(nodes):
        return []
    node = nodes[index]
    return [*node.function.concrete_functions, node.bare_concrete_function.concrete_function_name]


def _bodies(program: Program) -> Iterator[Body]:
    yield program.main
    for function in program.functions:
        yield program.body(function)
