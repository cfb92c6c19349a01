"""Dice of masks, for each slice, in plain NumPy: 1 if both are empty, 0 if one is.

`kerasseg.metrics` scores probabilities on tensors during training, `kerasseg.evaluation.scoring` whole evaluations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg_tfrecords.errors import UsageError


def dice(prediction: ArrayLike, reference: ArrayLike) -> np.float64 | NDArray[np.float64]:
    """Compute 2 |A and B| / (|A| + |B|) of each slice; 1 if both are empty.

    Args:
        prediction: Masks (height, width), (slices, height, width) or (slices, height, width, 1): booleans, or 0 and 1.
        reference: Ground truth of the same shape.

    Returns:
        A number in [0, 1] for one slice, an array (slices,) for several.

    Raises:
        UsageError: Sizes differ, or values are neither 0 nor 1 (probabilities are not rounded).

    Example:
        >>> reference = np.zeros((2, 8, 8), bool); reference[0, 2:6, 2:6] = True; reference[1, 4, 4] = True
        >>> prediction = reference.copy(); prediction[0, 5] = False; prediction[1] = False  # the small one is missed
        >>> dice(prediction, reference).round(3).tolist()
        [0.857, 0.0]
    """
    pair = mask_pair(*(_slices(np.asarray(array)) for array in (prediction, reference)))
    both, *sizes = (np.count_nonzero(mask, axis=(-2, -1)) for mask in (pair[0] & pair[1], *pair))
    below = np.asarray(sum(sizes), np.float64)
    return np.divide(2.0 * both, below, out=np.ones_like(below), where=below > 0)[()]


def mask_pair(prediction: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return both masks as boolean arrays of the same shape.

    Example:
        >>> mask_pair([[0, 1]], [[0.3, 0.9]])
        Traceback (most recent call last):
        ...
        kerasseg_tfrecords.errors.UsageError: the reference is not a mask (found 0.3, expected booleans or 0 and 1). ...
    """
    pair = _boolean(prediction, "prediction"), _boolean(reference, "reference")
    if pair[0].shape != pair[1].shape:
        found = f"{pair[0].shape} and {pair[1].shape}"
        raise UsageError("prediction and reference differ in size", found=found, expected="the same shape")
    return pair


def _boolean(values: ArrayLike, what: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.dtype == bool:
        return array
    if array.dtype.kind not in "uif":
        raise UsageError(f"the {what} is not a mask", found=array.dtype, expected="booleans or 0 and 1")
    mask: NDArray[np.bool_] = array == 1
    odd = array[~mask & (array != 0)]  # includes NaN
    if odd.size:
        remedy = "Compare probabilities with a threshold, pictures with 0"
        raise UsageError(f"the {what} is not a mask", found=odd.flat[0], expected="booleans or 0 and 1", remedy=remedy)
    return mask


def _slices(array: NDArray[np.generic]) -> NDArray[np.generic]:
    if array.ndim == 4 and array.shape[-1] == 1:
        return array[..., 0]
    # (height, width, 1) would count as slices of one pixel's width.
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] == 1 < array.shape[1]):
        expected = "(height, width), (slices, height, width) or (slices, height, width, 1)"
        raise UsageError("invalid shape of masks", found=array.shape, expected=expected)
    return array
