"""`per_slice.csv`: the scores of every slice at every stage, from which all figures of an evaluation can be computed.

A row describes the slice (`slice_id` to `reference_pixels`) and contains the columns of `StageScores` for each stage, named
`raw_dice`, `threshold_dice`, `postprocessing_dice` and so on. Numbers keep all their digits; undefined values (a distance
to nothing, an unknown spacing) are empty cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from kerasseg.evaluation.schema import StageName
from kerasseg_tfrecords import tables
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.files import write_atomically

STAGES: tuple[StageName, ...] = get_args(StageName)
"""Stages in their order."""


@dataclass(frozen=True, slots=True)
class StageScores:
    """Scores of a slice at one stage; see `kerasseg.metrics` for edge cases.

    Attributes:
        predicted_pixels: Pixels of the mask.
        overlap_pixels: Pixels in both mask and reference.
        dice, iou, precision, recall: Shares, 0 to 1.
        hd95, asd: Distances in pixels; NaN if reference or prediction is empty.
        hd95_mm, asd_mm: Distances in millimetres; NaN also if the spacing is unknown.
        baseline_dice: Dice of the baseline at the same stage; NaN without a baseline.
    """

    predicted_pixels: int
    overlap_pixels: int
    dice: float
    iou: float
    precision: float
    recall: float
    hd95: float = math.nan
    asd: float = math.nan
    hd95_mm: float = math.nan
    asd_mm: float = math.nan
    baseline_dice: float = math.nan


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One slice.

    Attributes:
        slice_id: Unique id.
        patient: Patient id as read; "" if unknown.
        group: Patient group; "" if unknown.
        volume: Volume; "" for single slices.
        label: Class name.
        height, width: Size in pixels, at the resolution of the figures.
        spacing_rows, spacing_columns: Millimetres per pixel; 0 if unknown.
        reference_pixels: Tumour pixels of the reference.
        raw, threshold, postprocessing: Scores at each stage.

    Example:
        >>> scores = StageScores(8, 6, 0.75, 0.6, 0.75, 0.75)
        >>> row = SliceRow("a/1", "p", "p", "", "glioma", 4, 4, 0.0, 0.0, 8, scores, scores, scores)
        >>> row.dice, row.missed(), row.false_alarm()
        (0.75, False, False)
    """

    slice_id: str
    patient: str
    group: str
    volume: str
    label: str
    height: int
    width: int
    spacing_rows: float
    spacing_columns: float
    reference_pixels: int
    raw: StageScores
    threshold: StageScores
    postprocessing: StageScores

    def stage(self, name: StageName) -> StageScores:
        found: StageScores = getattr(self, name)
        return found

    @property
    def dice(self) -> float:
        return self.postprocessing.dice

    @property
    def predicted_pixels(self) -> int:
        return self.postprocessing.predicted_pixels

    def missed(self, stage: StageName = "postprocessing") -> bool:
        """Return whether the reference has a tumour and no pixel is predicted."""
        return self.reference_pixels > 0 and self.stage(stage).predicted_pixels == 0

    def false_alarm(self, stage: StageName = "postprocessing") -> bool:
        """Return whether the reference has no tumour and a pixel is predicted."""
        return self.reference_pixels == 0 and self.stage(stage).predicted_pixels > 0


_FACTS = tuple(field for field in fields(SliceRow) if field.name not in STAGES)
_SCORES = fields(StageScores)
_COLUMNS = (
    *(field.name for field in _FACTS),
    *(f"{stage}_{name}" for stage in STAGES for name in (*(field.name for field in _SCORES), "missed", "false_alarm")),
)


def to_csv(rows: Iterable[SliceRow], path: Path) -> None:
    table: list[list[str]] = [list(_COLUMNS)]
    for row in rows:
        cells = [_cell(getattr(row, field.name)) for field in _FACTS]
        for stage in STAGES:
            cells += [_cell(getattr(row.stage(stage), field.name)) for field in _SCORES]
            cells += [str(int(row.missed(stage))), str(int(row.false_alarm(stage)))]
        table.append(cells)
    write_atomically(path, tables.format_csv(table))


def read_csv(path: Path) -> list[SliceRow]:
    rows = tables.read_csv(path, "a table of slice scores", _COLUMNS)
    try:
        return [_row(cells) for cells in rows]
    except (ValueError, TypeError) as error:
        raise DataError("the table of slice scores is damaged", path=path, found=str(error)) from None


def _row(cells: dict[str, str]) -> SliceRow:
    values: dict[str, Any] = {field.name: _value(cells[field.name], str(field.type)) for field in _FACTS}
    for stage in STAGES:
        values[stage] = StageScores(**{f.name: _value(cells[f"{stage}_{f.name}"], str(f.type)) for f in _SCORES})
    return SliceRow(**values)


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)


def _value(text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if kind == "int":
        return int(text)
    return float(text) if text else math.nan
