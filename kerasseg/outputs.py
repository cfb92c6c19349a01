"""What a network's output means: which of several outputs is the mask, and whether it holds probabilities or logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import layers, ops

from kerasseg.blocks import find_blocks
from kerasseg.graph import Graph, Step, flatten
from kerasseg.scales import Place, image_axes, measure
from kerasseg_tfrecords.errors import CheckpointError, UsageError

__all__ = ["Kind", "Output", "deepest_scale", "read_output", "settle_by_test", "tail", "trial_size"]

Kind = Literal["probability", "softmax", "logits", "tanh", "unknown"]

_ACTIVATIONS: dict[str, Kind] = {
    "sigmoid": "probability",
    "hard_sigmoid": "probability",
    "sparse_sigmoid": "probability",
    "softmax": "softmax",
    "tanh": "tanh",
}
# Operations whose values stay where those of their inputs are.
_KEEPING = {
    "Identity", "Dropout", "SpatialDropout2D", "Cropping2D", "ZeroPadding2D", "Resizing", "UpSampling2D", "Reshape",
    "Permute", "Average", "Maximum", "Minimum", "MaxPooling2D", "AveragePooling2D", "Concatenate", "Cast", "Transpose",
    "Resize", "Pad", "ExpandDims", "Squeeze", "GetItem", "Take",
}  # fmt: skip
_MAKING = (layers.Conv2D, layers.Conv2DTranspose, layers.SeparableConv2D, layers.DepthwiseConv2D, layers.Dense)


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a network that is taken as its mask.

    Attributes:
        index: Place in `model.outputs`.
        name: The layer's name.
        channels: Channels of the map.
        kind: What its values are, as far as the graph tells: `"probability"` (each channel by itself), `"softmax"`
            (channels sum to 1), `"logits"`, `"tanh"` (-1..1) or `"unknown"`.
        others: Names of the outputs that were not taken.
    """

    index: int
    name: str
    channels: int
    kind: Kind
    others: tuple[str, ...] = ()


def read_output(model: keras.Model, wanted: str | int | None = None) -> Output:
    """Find the output that is the mask: at full resolution, and the one that most of the network works for.

    So in a network with deep supervision (U-Net++, U2-Net) it is the last or the fused output.

    Args:
        model: A model with one image input, channels last.
        wanted: Name or place of the output to take instead.

    Raises:
        CheckpointError: No output is a map of the size of the input.
        UsageError: There is no such output as `wanted`.
    """
    graph = flatten(model)
    _check_input(graph)
    names = [tensor._keras_history.operation.name for tensor in model.outputs]
    if len(graph.outputs) != len(model.outputs):
        raise CheckpointError("several outputs of the network are one tensor", found=", ".join(names))
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
    step = graph.steps[graph.outputs[index]]
    return Output(
        index=index,
        name=names[index],
        channels=int(step.shape[-1] or 0),
        kind=_kind(graph, step),
        others=tuple(name for i, name in enumerate(names) if i != index),
    )


def tail(model: keras.Model, output: Output) -> list[Step]:
    """The steps from the output back to the layer that makes its channels (a convolution), that one last.

    Ends early, without such a layer, where steps merge.
    """
    graph = flatten(model)
    found = [graph.steps[graph.outputs[output.index]]]
    while not isinstance(found[-1].operation, _MAKING) and len(found[-1].parents) == 1:
        found.append(graph.steps[found[-1].parents[0]])
    return [step for step in found if not step.is_input]


def deepest_scale(model: keras.Model) -> int:
    """Input pixels that one pixel of the deepest map spans; 1 where the model is no encoder-decoder."""
    try:
        return max(block.scale for block in find_blocks(model))
    except CheckpointError:
        return 1


