"""Evaluate a network on arrays, without reading or writing files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg.evaluation.calibration import calibrate
from kerasseg.evaluation.figures import Resampling, gain_classes, gains, network_figures, tuning_gain
from kerasseg.evaluation.per_slice import SliceRow
from kerasseg.evaluation.predictions import ArrayPredictions, check_probabilities
from kerasseg.evaluation.schema import Evaluation, Mean, SplitFacts, StageName
from kerasseg.evaluation.scoring import score_slices, stage_rules, with_baseline
from kerasseg.models.input_scaling import read_input_scaling
from kerasseg.postprocessing import MaskRule
from kerasseg.runs.config import software
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.errors import UsageError


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The result of `evaluate`.

    Attributes:
        figures: All figures, in the form of `metrics.json`.
        rows: The scores of each slice, in the order of the arrays.

    Example:
        >>> import kerasseg
        >>> images = np.random.default_rng(0).random((4, 16, 16, 1), "float32")
        >>> done = kerasseg.evaluate(kerasseg.unet((16, 16, 1), filters=2, depth=1), images, images > 0.5)
        >>> len(done.rows), done.dice.slices, 0 <= done.dice.mean <= 1
        (4, 4, True)
    """

    figures: Evaluation
    rows: tuple[SliceRow, ...]

    @property
    def dice(self) -> Mean:
        """Mean Dice over all slices at the final stage, with its interval."""
        return self.figures.final_stage().all.measures["dice"]


