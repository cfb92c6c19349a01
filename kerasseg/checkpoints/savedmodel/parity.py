"""Comparison of the original network with the rebuilt one.

Both receive the same random slice. Their outputs and some inner tensors must agree to 1e-5, because a sigmoid can hide
differences. Otherwise rounding may have grown in a deep network: then each step of the rebuilt model is run on the
original's values and must agree by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kerasseg.checkpoints.savedmodel.graph import Graph, Tensor
from kerasseg.checkpoints.savedmodel.rebuild import Rebuilt
from kerasseg.checkpoints.savedmodel.signatures import Slot
from kerasseg_tfrecords.errors import CheckpointError

__all__ = ["TOLERANCE", "Agreement", "Original", "agreement", "difference", "random_inputs"]

TOLERANCE = 1e-5
"""Largest difference between two float32 computations of one network, relative to the largest value if beyond 1."""

#: Computes tensors of the original network, for inputs by signature name.
Original = Callable[[Sequence[Tensor], Mapping[str, np.ndarray]], list[np.ndarray]]

#: Computes the outputs of a model at inference on the CPU, where float32 is not reduced in precision.
Forward = Callable[[keras.Model, Sequence[np.ndarray]], list[np.ndarray]]

_INSIDE = 12  # inner tensors to compare
_INSIDE_ELEMENTS = 1 << 20
_AT_ONCE = 1 << 26  # elements of the tensors held at the same time when checking single steps
_SIZES = (64, 128, 256, 572)  # image sizes to try if the size is not fixed


@dataclass(frozen=True, slots=True)
class Agreement:
    """The result of a comparison.

    Attributes:
        outputs: Largest absolute difference of the outputs.
        relative: Largest difference of all tensors, relative to the tensor's largest value if beyond 1.
        varies: Whether the original's output is not constant; otherwise the comparison means little.
        largest: Largest value of the original's outputs.
        step: Largest relative difference of a single step; None if the whole networks agreed.
    """

    outputs: float
    relative: float
    varies: bool
    largest: float = 0.0
    step: float | None = None


def agreement(
    graph: Graph,
    slots: Mapping[str, Slot],
    order: Sequence[str],
    rebuilt: Rebuilt,
    original: Original,
    forward: Forward,
) -> Agreement:
    """Compare a network with the model rebuilt from it.

    Args:
        graph: The unfolded network of the file.
        slots: Its inputs.
        order: Its outputs, in the model's order.
        rebuilt: The model.
        original: Runs the original network.
        forward: Runs a model.

    Raises:
        CheckpointError: The outputs differ, or the original network does not run.
    """
    outputs = [graph.outputs[n] for n in order]
    inside = _inside(graph, rebuilt, [t.node for t in outputs])
    wanted = [*outputs, *(Tensor(k) for k in inside)]
    results = [rebuilt.values[t] for t in outputs]
    probe = keras.Model(rebuilt.model.inputs, [*results, *(rebuilt.tensors[k] for k in inside)])
    images, theirs = _first_that_runs(slots, lambda images: original(wanted, images))
    found = difference(theirs, forward(probe, [images[n] for n in slots]), len(order))
    if found.relative <= TOLERANCE:
        return found
    worst, where = _worst_step(graph, rebuilt, images, original)
    if worst <= TOLERANCE:
        return replace(found, step=worst)
    raise CheckpointError(
        "the rebuilt network computes different values than the original",
        found=f"a difference of {found.outputs:.3g}, which begins at {where}",
        expected=f"at most {TOLERANCE:g}",
        remedy="Please report this with the code of the model",
    )


def _first_that_runs(
    slots: Mapping[str, Slot], run: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
) -> tuple[Mapping[str, np.ndarray], list[np.ndarray]]:
    failed: CheckpointError | None = None
    for images in random_inputs(slots):
        try:
            return images, run(images)
        except CheckpointError as error:
            failed = error
    raise failed or CheckpointError("the network in the file takes no input")


def _inside(graph: Graph, rebuilt: Rebuilt, outputs: Sequence[str]) -> list[str]:
    """Return some small tensors, spread over the depth of the network."""
    small = [
        key
        for key in rebuilt.steps
        if key in graph.nodes
        and key not in outputs
        and all(rebuilt.tensors[key].shape[1:])
        and np.prod(rebuilt.tensors[key].shape[1:]) <= _INSIDE_ELEMENTS
        and str(rebuilt.tensors[key].dtype) == "float32"
    ]
    step = max(1, len(small) // _INSIDE)
    return small[step - 1 :: step][:_INSIDE]


def _worst_step(
    graph: Graph, rebuilt: Rebuilt, images: Mapping[str, np.ndarray], original: Original
) -> tuple[float, str]:
    """Return the largest relative difference of a step that starts from the original's values, and that step."""
    worst, where = 0.0, ""
    batch: list[str] = []
    size = 0
    for key in rebuilt.steps:
        if key not in graph.nodes or any(t.node not in graph.nodes for t in rebuilt.steps[key]):
            continue  # made during fusion; it is checked with the step that reads it
        batch.append(key)
        size += int(np.prod([n or 64 for n in rebuilt.tensors[key].shape[1:]]))
        if size > _AT_ONCE:
            worst, where = max((worst, where), _worst_of(graph, rebuilt, images, original, batch))
            batch, size = [], 0
    return max((worst, where), _worst_of(graph, rebuilt, images, original, batch)) if batch else (worst, where)


