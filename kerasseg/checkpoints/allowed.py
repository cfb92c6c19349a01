"""Check a network's configuration before Keras reads it.

A configuration is a tree of `{"module": ..., "class_name": ..., "config": ...}`, and Keras looks up classes by these
names. This module compares the names with lists and refuses every class that is not listed, including future ways to run
code.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from typing import Any, NoReturn, TypeVar

import keras
import numpy as np

from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import CheckpointError
from kerasseg_tfrecords.text import count

_T = TypeVar("_T")

_MOST_BYTES = 1 << 24  # per configuration; EfficientNetB7 has 1.5 MB
_MOST_VALUES = 2_000_000  # per configuration; EfficientNetB7 has 100,000, and each takes 64 bytes or more when parsed
_MOST_LAYERS = 5000  # a U-Net on EfficientNetB7 has about 1,000, and each takes Keras some milliseconds
_DEEPEST = 200
_LARGEST_MAP = 1 << 28  # values in one feature map of one image: 1 GiB in float32
_MOST_HELD = 1 << 31  # values in maps that are needed at the same time; a large U-Net needs 2^30 for 2048x2048 pixels
_MOST_TERMS = 1 << 16  # of one sum, which take TensorFlow half a second
_INACTIVE = {"ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity",
             "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"}  # fmt: skip
_OPEN_SIZE = 256  # pixels, for checking networks without a fixed size
_BUILD_SECONDS = 30.0
_LARGEST_NUMBER = 1 << 31  # far above any count, size or number of filters in a real network


def words(text: str) -> frozenset[str]:
    """Return the words of a text: a set that is easier to read and to change than one in quotes and commas."""
    return frozenset(text.split())


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs in `a:b c:d`; a single word is a pair with itself."""
    for word in text.split():
        first, _, second = word.partition(":")
        yield first, second or first


NETWORKS = frozenset({"Functional", "Model", "Sequential"})

