"""Scores of every slice of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SCORES = ("loss", "dice", "soft_dice", "iou", "precision", "recall")
Score = Literal["loss", "dice", "soft_dice", "iou", "precision", "recall"]


@dataclass(frozen=True, slots=True, eq=False)
class SliceTable:
    """One row per slice.

    Attributes:
        slice: (slices,) int64 number within the split.
        label: (slices,) int64 class.
        loss: (slices,) float32 loss, without L2.
        dice, soft_dice, iou, precision, recall: (slices,) float32, as in `kerasseg.slice_scores`, at threshold 0.5 and
            the network's resolution.
        tumour: (slices,) float32, 1 if the mask or the prediction contains a tumour pixel.
    """

    slice: NDArray[np.int64]
    label: NDArray[np.int64]
    loss: NDArray[np.float32]
    dice: NDArray[np.float32]
    soft_dice: NDArray[np.float32]
    iou: NDArray[np.float32]
    precision: NDArray[np.float32]
    recall: NDArray[np.float32]
    tumour: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Iterable[SliceTable]) -> SliceTable:
        """Join tables in slice order, without padding (slice -1)."""
        tables = list(parts)
        columns = {f.name: np.concatenate([getattr(table, f.name) for table in tables]) for f in fields(cls)}
        order = np.argsort(columns["slice"], kind="stable")
        order = order[columns["slice"][order] >= 0]
        return cls(**{name: column[order] for name, column in columns.items()})

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.slice)

    def mean(self, score: Score, *, subset: Literal["all", "tumour"] = "all", label: int | None = None) -> float:
        """Return the mean over slices; NaN if there are none.

        Args:
            score: One of `SCORES`.
            subset: "tumour" leaves out slices where mask and prediction are both empty.
            label: Only slices of this class.
        """
        chosen = np.ones(len(self), bool) if label is None else self.label == label
        if subset == "tumour":
            chosen &= self.tumour > 0
        values = getattr(self, score)[chosen]
        # float64, so that the mean does not depend on how slices were batched.
        return float(values.astype(np.float64).mean()) if values.size else float("nan")

    def by_class(self, score: Score, classes: Sequence[str]) -> dict[str, float]:
        """Class name -> mean over its slices."""
        return {name: self.mean(score, label=i) for i, name in enumerate(classes)}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Column name -> column, for saving; `SliceTable(**arrays)` restores the table."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
