"""Scores of single slices, and Keras metrics that average them over slices rather than over pooled pixels.

| mask | prediction | Dice, soft Dice, IoU | precision | recall | in "tumour" |
| --- | --- | --- | --- | --- | --- |
| empty | empty | 1 | 1 | 1 | no |
| empty | something | 0 | 0 | 0 | yes |
| tumour | empty | 0 (soft Dice: as computed) | 0 | 0 | yes |
| tumour | something | as computed | as computed | as computed | yes |
| any | holds a NaN | NaN | NaN | NaN | yes |

A prediction is empty when no pixel reaches the threshold. The third row is a missed tumour and counts as 0. The last row
exposes a broken network, whose NaN outputs would otherwise count as "no tumour" and score 1 on slices without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, cast

import keras
import numpy as np
from keras import ops

from kerasseg.losses import as_pair
from kerasseg_tfrecords.errors import UsageError

MEASURES = ("dice", "soft_dice", "iou", "precision", "recall")
Subset = Literal["all", "tumour"]


class SliceScores(NamedTuple):
    """Scores of each slice of a batch: float32 tensors of shape (batch,) in [0, 1].

    Attributes:
        dice: 2 |A and B| / (|A| + |B|) of mask and thresholded prediction.
        soft_dice: 2 sum(p g) / (sum(p) + sum(g)); the threshold matters only if the mask is empty.
        iou: |A and B| / |A or B| (Jaccard).
        precision: Fraction of predicted pixels that are tumour.
        recall: Fraction of tumour pixels that are predicted.
        tumour: 1 if the mask or the prediction contains tumour, 0 if both are empty.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((2, 4, 4, 1), "float32"); mask[0, 0] = 1  # the second slice has no tumour
        >>> scores = slice_scores(mask, mask)
        >>> [np.asarray(value).tolist() for value in (scores.dice, scores.tumour)]
        [[1.0, 1.0], [1.0, 0.0]]
    """

    dice: Any
    soft_dice: Any
    iou: Any
    precision: Any
    recall: Any
    tumour: Any


def slice_scores(y_true: Any, y_pred: Any, threshold: float = 0.5, *, from_logits: bool = False) -> SliceScores:
    """Score each slice separately; the module's table lists the edge cases.

    Args:
        y_true: Masks (batch, height, width, 1) or (batch, height, width); above 0.5 is tumour.
        y_pred: Probabilities (or logits) (batch, height, width, 1).
        threshold: Minimum probability of a tumour pixel, in (0, 1].
        from_logits: Whether predictions are logits; the threshold remains a probability.

    Returns:
        Tensors (batch,), float32 under every precision policy.

    Raises:
        ValueError: The shapes do not match.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((2, 8, 8, 1)); mask[0, 2:6, 2:6] = 1; mask[1, 4, 4] = 1
        >>> found = np.zeros((2, 8, 8, 1)); found[0, 2:6, 2:6] = 0.9  # the one-pixel tumour is missed
        >>> slice_scores(mask, found).dice.numpy().tolist()
        [1.0, 0.0]
    """
    target, predicted = as_pair(y_true, y_pred, "slice_scores")
    pixels = list(range(1, len(predicted.shape)))
    probability = ops.sigmoid(predicted) if from_logits else predicted
    truth = ops.cast(target > 0.5, "float32")
    found = ops.cast(probability >= threshold, "float32")

    overlap = ops.sum(truth * found, axis=pixels)
    true_size = ops.sum(truth, axis=pixels)
    found_size = ops.sum(found, axis=pixels)
    soft_overlap = ops.sum(truth * probability, axis=pixels)
    soft_size = ops.sum(probability, axis=pixels)

    both_empty = (true_size + found_size) == 0.0
    broken = ops.isnan(soft_size)

    def ratio(above: Any, below: Any) -> Any:
        # The inner `where` avoids 0 / 0, which the NaN checkers of JAX and TensorFlow would report.
        value = ops.where(below > 0.0, above / ops.where(below > 0.0, below, 1.0), 0.0)
        value = ops.where(both_empty, 1.0, value)
        return ops.where(broken, float("nan"), value)

    return SliceScores(
        dice=ratio(2.0 * overlap, true_size + found_size),
        soft_dice=ratio(2.0 * soft_overlap, true_size + soft_size),
        iou=ratio(overlap, true_size + found_size - overlap),
        precision=ratio(overlap, found_size),
        recall=ratio(overlap, true_size),
        tumour=ops.cast(ops.logical_or(ops.logical_not(both_empty), broken), "float32"),
    )


class _SliceMean(keras.metrics.Metric):
    """Mean of one score over slices; documented in `DiceScore`."""

    measure: ClassVar[str]
    _direction = "up"

    def __init__(
        self,
        threshold: float = 0.5,
        subset: Subset = "all",
        name: str | None = None,
        *,
        from_logits: bool = False,
        dtype: Any = None,
    ) -> None:
        if name is None:
            name = self.measure if subset == "all" else f"{self.measure}_{subset}"
        super().__init__(name=name, dtype=dtype or "float32")
        self.threshold, self.subset = _checked(threshold, subset)
        self.from_logits = bool(from_logits)
        self.total = self.add_variable(shape=(), initializer="zeros", dtype="float32", name="total")
        self.count = self.add_variable(shape=(), initializer="zeros", dtype="float32", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add the slices of a batch."""
        scores = slice_scores(y_true, y_pred, self.threshold, from_logits=self.from_logits)
        weight = _weights(scores, self.subset, sample_weight, self.name)
        values = getattr(scores, self.measure)
        self.total.assign(self.total + ops.sum(_weighted(values, weight)))
        self.count.assign(self.count + ops.sum(weight))

    def result(self) -> Any:
        """Return the mean over the slices so far; NaN before the first."""
        return _mean(self.total, self.count)

    def get_config(self) -> dict[str, Any]:
        """Return all arguments, for `from_config`."""
        return {
            **super().get_config(),
            "threshold": self.threshold,
            "subset": self.subset,
            "from_logits": self.from_logits,
        }