#: Keras layers for image networks. Deliberately left out: Lambda (Python byte code); TFSMLayer, TorchModuleWrapper,
#: JaxLayer, FlaxLayer (foreign programs); StringLookup, TextVectorization and similar (they read files that the
#: configuration names); MelSpectrogram (its memory use is set by the configuration).
LAYERS = words(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout Attention
    Average AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization CenterCrop Concatenate Conv1D
    Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM2D Cropping1D Cropping2D Cropping3D Dense
    DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Flatten GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer LayerNormalization LeakyReLU
    Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum MultiHeadAttention Multiply Normalization PReLU
    Permute RMSNormalization RandomBrightness RandomContrast RandomCrop RandomFlip RandomRotation RandomTranslation
    RandomZoom ReLU RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D Softmax SpatialDropout1D
    SpatialDropout2D SpatialDropout3D SpectralNormalization Subtract TimeDistributed UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """
)

#: Layers without intermediate results larger than their output; those of others are found in the graph of TensorFlow.
_DIRECT = _INACTIVE | words(
    """
    Activation Add Average AveragePooling2D BatchNormalization Concatenate Conv2D Conv2DTranspose Cropping2D Dense
    DepthwiseConv2D ELU Functional GlobalAveragePooling2D GlobalMaxPooling2D InputLayer LeakyReLU MaxPooling2D Maximum
    Multiply Normalization PReLU ReLU Rescaling Reshape Sequential Softmax Subtract UpSampling2D ZeroPadding2D
    """
)

#: `keras.ops` operations that a functional network may contain, by module. Those that take a Python function (map, scan,
#: cond, ...) are left out.
_OPERATIONS = {
    "numpy": """
        Abs Absolute Add All Amax Amin Any Append Arccos Arcsin Arctan Arctan2 Argmax Argmin Average BroadcastTo Cbrt
        Ceil Clip Concatenate Copy Cos Cosh CountNonzero Cumsum Diff Divide DivideNoNan Dot Dsplit Dstack Einsum Equal
        Exp Exp2 ExpandDims Expm1 Flip Fliplr Flipud Floor FloorDivide Fmax Fmin FullLike GetItem Greater GreaterEqual
        Hsplit Hstack Hypot Isfinite Isinf Isnan Less LessEqual Linspace Log Log10 Log1p Log2 Logaddexp LogicalAnd
        LogicalNot LogicalOr LogicalXor Matmul Max Maximum Mean Median Min Minimum Mod Moveaxis Multiply NanToNum
        Negative NotEqual OnesLike Outer Pad Power Prod Quantile Ravel Reciprocal Repeat Reshape Roll Rot90 Round Sign
        Sin Sinh Sort Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Take TakeAlongAxis Tan Tanh Tensordot
        Tile Transpose TrueDivide Trunc Var Vsplit Vstack Where ZerosLike
        """,
    "nn": """
        AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm Celu Conv ConvTranspose DepthToSpace DepthwiseConv
        DotProductAttention Elu Fold Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LayerNorm LeakyRelu LogSigmoid
        LogSoftmax MaxPool Moments Normalize OneHot PixelShuffle Relu Relu6 RMSNorm Selu SeparableConv Sigmoid Silu
        SoftShrink Softmax Softplus Softsign SpaceToDepth SparsePlus SparseSigmoid Sparsemax Squareplus TanhShrink
        Threshold Unfold
        """,
    "image": """
        AffineTransform CropImages ExtractPatches GaussianBlur HSVToRGB MapCoordinates PadImages PerspectiveTransform
        RGBToGrayscale RGBToHSV Resize
        """,
    "core": "Cast SaturateCast SliceUpdate Slice Scatter ScatterUpdate Shape StopGradient Unstack",
    "math": "Erf Erfc Logsumexp Rsqrt TopK InTopK SegmentMax SegmentSum",
    "linalg": "Norm",
    "einops": "Rearrange",
}
_OPERATION_MODULES = {f"keras.src.ops.{module}": words(names) for module, names in _OPERATIONS.items()}

_MODULES: dict[str, frozenset[str]] = {
    "keras.layers": LAYERS,
    "keras": NETWORKS | {"DTypePolicy", "FloatDTypePolicy"},
    "keras.models": NETWORKS,
    **{f"keras.src.models.{name.lower()}": frozenset({name}) for name in NETWORKS},
    "keras.src.engine.functional": frozenset({"Functional"}),
    **_OPERATION_MODULES,
}
#: Modules of harmless helpers in layer configurations: all their public classes only compute numbers.
_HELPERS = {f"keras.{name}" for name in words("initializers regularizers constraints activations dtype_policies")}
_HELPERS |= {"keras.src.dtype_policies.dtype_policy"}
_VALUES = frozenset({"__tensor__", "__numpy__", "__keras_tensor__", "__ellipsis__", "__slice__", "__bytes__"})
_IDENTITIES = frozenset({"shared_object_id", "seed"})  # may be any number
_CODE = frozenset({"__lambda__", "__typespec__", "__function__", "__method__"})

_WHY = {
    "Lambda": "a Lambda layer holds Python byte code, which kerasseg does not run",
    "TFSMLayer": "it runs a foreign TensorFlow graph that the file names",
    "TorchModuleWrapper": "it holds a pickled PyTorch module, which can run code",
    "JaxLayer": "it holds a foreign program",
    "FlaxLayer": "it holds a foreign program",
}
_LAMBDA_REMEDY = (
    "Build the same network without it and pass that with --architecture FILE to use the weights of this file. Or export "
    "the network with model.export() where its code is available: kerasseg opens the result"
)
_HARM = "The file was damaged or tampered with: download it again from a trusted source"
_REMEDY = "Rebuild the network with Keras' own layers, or register your class with keras.saving before opening"


def operation_module(name: str) -> str | None:
    """Return the Keras module of the operation `name`, or None if it is not allowed."""
    return next((module for module, names in _OPERATION_MODULES.items() if name in names), None)


def without_training(config: Any) -> Any:
    """Copy a configuration without its optimizers, losses and metrics."""
    if isinstance(config, dict):
        return {k: without_training(v) for k, v in config.items() if k != "compile_config"}
    return [without_training(v) for v in config] if isinstance(config, list) else config


def parse_config(text: bytes | str) -> dict[str, Any]:
    """Parse the configuration of a network; refuse types and sizes that Keras does not write."""
    try:
        config = parse_json(text, max_bytes=_MOST_BYTES, max_values=_MOST_VALUES, max_depth=_DEEPEST)
    except ValueError as error:
        raise CheckpointError("the network's configuration cannot be read", found=error) from error
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        expected = "an object with `class_name`"
        raise CheckpointError("the network's configuration does not describe a network", expected=expected)
    waiting, count = [config], 0
    while waiting:
        entry = waiting.pop()
        count += 1
        form = isinstance(entry, Mapping) and isinstance(entry.get("class_name"), str)
        inner = entry.get("config") if form else None
        if not isinstance(inner, dict | list):
            raise _malformed("a layer", entry)
        if not isinstance(entry.get("inbound_nodes") or [], list):
            raise _malformed("`inbound_nodes`", entry["inbound_nodes"])
        if entry["class_name"] in NETWORKS:
            layers = inner if isinstance(inner, list) else inner.get("layers", [])
            if not isinstance(layers, list):
                raise _malformed("the list of layers", layers)
            waiting += layers
        if count + len(waiting) > _MOST_LAYERS:
            raise CheckpointError("refused: the network has too many layers", expected=f"at most {_MOST_LAYERS:,}")
    return config


def _malformed(what: str, found: object) -> CheckpointError:
    problem = f"refused: the network's configuration is malformed: {what} is not what Keras writes"
    return CheckpointError(problem, found=repr(found)[:60], remedy="The file is damaged or was edited: fetch it again.")


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse the configuration of a Keras 3 network that names anything but known, harmless classes.

    Names that this process registered with `keras.saving.register_keras_serializable` are allowed.

    Example:
        >>> check_config({"module": "os", "class_name": "system", "config": {}})
        Traceback (most recent call last):
            ...
        kerasseg_tfrecords.errors.CheckpointError: refused: it asks for the unknown class `os.system`. ...
    """
    _walk(config, "")


def _walk(node: Any, where: str) -> None:
    if isinstance(node, Mapping):
        if "class_name" in node and "config" in node:
            where = _named(node, where)
        elif {"module", "registered_name"} <= node.keys():
            _refuse("its configuration names a class without describing it", where)
        calls = node.get("inbound_nodes") or []
        for call in calls if isinstance(calls, list) else [calls]:
            # A layer called only on constants would compute while the configuration is being read.
            if "__keras_tensor__" not in json.dumps(call):
                _refuse("it calls a layer only on constants", str(node.get("name", where)))
        for key, value in node.items():
            # Arguments that control Keras' safe mode.
            if key in {"safe_mode", "enable_unsafe_deserialization"}:
                _refuse(f"its configuration tries to set `{key}`", where)
            if key not in _IDENTITIES:
                _walk(value, where)
    elif isinstance(node, list | tuple):
        for value in node:
            _walk(value, where)
    elif isinstance(node, int) and abs(node) >= _LARGEST_NUMBER:
        _refuse(f"a number in its configuration is out of range: {node}", where)
    elif isinstance(node, str) and len(node) > _MOST_BYTES >> 6:
        _refuse("a text in its configuration is too long", where)


def _named(node: Mapping[str, Any], where: str) -> str:
    """Check one `{"module", "class_name", "config", "registered_name"}` and return the name of its layer."""
    name, module, registered = node["class_name"], node.get("module"), node.get("registered_name")
    custom = keras.saving.get_custom_objects()
    if not isinstance(name, str) or not isinstance(module, str | None) or not isinstance(registered, str | None):
        _refuse("its configuration names a class by something other than a text", where)
    config = node["config"]
    if isinstance(config, Mapping) and isinstance(config.get("name"), str):
        where = config["name"]
    if name in _VALUES:
        return where
    if name in _CODE:
        _refuse("it holds Python code, which kerasseg does not run", where, _LAMBDA_REMEDY)
    if name == "function":
        _function(node, where)
        return where
    if registered in custom or (module is None and name in custom):
        return where
    if name in _WHY:
        _refuse(f"it holds a layer of class `{name}`: {_WHY[name]}", where, _LAMBDA_REMEDY)
    # Keras looks up the registered name first, so it must not differ from a built-in class name.
    if registered is not None and registered not in {name, ""} and ">" not in registered:
        _refuse(f"the class `{name}` carries the foreign registered name `{registered}`", where)
    if module is None or module not in _MODULES:
        if module in _HELPERS and name.isidentifier():
            home = getattr(keras, module.removeprefix("keras."), keras.dtype_policies)
            if isinstance(getattr(home, name, None), type):
                return where
        full = registered if registered and ">" in registered else f"{module}.{name}" if module else name
        _refuse(f"it asks for the unknown class `{full}`", where, _REMEDY)
    elif name not in _MODULES[module]:
        _refuse(f"it asks for the class `{module}.{name}`, which image networks do not need", where, _REMEDY)
    elif registered is not None and ">" in registered:
        _refuse(f"the class `{name}` carries the foreign registered name `{registered}`", where)
    return where


def _function(node: Mapping[str, Any], where: str) -> None:
    name, module = node["config"], node.get("module")
    if not isinstance(name, str):
        _refuse("its configuration names a function by something other than a text", where)
    if name in keras.saving.get_custom_objects():
        return
    known = name.isidentifier() and callable(getattr(keras.activations, name, None)) and not name.startswith("_")
    if not known or name in {"get", "serialize", "deserialize"} or module not in {"builtins", "keras.activations"}:
        _refuse(f"it asks for the unknown function `{module}.{name}`", where, _REMEDY)


def _refuse(what: str, where: str, remedy: str = _HARM) -> NoReturn:
    at = f" (in `{where}`)" if where else ""
    raise CheckpointError(f"refused: {what}{at}", remedy=f"{remedy}.")


def check_size(config: Mapping[str, Any], stored: int) -> None:
    """Refuse a configuration that has passed `check_config` if its network has more values than the file has stored."""
    declared = without_memory(config, lambda model: sum(math.prod(w.shape) for w in model.weights))
    if declared > stored:
        what = "the network that it describes is larger than the weights that it holds"
        remedy = "The file is incomplete, or was made to exhaust memory: fetch it again."
        raise CheckpointError(what, found=f"{stored} numbers", expected=f"{declared}", remedy=remedy)


def without_memory(config: Mapping[str, Any], read: Callable[[keras.Model], _T]) -> _T:
    """Build the network of a checked configuration with variables that have no memory, and return `read(network)`."""

    def build_and_read() -> _T:
        with keras.StatelessScope(initialize_variables=False):
            return read(build(config))

    # Keras keeps a list of such variables per thread. The thread and its list end here, so they are never allocated.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(build_and_read).result()


def build(config: Mapping[str, Any]) -> keras.Model:
    """Build the network of a configuration that has passed `check_config`, in safe mode."""
    try:
        with time_limit(_BUILD_SECONDS):
            model = keras.saving.deserialize_keras_object(deepcopy(dict(config)), safe_mode=True)
    except CheckpointError:
        raise
    except Exception as error:  # layers may raise anything
        text = " ".join(str(error).split())
        found = f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"
        raise CheckpointError("Keras cannot build the network that it describes", found=found) from error
    if not isinstance(model, keras.Model):
        raise CheckpointError("it does not describe a network", found=type(model).__name__)
    if not model.built:
        what, expected = "the network has no input shape", "a sequential network with its input, or a functional one"
        raise CheckpointError(what, expected=expected, remedy="Call the network on data once before saving it.")
    return model


class _OutOfTime(BaseException):  # not an Exception, which Keras might catch
    """Raised in the thread that builds a network when the time limit is reached."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after some seconds of processor time, in any thread; this works for Python code only."""
    thread = ctypes.c_ulong(threading.get_ident())
    now = time.monotonic
    if hasattr(time, "pthread_getcpuclockid"):
        now = partial(time.clock_gettime, time.pthread_getcpuclockid(threading.get_ident()))
    lock, ended, late, end = threading.Lock(), threading.Event(), threading.Event(), now() + seconds

    def strike() -> None:
        left = seconds
        while not ended.wait(max(0.1, left)):
            with lock:
                left = 0 if ended.is_set() else end - now()
                if left < 0:  # again and again: Python drops an exception that is raised in a finalizer
                    late.set()
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_OutOfTime))

    def dropped(error: Any) -> None:
        if error.exc_type is not _OutOfTime:  # Python would print it
            hook(error)

    hook, sys.unraisablehook = sys.unraisablehook, dropped
    threading.Thread(target=strike, daemon=True).start()
    try:
        yield
    except (_OutOfTime, Exception):
        if late.is_set():  # a library may have replaced the exception by one of its own
            raise CheckpointError(f"refused: building the network takes more than {seconds:g} s") from None
        raise
    finally:
        with lock:
            ended.set()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
        sys.unraisablehook = hook


