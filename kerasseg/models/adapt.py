"""Adapt a segmentation network to the task, from an image to a tumour probability: `fit_to_task`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import ops

from kerasseg.models.heads import Head, Output, Plan, Wish, deepest_scale, plan_output, read_output, trial_size
from kerasseg.models.input_scaling import InputScaling, read_input_scaling
from kerasseg.models.surgery import Replacement, first_kernels, rebuild
from kerasseg_tfrecords.errors import CheckpointError, UsageError

__all__ = ["ChannelRule", "Fitted", "Head", "fit_to_task"]

ChannelRule = Literal["repeat", "sum"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A network that fits the task, and what was changed for it.

    Attributes:
        model: Images (batch, height, width, channels) to float32 tumour probabilities (batch, height, width, 1).
        changes: One sentence for each thing that was changed or assumed; for people, and kept in the provenance.
        repeat_channels: How often a grey image is to be repeated along its channels before it enters the network.
    """

    model: keras.Model
    changes: tuple[str, ...] = ()
    repeat_channels: int = 1

    def __str__(self) -> str:
        """The changes, one a line."""
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
    """Turn a segmentation network into one from images of the given size and channels to tumour probabilities.

    What fits already is left alone; if all does, the given model itself is returned. Otherwise the result is a new model
    that shares no weights with the given one, uncompiled, of native Keras layers wherever the given one is. It carries the
    given one's provenance with the changes added.

    The input: another size is possible where the layers allow it (convolutions do, dense layers on flattened maps do not).
    Networks for colour images take grey ones repeated (`channel_rule="repeat"`, which the input pipeline does), or have
    the kernels of their first convolution summed over the channels, which gives the same output from a third of the input
    (`"sum"`). A network for grey images takes several channels by spreading its first kernels evenly: it then sees
    their mean.

    A network that rescales grey levels itself (`Rescaling(1/255)`, `Normalization`, a subtracted mean) gets a layer in
    front that multiplies images in 0..1 to the levels that it expects.

    The output: a single channel of probabilities stays, logits get a sigmoid, tanh is mapped from -1..1 to 0..1. Several
    classes become `1 - background` of their softmax. Whether values are probabilities or logits is read off the graph,
    and found by running the network on random input where the graph does not tell.

    Args:
        model: A functional or sequential network with one image input, channels last.
        size: Height and width in pixels to build the network for, one number for a square; None keeps its own.
        channels: Channels that the source images have, 1 for grey; None: as many as the network takes.
        channel_rule: What to do with grey images where the network takes more channels.
        head: `"keep"` uses the head as it is; `"binary"` replaces the last convolution by a fresh one with one filter
            and a sigmoid, named `head`; `"auto"` keeps the head where its meaning is clear and replaces it where not.
        background: Which channel of a softmax is the background, by kerasseg's convention the first.
        foreground: Channel or channels to take as tumour instead: of a softmax their sum, of independent sigmoids the
            largest. Networks with several independent sigmoids need it.
        output: Name or place of the output to take where there are several; None takes, of those at full resolution, the
            one that most of the network works for.
        seed: Makes the weights of a fresh head repeatable.

    Returns:
        The model and the changes.

    Raises:
        UsageError: An option that does not fit the network, for instance a size that cannot be halved as often as needed.
        CheckpointError: A network that cannot be made to fit: channels first, no mask of the size of the image, a layer
            that works at one size only, a head whose meaning is not clear.

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
    plan = plan_output(model, found, Wish(head, background, foreground, seed), changes)
    new = model
    replacements |= plan.replacements
    if changes or replacements or not _is_plain(model):
        new = _build(model, (*shape, takes), found, replacements, plan, scaling)
    _try(new, found.name)
    if new is not given:
        _hand_on_provenance(given, new, tuple(changes))
    repeat = takes if channels == 1 else 1
    return Fitted(new, tuple(changes), repeat)


def _check_options(channel_rule: str, head: str) -> None:
    for what, value, kind in (("channel rule", channel_rule, ChannelRule), ("head", head, Head)):
        if value not in get_args(kind):
            raise UsageError(f"unknown {what} {value!r}", expected=" or ".join(get_args(kind)))


# --- the input -----------------------------------------------------------------------------------------------------------


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
    """Channels of the new input, and the first convolutions where these change."""
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


# --- building and trying -------------------------------------------------------------------------------------------------


def _build(
    model: keras.Model,
    shape: tuple[int | None, int | None, int],
    output: Output,
    replacements: dict[int, Replacement],
    plan: Plan,
    scaling: InputScaling | None,
) -> keras.Model:
    def brighter(image: Any) -> Any:
        names = {node.operation.name for node in output.graph.nodes}
        name = next(n for n in ("grey_levels", *(f"grey_levels_{i}" for i in range(2, 1000))) if n not in names)
        return keras.layers.Rescaling(scaling.white if scaling else 1.0, dtype="float32", name=name)(image)

    try:
        front = brighter if scaling else None
        new = rebuild(model, shape, outputs=[output.index], replacements=replacements, front=front)
        result = plan.finish(new.outputs[0], {operation.name for operation in new.operations})
    except CheckpointError as error:
        _explain_size(model, shape, error)
        raise
    if result is new.outputs[0]:
        return new
    return keras.Model(new.inputs[0], result, name=model.name)


def _explain_size(model: keras.Model, shape: tuple[int | None, ...], error: Exception) -> None:
    """Say that a size cannot be halved often enough, where that is why a layer failed."""
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
    """Whether it is functional, takes one float32 tensor and gives one.

    Keras warns in every call of a model with lists of one tensor; a Sequential has neither `input` nor `output` before it
    is called on a symbolic tensor.
    """
    if isinstance(model, keras.Sequential):
        return False
    plain = isinstance(model.input, keras.KerasTensor) and isinstance(model.output, keras.KerasTensor)
    return plain and model.input.dtype == "float32"


def _try(new: keras.Model, name: str) -> None:
    """Run the new network once: shapes that were written into operations show only now."""
    height, width = trial_size(new)
    x = np.random.default_rng(0).random((2, height, width, new.inputs[0].shape[-1]), dtype="float32")
    expected = (2, height, width, 1)
    try:
        y = np.asarray(ops.convert_to_numpy(keras.tree.flatten(new(x, training=False))[0]))
    except Exception as error:  # whatever the backend raises for shapes that do not fit
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


def _hand_on_provenance(old: keras.Model, new: keras.Model, changes: tuple[str, ...]) -> None:
    # Here, since the package that it belongs to brings the readers of all checkpoint formats with it.
    from kerasseg.checkpoints.provenance import copy_provenance

    copy_provenance(old, new, changes=changes)
