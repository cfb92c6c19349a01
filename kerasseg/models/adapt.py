"""Adapt a segmentation network to images of a given size and to tumour probabilities: `fit_to_task`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import ops

from kerasseg.models.heads import (
    Head,
    Output,
    Plan,
    deepest_scale,
    free_name,
    plan_output,
    read_output,
    trial_size,
)
from kerasseg.models.input_scaling import InputScaling, read_input_scaling
from kerasseg.models.layers import fresh_part, mark_fresh
from kerasseg.models.surgery import Replacement, first_kernels, rebuild
from kerasseg_tfrecords.errors import CheckpointError, UsageError

ChannelRule = Literal["repeat", "sum"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A network that fits the task, and what was changed for it.

    Attributes:
        model: Maps images (batch, height, width, channels) to float32 tumour probabilities (batch, height, width, 1).
        changes: Changes and assumptions, one sentence each, also recorded in the provenance.
        repeat_channels: How often the channel of a grey image must be repeated as input.
        fresh_head: Whether the last layer has fresh weights.
    """

    model: keras.Model
    changes: tuple[str, ...] = ()
    repeat_channels: int = 1
    fresh_head: bool = False

    def __str__(self) -> str:
        """Return the changes, one per line."""
        return "\n".join(self.changes) if self.changes else "nothing was changed"


def fit_to_task(
    model: keras.Model,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    channel_rule: ChannelRule = "repeat",
    head: Head = "keep",
    background: int = 0,
    foreground: int | Sequence[int] | None = None,
    output: str | int | None = None,
    seed: int | None = None,
) -> Fitted:
    """Adapt a segmentation network to images of the given size and channels, with tumour probabilities as output.

    A network that already fits is returned itself. Otherwise the result is a new, uncompiled model that shares no weights
    with the given one and has its provenance with the changes added.

    Input: The size can change if the layers allow it (convolutions do, dense layers on flattened maps do not). Networks for
    colour images take repeated grey images (`channel_rule="repeat"`, done by the input pipeline), or the kernels of their
    first convolution are summed over the channels (`"sum"`), which gives the same output from a third of the input. The
    first kernels of a network for grey images are spread evenly over several channels, so that it sees their mean. If the
    network rescales intensities itself (`Rescaling(1/255)`, `Normalization`, a subtracted mean), a layer in front
    multiplies images in 0..1 to the expected range.

    Output: A single channel of probabilities stays, logits get a sigmoid, and tanh is mapped from -1..1 to 0..1. Several
    classes become `1 - background` of their softmax. Whether values are probabilities or logits is read from the graph, or
    else determined by running the network on random input.

    Args:
        model: A functional or sequential network with one image input, channels last.
        size: Height and width in pixels, or one number for a square; None keeps the network's size.
        channels: Channels of the source images, 1 for grey; None for as many as the network takes.
        channel_rule: How to feed grey images to a network with more channels.
        head: `"keep"` uses the head as it is; `"binary"` replaces the last convolution by a new one with one filter and a
            sigmoid, named `head`; `"auto"` replaces the head only if its meaning is unclear.
        background: Background channel of a softmax, by convention the first.
        foreground: Tumour channel or channels instead: the sum of softmax channels or the largest of independent
            sigmoids. Required for several independent sigmoids.
        output: Name or index of the output; None takes the full-resolution output that most of the network contributes
            to.
        seed: Random seed of a new head.

    Returns:
        The model and the changes.

    Raises:
        UsageError: An option does not fit the network, for instance a size that cannot be halved often enough.
        CheckpointError: The network cannot be adapted: it is channels-first, has no mask of the size of the image, a layer
            with a fixed size, or a head of unclear meaning.

    Example:
        >>> import kerasseg
        >>> fitted = kerasseg.fit_to_task(kerasseg.unet((32, 32, 3), filters=4, depth=2, classes=4), size=64, channels=1)
        >>> fitted.model.input_shape, fitted.model.output_shape
        ((None, 64, 64, 3), (None, 64, 64, 1))
        >>> print(fitted)
        input size 32x32 changed to 64x64
        grey images are repeated to the 3 channels that the network takes
        the 4 softmax channels of 'head' are read as 1 - channel 0 (background)
    """
    _check_options(channel_rule, head)
    changes: list[str] = []
    given, model = model, _with_maps(model, changes)
    found = read_output(model, output)
    if found.others:
        changes.append(f"of {len(found.others) + 1} outputs {found.name!r} is taken, without {', '.join(found.others)}")

    old_shape = tuple(model.inputs[0].shape[1:])
    shape = _new_size(old_shape, size, changes)
    takes, replacements = _new_channels(model, old_shape[-1], channels, channel_rule, changes)
    scaling = read_input_scaling(model)
    if scaling is not None:
        changes.append(f"the network expects {scaling}: images in 0..1 are multiplied by {scaling.white:g}")
    plan = plan_output(model, found, changes, head=head, background=background, foreground=foreground, seed=seed)
    new = model
    replacements |= plan.replacements
    if changes or replacements or not _is_plain(model):
        new = _build(model, (*shape, takes), found, replacements, plan, scaling)
    _try(new, found.name)
    if new is not given:
        from kerasseg.checkpoints.provenance import copy_provenance  # imports the readers of all checkpoint formats

        copy_provenance(given, new, changes=tuple(changes))
    repeat = takes if channels == 1 else 1
    fresh_head = any(replacement.fresh for replacement in plan.replacements.values())
    if new is not given:
        mark_fresh(new, "decoder" if fresh_part(given) == "decoder" else "head" if fresh_head else None)
    return Fitted(new, tuple(changes), repeat, fresh_head)


