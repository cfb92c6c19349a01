"""Counts and boxes of tumours against SciPy on whole slices and volumes."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from kerasseg.prediction.table import count_tumours, describe

ACROSS = np.zeros((3, 3, 3), bool)
ACROSS[1] = ACROSS[:, 1, 1] = True  # corners touch within a slice, pixels in the same place from slice to slice


def test_tumours_of_volumes_and_slices() -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        masks = rng.random((5, 9, 11)) > rng.choice([0.6, 0.9, 0.97])
        masks[number % 5] = False  # nothing is connected across an empty slice
        probability = rng.random((9, 11), np.float32)
        assert count_tumours(list(masks)) == ndimage.label(masks, ACROSS)[1]
        row = describe("a", None, "b", masks[2], probability, (2.0, 1.5), 0.1)
        assert (row.area_px, row.area_mm2, row.tumour) == (masks[2].sum(), 3 * masks[2].sum(), masks[2].any())
        assert row.tumours == ndimage.label(masks[2], ACROSS[1])[1]
        if not masks[2].any():
            assert (row.top, row.left, row.height, row.width, row.mean_probability) == (None,) * 5
            continue
        rows, columns = np.nonzero(masks[2])
        assert (row.top, row.left) == (rows.min(), columns.min())
        assert (row.height, row.width) == (np.ptp(rows) + 1, np.ptp(columns) + 1)
        assert row.mean_probability == round(float(probability[masks[2]].mean()), 5)
