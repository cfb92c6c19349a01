"""Predict one or several splits in one pass, and provide pictures of the slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.data.batches import EvaluationBatches
from kerasseg.data.split import MEMORY_BUDGET
from kerasseg.evaluation.predictions import Case, Predictions, Resolution, SplitPredictions, predict_split
from kerasseg.evaluation.robustness import Transform
from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg_tfrecords.records.manifest import load_manifest
from kerasseg_tfrecords.splitting.split import SPLITS


@dataclass(frozen=True, slots=True, eq=False)
class SlicePicture:
    """One slice, at the network's size.

    Attributes:
        image: (height, width, channels) uint8, 1 or 3 channels.
        reference: (height, width) bool.
        prediction: (height, width) bool, after the last stage.
        probability: (height, width) float32 in [0, 1]; None if unknown.
        threshold: Threshold of the prediction.
    """

    image: NDArray[np.uint8]
    reference: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    probability: NDArray[np.float32] | None = None
    threshold: float = 0.5


class Pictures(Protocol):
    """Pictures of slices by id."""

    def picture(self, slice_id: str) -> SlicePicture:
        """Return the picture of a slice."""


class JoinedPredictions:
    """Several predictions, joined in order."""

    def __init__(self, parts: Sequence[Predictions]) -> None:
        self._parts = tuple(parts)
        self._first = np.cumsum([0, *(len(part) for part in parts)])
        self.classes = self._parts[0].classes
        self.labels: NDArray[np.int64] = np.concatenate([part.labels for part in self._parts])

    def __len__(self) -> int:
        return int(self._first[-1])

    def case(self, number: int, resolution: Resolution = "native") -> Case:
        """Return facts and reference of a slice."""
        part, inner = self._at(number)
        return part.case(inner, resolution)

    def probability(self, number: int, resolution: Resolution = "native") -> NDArray[np.float32]:
        part, inner = self._at(number)
        return part.probability(inner, resolution)

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return the (size, size, channels) image."""
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
    flip_average: bool = False,
) -> Predictions:
    """Predict the named splits in one pass; errors as in `predict_split`."""
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
                flip_average=flip_average,
            )
        )
        before += count
    return parts[0] if len(parts) == 1 else JoinedPredictions(parts)


def _shifted(transform: Transform, before: int) -> Transform:
    """Return the transform with numbers within the whole; -1 still marks padding."""
    return lambda images, numbers: transform(images, np.where(numbers < 0, numbers, numbers + before))


class PredictionPictures:
    """Pictures of slices with their final masks, at the network's size."""

    def __init__(self, predictions: Predictions, ids: Sequence[str], rule: MaskRule) -> None:
        self._predictions, self._rule = predictions, rule
        self._numbers = {name: number for number, name in enumerate(ids)}

    def picture(self, slice_id: str) -> SlicePicture:
        number = self._numbers[slice_id]
        case = self._predictions.case(number, "model")
        name = self._predictions.classes[case.label]
        probability = self._predictions.probability(number, "model")
        mask = apply_rule(probability, self._rule, name)
        image, threshold = self._predictions.image(number), self._rule.threshold_for(name)
        return SlicePicture(image, case.mask, mask, probability, threshold)


def output_range(predictions: Predictions) -> tuple[float, float]:
    """Return the smallest and the largest probability over all slices, at the network's size."""
    low, high = 1.0, 0.0
    for number in range(len(predictions)):
        values = predictions.probability(number, "model")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high


class NetworkPictures:
    """The `Pictures` of one network, predicted on request."""

    def __init__(self, model: keras.Model, rule: MaskRule, shards: Path | str, split: str) -> None:
        self._model, self._rule = model, rule
        manifest = load_manifest(shards)
        channels = int(model.inputs[0].shape[-1])
        names = [name for name in SPLITS if manifest.slices_in(name)] if split == "all" else [split]
        self._data = [
            EvaluationBatches(shards, name, batch_size=1, channels=channels, cache="none", check=False)
            for name in names
        ]
        self._places: dict[str, tuple[EvaluationBatches, int]] = {}

    def picture(self, slice_id: str) -> SlicePicture:
        if not self._places:
            self._places = {
                data.records.record(number).slice_id: (data, number)
                for data in self._data
                for number in range(len(data.slices))
            }
        data, number = self._places[slice_id]
        record = data.records.record(number)
        found = self._model.predict_on_batch(data.batch(number).image)
        probability = np.asarray(keras.ops.convert_to_numpy(found), np.float32)[0, ..., 0]
        name = data.manifest.classes[record.label]
        return SlicePicture(record.image, record.mask, apply_rule(probability, self._rule, name))