def _check_options(channel_rule: str, head: str) -> None:
    for what, value, kind in (("channel rule", channel_rule, ChannelRule), ("head", head, Head)):
        if value not in get_args(kind):
            raise UsageError(f"unknown {what} {value!r}", expected=" or ".join(get_args(kind)))


def _new_size(
    old: tuple[int | None, ...], size: int | tuple[int, int] | None, changes: list[str]
) -> tuple[int | None, int | None]:
    if size is None:
        return old[0], old[1]
    sides: tuple[Any, ...] = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise UsageError("size is not a number of pixels", found=size, expected="one number, or height and width")
    height, width = sides
    if (height, width) != old[:2]:
        changes.append(f"input size {_by(old[:2])} changed to {_by((height, width))}")
    return height, width


def _with_maps(model: keras.Model, changes: list[str]) -> keras.Model:
    """The network with rows and columns in its outputs, where it returns lists of pixels or leaves out the channel.

    Examples are SegNet's (batch, rows * columns, classes) and masks of (batch, rows, columns).
    """
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        return model
    image = tuple(model.inputs[0].shape[1:])
    if len(model.inputs) != 1 or len(image) != 3 or None in image[:2]:
        return model
    height, width = image[:2]
    outputs = []
    for tensor in model.outputs:
        shape = tuple(tensor.shape[1:])
        classes = shape[1] if len(shape) == 2 and shape[0] == height * width else None
        if classes is None and shape != (height, width):
            outputs.append(tensor)
            continue
        name = tensor._keras_history.operation.name
        outputs.append(keras.layers.Reshape((height, width, classes or 1), name=f"{name}_map")(tensor))
        changes.append(f"output {name!r} {shape} reshaped to {(height, width, classes or 1)}")
    return keras.Model(model.inputs, outputs, name=model.name) if changes else model


def _by(size: Sequence[int | None]) -> str:
    return "(any)" if set(size) == {None} else "x".join("any" if side is None else str(side) for side in size)