def _worst_of(
    graph: Graph, rebuilt: Rebuilt, images: Mapping[str, np.ndarray], original: Original, keys: Sequence[str]
) -> tuple[float, str]:
    wanted = list(dict.fromkeys(t for k in keys for t in (*rebuilt.steps[k], Tensor(k))))
    known = dict(zip(wanted, original(wanted, images), strict=True))
    worst, where = 0.0, ""
    with keras.device("cpu:0"):
        for key in keys:
            ours: Any = rebuilt.step(key)([known[t] for t in rebuilt.steps[key]], training=False)
            ours = ours[0] if isinstance(ours, (list, tuple)) else ours
            found = difference([known[Tensor(key)]], [keras.ops.convert_to_numpy(ours)], 1)
            worst, where = max((worst, where), (found.relative, graph.nodes[key].where))
    return worst, where


def random_inputs(slots: Mapping[str, Slot], seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yield random inputs of one slice for each size to try: normal values, or all values of a byte.

    Args:
        slots: Inputs of the signature; a fixed batch size is kept.
        seed: Random seed.
    """
    free = any(n is None for s in slots.values() for n in (s.shape or ())[1:])
    for size in _SIZES if free else _SIZES[:1]:
        rng = np.random.default_rng(seed)
        yield {name: _random(slot, size, rng) for name, slot in slots.items()}


def _random(slot: Slot, size: int, rng: np.random.Generator) -> np.ndarray:
    shape = [1 if i == 0 and n is None else size if n is None else n for i, n in enumerate(slot.shape or ())]
    if slot.dtype == "bool":
        return rng.random(shape) < 0.5
    if slot.dtype.startswith(("int", "uint")):
        return rng.integers(0, 128 if slot.dtype == "int8" else 256, shape).astype(slot.dtype)
    return rng.standard_normal(shape).astype(np.float32)


def difference(original: Sequence[np.ndarray], rebuilt: Sequence[np.ndarray], outputs: int) -> Agreement:
    """Compare tensors pair by pair.

    Args:
        original: Outputs of the original network, then inner tensors.
        rebuilt: The same tensors of the rebuilt model.
        outputs: Number of outputs among them.
    """
    largest = relative = highest = 0.0
    varies = False
    for i, (a, b) in enumerate(zip(original, rebuilt, strict=True)):
        if a.shape != b.shape:
            return Agreement(np.inf, np.inf, varies=True)
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        same = (a64 == b64) | (np.isnan(a64) & np.isnan(b64))
        gap = np.where(same, 0.0, np.abs(a64 - b64))
        worst = float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))
        finite = np.abs(a64[np.isfinite(a64)])
        relative = max(relative, worst / max(1.0, float(finite.max(initial=0.0))))
        if i < outputs:
            largest = max(largest, worst)
            highest = max(highest, float(finite.max(initial=0.0)))
            varies |= bool(finite.size) and float(np.ptp(a64[np.isfinite(a64)])) > 1e-6
    return Agreement(largest, relative, varies, highest)
