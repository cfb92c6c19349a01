"""Figures read from the files of the runs into the document behind the page."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.real.plan import Trial
from kerasseg.evaluation.bootstrap import paired_interval
from kerasseg.evaluation.figures import as_mean
from kerasseg.evaluation.schema import Evaluation, Mean, SecondReader, read_evaluation
from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.history import read_history
from kerasseg.workflows.cross_validate import OutOfFold, read_cross_validation

__all__ = [
    "CHECKPOINT",
    "Best",
    "CrossFigures",
    "DiceBySlice",
    "Figures",
    "Judged",
    "Judgement",
    "Knows",
    "KnowsRow",
    "Paired",
    "StageFigures",
    "Start",
    "TrialFigures",
    "counts",
    "difference",
    "judged",
    "looks",
    "of_cross_validation",
    "of_trial",
    "on_test",
    "out_of_fold",
]

CHECKPOINT = "unet-lgg-savedmodel"
"""That the page is written about."""

DiceBySlice = dict[str, tuple[float, str]]
"""Slice -> (Dice, patient group)."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Judged(_Model):
    """Figures of a split by stage: raw at 0.5, at the tuned threshold, with post-processing as well.

    Attributes:
        slices, patients: Counts.
        stages: Stage -> mean Dice with its interval over patients.
        classes: Class -> mean Dice of the last stage.
        baseline: The untouched checkpoint at its own tuned threshold and post-processing.
        gain: Paired gain over the baseline.
        missed: Tumours without any pixel found, at the last stage.
        looks: Evaluations on this test split so far; None for validation.
    """

    slices: int
    patients: int
    stages: dict[str, Mean]
    classes: dict[str, Mean]
    baseline: Mean | None
    gain: Mean | None
    missed: int
    looks: int | None = None


class TrialFigures(_Model):
    """One training.

    Attributes:
        name: Run.
        label: Name in the page.
        data: Data set.
        strategy, seed: As passed to `train`.
        rate: Learning rate of the first epoch.
        epochs, best_epoch: Epochs trained, and the best one.
        epoch_seconds: Fastest epoch with validation: least disturbed by other processes.
        memory_mb: Peak memory.
        epoch_0, best: Validation Dice at 0.5, before training and at the best epoch.
        train_dice: Training Dice of the last epoch.
        first_rate_epochs: Epochs before the first rate drop.
        gain: Best over epoch 0, paired over patients.
        validation, test: Figures by stage; None where not evaluated.
    """

    name: str
    label: str
    data: str
    strategy: str
    seed: int
    rate: float
    epochs: int
    best_epoch: int
    epoch_seconds: float
    memory_mb: float
    epoch_0: float
    best: float
    train_dice: float
    first_rate_epochs: int
    gain: Mean
    validation: Judged | None = None
    test: Judged | None = None


class CrossFigures(_Model):
    """A cross-validation: each training and validation slice by the network not trained on it."""

    label: str
    data: str
    figures: OutOfFold


class Paired(_Model):
    """Two networks on the same slices.

    Attributes:
        data: Data set.
        split: "folds" of training and validation, or "test".
        first, second: Labels of the networks.
        difference: Mean Dice of the second minus the first, with its interval over patients.
    """

    data: str
    split: Literal["folds", "test"]
    first: str
    second: str
    difference: Mean


class StageFigures(_Model):
    """The untouched checkpoint at one stage: Dice of all slices and of each class, and tumours without any pixel found."""

    name: str
    all: Mean
    classes: dict[str, Mean]
    missed: int


class KnowsRow(_Model):
    """A cross-validation of one strategy that starts from the checkpoint that knows the task.

    Attributes:
        label: As the page calls it.
        folds: Number of finished folds; the figures are over the slices that they held out.
        slices, patients: Held out by them.
        epochs: Trained in the longest fold.
        before, after, gain: Dice at 0.5 at the network's size: epoch 0, the best epoch of each fold, and the paired gain.
        before_classes, after_classes: Class -> Dice over its slices.
        last: Dice after the last epoch, mean over slices: no epoch is chosen on the slices.
        last_gain: The same minus Dice before training.
        recalibrated: Dice with BatchNorm's statistics measured anew, before training; None without.
        minutes: Of all folds.
    """

    label: str
    folds: int
    slices: int
    patients: int
    epochs: int
    before: Mean
    after: Mean
    gain: Mean
    before_classes: dict[str, Mean]
    after_classes: dict[str, Mean]
    last: float
    last_gain: float | None = None
    recalibrated: float | None = None
    minutes: float