@keras.saving.register_keras_serializable(package="kerasseg")
class DiceScore(_SliceMean):
    """Mean over slices of Dice at a threshold: 2 |A and B| / (|A| + |B|) for each slice.

    The result is NaN until a slice counts. Replicas add up sums and counts, so several devices give the mean over all
    slices, however unevenly they are distributed.

    Args:
        threshold: Minimum probability of a tumour pixel, in (0, 1].
        subset: "all" slices, or "tumour" to leave out slices where mask and prediction are both empty.
        name: Name in logs; by default the measure and subset.
        from_logits: Whether predictions are logits.

    Call arguments:
        y_true: Masks (batch, height, width, 1) or (batch, height, width).
        y_pred: Probabilities (batch, height, width, 1).
        sample_weight: (batch,) or (batch, 1). Slices of weight 0 are ignored, even if they contain NaN. Keras passes
            weights only to `weighted_metrics=`.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((3, 8, 8, 1)); mask[0, 2:6, 2:6] = 1; mask[1, 4, 4] = 1
        >>> found = np.zeros((3, 8, 8, 1)); found[0, 2:6, 2:6] = 1
        >>> float(DiceScore()(mask, found)), float(DiceScore(subset="tumour")(mask, found))  # hit, miss, both empty
        (0.6666666865348816, 0.5)
    """

    measure = "dice"


@keras.saving.register_keras_serializable(package="kerasseg")
class SoftDice(_SliceMean):
    """Mean over slices of soft Dice, 2 sum(p g) / (sum(p) + sum(g)); arguments as in `DiceScore`.

    Unlike the loss, it has no smoothing term, with which a missed one-pixel tumour would score 0.5. The threshold only
    decides which predictions are empty.

    Example:
        >>> import numpy as np
        >>> mask = np.ones((1, 2, 2, 1), "float32")
        >>> round(float(SoftDice()(mask, 0.6 * mask)), 3), float(DiceScore()(mask, 0.6 * mask))
        (0.75, 1.0)
    """

    measure = "soft_dice"


@keras.saving.register_keras_serializable(package="kerasseg")
class IoU(_SliceMean):
    """Mean over slices of intersection over union (Jaccard) at a threshold; arguments as in `DiceScore`.

    Example:
        >>> import numpy as np
        >>> mask = np.array([1, 1, 0, 0], "float32").reshape(1, 2, 2, 1)
        >>> found = np.array([1, 0, 0, 0], "float32").reshape(1, 2, 2, 1)
        >>> float(IoU()(mask, found))
        0.5
    """

    measure = "iou"


@keras.saving.register_keras_serializable(package="kerasseg")
class Precision(_SliceMean):
    """Mean over slices of the fraction of predicted pixels that are tumour; arguments as in `DiceScore`.

    Example:
        >>> import numpy as np
        >>> mask = np.array([1, 1, 0, 0], "float32").reshape(1, 2, 2, 1)
        >>> found = np.array([1, 0, 0, 0], "float32").reshape(1, 2, 2, 1)
        >>> float(Precision()(mask, found))
        1.0
    """

    measure = "precision"


@keras.saving.register_keras_serializable(package="kerasseg")
class Recall(_SliceMean):
    """Mean over slices of the fraction of tumour pixels that are predicted; arguments as in `DiceScore`.

    Example:
        >>> import numpy as np
        >>> mask = np.array([1, 1, 0, 0], "float32").reshape(1, 2, 2, 1)
        >>> found = np.array([1, 0, 0, 0], "float32").reshape(1, 2, 2, 1)
        >>> float(Recall()(mask, found))
        0.5
    """

    measure = "recall"


