"""Do the network in the file and the rebuilt one agree?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kerasseg.checkpoints.graphs.signatures import Slot

__all__ = ["TOLERANCE", "Agreement", "difference", "random_inputs"]

TOLERANCE = 1e-5
"""Largest difference between two float32 computations of one network, relative to the largest value beyond 1."""

_SIZES = (64, 128, 256, 572)
"""What is tried where the size of the image is free."""

Run = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a comparison found.

    Attributes:
        outputs: Largest absolute difference over the outputs.
        relative: The same for the worst tensor, relative to its largest value where that is beyond 1.
        varies: Whether the original's output depends on what it was given; if not, the comparison says little.
    """

    outputs: float
    relative: float
    varies: bool


def random_inputs(slots: Mapping[str, Slot], seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of one slice, for each size that is worth a try: normal numbers, or all values of a byte.

    Args:
        slots: Inputs of the signature; a batch size that is fixed is kept.
        seed: Of the random numbers.
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
        original: What the file's network gives: its outputs, then tensors inside it.
        rebuilt: What the rebuilt model gives, in the same order.
        outputs: How many of them are outputs.
    """
    largest = relative = 0.0
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
            varies |= bool(finite.size) and float(np.ptp(a64[np.isfinite(a64)])) > 1e-6
    return Agreement(largest, relative, varies)