def evaluate(
    model: keras.Model,
    images: ArrayLike | Iterable[Any],
    masks: ArrayLike | None = None,
    *,
    labels: ArrayLike | None = None,
    groups: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    spacing: tuple[float, float] | None = None,
    rule: MaskRule | float = 0.5,
    baseline: keras.Model | None = None,
    batch_size: int = 8,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> EvaluationResult:
    """Evaluate a network on arrays: the figures of `kerasseg evaluate`, at the network's size.

    Args:
        model: Network that takes (batch, height, width, channels) and returns probabilities (batch, height, width, 1).
        images: (slices, height, width, channels) in the range of the network, usually float32 in [0, 1]; uint8 is divided
            by 255. The last axis of grey images may be missing; they are repeated for three channels. Without `masks`, a
            finite data set: batches (images, masks) or (images, masks, weights), where rows of weight 0 are left out, or
            dictionaries with "image", "mask", "weight", "label", as from `load_split`.
        masks: (slices, height, width) or (slices, height, width, 1); above 0.5 is tumour.
        labels: (slices,) index into `classes`; None: a single class.
        groups: (slices,) patient of each slice, for the intervals; "" if unknown. None treats every slice as a patient of
            its own, which makes intervals too narrow if patients have several slices.
        classes: Class names; None: the labels as text.
        spacing: Millimetres per pixel, rows then columns, of all slices; None if unknown.
        rule: A threshold in (0, 1], or a rule with post-processing.
        baseline: Another network for the same images, to compute the gain.
        batch_size: Slices per batch.
        confidence: Confidence level of the intervals.
        resamples: Random sign flips.
        seed: Random seed of the sign flips.

    Returns:
        Figures and the scores of each slice. An empty slice that is predicted empty has Dice 1, a missed tumour 0.

    Raises:
        UsageError: Arrays do not fit each other or the network, or the output is not a probability.
        KerassegError: The network returns NaN.

    Example:
        >>> import kerasseg
        >>> model = kerasseg.unet((16, 16, 1), depth=1, filters=2, seed=0)
        >>> images = np.zeros((4, 16, 16, 1), np.float32)
        >>> masks = np.zeros((4, 16, 16), bool); masks[:, 4:9, 4:9] = True
        >>> result = evaluate(model, images, masks, groups=["a", "a", "b", "b"], rule=1.0)
        >>> result.dice.mean, result.figures.final_stage().all.missed, result.rows[0].missed()
        (0.0, 4, True)
    """
    chosen = rule if isinstance(rule, MaskRule) else _threshold(rule)
    final = stage_of_rule(chosen)
    rules = stage_rules(chosen, final)
    resampling = Resampling(confidence, resamples, seed)
    if masks is None:
        images, masks, found = _gathered(images)
        labels = found if labels is None else labels
    pictures = _images(images, model)
    predictions = _predictions(model, pictures, masks, labels, groups, classes, spacing, batch_size)
    rows = score_slices(predictions, rules)
    before = None
    if baseline is not None:
        others = _predictions(baseline, _images(images, baseline), masks, labels, groups, classes, spacing, batch_size)
        before = score_slices(others, rules)
        rows = with_baseline(rows, before)
    networks = Scores(rows, before, rules, rules)
    figures = Evaluation(
        **networks.figures(predictions.classes, final, resampling),
        run="",
        run_id="",
        network=str(model.name),
        shards="",
        split="all",
        resolution="model",
        threshold=f"{chosen.threshold:g}",
        calibration=calibrate(predictions),
        data=SplitFacts(
            split_by="slice" if groups is None else "patient",
            seed=0,
            shares="",
            patients_on_both_sides=0,
            slices_without_patient=len(rows) if groups is None else sum(not group for group in groups),
            intensity="",
            size=int(pictures.shape[1]),
            fingerprint="",
        ),
    )
    return EvaluationResult(figures, tuple(rows))


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of every slice by a network and its baseline."""

    rows: list[SliceRow]
    before: list[SliceRow] | None
    rules: Mapping[StageName, MaskRule]
    rules_before: Mapping[StageName, MaskRule]

    def figures(self, classes: tuple[str, ...], final: StageName, resampling: Resampling) -> dict[str, Any]:
        """Return the fields of `Evaluation` that follow from the scores, with versions and time."""
        rows, before = self.rows, self.before
        return {
            "kerasseg": __version__,
            "software": software(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "confidence": resampling.confidence,
            "classes": classes,
            "final": final,
            "model": network_figures(rows, classes, self.rules, resampling),
            "baseline": None if before is None else network_figures(before, classes, self.rules_before, resampling),
            "gain": {} if before is None else gains(rows, tuple(self.rules), resampling),
            "gain_classes": {} if before is None else gain_classes(rows, classes, final, resampling),
            "tuning_gain": None if final == "raw" else tuning_gain(rows, final, resampling),
        }


def stage_of_rule(rule: MaskRule) -> StageName:
    """Return the stage that a rule belongs to.

    >>> stage_of_rule(MaskRule()), stage_of_rule(MaskRule(threshold=0.4)), stage_of_rule(MaskRule(fill_holes=True))
    ('raw', 'threshold', 'postprocessing')
    """
    return "postprocessing" if rule.postprocesses else "raw" if rule == MaskRule() else "threshold"


def _threshold(value: float) -> MaskRule:
    if not 0 < value <= 1:  # also catches NaN
        raise UsageError("invalid threshold", found=value, expected="a probability in (0, 1]")
    return MaskRule(threshold=float(value))


def _gathered(dataset: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64] | None]:
    """Return images, masks and, if known, labels of all batches of a data set."""
    if isinstance(dataset, np.ndarray):
        raise UsageError("masks are missing", found="images alone", expected="images and masks, or a data set of both")
    # Keras' own data sets are sequences that do not raise IndexError at the end.
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]] = []
    for batch in (dataset[i] for i in range(len(dataset))) if indexed else dataset:
        named = isinstance(batch, Mapping)
        image, mask, *more = (batch["image"], batch["mask"]) if named else batch
        weight = batch.get("weight") if named else more[0] if more else None
        label = batch.get("label") if named else None
        there = slice(None) if weight is None else np.asarray(weight).reshape(-1) > 0
        values = (np.asarray(image)[there], np.asarray(mask)[there])
        parts.append((*values, None if label is None else np.asarray(label).reshape(-1)[there]))
    if not parts:
        raise UsageError("no slices to evaluate", found="a data set without batches", expected="at least one")
    labels = [label for _, _, label in parts if label is not None]
    return (
        np.concatenate([image for image, _, _ in parts]),
        np.concatenate([mask for _, mask, _ in parts]),
        np.concatenate(labels).astype(np.int64) if len(labels) == len(parts) else None,
    )


def _images(images: Any, model: keras.Model) -> NDArray[np.float32]:
    given = np.asarray(images)
    values = given.astype(np.float32)
    if given.dtype == np.uint8:
        scaling = read_input_scaling(model)
        values /= np.float32(255 / (scaling.white if scaling else 1.0))
    if values.ndim == 3:
        values = values[..., np.newaxis]
    wanted = tuple(model.inputs[0].shape)
    if values.ndim == 4 and values.shape[3] == 1 and wanted[3] == 3:
        values = np.repeat(values, 3, axis=3)
    fits = values.ndim == 4 and all(w in (None, n) for w, n in zip(wanted[1:], values.shape[1:], strict=True))
    if not fits:
        expected = " x ".join("any" if w is None else str(w) for w in wanted[1:])
        raise UsageError(
            "the images do not fit the network",
            found=f"shape {given.shape}",
            expected=f"(slices, ...) of {expected}",
            remedy="Resize them, or evaluate at native size with kerasseg prepare and kerasseg evaluate.",
        )
    return values


def _predictions(
    model: keras.Model,
    images: NDArray[np.float32],
    masks: ArrayLike,
    labels: ArrayLike | None,
    groups: Sequence[str] | None,
    classes: Sequence[str] | None,
    spacing: tuple[float, float] | None,
    batch_size: int,
) -> ArrayPredictions:
    count, height, width = images.shape[:3]
    if not count:
        raise UsageError("no slices to evaluate", found="0 slices", expected="at least one")
    probabilities = np.empty((count, height, width), np.float32)
    for start in range(0, count, batch_size):
        batch = images[start : start + batch_size]
        values = model.predict_on_batch(batch)
        probabilities[start : start + len(batch)] = check_probabilities(values, (len(batch), height, width))
    return ArrayPredictions(probabilities, masks, labels, groups, classes, spacing)
