"""The output of a network as one tumour probability: `plan_output`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import numpy as np
from keras import layers, ops

from kerasseg.models.blocks import find_blocks
from kerasseg.models.graph import Graph, Node, flatten
from kerasseg.models.levels import check_input
from kerasseg.models.scales import Place, image_axes, measure
from kerasseg.models.surgery import Replacement
from kerasseg_tfrecords.errors import CheckpointError, UsageError

Kind = Literal["probability", "softmax", "logits", "tanh", "unknown"]

_ACTIVATIONS: dict[str, Kind] = {
    "sigmoid": "probability",
    "hard_sigmoid": "probability",
    "sparse_sigmoid": "probability",
    "softmax": "softmax",
    "tanh": "tanh",
}
# Operations that keep the range of their inputs' values.
_KEEPING = {
    "Identity", "Dropout", "SpatialDropout2D", "Cropping2D", "ZeroPadding2D", "Resizing", "UpSampling2D", "Reshape",
    "Permute", "Average", "Maximum", "Minimum", "MaxPooling2D", "AveragePooling2D", "Concatenate", "Cast", "Transpose",
    "Resize", "Pad", "ExpandDims", "Squeeze", "GetItem", "Take",
}  # fmt: skip
_CHOOSING = {"GetItem", "Take"}
_MAKING = (layers.Conv2D, layers.Conv2DTranspose, layers.SeparableConv2D, layers.DepthwiseConv2D, layers.Dense)


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a network that is used as its mask.

    Attributes:
        index: Index in `model.outputs`.
        name: The layer's name.
        channels: Number of channels.
        kind: Its values, as far as the graph determines them: `"probability"` (of each channel), `"softmax"` (channels sum
            to 1), `"logits"`, `"tanh"` (-1..1) or `"unknown"`.
        graph: The graph of the network.
        others: Names of the other outputs.
    """

    index: int
    name: str
    channels: int
    kind: Kind
    graph: Graph = field(repr=False, compare=False)
    others: tuple[str, ...] = ()


def read_output(model: keras.Model, wanted: str | int | None = None) -> Output:
    """Find the mask output: the one at full resolution that most of the network contributes to.

    In a network with deep supervision (U-Net++, U2-Net) this is the last or the fused output.

    Args:
        model: A model with one image input, channels last.
        wanted: Name or index of the output to use instead.
    """
    graph = flatten(model)
    _check_input(graph)
    names = [tensor._keras_history.operation.name for tensor in model.outputs]
    if len(graph.outputs) != len(model.outputs):
        raise CheckpointError("several outputs of the network are the same tensor", found=", ".join(names))
    places = measure(graph)
    full = [i for i, index in enumerate(graph.outputs) if _is_full(graph, places, index)]
    if wanted is None:
        if not full:
            raise _no_map(graph, places, graph.outputs)
        index = max(full, key=lambda i: len(graph.ancestors([graph.outputs[i]])))
    else:
        index = _place(wanted, names)
        if index not in full:
            raise _no_map(graph, places, [graph.outputs[index]])
    node = graph.nodes[graph.outputs[index]]
    return Output(
        index=index,
        name=names[index],
        channels=int(node.shape[-1] or 0),
        kind=_kind(graph, node),
        graph=graph,
        others=tuple(name for i, name in enumerate(names) if i != index),
    )


def tail(output: Output) -> list[Node]:
    """Return the nodes from the output back to the layer that makes its channels (such as a convolution).

    If nodes merge before such a layer, the list ends there.
    """
    graph = output.graph
    found = [graph.nodes[graph.outputs[output.index]]]
    while not isinstance(found[-1].operation, _MAKING) and len(found[-1].parents) == 1:
        found.append(graph.nodes[found[-1].parents[0]])
    return [node for node in found if not node.is_input]


def deepest_scale(model: keras.Model) -> int:
    """Return the input pixels per pixel of the deepest feature map; 1 if the model is not an encoder-decoder."""
    try:
        return max(block.scale for block in find_blocks(model))
    except CheckpointError:
        return 1