@keras.saving.register_keras_serializable(package="kerasseg")
class ClassScores(keras.metrics.Metric):
    """Mean scores of each class, for several measures in one pass.

    Keras passes no class labels to metrics, so call this one from a custom training or evaluation step.

    Args:
        classes: Class names; label i is `classes[i]`. Other labels (-1 for unknown) are ignored.
        measures: A selection from `MEASURES`.
        threshold: See `DiceScore`.
        subset: See `DiceScore`.
        name: Name of the metric.
        from_logits: Whether predictions are logits.

    Raises:
        UsageError: Class names are missing or repeated, or a measure is unknown.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((2, 8, 8, 1)); mask[:, 2:6, 2:6] = 1
        >>> found = mask.copy(); found[1] = 0
        >>> metric = ClassScores(["glioma", "meningioma", "pituitary"])
        >>> metric.update_state(mask, found, labels=[0, 1])
        >>> {name: float(value) for name, value in metric.result().items()}
        {'dice_glioma': 1.0, 'dice_meningioma': 0.0, 'dice_pituitary': nan}
    """

    _direction = "up"

    def __init__(
        self,
        classes: Sequence[str],
        measures: Sequence[str] = ("dice",),
        threshold: float = 0.5,
        subset: Subset = "all",
        name: str = "class_scores",
        *,
        from_logits: bool = False,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype or "float32")
        self.classes, self.measures = tuple(classes), tuple(measures)
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise UsageError("class names of a metric cannot be used", found=list(classes), expected="distinct names")
        unknown = [m for m in self.measures if m not in MEASURES]
        if unknown or not self.measures:
            raise UsageError("unknown measure", found=unknown or "none", expected=", ".join(MEASURES))
        self.threshold, self.subset = _checked(threshold, subset)
        self.from_logits = bool(from_logits)
        shape = (len(self.measures), len(self.classes))
        self.total = self.add_variable(shape=shape, initializer="zeros", dtype="float32", name="total")
        self.count = self.add_variable(shape=shape[1:], initializer="zeros", dtype="float32", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None, *, labels: Any) -> None:
        """Add the slices of a batch; `labels` are integers (batch,)."""
        scores = slice_scores(y_true, y_pred, self.threshold, from_logits=self.from_logits)
        weight = _weights(scores, self.subset, sample_weight, self.name)
        labels = ops.cast(ops.reshape(ops.convert_to_tensor(labels), (-1, 1)), "int32")
        member = ops.cast(labels == ops.arange(len(self.classes), dtype="int32"), "float32")
        values = ops.stack([_weighted(getattr(scores, m), weight) for m in self.measures])
        # Not a matrix product, because 0 * NaN would spread a NaN to all classes.
        apart = ops.where(member > 0.0, values[:, :, None], 0.0)
        self.total.assign(self.total + ops.sum(apart, axis=1))
        self.count.assign(self.count + ops.sum(member * weight[:, None], axis=0))

    def result(self) -> dict[str, Any]:
        """Return `{measure}_{class}` -> mean over the slices of the class; NaN if it has none."""
        means = _mean(self.total, self.count)
        return {f"{m}_{c}": means[i, j] for i, m in enumerate(self.measures) for j, c in enumerate(self.classes)}

    def get_config(self) -> dict[str, Any]:
        """Return all arguments, for `from_config`."""
        return {
            **super().get_config(),
            "classes": list(self.classes),
            "measures": list(self.measures),
            "threshold": self.threshold,
            "subset": self.subset,
            "from_logits": self.from_logits,
        }


def _checked(threshold: float, subset: str) -> tuple[float, Subset]:
    if not 0 < threshold <= 1:  # also catches NaN
        raise UsageError("threshold cannot be used", found=threshold, expected="a probability in (0, 1]")
    if subset not in ("all", "tumour"):
        raise UsageError("unknown subset of slices", found=subset, expected="'all' or 'tumour'")
    return float(threshold), cast(Subset, subset)


def _weights(scores: SliceScores, subset: Subset, sample_weight: Any, name: str) -> Any:
    """Return the weight (batch,) of each slice."""
    weight = scores.tumour if subset == "tumour" else ops.ones_like(scores.tumour)
    if sample_weight is None:
        return weight
    given = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
    if not (len(given.shape) <= 1 or (len(given.shape) == 2 and given.shape[1] == 1)):
        msg = f"{name} takes one weight per slice, shape (batch,). Received: sample_weight.shape={tuple(given.shape)}"
        raise ValueError(msg)
    return weight * (ops.reshape(given, (-1,)) if len(given.shape) else given)


def _weighted(values: Any, weight: Any) -> Any:
    # Padding slices may contain anything, and 0 * NaN is NaN.
    return ops.where(weight > 0.0, values * weight, 0.0)


def _mean(total: Any, count: Any) -> Any:
    count = ops.convert_to_tensor(count)
    return ops.where(count > 0.0, total / ops.where(count > 0.0, count, 1.0), np.float32("nan"))
