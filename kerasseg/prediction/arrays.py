"""`predict_masks`: masks for slices in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg.postprocessing import MaskRule, apply_rule
from kerasseg.prediction.predictor import Network, Source, open_network
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.intensity import IntensityRule, fit_image, intensity_window, restore


def predict_masks(
    network: Source | Sequence[Source] | Network,
    images: Sequence[ArrayLike] | ArrayLike,
    *,
    rule: MaskRule | float | None = None,
    intensity: IntensityRule | None = None,
    flip_average: bool = False,
    batch_size: int | None = None,
) -> list[NDArray[np.bool_]]:
    """Predict masks for slices in memory, each at its own size.

    Args:
        network: A run, a checkpoint, a Keras model, several of these, or the result of `open_network`.
        images: Slices (height, width) or (height, width, 3) as stored: any integer or float type, range and size. Each is
            scaled separately.
        rule: Rule to use instead of the run's; a number is a threshold in (0, 1] without post-processing.
        intensity: Intensity rule to use instead of the run's: "minmax", "percentile" or "zscore".
        flip_average: Average the predictions of the image and its mirror image.
        batch_size: Slices per batch; None chooses.

    Returns:
        (height, width) bool per slice.

    Raises:
        UsageError: An array is not a slice, or an argument is invalid.
        DataError: The run does not exist or is damaged.
        CheckpointError: The network cannot be opened.

    Example:
        >>> import kerasseg
        >>> network = kerasseg.unet((32, 32, 1), filters=2, depth=1, seed=0)
        >>> slices = [np.arange(4800).reshape(60, 80), np.zeros((40, 40))]
        >>> [mask.shape for mask in predict_masks(network, slices, rule=0.5)]
        [(60, 80), (40, 40)]
    """
    opened = network
    if not isinstance(opened, Network):
        opened = open_network(
            opened,
            threshold=None if rule is None or isinstance(rule, MaskRule) else float(rule),
            rule=rule if isinstance(rule, MaskRule) else None,
            intensity=intensity,
            flip_average=flip_average,
            batch_size=batch_size,
        )
    slices = [_slice(image, number) for number, image in enumerate(images)]  # type: ignore[arg-type]
    masks: list[NDArray[np.bool_]] = []
    for first in range(0, len(slices), opened.batch_size):
        batch = slices[first : first + opened.batch_size]
        fitted = [_fit(image, opened) for image in batch]
        for image, answer in zip(batch, opened.probabilities(np.stack(fitted)), strict=True):
            masks.append(apply_rule(restore(answer, *image.shape[:2]), opened.rule))
    return masks


def _slice(image: ArrayLike, number: int) -> NDArray[np.generic]:
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.size == 0:
        raise UsageError(
            f"image {number} is not a slice",
            found=f"shape {array.shape}",
            expected="(height, width) or (height, width, 3)",
        )
    if array.dtype.kind not in "iufb" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise UsageError(
            f"image {number} contains NaN, infinite values or no numbers", found=f"{array.dtype}", expected="numbers"
        )
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _fit(image: NDArray[np.generic], network: Network) -> NDArray[np.uint8]:
    fitted = fit_image(image, intensity_window(image, network.intensity), network.size)
    if fitted.shape[2] > network.channels:
        raise UsageError("the network takes grey images, not colour images", expected="(height, width)")
    return fitted if fitted.shape[2] == network.channels else np.repeat(fitted, network.channels, axis=2)
