"""What is left of Dice under corruption: a curve for each kind, and one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.corruptions import CORRUPTIONS, GRADES, Corruption, corrupt
from kerasseg.evaluation.document import Robustness, RobustnessCurve
from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.evaluation.scoring import mask_dice
from kerasseg.postprocessing import apply_rule
from kerasseg.rule import MaskRule

__all__ = ["Transform", "mean_dice", "measure_robustness"]

Transform = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]


class Predict(Protocol):
    """Predictions of the network for images that were changed first."""

    def __call__(self, transform: Transform) -> Predictions:
        """Predictions for `transform(images, numbers of the slices)`."""


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
    """Mean Dice at every grade of every corruption.

    Args:
        predict: One pass of the network over the slices, images changed by the transform that it is given. Numbers of -1
            are rows that only fill a batch.
        rule: From probabilities to masks; the same as without corruption.
        clean: Mean Dice without corruption; None or 0: nothing can be kept of it.
        resolution: Of the figures.
        seed: Of what is random.
        corruptions: Kinds.
        grades: How many of them, the weakest first.
        progress: Told (passes done, passes).
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
    """Mean over slices of Dice of the final masks."""
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
