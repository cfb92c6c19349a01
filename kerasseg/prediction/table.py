"""Tumours found in each slice and case: the rows of `predictions.csv`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.tables import format_csv


@dataclass(frozen=True, slots=True)
class FoundTumour:
    """Result of one slice.

    Attributes:
        file: Name of the input.
        slice: Index in its volume, from 0; None for a picture.
        mask: File of the mask, relative to the output folder.
        tumour: Whether a tumour was found.
        area_px: Area of the mask in pixels.
        area_mm2: Area of the mask in square millimetres; None if the pixel size is unknown.
        top, left, height, width: Bounding box of the mask in pixels; None without a tumour.
        mean_probability: Mean probability over the mask's pixels, [0, 1]; None without a tumour.
        seconds: Time spent on this slice in reading, network and writing, which overlap with those of other slices.
        tumours: Connected tumours in the slice; None in tables of earlier versions.
        case_tumours: Connected tumours in the whole volume or series, the same in each of its slices.
        case_volume_ml: Tumour volume of the whole volume or series in millilitres, the same in each of its slices; None
            for single slices, and if the voxel size is unknown.
    """

    file: str
    slice: int | None
    mask: str
    tumour: bool
    area_px: int
    area_mm2: float | None
    top: int | None
    left: int | None
    height: int | None
    width: int | None
    mean_probability: float | None
    seconds: float
    tumours: int | None = None
    case_tumours: int | None = None
    case_volume_ml: float | None = None


def describe(
    file: str,
    place: int | None,
    mask_file: str,
    mask: NDArray[np.bool_],
    probability: NDArray[np.float32],
    spacing: tuple[float, float],
    seconds: float,
) -> FoundTumour:
    """Describe the tumour in one slice.

    Args:
        file: Name of the input.
        place: Index in its volume; None for a picture.
        mask_file: File of the mask.
        mask: (height, width).
        probability: (height, width).
        spacing: Pixel size in millimetres, rows then columns; (0, 0) if unknown.
        seconds: Time spent on the slice.

    Example:
        >>> mask = np.zeros((8, 8), bool); mask[2:4, 3:6] = True
        >>> row = describe("1.png", None, "1_mask.png", mask, mask * np.float32(0.5), (0.5, 2.0), 0.1)
        >>> row.area_px, row.area_mm2, (row.top, row.left, row.height, row.width), row.mean_probability, row.tumours
        (6, 6.0, (2, 3, 2, 3), 0.5, 1)
    """
    area = int(np.count_nonzero(mask))
    known = spacing[0] > 0 and spacing[1] > 0
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    box = slice(top, top + height), slice(left, left + width)
    return FoundTumour(
        file=file,
        slice=place,
        mask=mask_file,
        tumour=bool(area),
        area_px=area,
        area_mm2=round(area * spacing[0] * spacing[1], 3) if known else None,
        top=top if area else None,
        left=left if area else None,
        height=height if area else None,
        width=width if area else None,
        mean_probability=round(float(probability[box][mask[box]].mean()), 5) if area else None,
        seconds=round(seconds, 4),
        tumours=count_tumours([mask[box]]) if area else 0,
    )


def count_tumours(masks: Sequence[NDArray[np.bool_]]) -> int:
    """Count the connected tumours of a case.

    Pixels of a slice are connected if they touch, corners included; neighbouring slices are connected if their masks share
    a pixel.

    Args:
        masks: (height, width) of each slice, in order.

    Example:
        >>> first, second = np.zeros((2, 8, 8), bool)
        >>> first[1:3, 1:3] = first[5:7, 5:7] = second[1:7, 2] = True
        >>> count_tumours([first]), count_tumours([first, second])
        (2, 2)
    """
    parents: list[int] = []  # of a union-find over the tumours of single slices

    def root(label: int) -> int:
        while parents[label] != label:
            label = parents[label]
        return label

    before: NDArray[np.int32] | None = None
    for mask in masks:
        if not mask.any():
            before = None
            continue
        count, labels = cv2.connectedComponents(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
        first = len(parents)
        parents.extend(range(first, first + count - 1))
        numbers = np.where(mask, labels + np.int32(first - 1), np.int32(-1))
        if before is not None and before.shape == numbers.shape:
            shared = (before >= 0) & (numbers >= 0)
            for one, other in {*zip(before[shared].tolist(), numbers[shared].tolist(), strict=True)}:
                parents[root(other)] = root(one)
        before = numbers
    return sum(parent == label for label, parent in enumerate(parents))


def volume_ml(rows: Sequence[FoundTumour], thickness: float) -> float | None:
    """Compute the tumour volume of a case in millilitres.

    Args:
        rows: Its slices.
        thickness: Distance of its slices in millimetres; 0 if unknown.

    Returns:
        The volume; None for a single slice, and if the voxel size is unknown.
    """
    areas = [row.area_mm2 for row in rows if row.area_mm2 is not None]
    if len(rows) < 2 or thickness <= 0 or len(areas) < len(rows):
        return None
    return round(sum(areas) * thickness / 1000, 4)


def to_csv(rows: Iterable[FoundTumour]) -> str:
    """Return rows as CSV with a header; unknown values are empty, `tumour` is 1 or 0."""
    names = [field.name for field in fields(FoundTumour)]
    cells = ([int(row.tumour) if name == "tumour" else getattr(row, name) for name in names] for row in rows)
    return format_csv([names, *cells])