def trial_size(model: keras.Model) -> tuple[int, int]:
    """Height and width to try a model at: its own, or where they are open a small multiple of its deepest scale."""
    height, width = model.inputs[0].shape[1:3]
    if height is None or width is None:
        step = deepest_scale(model)
        free = -(-32 // step) * step
        return height or free, width or free
    return height, width


def settle_by_test(model: keras.Model, output: Output) -> Kind:
    """Tell probabilities from logits by running the network, where its graph does not tell.

    Raises:
        CheckpointError: The values are neither.
    """
    height, width = trial_size(model)
    channels = model.inputs[0].shape[-1]
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.random((1, height, width, channels)), 3 * rng.standard_normal((1, height, width, channels))]
    ).astype("float32")
    given = keras.tree.pack_sequence_as(model.input, [x])  # some models take a list of one
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
            remedy="Replace the head by a fresh one (head='binary').",
        )
    sums = values.sum(-1)
    return "softmax" if output.channels > 1 and np.allclose(sums, 1, atol=1e-2) else "probability"


def _check_input(graph: Graph) -> None:
    shapes = [graph.steps[i].shape for i in graph.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise CheckpointError(
            "the network does not take one image",
            found=" and ".join(map(str, shapes)),
            expected="one input (batch, height, width, channels)",
        )
    if image_axes(graph)[2] == 1:
        raise CheckpointError(
            "the network has its channels first",
            found=f"input {shapes[0]}",
            expected="channels last",
            remedy="Build it with data_format='channels_last' and copy the weights: kernels have the same layout in both.",
        )
    if shapes[0][-1] is None:
        raise CheckpointError("the network leaves the number of channels open", found=f"input {shapes[0]}")


def _is_full(graph: Graph, places: list[Place], index: int) -> bool:
    shape, image = graph.steps[index].shape, graph.steps[graph.inputs[0]].shape
    if len(shape) != 4 or shape[-1] is None or not places[index].spatial:
        return False
    same = all(a == b for a, b in zip(shape[1:3], image[1:3], strict=True) if a is not None and b is not None)
    return same and places[index].area == 1


def _no_map(graph: Graph, places: list[Place], looked_at: Sequence[int]) -> CheckpointError:
    image = graph.steps[graph.inputs[0]].shape
    outputs = [graph.steps[i].shape for i in looked_at]
    found = f"input {image}, output {', '.join(map(str, outputs))}"
    maps = [i for i in looked_at if len(graph.steps[i].shape) == 4 and places[i].spatial]
    if not maps:
        return CheckpointError("the network gives no map", found=found, expected="a mask of the size of the image")
    why = "its convolutions do not pad" if any(places[i].area == 1 for i in maps) else "it is of lower resolution"
    return CheckpointError(
        f"the mask that the network gives is not of the size of the image: {why}",
        found=found,
        expected="output of the height and width of the input",
        remedy="Take a network with padding='same' that ends at full resolution.",
    )


def _place(wanted: str | int, names: list[str]) -> int:
    if isinstance(wanted, int) and -len(names) <= wanted < len(names):
        return wanted % len(names)
    if isinstance(wanted, str) and wanted in names:
        return names.index(wanted)
    raise UsageError(f"the network has no output {wanted!r}", expected=", ".join(names))


def _kind(graph: Graph, step: Step) -> Kind:
    """What the values of a step are, by what makes them."""
    operation: Any = step.operation
    name = type(operation).__name__
    activation = getattr(operation, "activation", None)
    if isinstance(operation, layers.Softmax) or name == "Softmax":
        axis = getattr(operation, "axis", -1)
        return "softmax" if axis in (-1, len(step.shape) - 1) else "unknown"
    if not isinstance(operation, keras.Layer) and name in {"Sigmoid", "HardSigmoid", "Tanh"}:
        return "tanh" if name == "Tanh" else "probability"
    if activation is not None and getattr(activation, "__name__", "") != "linear":
        return _ACTIVATIONS.get(getattr(activation, "__name__", ""), "unknown")
    if isinstance(operation, _MAKING):
        return "logits"
    if name in _KEEPING or (isinstance(operation, layers.Activation) and step.parents):
        kinds = {_kind(graph, graph.steps[parent]) for parent in step.parents}
        if name == "Concatenate" and kinds == {"softmax"}:
            return "probability"
        return kinds.pop() if len(kinds) == 1 else "unknown"
    if name == "Add" and all(_kind(graph, graph.steps[parent]) == "logits" for parent in step.parents):
        return "logits"
    if name == "Multiply" and all(_kind(graph, graph.steps[parent]) == "probability" for parent in step.parents):
        return "probability"
    return "unknown"
