"""Mixed precision for existing networks: choose it, and set it on their layers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kerasseg_tfrecords.errors import UsageError

if TYPE_CHECKING:
    import keras

_PROCESSOR = Path("/proc/cpuinfo")
_BFLOAT16 = re.compile(r"\b(avx512_bf16|amx_bf16)\b")
_NAMES = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """A precision and the reason for it."""

    name: str
    reason: str


def processor_has_bfloat16(cpuinfo: Path = _PROCESSOR) -> bool:
    """Return whether the processor multiplies bfloat16 matrices (AVX512-BF16 or AMX), as the system reports."""
    try:
        return _BFLOAT16.search(cpuinfo.read_text()) is not None
    except OSError:
        return False


def choose_precision(
    asked: str, *, gpu: bool, capability: tuple[int, int] | None = None, bfloat16: bool | None = None
) -> PrecisionChoice:
    """Choose the number format for computation; weights, loss and metrics are always float32.

    | device | auto |
    | --- | --- |
    | GPU of compute capability 8.0 or more (Ampere and later) | mixed_bfloat16: range of float32, no loss scaling |
    | GPU 7.0 to 7.9 (Volta, Turing: a Colab T4) | mixed_float16 with loss scaling |
    | older GPU | float32: no matrix units |
    | processor with AVX512-BF16 or AMX | mixed_bfloat16: training measured 1.6 times as fast |
    | other processor | float32: bfloat16 would be emulated, and slower |

    Args:
        asked: "auto" or a precision.
        gpu: Whether GPUs compute.
        capability: Compute capability of the GPU.
        bfloat16: Whether the processor multiplies bfloat16; None detects it.

    Example:
        >>> choose_precision("auto", gpu=True, capability=(7, 5)).name
        'mixed_float16'
    """
    if asked in _NAMES:
        return PrecisionChoice(asked, "as requested")
    if asked != "auto":
        raise UsageError(f"unknown precision {asked!r}", expected="auto, float32, mixed_float16 or mixed_bfloat16")
    if gpu:
        if capability is not None and capability >= (8, 0):
            return PrecisionChoice(
                "mixed_bfloat16", f"computed natively by the GPU (compute capability {capability[0]}.{capability[1]})"
            )
        if capability is not None and capability >= (7, 0):
            return PrecisionChoice(
                "mixed_float16", f"computed natively by the GPU (compute capability {capability[0]}.{capability[1]})"
            )
        return PrecisionChoice("float32", "the GPU computes no shorter format faster")
    if processor_has_bfloat16() if bfloat16 is None else bfloat16:
        return PrecisionChoice("mixed_bfloat16", "computed natively by the processor")
    return PrecisionChoice("float32", "the processor computes no shorter format faster")


def compute_in(model: keras.Model, precision: str) -> None:
    """Make the layers of a float32 network compute in a precision; weights and output stay float32.

    The layers from the last convolution on stay float32, since probabilities near 0 and 1 need the digits.

    Args:
        model: Network, changed in place. Functions compiled before keep their precision.
        precision: "float32", "mixed_bfloat16" or "mixed_float16".

    Example:
        >>> import kerasseg
        >>> model = kerasseg.unet((32, 32, 3), filters=4, depth=2)
        >>> compute_in(model, "mixed_bfloat16")
        >>> model.get_layer("encoder_1_conv_1").compute_dtype, model.get_layer("head").compute_dtype
        ('bfloat16', 'float32')
    """
    if precision not in _NAMES:
        raise UsageError(f"unknown precision {precision!r}", expected=", ".join(_NAMES))
    from kerasseg.models.layers import all_layers  # here, because `choose_precision` needs no Keras

    last = _last_layers(model)
    for layer in all_layers(model):
        name = "float32" if id(layer) in last else precision
        if layer.dtype_policy.variable_dtype == "float32" and layer.dtype_policy.name != name:
            layer.dtype_policy = name


@contextlib.contextmanager
def as_float32(model: keras.Model) -> Iterator[None]:
    """Make the whole network float32, as in saved networks, while the block runs."""
    from kerasseg.models.layers import all_layers

    before = [(layer, layer.dtype_policy) for layer in all_layers(model)]
    compute_in(model, "float32")
    try:
        yield
    finally:
        for layer, policy in before:
            if layer.dtype_policy is not policy:
                layer.dtype_policy = policy


def _last_layers(model: keras.Model) -> set[int]:
    """Return ids of the layers from the last one with weights to the output."""
    import keras

    found: set[int] = set()
    operations = [tensor._keras_history.operation for tensor in model.outputs]
    while operations:
        operation = operations.pop()
        found.add(id(operation))
        if isinstance(operation, keras.Model):
            found |= _last_layers(operation)
            continue
        if getattr(operation, "weights", None) or isinstance(operation, keras.layers.InputLayer):
            continue
        for node in operation._inbound_nodes:
            operations += [
                t._keras_history.operation for t in node.input_tensors if id(t._keras_history.operation) not in found
            ]
    return found
