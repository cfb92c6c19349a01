"""What was found in each slice: the lines of `predictions.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["FoundTumour", "describe", "to_csv"]


@dataclass(frozen=True, slots=True)
class FoundTumour:
    """One slice.

    Attributes:
        file: The input, as it is shown.
        slice: Place in its volume, counted from 0; None for a picture.
        mask: File of the mask, relative to the output folder.
        tumour: Whether a tumour was found.
        area_px: Pixels of the mask.
        area_mm2: The same in square millimetres; None where the size of a pixel is unknown.
        top, left, height, width: Bounding box in pixels of the mask; None without tumour.
        mean_probability: Mean over the mask's pixels, [0, 1]; None without tumour.
        seconds: Spent on this slice in reading, network and writing, which overlap with those of other slices.
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


def describe(
    file: str,
    place: int | None,
    mask_file: str,
    mask: NDArray[np.bool_],
    probability: NDArray[np.float32],
    spacing: tuple[float, float],
    seconds: float,
) -> FoundTumour:
    """The line of a slice.

    Args:
        file: The input.
        place: In its volume; None for a picture.
        mask_file: File of the mask.
        mask: (height, width).
        probability: (height, width).
        spacing: Millimetres a pixel, rows then columns; (0, 0) where unknown.
        seconds: Spent on it.

    Example:
        >>> mask = np.zeros((8, 8), bool); mask[2:4, 3:6] = True
        >>> row = describe("1.png", None, "1_mask.png", mask, mask * np.float32(0.5), (0.5, 2.0), 0.1)
        >>> row.area_px, row.area_mm2, (row.top, row.left, row.height, row.width), row.mean_probability
        (6, 6.0, (2, 3, 2, 3), 0.5)
    """
    area = int(np.count_nonzero(mask))
    known = spacing[0] > 0 and spacing[1] > 0
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8)) if area else (None, None, None, None)
    return FoundTumour(
        file=file,
        slice=place,
        mask=mask_file,
        tumour=bool(area),
        area_px=area,
        area_mm2=round(area * spacing[0] * spacing[1], 3) if known else None,
        top=top,
        left=left,
        height=height,
        width=width,
        mean_probability=round(float(probability[mask].mean()), 5) if area else None,
        seconds=round(seconds, 4),
    )


def to_csv(rows: Iterable[FoundTumour]) -> str:
    """The table, with a line of names; what is unknown is empty, `tumour` is 1 or 0."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(FoundTumour)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(row), "tumour": int(row.tumour)} for row in rows)
    return text.getvalue()