class Start(_Model):
    """What a checkpoint is worth on one set of slices, untouched and fine-tuned.

    Attributes:
        untouched: The checkpoint on all slices, by stage.
        rule_decision: Why its rule was not kept, in words; empty where it was.
        rows: Cross-validations.
        curves: Training -> Dice over the slices that the first fold holds out, after each epoch so far, epoch 0 first.
        against: "A minus B" -> paired difference on the slices that both have held out.
        annotators: Agreement of two annotators and the untouched checkpoint, where the second masks are at hand.
    """

    untouched: tuple[StageFigures, ...]
    rule_decision: str
    rows: tuple[KnowsRow, ...]
    curves: dict[str, tuple[float, ...]]
    against: dict[str, Mean]
    annotators: SecondReader | None = None


class Knows(_Model):
    """What a checkpoint that knows the task gains on heads it has never seen.

    Attributes:
        machine, date: Where and when it was measured.
        size: Height and width of the slices in pixels.
        counts: Slices that trained the checkpoint: split -> class -> (slices, patients).
        planned, epochs, best_epoch, best, minutes: Of the training of the checkpoint; Dice on its validation slices.
        folds: Of the cross-validations, finished or not.
        same: On heads that it has never seen.
        shifted: On these heads as another scanner would show them.
    """

    machine: str
    date: str
    size: int
    counts: dict[str, dict[str, tuple[int, int]]]
    planned: int
    epochs: int
    best_epoch: int
    best: float
    minutes: float
    folds: int
    same: Start
    shifted: Start | None = None


class Judgement(_Model):
    """A training on the slices of `Knows`, a share of them, or with other masks, judged on heads that it has never seen.

    Attributes:
        name: Percentage of the heads that it was trained on, "scratch" for all, "both" for all with two annotators' masks,
            or "vgg16" for all and another network, with this pretrained encoder.
        slices, heads, epochs, minutes: Of the training; with "both", every slice counts twice.
        all, classes: Dice at 0.5 against the first annotator.
        annotators: The same against two annotators, where the second masks are at hand.
    """

    name: str
    slices: int
    heads: int
    epochs: int
    minutes: float
    all: Mean
    classes: dict[str, Mean]
    annotators: SecondReader | None


class Best(_Model):
    """A recipe on all slices: a cross-validation over heads, and its ensemble on the test split.

    Attributes:
        machine, date: Where and when it was measured.
        size: Height and width of the slices in pixels.
        counts: Split -> class -> (slices, patients).
        folds, epochs, minutes: Of the cross-validation.
        crossed: Every slice outside the test split by the network that has not seen its head, at 0.5.
        test: The mean of the folds' networks and of both mirrorings.
        annotators: Class -> Dice of the two annotators, of network and first, and of network and second, in `crossed`.
        on_test: The same on the test split, with intervals.
    """

    machine: str
    date: str
    size: int
    counts: dict[str, dict[str, tuple[int, int]]]
    folds: int
    epochs: int
    minutes: float
    crossed: CrossFigures
    test: Judged
    annotators: dict[str, tuple[float, float, float]]
    on_test: SecondReader | None


class Figures(_Model):
    """The whole document.

    Attributes:
        machine: Description.
        software: Package -> version.
        dates: Days on which figures were collected, ISO 8601.
        quick: Whether this is a dry run with meaningless figures.
        checkpoint: File or folder name.
        counts: Data set -> split -> class -> (slices, patients).
        trials: Trainings in order.
        crossed: Cross-validations.
        compared: Differences from the first of each kind.
        looks: Data set -> names of the looks at its test split.
        knows, best, judgements: A checkpoint that knows the task, the best recipes, and other slices and masks; on another
            machine, perhaps.
    """

    machine: str
    software: dict[str, str]
    dates: tuple[str, ...]
    quick: bool
    checkpoint: str = CHECKPOINT
    counts: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}
    trials: tuple[TrialFigures, ...] = ()
    crossed: tuple[CrossFigures, ...] = ()
    compared: tuple[Paired, ...] = ()
    looks: dict[str, tuple[str, ...]] = {}
    knows: Knows | None = None
    best: tuple[Best, ...] = ()
    judgements: tuple[Judgement, ...] = ()


