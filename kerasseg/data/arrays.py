"""Slices in memory, with the interface of a split."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kerasseg_tfrecords.errors import DataError, UsageError

_ONE_CLASS = "all"


class ArraySlices:
    """Slices in memory, with the interface of `SplitSlices`; slice i is row i.

    Args:
        images: (n, height, width, channels), float in [0, 1], or uint8.
        masks: (n, height, width, 1) or (n, height, width), 0 and 1 or False and True.
        labels: (n,) class of each slice, names or integers; None: a single class, "all".
        groups: (n,) patient of each slice; "" or None: each slice is its own patient.
        name: Name of the arrays, for messages.

    Attributes:
        labels: (n,) int64 index into `classes`.
        classes: Names, sorted; numbers become text.
        groups: (n,) patient of each slice, str.
        shape: (height, width, channels).

    Raises:
        DataError: There are no slices, values are out of range, or the arrays differ in shape.

    Example:
        >>> images, masks = np.zeros((4, 16, 16, 1), "float32"), np.zeros((4, 16, 16, 1), "float32")
        >>> slices = ArraySlices(images, masks, labels=["glioma", "meningioma"] * 2)
        >>> slices.classes, slices.labels.tolist(), bool(slices.with_tumour().any())
        (('glioma', 'meningioma'), [0, 1, 0, 1], False)
    """

    root = None
    cache: Literal["memory"] = "memory"

    def __init__(
        self,
        images: ArrayLike,
        masks: ArrayLike,
        labels: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        name: str = "slices",
    ) -> None:
        self._images, self._masks = _checked(np.asarray(images), np.asarray(masks), name)
        many = len(self._images)
        self.shape: tuple[int, int, int] = self._images.shape[1:]
        self.classes: tuple[str, ...] = (_ONE_CLASS,)
        self.labels = np.zeros(many, np.int64)
        if labels is not None:
            known, inverse = np.unique(_column(labels, many, f"labels of the {name}"), return_inverse=True)
            self.classes, self.labels = tuple(str(item) for item in known.tolist()), inverse.astype(np.int64)
        given = None if groups is None else _column(groups, many, f"groups of the {name}")
        self.groups: NDArray[np.str_] = np.full(many, "") if given is None else given.astype(str)

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, numbers: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return images (n, height, width, channels) and masks (n, height, width, 1)."""
        return self._images[numbers], self._masks[numbers]

    def with_tumour(self) -> NDArray[np.bool_]:
        """Return (n,) whether the mask of each slice has any pixel."""
        return np.asarray(self._masks.any(axis=(1, 2, 3)))

    def slice_ids(self, numbers: NDArray[np.int64]) -> list[str]:
        """Return names of slices for messages: the rows of the arrays."""
        return [f"row {number}" for number in np.asarray(numbers).tolist()]

    def classes_to_expect(self) -> set[str]:
        return set(self.classes)


def _checked(images: NDArray[Any], masks: NDArray[Any], name: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    if masks.ndim == 3:
        masks = masks[..., None]
    if images.ndim != 4 or masks.shape != (*images.shape[:3], 1):
        raise DataError(
            f"images and masks of the {name} have different shapes",
            found=f"images {images.shape}, masks {masks.shape}",
            expected="(n, height, width, channels) and (n, height, width, 1)",
        )
    if not images.size:
        raise DataError(f"the {name} are empty", found=f"images {images.shape}")
    if images.dtype != np.uint8:
        if images.dtype.kind != "f":
            raise DataError(f"images of the {name} cannot be used", found=images.dtype, expected="float, or uint8")
        images = images.astype(np.float32, copy=False)
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise DataError(
                f"images of the {name} are out of range",
                found=f"{low:g} to {high:g}",
                expected="0 to 1",
                remedy="Scale them, for example each slice by its minimum and maximum.",
            )
    values = np.unique(masks)
    if not np.isin(values, (0, 1)).all():
        raise DataError(
            f"masks of the {name} cannot be used", found=f"values {values[:5].tolist()}", expected="0 and 1"
        )
    return images, masks.astype(np.uint8)


def _column(values: ArrayLike, many: int, what: str) -> NDArray[Any]:
    column = np.asarray(values)
    if column.shape != (many,):
        raise UsageError(f"the {what} do not fit", found=f"shape {column.shape}", expected=f"({many},): one per slice")
    return column
