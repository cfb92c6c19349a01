"""Losses with one value per slice, so that training on one device and on several agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike, NDArray

from kerasseg_tfrecords.errors import UsageError


@keras.saving.register_keras_serializable(package="kerasseg")
class DiceBCELoss(keras.losses.Loss):
    """Soft Dice loss plus binary cross-entropy, one value per slice.

    For a slice with target pixels g and predicted probabilities p:

        dice = (2 * sum(p * g) + smooth) / (sum(p) + sum(g) + smooth)
        bce  = mean(w * (-g * log(p) - (1 - g) * log(1 - p))),   w = positive_weight where g = 1, else 1
        loss = dice_weight * (1 - dice) + bce_weight * bce

    The Dice term is from V-Net (Milletari, Navab, Ahmadi, 3DV 2016; `squared=True` is their formula) and measures overlap
    at any tumour size. The cross-entropy adds a gradient for every pixel, also on slices without tumour, where the Dice
    term has almost none. The sum of both is the nnU-Net loss (Isensee et al., Nature Methods 2021).

    `smooth` gives a slice without tumour that is predicted empty a loss of 0 instead of 1, and hardly affects tumours of
    hundreds of pixels. With several channels the Dice term is averaged over channels.

    The loss is computed in float32 under every precision policy. It is not a scalar, so under `tf.distribute` the
    reduction `"sum_over_batch_size"` divides by the global batch, and several replicas give the gradient of one device
    (the scalar `keras.losses.Dice()` doubles on two replicas).

    Args:
        dice_weight: Weight of the Dice term, >= 0.
        bce_weight: Weight of the cross-entropy term, >= 0; one of the weights must be above 0.
        smooth: Pixels added to numerator and denominator of Dice, > 0.
        positive_weight: Weight of tumour pixels in the cross-entropy, > 0; other pixels have weight 1.
        squared: Whether to square the terms in the denominator of Dice.
        from_logits: Whether predictions are logits instead of probabilities.
        reduction: As in `keras.losses.Loss`; "none" returns the values per slice.
        name: Name of the loss.

    Call arguments:
        y_true: (batch, height, width, channels), values 0 and 1, any type; the channel axis may be omitted.
        y_pred: Same shape, floating-point.
        sample_weight: One weight per slice, (batch,) or (batch, 1); see `class_weights`. Slices of weight 0 still count in
            the average unless `reduction="mean_with_sample_weight"`.

    Raises:
        ValueError: The shapes do not match, or there is not one weight per slice.
        UsageError: An argument is out of range.

    Example:
        >>> import numpy as np
        >>> mask = np.zeros((2, 8, 8, 1), "float32"); mask[:, 2:5, 2:5] = 1
        >>> values = DiceBCELoss(reduction="none")(mask, mask)
        >>> values.shape, bool(np.abs(np.asarray(values)).max() < 1e-5)
        (TensorShape([2]), True)

        Custom training: `model.compile("adam", loss=kerasseg.DiceBCELoss())`.
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
        *,
        smooth: float = 1.0,
        positive_weight: float = 1.0,
        squared: bool = False,
        from_logits: bool = False,
        reduction: str = "sum_over_batch_size",
        name: str = "dice_bce",
        dtype: Any = None,
    ) -> None:
        # float32 regardless of keras.config.floatx(), because float16 cannot sum 65,536 pixels.
        super().__init__(name=name, reduction=reduction, dtype=dtype or "float32")
        for label, value in (("dice_weight", dice_weight), ("bce_weight", bce_weight)):
            if not (np.isfinite(value) and value >= 0):
                raise UsageError(f"{label} of the loss cannot be used", found=value, expected="a number >= 0")
        if dice_weight == 0 and bce_weight == 0:
            raise UsageError("the loss is always 0", found="dice_weight 0 and bce_weight 0", expected="one above 0")
        for label, value in (("smooth", smooth), ("positive_weight", positive_weight)):
            if not (np.isfinite(value) and value > 0):
                raise UsageError(f"{label} of the loss cannot be used", found=value, expected="a number > 0")
        self.dice_weight = float(dice_weight)
        self.bce_weight = float(bce_weight)
        self.smooth = float(smooth)
        self.positive_weight = float(positive_weight)
        self.squared = bool(squared)
        self.from_logits = bool(from_logits)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the reduced loss; see the class for shapes."""
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight)
            shape = tuple(sample_weight.shape)
            # Keras would broadcast (batch,) against (batch, height, width, 1) to batch x height x width x batch.
            if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
                msg = f"{self.name} takes one weight per slice, shape (batch,). Received: sample_weight.shape={shape}"
                raise ValueError(msg)
            sample_weight = ops.reshape(sample_weight, (-1,))
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each slice, (batch,)."""
        target, predicted = as_pair(y_true, y_pred, self.name)
        value = 0.0
        if self.dice_weight:
            value = value + self.dice_weight * (1.0 - self._dice(target, predicted))
        if self.bce_weight:
            value = value + self.bce_weight * self._bce(target, predicted)
        return value

    def _dice(self, target: Any, predicted: Any) -> Any:
        probability = ops.sigmoid(predicted) if self.from_logits else predicted
        pixels = list(range(1, len(probability.shape) - 1))
        overlap = ops.sum(target * probability, axis=pixels)
        sizes = ops.sum(
            ops.square(target) + ops.square(probability) if self.squared else target + probability, axis=pixels
        )
        return ops.mean((2.0 * overlap + self.smooth) / (sizes + self.smooth), axis=-1)

    def _bce(self, target: Any, predicted: Any) -> Any:
        value = ops.binary_crossentropy(target, predicted, from_logits=self.from_logits)
        if self.positive_weight != 1.0:
            value = value * (1.0 + (self.positive_weight - 1.0) * target)
        return ops.mean(value, axis=list(range(1, len(value.shape))))

    def get_config(self) -> dict[str, Any]:
        """Return all arguments, for `from_config`."""
        return {
            **super().get_config(),
            "dice_weight": self.dice_weight,
            "bce_weight": self.bce_weight,
            "smooth": self.smooth,
            "positive_weight": self.positive_weight,
            "squared": self.squared,
            "from_logits": self.from_logits,
            "dtype": self.dtype,
        }