def of_trial(root: Path, trial: Trial) -> TrialFigures:
    """Figures from the files of a run."""
    run = RunDirectory(root)
    history = read_history(run.history_file)
    first, trained = history[0], [row for row in history if row.epoch > 0]
    best = max(history, key=lambda row: (row.best, row.epoch))
    with run.validation_file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    before, after = ([float(row[key]) for row in rows] for key in ("dice_epoch_0", "dice_best"))
    groups = [row["group"] or row["patient"] for row in rows]
    return TrialFigures(
        name=trial.name,
        label=trial.label,
        data=trial.data.name,
        strategy=trial.strategy,
        seed=trial.seed,
        rate=trained[0].learning_rate,
        epochs=len(trained),
        best_epoch=best.epoch,
        epoch_seconds=min(row.seconds for row in trained),
        memory_mb=max(row.memory_mb for row in history if not math.isnan(row.memory_mb)),
        epoch_0=first.val_dice,
        best=float(np.mean(after)),
        train_dice=trained[-1].dice,
        first_rate_epochs=sum(row.learning_rate == trained[0].learning_rate for row in trained),
        gain=as_mean(paired_interval(before, after, groups)),
        validation=judged(root, "val"),
        test=judged(root, "test"),
    )


def judged(root: Path, split: Literal["val", "test"]) -> Judged | None:
    """Figures of an evaluation; None without it."""
    path = root / "evaluation" / split / "metrics.json"
    if not path.exists():
        return None
    found: Evaluation = read_evaluation(path)
    last = found.model.stages[-1]
    return Judged(
        slices=last.all.slices,
        patients=last.all.patients,
        stages={stage.name: stage.all.measures["dice"] for stage in found.model.stages},
        classes={name: figures.measures["dice"] for name, figures in last.classes.items()},
        baseline=found.baseline and found.baseline.stages[-1].all.measures["dice"],
        gain=found.gain.get("postprocessing"),
        missed=last.all.missed,
        looks=found.test_looks if split == "test" else None,
    )


def of_cross_validation(root: Path, trial: Trial) -> CrossFigures:
    """Figures from `cross-validation.json`."""
    found = read_cross_validation(root).out_of_fold
    assert found is not None
    return CrossFigures(label=trial.label, data=trial.data.name, figures=found)


def out_of_fold(root: Path) -> DiceBySlice:
    """Scores of a cross-validation: each slice by the network not trained on its patient."""
    return _dice(root / "out-of-fold.csv", "dice_best")


def on_test(root: Path) -> DiceBySlice:
    """Test scores of a run with its threshold and post-processing."""
    return _dice(root / "evaluation" / "test" / "per_slice.csv", "postprocessing_dice")


def _dice(file: Path, column: str) -> DiceBySlice:
    with file.open(newline="") as stream:
        return {row["slice_id"]: (float(row[column]), row["group"] or row["patient"]) for row in csv.DictReader(stream)}


def difference(one: DiceBySlice, other: DiceBySlice) -> Mean:
    """Mean Dice of the other minus the one on the same slices, paired, interval over patients."""
    if one.keys() != other.keys():
        msg = "two networks that were judged on different slices cannot be compared"
        raise ValueError(msg)
    slices = sorted(one)
    pairs = [(one[name][0], other[name][0], one[name][1]) for name in slices]
    first, second, groups = zip(*pairs, strict=True)
    return as_mean(paired_interval(first, second, groups))


def counts(shards: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Split -> class -> (slices, patients)."""
    with (shards / "splits.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    slices = Counter((row["split"], row["label"]) for row in rows)
    heads = {(row["split"], row["label"], row["group"] or row["patient"]) for row in rows}
    patients = Counter((split, label) for split, label, _ in heads)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for (split, label), number in sorted(slices.items()):
        found.setdefault(split, {})[label] = (number, patients[split, label])
    return found


def looks(shards: Path) -> tuple[str, ...]:
    """Identifiers of all evaluations on the test split."""
    file = shards / "test-looks.jsonl"
    found = set()
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        # As in `count_looks`, a truncated line counts too.
        try:
            found.add(str(json.loads(line)["look"]))
        except (ValueError, KeyError, TypeError):
            found.add(line)
    return tuple(sorted(found - {""}))