def trial_size(model: keras.Model) -> tuple[int, int]:
    """Return height and width for a trial run: the model's own, or a small multiple of its deepest scale."""
    height, width = model.inputs[0].shape[1:3]
    if height is None or width is None:
        step = deepest_scale(model)
        free = -(-32 // step) * step
        return height or free, width or free
    return height, width


def settle_by_test(model: keras.Model, output: Output) -> Kind:
    """Distinguish probabilities from logits by running the network on random input."""
    height, width = trial_size(model)
    channels = model.inputs[0].shape[-1]
    rng = np.random.default_rng(0)
    shape = (1, height, width, channels)
    x = np.concatenate([rng.random(shape), 3 * rng.standard_normal(shape)]).astype("float32")
    # Some models take a list of one tensor. A Sequential never does, and has no `input` before its first call.
    given = x if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model.input, [x])
    results = keras.tree.flatten(model(given, training=False))
    values = np.asarray(ops.convert_to_numpy(ops.cast(results[output.index], "float32")))
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise CheckpointError(f"output {output.name!r} is not finite on random input", found=f"{low} to {high}")
    if low < -1e-5:
        return "logits"
    if high > 1 + 1e-5:
        raise CheckpointError(
            f"output {output.name!r} holds neither probabilities nor logits",
            found=f"values {low:.3g} to {high:.3g} on random input",
            expected="values in 0..1, or of both signs",
            remedy="Replace the head by a new one (head='binary').",
        )
    sums = values.sum(-1)
    return "softmax" if output.channels > 1 and np.allclose(sums, 1, atol=1e-2) else "probability"


def _check_input(graph: Graph) -> None:
    check_input(graph)
    shape = graph.nodes[graph.inputs[0]].shape
    if image_axes(graph)[2] == 1:
        raise CheckpointError(
            "the network has its channels first",
            found=f"input {shape}",
            expected="channels last",
            remedy="Build it with data_format='channels_last' and copy the weights: kernels have the same layout in both.",
        )
    if shape[-1] is None:
        raise CheckpointError("the network does not fix the number of channels", found=f"input {shape}")


def _is_full(graph: Graph, places: list[Place], index: int) -> bool:
    shape, image = graph.nodes[index].shape, graph.nodes[graph.inputs[0]].shape
    if len(shape) != 4 or shape[-1] is None or not places[index].spatial:
        return False
    same = all(a == b for a, b in zip(shape[1:3], image[1:3], strict=True) if a is not None and b is not None)
    return same and places[index].area == 1


def _no_map(graph: Graph, places: list[Place], looked_at: Sequence[int]) -> CheckpointError:
    image = graph.nodes[graph.inputs[0]].shape
    outputs = [graph.nodes[i].shape for i in looked_at]
    found = f"input {image}, output {', '.join(map(str, outputs))}"
    maps = [i for i in looked_at if len(graph.nodes[i].shape) == 4 and places[i].spatial]
    if not maps:
        return CheckpointError(
            "the network's output is not a map", found=found, expected="a mask of the size of the image"
        )
    why = "its convolutions do not pad" if any(places[i].area == 1 for i in maps) else "it is of lower resolution"
    return CheckpointError(
        f"the network's mask does not have the size of the image: {why}",
        found=found,
        expected="output of the height and width of the input",
        remedy="Use a network with padding='same' that ends at full resolution.",
    )


def _place(wanted: str | int, names: list[str]) -> int:
    if isinstance(wanted, int) and -len(names) <= wanted < len(names):
        return wanted % len(names)
    if isinstance(wanted, str) and wanted in names:
        return names.index(wanted)
    raise UsageError(f"the network has no output {wanted!r}", expected=", ".join(names))


def _kind(graph: Graph, node: Node) -> Kind:
    """Determine the kind of a node's values from the operations that make them."""
    operation: Any = node.operation
    name = type(operation).__name__
    activation = getattr(operation, "activation", None)
    if isinstance(operation, layers.Softmax) or name == "Softmax":
        axis = getattr(operation, "axis", -1)
        return "softmax" if axis in (-1, len(node.shape) - 1) else "unknown"
    if not isinstance(operation, keras.Layer) and name in {"Sigmoid", "HardSigmoid", "Tanh"}:
        return "tanh" if name == "Tanh" else "probability"
    if activation is not None and getattr(activation, "__name__", "") != "linear":
        return _ACTIVATIONS.get(getattr(activation, "__name__", ""), "unknown")
    if isinstance(operation, _MAKING):
        return "logits"
    if name in _KEEPING or (isinstance(operation, layers.Activation) and node.parents):
        kinds = {_kind(graph, graph.nodes[parent]) for parent in node.parents}
        if kinds == {"softmax"} and (name == "Concatenate" or (name in _CHOOSING and node.shape != node.incoming[0])):
            return "probability"  # some of the classes: they no longer sum to 1
        return kinds.pop() if len(kinds) == 1 else "unknown"
    if name == "Add" and all(_kind(graph, graph.nodes[parent]) == "logits" for parent in node.parents):
        return "logits"
    if name == "Multiply" and all(_kind(graph, graph.nodes[parent]) == "probability" for parent in node.parents):
        return "probability"
    return "unknown"