def as_pair(y_true: Any, y_pred: Any, name: str) -> tuple[Any, Any]:
    """Return masks and predictions as float32 tensors of the same shape, (batch, ..., channels).

    A missing channel axis of the masks is added, because broadcasting (batch, h, w) against (batch, h, w, 1) would
    silently compare every slice with every other.

    Args:
        y_true: Masks.
        y_pred: Predictions, (batch, ..., channels).
        name: Name of the caller, for messages.

    Raises:
        ValueError: The shapes do not match.
    """
    predicted = ops.cast(ops.convert_to_tensor(y_pred), "float32")
    target = ops.cast(ops.convert_to_tensor(y_true), "float32")
    if len(target.shape) + 1 == len(predicted.shape) and predicted.shape[-1] == 1:
        target = ops.expand_dims(target, -1)
    same = len(target.shape) == len(predicted.shape) and all(
        a is None or b is None or a == b for a, b in zip(target.shape, predicted.shape, strict=True)
    )
    if not same or len(predicted.shape) < 3:
        msg = (
            f"{name} needs masks and predictions of one shape, (batch, height, width, channels). "
            f"Received: y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}"
        )
        raise ValueError(msg)
    return target, predicted


def class_weights(
    labels: ArrayLike, weights: Mapping[Any, float] | Literal["balanced"] = "balanced"
) -> NDArray[np.float32]:
    """Return a weight for each slice from its class, for use as `sample_weight`.

    Keras' own `class_weight=` does not work with masks, because it takes the class from the target.

    Args:
        labels: (slices,) class of each slice, integers or names.
        weights: Class -> weight > 0, for every class that occurs; "balanced" gives all classes the same total weight.

    Returns:
        (slices,) float32 with mean 1, so that the learning rate keeps its meaning.

    Raises:
        UsageError: A class has no weight, or a weight is not above 0.

    Example:
        >>> class_weights(["glioma", "glioma", "glioma", "meningioma"]).tolist()
        [0.6666666865348816, 0.6666666865348816, 0.6666666865348816, 2.0]
    """
    values = np.asarray(labels)
    if values.ndim != 1 or not values.size:
        raise UsageError("class weights need one label per slice", found=f"shape {values.shape}", expected="(slices,)")
    known, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    if isinstance(weights, str):
        if weights != "balanced":
            raise UsageError("unknown class weights", found=weights, expected="'balanced' or class -> weight")
        of_class: Sequence[float] = (values.size / (len(known) * counts)).tolist()
    else:
        missing = [item for item in known.tolist() if item not in weights]
        if missing:
            raise UsageError("a class has no weight", found=f"none for {missing}", expected="one for every class")
        of_class = [float(weights[item]) for item in known.tolist()]
    if not all(np.isfinite(w) and w > 0 for w in of_class):
        raise UsageError("class weights cannot be used", found=list(of_class), expected="numbers > 0")
    chosen = np.asarray(of_class)[inverse]
    return (chosen / chosen.mean()).astype(np.float32)