def _new_channels(
    model: keras.Model, old: int, channels: int | None, rule: ChannelRule, changes: list[str]
) -> tuple[int, dict[int, Replacement]]:
    """Return the channels of the new input, and replacements for the first convolutions if they change."""
    if channels is None or channels == old:
        return old, {}
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise UsageError("channels is not a number of channels", found=channels, expected="1 or more, or None")
    if channels == 1 and rule == "repeat":
        changes.append(f"grey images are repeated to the {old} channels that the network takes")
        return old, {}
    if channels == 1:
        kernels = first_kernels(model, lambda kernel: kernel.sum(axis=2, keepdims=True))
        changes.append(f"kernels of {_names(kernels)} summed over their {old} channels: the network takes grey images")
        return 1, {id(layer): replacement for layer, replacement in kernels}
    if old == 1:
        kernels = first_kernels(model, lambda kernel: np.repeat(kernel / channels, channels, axis=2))
        changes.append(f"kernels of {_names(kernels)} spread over {channels} channels: the network sees their mean")
        return channels, {id(layer): replacement for layer, replacement in kernels}
    raise UsageError(
        f"images with {channels} channels do not fit a network for {old}",
        expected=f"{old} channels, or 1 (grey)",
        remedy="Prepare the slices as grey images.",
    )


def _names(kernels: list[tuple[Any, Replacement]]) -> str:
    return " and ".join(repr(layer.name) for layer, _ in kernels)


def _build(
    model: keras.Model,
    shape: tuple[int | None, int | None, int],
    output: Output,
    replacements: dict[int, Replacement],
    plan: Plan,
    scaling: InputScaling | None,
) -> keras.Model:
    front = None
    if scaling is not None:
        name = free_name("grey_levels", {node.operation.name for node in output.graph.nodes})
        front = keras.layers.Rescaling(scaling.white, dtype="float32", name=name)
    try:
        new = rebuild(model, shape, outputs=[output.index], replacements=replacements, front=front)
        result = plan.finish(new.outputs[0], {operation.name for operation in new.operations})
    except CheckpointError as error:
        _explain_size(model, shape, error)
        raise
    if result is new.outputs[0]:
        return new
    return keras.Model(new.inputs[0], result, name=model.name)


def _explain_size(model: keras.Model, shape: tuple[int | None, ...], error: Exception) -> None:
    """Raise a better error if a layer failed because the size cannot be halved often enough."""
    step = deepest_scale(model)
    for side in shape[:2]:
        if side is not None and side % step:
            near = [s for s in (side // step * step, (side // step + 1) * step) if s > 0]
            raise UsageError(
                f"images of {_by(shape[:2])} cannot be halved as often as the network does",
                expected=f"multiples of {step}",
                remedy=f"Take {' or '.join(map(str, near))}.",
            ) from error


def _is_plain(model: keras.Model) -> bool:
    """Return whether the model is functional and has one float32 input and one output.

    Keras warns about every call of a model with lists of one tensor; a Sequential has no `input` before it is called.
    """
    if isinstance(model, keras.Sequential):
        return False
    plain = isinstance(model.input, keras.KerasTensor) and isinstance(model.output, keras.KerasTensor)
    return plain and model.input.dtype == "float32"


def _try(new: keras.Model, name: str) -> None:
    """Run the new network once, which reveals fixed sizes in its operations."""
    height, width = trial_size(new)
    x = np.random.default_rng(0).random((2, height, width, new.inputs[0].shape[-1]), dtype="float32")
    expected = (2, height, width, 1)
    try:
        y = np.asarray(ops.convert_to_numpy(keras.tree.flatten(new(x, training=False))[0]))
    except Exception as error:  # backends raise various errors for shapes that do not fit
        raise CheckpointError(
            f"the network does not run on images of {height}x{width}", found=str(error).strip().splitlines()[0]
        ) from error
    if y.shape != expected or str(y.dtype) != "float32":
        raise CheckpointError(
            f"output {name!r} does not follow the size of the input: the network contains a fixed size",
            found=f"{y.dtype} {y.shape} from {x.shape}",
            expected=f"float32 {expected}",
            remedy="Keep the size that the network has.",
        )