Head = Literal["keep", "binary", "auto"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes at the end of a network.

    Attributes:
        replacements: Layers to replace, by their `id`.
        finish: Maps the output tensor and the used layer names to the output of the new network.
    """

    replacements: dict[int, Replacement]
    finish: Callable[[Any, set[str]], Any]


def plan_output(
    model: keras.Model,
    output: Output,
    changes: list[str],
    *,
    head: Head,
    background: int,
    foreground: int | Sequence[int] | None,
    seed: int | None,
) -> Plan:
    """Plan how the output of a network becomes one tumour probability in float32; for the options see `fit_to_task`."""
    if head == "binary":
        return _fresh_head(output, seed, changes)
    said: list[str] = []
    try:
        plan = _kept_head(model, output, background, foreground, said)
    except CheckpointError as error:
        if head == "keep":
            raise
        changes.append(f"the head is replaced because {error.what}")
        return _fresh_head(output, seed, changes)
    changes += said
    return plan


def _kept_head(
    model: keras.Model, output: Output, background: int, foreground: int | Sequence[int] | None, changes: list[str]
) -> Plan:
    kind = output.kind
    if kind == "unknown":
        kind = settle_by_test(model, output)
        changes.append(f"output {output.name!r} holds {_WORDS[kind]}, as a run on random input shows")
    if kind == "softmax" and output.channels == 1:
        raise CheckpointError(
            f"output {output.name!r} is a softmax over a single channel, which is 1 everywhere",
            remedy="Replace the head (head='binary').",
        )
    chosen = _chosen(output, background, foreground)
    steps: list[Callable[[Any, set[str]], Any]] = []
    if kind == "tanh":
        steps.append(
            lambda x, taken: layers.Rescaling(0.5, 0.5, dtype="float32", name=free_name("probability", taken))(x)
        )
        changes.append(f"tanh output {output.name!r} mapped from -1..1 to 0..1")
        kind = "probability"
    if kind == "logits":
        function = "sigmoid" if output.channels == 1 else "softmax"
        steps.append(
            lambda x, taken: layers.Activation(function, dtype="float32", name=free_name("probability", taken))(x)
        )
        changes.append(f"output {output.name!r} holds logits: {function} appended")
        kind = "probability" if output.channels == 1 else "softmax"
    if output.channels > 1:
        if kind != "softmax" and foreground is None:
            raise CheckpointError(
                f"output {output.name!r} has {output.channels} channels that do not exclude each other",
                expected="the channels that show tumour",
                remedy="Name them (foreground=...), or replace the head (head='binary').",
            )
        how = {"exclusive": kind == "softmax", "background": foreground is None}
        steps.append(lambda x, taken: _tumour(x, taken, chosen, **how))
        changes.append(_how_read(output, chosen, exclusive=kind == "softmax", foreground=foreground))
    elif foreground not in (None, 0, -1):
        raise UsageError("there is no such channel", found=f"foreground {foreground}", expected="0: it is the only one")

    def finish(x: Any, taken: set[str]) -> Any:
        for step in steps:
            x = step(x, taken)
        if x.dtype != "float32":
            x = layers.Activation("linear", dtype="float32", name=free_name("float32", taken))(x)
        return x

    return Plan(_in_float32(output, changes), finish)


_WORDS: dict[Kind, str] = {"probability": "probabilities", "softmax": "probabilities of classes", "logits": "logits"}


def _chosen(output: Output, background: int, foreground: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the indices of the background channel or of the foreground channels."""
    given = (background,) if foreground is None else (foreground,) if isinstance(foreground, int) else tuple(foreground)
    count = output.channels
    if not given or not all(isinstance(c, int) and -count <= c < count for c in given):
        what = "background" if foreground is None else "foreground"
        if count > 1 or foreground is not None:
            raise UsageError(f"{what} is not a channel of the output", found=given, expected=f"0 to {count - 1}")
    return tuple(dict.fromkeys(c % count for c in given))


def _how_read(output: Output, chosen: tuple[int, ...], *, exclusive: bool, foreground: Any) -> str:
    listed = ", ".join(map(str, chosen))
    if foreground is None:
        return (
            f"the {output.channels} softmax channels of {output.name!r} are read as 1 - channel {listed} (background)"
        )
    if len(chosen) == 1:
        return f"of the {output.channels} channels of {output.name!r} channel {listed} is read as tumour"
    return f"the {'sum' if exclusive else 'largest'} of channels {listed} of {output.name!r} is read as tumour"


def _tumour(x: Any, taken: set[str], channels: tuple[int, ...], *, exclusive: bool, background: bool) -> Any:
    """Make one tumour probability from several channels."""
    # Operations of keras.ops, so that saved files open without kerasseg and in safe mode.
    x = _named(ops.take(x, list(channels), axis=-1), "background" if background else "classes", taken)
    if background:
        return _named(ops.subtract(1.0, x), "foreground", taken)
    if len(channels) == 1:
        return x
    return _named((ops.sum if exclusive else ops.max)(x, axis=-1, keepdims=True), "foreground", taken)


def _named(tensor: Any, name: str, taken: set[str]) -> Any:
    """Name the operation that made `tensor`, independently of what the process built before."""
    tensor._keras_history.operation.name = free_name(name, taken)
    return tensor


def free_name(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def _in_float32(output: Output, changes: list[str]) -> dict[int, Replacement]:
    """Rebuild the last layers in float32 if they use less precision (a bfloat16 sigmoid has 8 bits)."""
    found: dict[int, Replacement] = {}
    for node in tail(output):
        layer = node.layer
        if layer is not None and layer.compute_dtype != "float32":
            found[id(layer)] = Replacement(make=_copier(layer, dtype="float32"))
    if found:
        changes.append(f"output {output.name!r} is computed in float32")
    return found


def _copier(layer: Any, **changed: Any) -> Callable[[], Any]:
    config = {**layer.get_config(), **changed}
    return lambda: type(layer).from_config(config)


def _fresh_head(output: Output, seed: int | None, changes: list[str]) -> Plan:
    nodes = tail(output)
    last = nodes[-1].operation if nodes else None
    if not isinstance(last, (layers.Conv2D, layers.Conv2DTranspose, layers.SeparableConv2D, layers.Dense)):
        raise CheckpointError(
            f"no convolution to replace was found before output {output.name!r}",
            found=f"{type(last).__name__} {last.name!r}" if last is not None else None,
            expected="a convolution followed only by activations and resizing",
        )
    # Activations and normalisations after the old convolution are removed; resizing and cropping stay.
    behind = [node for node in nodes[:-1] if type(node.operation).__name__ not in _MOVING]
    moving = len(behind) < len(nodes) - 1
    names = {node.operation.name for node in output.graph.nodes} - {last.name}
    name = free_name("head", names)
    width = "units" if isinstance(last, layers.Dense) else "filters"
    settings = {
        width: 1,
        "use_bias": True,
        "activation": "linear" if moving else "sigmoid",
        "bias_initializer": "zeros",
        "dtype": "float32",
        "name": name,
        "trainable": True,
    }
    kernel = "depthwise_initializer" if isinstance(last, layers.SeparableConv2D) else "kernel_initializer"
    settings[kernel] = keras.initializers.serialize(keras.initializers.GlorotUniform(seed=seed))
    if "groups" in last.get_config():
        settings["groups"] = 1
    replacements = {id(node.operation): Replacement(drop=True) for node in behind}
    replacements[id(last)] = Replacement(make=_copier(last, **settings), fresh=True)
    had = "1 channel" if output.channels == 1 else f"{output.channels} channels"
    changes.append(f"head {last.name!r} ({had}) replaced by a new binary head {name!r}")

    def sigmoid(x: Any, taken: set[str]) -> Any:
        return layers.Activation("sigmoid", dtype="float32", name=free_name("probability", taken))(x) if moving else x

    return Plan(replacements, sigmoid)


_MOVING = {"UpSampling2D", "Resizing", "Cropping2D", "ZeroPadding2D", "Resize", "Pad", "GetItem"}