def _nodes(model: Any) -> list[Any]:
    """Return the nodes of a functional or sequential model in the order in which they are computed."""
    nodes = getattr(getattr(model, "_functional", None) or model, "_nodes_by_depth", {})
    return [node for depth in sorted(nodes, reverse=True) for node in nodes[depth]]


def check_numbers(model: keras.Model) -> None:
    """Refuse weights that contain NaN or infinity, and name them."""
    bad = []
    for weight in model.weights:
        values = np.asarray(keras.ops.convert_to_numpy(weight), copy=False)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad.append(f"{'NaN' if np.isnan(values).any() else 'infinite numbers'} in {weight.path}")
    if bad:
        more = f" and {count(len(bad) - 5, 'other variable')}" if len(bad) > 5 else ""
        what, remedy = "its weights are damaged", "The training that wrote it diverged: take an earlier checkpoint."
        raise CheckpointError(what, found=", ".join(bad[:5]) + more, expected="finite numbers", remedy=remedy)


def check_sums(model: keras.Model) -> None:
    """Refuse a network with a sum of sums of very many terms.

    Before TensorFlow runs a graph, it writes out such sums as one, so that 40 layers of `x + x` would exhaust memory.
    """
    known: dict[int, int] = {}  # model -> terms of its output for one term of its input

    def largest(model: Any) -> int:
        if id(model) in known:
            return known[id(model)]
        terms: dict[int, int] = {}
        for node in _nodes(model):
            kind, found = type(node.operation).__name__, 1
            if isinstance(node.operation, keras.Model) or kind == "Add" or kind in _INACTIVE:
                found = sum(terms.get(id(tensor), 1) for tensor in node.input_tensors)
            if isinstance(node.operation, keras.Model):
                found *= largest(node.operation)
            if found > _MOST_TERMS:
                what = f"refused: layer `{node.operation.name}` makes a sum of {found:,} terms"
                raise CheckpointError(what, expected=f"at most {_MOST_TERMS:,}")
            terms.update((id(tensor), found) for tensor in node.output_tensors)
        known[id(model)] = max(terms.values(), default=1)
        return known[id(model)]

    largest(model)


