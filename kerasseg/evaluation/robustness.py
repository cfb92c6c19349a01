"""Dice under corruption, and speed."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.corruptions import CORRUPTIONS, GRADES, Corruption, corrupt
from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.evaluation.schema import Robustness, RobustnessCurve, Speed
from kerasseg.evaluation.scoring import mask_dice
from kerasseg.postprocessing import MaskRule, apply_rule

Transform = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]


class Predict(Protocol):
    """Predict with changed images."""

    def __call__(self, transform: Transform) -> Predictions:
        """Return predictions for `transform(images, slice numbers)`."""


def measure_robustness(
    predict: Predict,
    rule: MaskRule,
    clean: float | None,
    *,
    resolution: Resolution = "native",
    seed: int = 0,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    grades: int = GRADES,
    progress: Callable[[int, int], None] | None = None,
) -> Robustness:
    """Measure mean Dice at every grade of every corruption.

    Args:
        predict: Function that predicts the slices after a transform of the images. Slice number -1 marks padding.
        rule: Rule of the masks, the same as without corruption.
        clean: Mean Dice without corruption; None or 0 if no share can be computed.
        resolution: Resolution of the figures.
        seed: Random seed of the corruptions.
        corruptions: Kinds of corruption.
        grades: Number of grades, the weakest first.
        progress: Called with (passes done, passes).
    """
    curves = []
    total = len(corruptions) * grades
    for place, corruption in enumerate(corruptions):
        dice = []
        for grade in range(1, grades + 1):
            predictions = predict(_transform(corruption, grade, seed))
            dice.append(mean_dice(predictions, rule, resolution))
            if progress is not None:
                progress(place * grades + grade, total)
        kept = float(np.mean(dice)) / clean if clean else None
        strengths = corruption.strengths[:grades]
        curves.append(RobustnessCurve(name=corruption.name, grades=strengths, dice=tuple(dice), kept=kept))
    known = [curve.kept for curve in curves if curve.kept is not None]
    return Robustness(seed=seed, clean=clean, curves=tuple(curves), kept=float(np.mean(known)) if known else None)


def mean_dice(predictions: Predictions, rule: MaskRule, resolution: Resolution = "native") -> float:
    """Return the mean over slices of Dice of the final masks."""
    total = 0.0
    for number in range(len(predictions)):
        case = predictions.case(number, resolution)
        mask = apply_rule(predictions.probability(number, resolution), rule, predictions.classes[case.label])
        total += mask_dice(mask, case.mask)
    return total / len(predictions)


def _transform(corruption: Corruption, grade: int, seed: int) -> Transform:
    def change(images: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        pairs = zip(images, numbers.tolist(), strict=True)
        return np.stack([corrupt(image, corruption, grade, seed=seed, number=max(n, 0)) for image, n in pairs])

    return change


_LEAST, _MOST, _BUDGET = 5, 30, 4.0
"""Minimum and maximum number of passes, and seconds for a batch size with all networks."""


def measure_speed(
    model: keras.Model,
    baseline: keras.Model | None = None,
    *,
    size: int,
    batches: Sequence[int] = (1, 8),
    budget: float = _BUDGET,
) -> Speed:
    """Measure the median time of a pass; two networks take turns, so that other load affects both.

    Returns:
        Slices per second and milliseconds per slice by batch size, from array to array.
    """
    networks = [model] if baseline is None else [model, baseline]
    seconds: list[dict[str, float]] = [{} for _ in networks]
    channels = int(model.inputs[0].shape[-1])
    for batch in batches:
        images = np.random.default_rng(0).random((batch, size, size, channels), np.float32)
        for network in networks:  # warm up: the first pass compiles, the second allocates
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
