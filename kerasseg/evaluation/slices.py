"""One pass of a network over a split or over several, as predictions; and pictures of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.pictures import SlicePicture
from kerasseg.evaluation.predictions import Case, Predictions, Resolution, SplitPredictions, predict_split
from kerasseg.evaluation.robustness import Transform
from kerasseg.postprocessing import apply_rule
from kerasseg.rule import MaskRule
from kerasseg.split_slices import MEMORY_BUDGET
from kerasseg_tfrecords.manifest import load_manifest

__all__ = ["JoinedPredictions", "PredictionPictures", "output_range", "predict_splits"]


class JoinedPredictions:
    """Several predictions as one, one after another.

    Args:
        parts: With the same classes.

    Attributes:
        classes, labels: As in `Predictions`.
    """

    def __init__(self, parts: Sequence[Predictions]) -> None:
        self._parts = tuple(parts)
        self._first = np.cumsum([0, *(len(part) for part in parts)])
        self.classes = self._parts[0].classes
        self.labels: NDArray[np.int64] = np.concatenate([part.labels for part in self._parts])

    def __len__(self) -> int:
        """Slices."""
        return int(self._first[-1])

    def case(self, number: int, resolution: Resolution = "native") -> Case:
        """Facts and reference of a slice."""
        part, inner = self._at(number)
        return part.case(inner, resolution)

    def probability(self, number: int, resolution: Resolution = "native") -> NDArray[np.float32]:
        """(height, width) in [0, 1]."""
        part, inner = self._at(number)
        return part.probability(inner, resolution)

    def image(self, number: int) -> NDArray[np.uint8]:
        """(size, size, channels)."""
        part, inner = self._at(number)
        return part.image(inner)

    def _at(self, number: int) -> tuple[Predictions, int]:
        place = int(np.searchsorted(self._first, number, side="right")) - 1
        return self._parts[place], number - int(self._first[place])


def predict_splits(
    model: keras.Model,
    shards: Path,
    splits: Sequence[str],
    *,
    batch_size: int = 8,
    memory_budget: int = MEMORY_BUDGET,
    progress: Callable[[int, int], None] | None = None,
    transform: Transform | None = None,
) -> Predictions:
    """One pass of a network over the named splits; arguments and errors as in `predict_split`.

    Args:
        model: The network.
        shards: The shard directory.
        splits: At least one, each with slices.
        batch_size: Slices at once.
        memory_budget: Bytes of memory for probabilities.
        progress: Told (slices done, slices).
        transform: Given images and the numbers that slices have in the result.
    """
    manifest = load_manifest(shards)
    total = sum(manifest.slices_in(split) for split in splits)
    parts: list[SplitPredictions] = []
    before = 0
    for split in splits:
        count = manifest.slices_in(split)

        def told(step: int, steps: int, before: int = before, count: int = count) -> None:
            if progress is not None:
                progress(before + (count if step == steps else min(count, step * batch_size)), total)

        parts.append(
            predict_split(
                model,
                shards,
                split,
                batch_size=batch_size,
                memory_budget=memory_budget // len(splits),
                on_batch=told,
                transform=None if transform is None else _shifted(transform, before),
            )
        )
        before += count
    return parts[0] if len(parts) == 1 else JoinedPredictions(parts)


def _shifted(transform: Transform, before: int) -> Transform:
    """The transform, told numbers within the whole; -1 remains a row that only fills a batch."""
    return lambda images, numbers: transform(images, np.where(numbers < 0, numbers, numbers + before))


class PredictionPictures:
    """Pictures of slices with their final masks, at the network's size.

    Args:
        predictions: Of the network.
        ids: Of its slices, in order.
        rule: Of the final masks.
    """

    def __init__(self, predictions: Predictions, ids: Sequence[str], rule: MaskRule) -> None:
        self._predictions, self._rule = predictions, rule
        self._numbers = {name: number for number, name in enumerate(ids)}

    def picture(self, slice_id: str) -> SlicePicture:
        """The picture of a slice.

        Raises:
            KeyError: No such slice.
        """
        number = self._numbers[slice_id]
        case = self._predictions.case(number, "model")
        name = self._predictions.classes[case.label]
        mask = apply_rule(self._predictions.probability(number, "model"), self._rule, name)
        return SlicePicture(self._predictions.image(number), case.mask, mask)


def output_range(predictions: Predictions) -> tuple[float, float]:
    """The smallest and the largest probability over all slices, at the network's size."""
    low, high = 1.0, 0.0
    for number in range(len(predictions)):
        values = predictions.probability(number, "model")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high
