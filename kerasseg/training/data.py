"""Training and validation slices of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg.data.arrays import ArraySlices
from kerasseg.data.augmentation import SafeAugmentation
from kerasseg.data.tf_data import EvaluationData, TrainingData
from kerasseg.runs.settings import TrainSettings
from kerasseg.training.tensorboard import Example, choose
from kerasseg.training.trainer import Validation
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.records.manifest import Manifest


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Slices of a training run.

    Attributes:
        training: `TrainingData` with labels, or an object with the same methods.
        validation: Validation slices.
        counts: "train" and "val" -> class -> slices.
        rows: (slice_id, patient, group, class) of each validation slice; empty without shards.
        tumour: (slices,) whether each validation mask has any pixel; None without shards.
        fingerprint, intensity: Fingerprint and intensity rule of the shards; "" without shards.
        size: Height of a slice in pixels.
        channels: Channels of a slice, before grey is repeated.
    """

    training: Any
    validation: Validation
    counts: Mapping[str, Mapping[str, int]]
    rows: Sequence[tuple[str, str, str, str]] = ()
    tumour: NDArray[np.bool_] | None = None
    fingerprint: str = ""
    intensity: str = ""
    size: int = 0
    channels: int = 0

    def of(self, manifest: Manifest) -> Task:
        """Return a copy with fingerprint, intensity and shape from a manifest."""
        return replace(
            self,
            fingerprint=manifest.fingerprint,
            intensity=manifest.intensity,
            size=manifest.size,
            channels=manifest.channels,
        )


def task_from_shards(settings: TrainSettings, manifest: Manifest, channels: int, worker: tuple[int, int]) -> Task:
    """Open the training and validation splits of a shard directory."""
    training = training_data(settings.shards, settings, channels, worker)
    data = validation_data(settings.shards, settings, channels, settings.batch_size, worker)
    tumour = data.slices.with_tumour()
    if not tumour.any():
        raise no_tumour(settings.shards)
    rows = shard_rows(data)
    groups = np.array([group for _, _, group, _ in rows])
    counts = {
        "train": count(training.labels[training.numbers], manifest.classes),
        "val": count(data.labels, manifest.classes),
    }
    return Task(training, Validation(data, manifest.classes, groups), counts, rows, tumour).of(manifest)


def training_data(
    shards: str | ArraySlices, settings: TrainSettings, channels: int, worker: tuple[int, int] = (0, 1)
) -> TrainingData:
    """Return training batches as the settings describe them."""
    amounts = settings.augmentation
    return TrainingData(
        shards,
        batch_size=settings.batch_size,
        channels=channels,
        balance=settings.balance,
        augmentation=None if amounts is None else SafeAugmentation(**amounts.model_dump()),
        seed=settings.seed,
        cache=settings.cache,
        memory_budget=settings.memory_budget,
        positives_only=settings.train_on_positives,
        class_weight=settings.class_weight,
        with_labels=True,
        worker=worker,
    )


def validation_data(
    shards: str | ArraySlices, settings: TrainSettings, channels: int, batch_size: int, worker: tuple[int, int] = (0, 1)
) -> EvaluationData:
    """Return validation batches, all of the same size."""
    return EvaluationData(
        shards,
        "val",
        batch_size=batch_size,
        channels=channels,
        pad=True,
        memory_budget=settings.memory_budget,
        with_labels=True,
        worker=worker,
    )


def no_tumour(shards: str | None) -> DataError:
    """Return the error for a validation split without tumours."""
    return DataError(
        "no slice of the validation split has a tumour, so Dice cannot be measured",
        path=shards,
        remedy="Prepare again with a larger share for validation." if shards else None,
    )


def shard_rows(data: EvaluationData) -> list[tuple[str, str, str, str]]:
    """Return (slice_id, patient, group, class) of each slice of a split."""
    slices: Any = data.slices
    records = (slices.record(number) for number in range(len(slices)))
    return [(r.slice_id, r.patient, r.group, slices.classes[r.label]) for r in records]


def count(labels: ArrayLike, classes: Sequence[str]) -> dict[str, int]:
    """Count the slices of every class.

    >>> count([0, 2, 2], ["glioma", "meningioma", "pituitary"])
    {'glioma': 1, 'meningioma': 0, 'pituitary': 2}
    """
    found = Counter(np.asarray(labels).tolist())
    return {name: found.get(i, 0) for i, name in enumerate(classes)}


def examples_of(task: Task, seed: int) -> list[Example]:
    """Return the validation slices to show in TensorBoard; see `choose`."""
    data, examples = task.validation.data, []
    if task.tumour is None:
        return []
    for number in choose(data.labels, task.tumour, seed):
        step, first = divmod(number, data.batch_size)
        batch = data.part(step, first, 1)
        slice_id, _, _, label = task.rows[number]
        examples.append(Example(f"{label}/{slice_id}", batch.image[0], batch.mask[0, :, :, 0] > 0))
    return examples