def check_maps(model: keras.Model) -> None:
    """Refuse a network with feature maps so large that running it on one image would exhaust memory."""

    def size(operation: Any, outputs: Any) -> int:
        return sum(_check_map(operation.name, tensor.shape[1:]) for tensor in keras.tree.flatten(outputs))

    models = [model, *(m for m in model._flatten_layers(include_self=False) if isinstance(m, keras.Model))]
    operations = [o for m in models for o in getattr(m, "operations", ())]
    for operation in operations:
        for node in operation._inbound_nodes:
            size(operation, node.output_tensors)
            if getattr(operation, "pad_to_aspect_ratio", False):
                rows, columns, channels = (n or _OPEN_SIZE for n in node.input_tensors[0].shape[1:])
                height, width = max(operation.height, 1), max(operation.width, 1)
                padded = max(rows, columns * height // width), max(columns, rows * width // height), channels
                _check_map(operation.name, padded)
    for each in models:
        nodes = _nodes(each)
        _check_held(nodes, [size(node.operation, node.output_tensors) for node in nodes])
    specs = [keras.KerasTensor((1, *(n or _OPEN_SIZE for n in t.shape[1:])), t.dtype) for t in model.inputs]
    if any(None in tensor.shape[1:] for tensor in model.inputs):
        run = getattr(getattr(model, "_functional", None) or model, "_run_through_graph", None)
        if run is not None:
            sizes: list[int] = []

            def noted(operation: Any, outputs: Any) -> Any:
                sizes.append(size(operation, outputs))
                return outputs

            with contextlib.suppress(ValueError, TypeError, NotImplementedError, RuntimeError):
                run(specs, lambda o: lambda *args, **kw: noted(o, o.compute_output_spec(*args, **kw)))
            _check_held([node for node in _nodes(model) if not node.is_input], sizes)
    if keras.backend.backend() == "tensorflow" and any(type(o).__name__ not in _DIRECT for o in operations):
        from kerasseg.checkpoints.savedmodel.messages import steps_of

        steps: list[tuple[str, Iterable[int | None]]] = []
        with time_limit(_BUILD_SECONDS), contextlib.suppress(Exception):
            steps = steps_of(model, specs)
        for name, shape in steps:
            _check_map(name, shape)


def _check_held(nodes: Iterable[Any], sizes: Iterable[int]) -> None:
    """Refuse nodes whose outputs, of `sizes` values each, are too large together while later nodes need them."""
    known = list(zip(nodes, sizes, strict=False))
    last = {id(tensor): k for k, (node, _) in enumerate(known) for tensor in node.input_tensors}
    ends, held = [0] * (len(known) + 1), 0
    for k, (node, size) in enumerate(known):
        held += size
        ends[max(last.get(id(tensor), len(known)) for tensor in node.output_tensors)] += size
        if held > _MOST_HELD:
            what = f"refused: at layer `{node.operation.name}` one image takes {held * 4 / 1e9:,.0f} GB"
            raise CheckpointError(what, found=f"{held:,} numbers in maps", expected=f"at most {_MOST_HELD:,}")
        held -= ends[k]


def _check_map(layer: str, shape: Iterable[int | None]) -> int:
    """Return the number of values of a map, open sizes taken as one; refuse too many."""
    size = math.prod(n or 1 for n in shape)
    if size > _LARGEST_MAP:
        found = "x".join(str(n or "any") for n in shape)
        what = f"refused: layer `{layer}` makes a map of {size * 4 / 1e9:,.0f} GB from one image"
        raise CheckpointError(what, found=found, expected=f"at most {_LARGEST_MAP:,} numbers")
    return size
