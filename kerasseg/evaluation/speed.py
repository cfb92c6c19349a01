"""How fast a network is, warm, beside the checkpoint it came from: "inference time: same" is a measurement."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence

import keras
import numpy as np

from kerasseg.evaluation.document import Speed

__all__ = ["measure_speed"]

_LEAST, _MOST, _BUDGET = 5, 30, 4.0
"""Passes at least and at most, and seconds for a batch size, all networks together."""


def measure_speed(
    model: keras.Model,
    baseline: keras.Model | None = None,
    *,
    size: int,
    batches: Sequence[int] = (1, 8),
    budget: float = _BUDGET,
) -> Speed:
    """Medians over passes, of the two networks in turn, so that whatever else the machine does falls on both.

    Args:
        model: Takes (batch, size, size, channels).
        baseline: The same; None for none.
        size: Side of the slices.
        batches: Slices in a batch.
        budget: Seconds for one batch size; five passes are made in any case.

    Returns:
        Slices a second and milliseconds a slice by batch size, of a pass from array to array.
    """
    networks = [model] if baseline is None else [model, baseline]
    seconds: list[dict[str, float]] = [{} for _ in networks]
    channels = int(model.inputs[0].shape[-1])
    for batch in batches:
        images = np.random.default_rng(0).random((batch, size, size, channels), np.float32)
        for network in networks:  # the first pass compiles, the second finds its memory
            network.predict_on_batch(images)
            network.predict_on_batch(images)
        taken: list[list[float]] = [[] for _ in networks]
        began = time.perf_counter()
        while len(taken[0]) < _LEAST or (len(taken[0]) < _MOST and time.perf_counter() - began < budget):
            for network, times in zip(networks, taken, strict=True):
                start = time.perf_counter()
                network.predict_on_batch(images)
                times.append(time.perf_counter() - start)
        for found, times in zip(seconds, taken, strict=True):
            found[str(batch)] = statistics.median(times) / batch
    rates = [{name: 1 / value for name, value in found.items()} for found in seconds]
    milliseconds = [{name: 1000 * value for name, value in found.items()} for found in seconds]
    return Speed(
        slices_per_second=rates[0],
        milliseconds_a_slice=milliseconds[0],
        baseline_slices_per_second=rates[1] if baseline is not None else {},
        baseline_milliseconds_a_slice=milliseconds[1] if baseline is not None else {},
        device=_device(),
    )


def _device() -> str:
    gpus = keras.distribution.list_devices("gpu")
    if gpus:
        return ", ".join(str(gpu) for gpu in gpus)
    return f"the processor, {os.cpu_count()} cores ({platform.machine()})"
