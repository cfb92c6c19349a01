"""Dice under image corruption, as caused by scanners, coils and patients; and speed.

The corruptions follow Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations" (ICLR 2019), and Kamann and Rother, "Benchmarking the robustness of semantic segmentation models" (CVPR
2020), adapted to MRI. Each function maps a float32 image in [0, 1] with one channel to another, with randomness from a
given generator.

| name | effect | strength, grade 1 to 5 |
| --- | --- | --- |
| `rician_noise` | noise of magnitude images (Gudbjartsson and Patz 1995) | standard deviation |
| `bias_field` | smooth brightness drift, as near a coil | largest relative change |
| `ghosting` | periodic motion: faint copies along one axis | share removed from every n-th line of k-space |
| `motion_blur` | movement in one direction | length, as a share of the width |
| `gamma` | nonlinear grey levels | |log2| of the exponent |
| `low_resolution` | downsampled, then upsampled | factor |
| `contrast` | grey levels move towards or away from their mean | relative change |
| `brightness` | grey levels are shifted | shift |

The background stays near 0 under all but noise and brightness, as in a scanner.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.evaluation.schema import Robustness, RobustnessCurve, Speed
from kerasseg.evaluation.scoring import mask_dice
from kerasseg.postprocessing import MaskRule, apply_rule

GRADES = 5

Image = NDArray[np.float32]
_Apply = Callable[[Image, float, np.random.Generator], Image]


@dataclass(frozen=True, slots=True)
class Corruption:
    """A kind of corruption.

    Attributes:
        name: Name for display and for the random seed.
        strengths: Strength of each grade, rising.
        apply: (image (height, width) float32, strength, generator) -> image, before clipping.
    """

    name: str
    strengths: tuple[float, ...]
    apply: _Apply


def corrupt(image: NDArray[np.float32], corruption: Corruption, grade: int, *, seed: int, number: int) -> Image:
    """Corrupt a slice; the same arguments give the same image.

    Args:
        image: (height, width, channels) float32 in [0, 1].
        corruption: One of `CORRUPTIONS`.
        grade: Grade, 1 to 5.
        seed: Random seed of the evaluation.
        number: Number of the slice.

    Returns:
        Image of the same shape, float32 in [0, 1]. Equal channels stay equal: a grey image stays grey.

    Example:
        >>> image = np.full((16, 16, 3), 0.5, np.float32)
        >>> noisy = corrupt(image, CORRUPTIONS[0], 3, seed=1, number=0)
        >>> bool((noisy[..., 0] == noisy[..., 2]).all()), bool((noisy != image).any())
        (True, True)
    """
    strength = corruption.strengths[grade - 1]
    # The same seed for each channel, so that movement and shading affect all channels alike.
    entropy = (seed, zlib.crc32(corruption.name.encode()), grade, number)
    grey = image.shape[2] > 1 and bool((image == image[..., :1]).all())
    channels = 1 if grey else image.shape[2]
    out = []
    for c in range(channels):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        out.append(corruption.apply(image[..., c], strength, rng))
    stacked = np.stack(out, axis=-1)
    if grey:
        stacked = np.repeat(stacked, image.shape[2], axis=2)
    return np.clip(stacked, 0, 1).astype(np.float32)


def _rician_noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    real, imaginary = rng.normal(0, strength, (2, *image.shape))
    return _single(np.hypot(image + real, imaginary))


def _bias_field(image: Image, strength: float, rng: np.random.Generator) -> Image:
    coarse = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
    field = cv2.resize(coarse, image.shape[::-1], interpolation=cv2.INTER_CUBIC)
    field = field / max(float(np.abs(field).max()), 1e-6)
    return _single(image * (1 + strength * field))


def _ghosting(image: Image, strength: float, rng: np.random.Generator) -> Image:
    copies = int(rng.integers(3, 7))
    axis = int(rng.integers(2))
    side = image.shape[axis]
    # Weakening every n-th line of k-space gives copies at that fraction of the field of view, as breathing does.
    spectrum = np.fft.fft(image, axis=axis)
    weights = np.ones(side)
    weights[::copies] = 1 - strength
    weights[0] = 1  # keep the mean
    shape = (side, 1) if axis == 0 else (1, side)
    return _single(np.abs(np.fft.ifft(spectrum * weights.reshape(shape), axis=axis)))


def _motion_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    length = strength * max(image.shape)
    angle = rng.uniform(0, np.pi)
    half = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    # Points along the path, each spread over four pixels, so that movements of less than a pixel count, too.
    for step in np.linspace(-length / 2, length / 2, 8 * kernel.shape[0] + 1):
        row, column = half + step * np.sin(angle), half + step * np.cos(angle)
        top, left = int(row), int(column)
        down, right = row - top, column - left
        kernel[top : top + 2, left : left + 2] += np.outer((1 - down, down), (1 - right, right)).astype(np.float32)
    return _single(cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE))


def _gamma(image: Image, strength: float, rng: np.random.Generator) -> Image:
    return _single(np.power(np.clip(image, 0, 1), 2.0 ** (strength * _sign(rng))))


def _low_resolution(image: Image, strength: float, rng: np.random.Generator) -> Image:
    del rng  # deterministic
    height, width = image.shape
    small = (max(1, round(width / strength)), max(1, round(height / strength)))
    down = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return _single(cv2.resize(down, (width, height), interpolation=cv2.INTER_LINEAR))


def _contrast(image: Image, strength: float, rng: np.random.Generator) -> Image:
    # Relative to the mean of the head: relative to the mean of the image, the background would turn grey.
    head = image > 0.05
    middle = float(image[head].mean()) if head.any() else 0.0
    return _single(np.where(head, middle + (image - middle) * (1 + strength * _sign(rng)), image))


def _brightness(image: Image, strength: float, rng: np.random.Generator) -> Image:
    return _single(image + strength * _sign(rng))


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _single(values: Any) -> Image:
    return np.asarray(values, np.float32)


CORRUPTIONS = (
    Corruption("rician_noise", (0.02, 0.04, 0.07, 0.11, 0.16), _rician_noise),
    Corruption("bias_field", (0.1, 0.2, 0.35, 0.5, 0.7), _bias_field),
    Corruption("ghosting", (0.1, 0.2, 0.35, 0.5, 0.7), _ghosting),
    Corruption("motion_blur", (0.012, 0.02, 0.031, 0.047, 0.07), _motion_blur),
    Corruption("gamma", (0.2, 0.4, 0.6, 0.8, 1.0), _gamma),
    Corruption("low_resolution", (1.5, 2.0, 3.0, 4.0, 6.0), _low_resolution),
    Corruption("contrast", (0.1, 0.2, 0.3, 0.4, 0.5), _contrast),
    Corruption("brightness", (0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
)
"""All corruptions, in the order of the report."""


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
        grades: Number of grades, the weakest first.
        progress: Called with (passes done, passes).
    """
    curves = []
    total = len(CORRUPTIONS) * grades
    for place, corruption in enumerate(CORRUPTIONS):
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


def measure_speed(model: keras.Model, baseline: keras.Model | None = None, *, size: int) -> Speed:
    """Measure the median time of a pass; two networks take turns, so that other load affects both.

    Returns:
        Slices per second and milliseconds per slice by batch size, from array to array.
    """
    networks = [model] if baseline is None else [model, baseline]
    seconds: list[dict[str, float]] = [{} for _ in networks]
    channels = int(model.inputs[0].shape[-1])
    for batch in (1, 8):
        images = np.random.default_rng(0).random((batch, size, size, channels), np.float32)
        for network in networks:  # warm up: the first pass compiles, the second allocates
            network.predict_on_batch(images)
            network.predict_on_batch(images)
        taken: list[list[float]] = [[] for _ in networks]
        began = time.perf_counter()
        while len(taken[0]) < _LEAST or (len(taken[0]) < _MOST and time.perf_counter() - began < _BUDGET):
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
