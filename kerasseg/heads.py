"""What is done at the end of a network, so that it gives one tumour probability: `plan_output`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
from keras import layers, ops

from kerasseg.graph import flatten
from kerasseg.outputs import Kind, Output, settle_by_test, tail
from kerasseg.rebuild import Replacement
from kerasseg_tfrecords.errors import CheckpointError, UsageError

__all__ = ["Head", "Plan", "Wish", "plan_output"]

Head = Literal["keep", "binary", "auto"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked of the head; `fit_to_task` tells what each means."""

    head: Head = "keep"
    background: int = 0
    foreground: int | Sequence[int] | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done at the end of a network.

    Attributes:
        replacements: Layers to replace, by their `id`.
        finish: From the output tensor and the names that are taken, to the tensor that the new network gives.
    """

    replacements: dict[int, Replacement]
    finish: Callable[[Any, set[str]], Any]


def plan_output(model: keras.Model, output: Output, wish: Wish, changes: list[str]) -> Plan:
    """Decide how the output of a network becomes one tumour probability in float32.

    Args:
        model: The network as it is.
        output: Which of its outputs, and what its values are.
        wish: What the user asked for.
        changes: One sentence is appended for each thing that is changed or assumed.

    Raises:
        CheckpointError: The meaning of the head is not clear (`"keep"`), or there is no convolution to replace.
        UsageError: A channel that the output does not have.
    """
    if wish.head == "binary":
        return _fresh_head(model, output, wish.seed, changes)
    said: list[str] = []
    try:
        plan = _kept_head(model, output, wish.background, wish.foreground, said)
    except CheckpointError as error:
        if wish.head == "keep":
            raise
        changes.append(f"the head is replaced because {error.what}")
        return _fresh_head(model, output, wish.seed, changes)
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
        steps.append(lambda x, taken: layers.Rescaling(0.5, 0.5, dtype="float32", name=_free("probability", taken))(x))
        changes.append(f"tanh output {output.name!r} mapped from -1..1 to 0..1")
        kind = "probability"
    if kind == "logits":
        function = "sigmoid" if output.channels == 1 else "softmax"
        steps.append(lambda x, taken: layers.Activation(function, dtype="float32", name=_free("probability", taken))(x))
        changes.append(f"output {output.name!r} holds logits: {function} appended")
        kind = "probability" if output.channels == 1 else "softmax"
    if output.channels > 1:
        if kind != "softmax" and foreground is None:
            raise CheckpointError(
                f"output {output.name!r} has {output.channels} channels that do not exclude each other",
                expected="to be told which of them are tumour",
                remedy="Name them (foreground=...), or replace the head (head='binary').",
            )
        steps.append(_Foreground(chosen, exclusive=kind == "softmax", background=foreground is None))
        changes.append(_how_read(output, chosen, exclusive=kind == "softmax", foreground=foreground))
    elif foreground not in (None, 0, -1):
        raise UsageError("there is no such channel", found=f"foreground {foreground}", expected="0: it is the only one")
    return Plan(_in_float32(model, output, changes), _Chain(tuple(steps)))


_WORDS: dict[Kind, str] = {"probability": "probabilities", "softmax": "probabilities of classes", "logits": "logits"}


def _chosen(output: Output, background: int, foreground: int | Sequence[int] | None) -> tuple[int, ...]:
    """Places of the channels to read: the background alone, or the foreground."""
    given = (background,) if foreground is None else (foreground,) if isinstance(foreground, int) else tuple(foreground)
    count = output.channels
    if not given or not all(isinstance(c, int) and -count <= c < count for c in given):
        what = "background" if foreground is None else "foreground"
        if count > 1 or foreground is not None:
            raise UsageError(f"{what} is no channel of the output", found=given, expected=f"0 to {count - 1}")
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


@dataclass(frozen=True, slots=True)
class _Foreground:
    """Append the operations that make one tumour probability of several channels."""

    channels: tuple[int, ...]
    exclusive: bool
    background: bool

    def __call__(self, x: Any, taken: set[str]) -> Any:
        # Operations of keras.ops, not a Lambda or a layer of our own: saved files open without kerasseg, in safe mode.
        x = _named(ops.take(x, list(self.channels), axis=-1), "background" if self.background else "classes", taken)
        if self.background:
            return _named(ops.subtract(1.0, x), "foreground", taken)
        if len(self.channels) == 1:
            return x
        merged = (ops.sum if self.exclusive else ops.max)(x, axis=-1, keepdims=True)
        return _named(merged, "foreground", taken)


@dataclass(frozen=True, slots=True)
class _Chain:
    steps: tuple[Callable[[Any, set[str]], Any], ...]

    def __call__(self, x: Any, taken: set[str]) -> Any:
        for step in self.steps:
            x = step(x, taken)
        if x.dtype != "float32":
            x = layers.Activation("linear", dtype="float32", name=_free("float32", taken))(x)
        return x


def _named(tensor: Any, name: str, taken: set[str]) -> Any:
    """Give the operation that made `tensor` a name that does not depend on what the process built before."""
    tensor._keras_history.operation.name = _free(name, taken)
    return tensor


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def _in_float32(model: keras.Model, output: Output, changes: list[str]) -> dict[int, Replacement]:
    """The last layers anew in float32, where they compute in less: a bfloat16 sigmoid has 8 bits."""
    found: dict[int, Replacement] = {}
    for step in tail(model, output):
        layer = step.layer
        if layer is not None and layer.compute_dtype != "float32":
            found[id(layer)] = Replacement(make=_copier(layer, dtype="float32"))
    if found:
        changes.append(f"output {output.name!r} is computed in float32")
    return found


def _copier(layer: Any, **changed: Any) -> Callable[[], Any]:
    config = {**layer.get_config(), **changed}
    return lambda: type(layer).from_config(config)


def _fresh_head(model: keras.Model, output: Output, seed: int | None, changes: list[str]) -> Plan:
    steps = tail(model, output)
    last = steps[-1].operation if steps else None
    if not isinstance(last, (layers.Conv2D, layers.Conv2DTranspose, layers.SeparableConv2D, layers.Dense)):
        raise CheckpointError(
            f"no last convolution is found behind output {output.name!r}, so that it could be replaced",
            found=f"{type(last).__name__} {last.name!r}" if last is not None else None,
            expected="a convolution, then nothing but activations and resizing",
        )
    # Activations and normalisations behind the old convolution belong to its channels; what moves pixels stays.
    behind = [step for step in steps[:-1] if type(step.operation).__name__ not in _MOVING]
    moving = len(behind) < len(steps) - 1
    names = {step.operation.name for step in flatten(model).steps} - {last.name}
    name = _free("head", names)
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
    replacements = {id(step.operation): Replacement(drop=True) for step in behind}
    replacements[id(last)] = Replacement(make=_copier(last, **settings), fresh=True)
    had = "1 channel" if output.channels == 1 else f"{output.channels} channels"
    changes.append(f"head {last.name!r} ({had}) replaced by a fresh binary head {name!r}")

    def sigmoid(x: Any, taken: set[str]) -> Any:
        return layers.Activation("sigmoid", dtype="float32", name=_free("probability", taken))(x) if moving else x

    return Plan(replacements, sigmoid)


_MOVING = {"UpSampling2D", "Resizing", "Cropping2D", "ZeroPadding2D", "Resize", "Pad", "GetItem"}
