"""Calibration: reliability curve and expected calibration error.

Almost all background pixels have a probability near 0, rightly, so that over all pixels every network would look
calibrated. Only pixels in and near the reference are counted, and slices without tumour are left out. Bins have equal
width, as in Guo et al., "On calibration of modern neural networks" (ICML 2017), which also defines the error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kerasseg.evaluation.predictions import Predictions, Resolution
from kerasseg.evaluation.schema import Calibration

BINS = 15
"""Number of bins, as in Guo et al."""

MARGIN = 0.1
"""Margin around the reference's bounding box, as a share of the slice's longer side."""


def calibrate(predictions: Predictions, *, resolution: Resolution = "native", bins: int = BINS) -> Calibration:
    """Compute the reliability curve over all slices with tumour.

    Example:
        >>> from kerasseg.evaluation.predictions import ArrayPredictions
        >>> masks = np.zeros((1, 10, 10), bool); masks[0, :, :5] = True
        >>> sure = calibrate(ArrayPredictions(masks * 0.9, masks), bins=2)
        >>> sure.predicted, sure.observed, round(sure.error, 3)
        ((0.0, 0.899...), (0.0, 1.0), 0.083)
    """
    pixels = np.zeros(bins, np.int64)
    predicted, observed = np.zeros(bins), np.zeros(bins)
    for number in range(len(predictions)):
        mask = predictions.case(number, resolution).mask
        if not mask.any():
            continue
        window = near(mask)
        probability = predictions.probability(number, resolution)[window].ravel().astype(np.float64)
        place = np.minimum((probability * bins).astype(np.int64), bins - 1)
        pixels += np.bincount(place, minlength=bins)
        predicted += np.bincount(place, probability, minlength=bins)
        observed += np.bincount(place, mask[window].ravel(), minlength=bins)
    total = int(pixels.sum())
    with np.errstate(invalid="ignore"):
        predicted, observed = predicted / pixels, observed / pixels
    error = float(np.nansum(np.abs(predicted - observed) * pixels) / total) if total else None
    return Calibration(
        edges=tuple(np.linspace(0, 1, bins + 1).tolist()),
        predicted=_plain(predicted),
        observed=_plain(observed),
        pixels=tuple(pixels.tolist()),
        error=error,
    )


def near(mask: NDArray[np.bool_], margin: float = MARGIN) -> tuple[slice, slice]:
    """Return the bounding box of a mask, widened by a share of the image's longer side, within the image.

    >>> mask = np.zeros((20, 20), bool); mask[8:10, 0] = True
    >>> near(mask)
    (slice(6, 12, None), slice(0, 3, None))
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    wide = int(np.ceil(margin * max(mask.shape)))
    return (
        slice(max(0, int(rows[0]) - wide), min(mask.shape[0], int(rows[-1]) + 1 + wide)),
        slice(max(0, int(columns[0]) - wide), min(mask.shape[1], int(columns[-1]) + 1 + wide)),
    )


def _plain(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)
