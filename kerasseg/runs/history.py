"""`history.csv` for people and their spreadsheets, and the same lines as exact JSON for the state."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kerasseg.training.events import EpochRow
from kerasseg_tfrecords.errors import DataError

__all__ = ["read_history", "rows_from_json", "rows_to_json", "to_csv"]

_CLASS = "val_dice_class_"
_PLAIN = tuple(f.name for f in fields(EpochRow) if f.name != "classes")
_TEXT, _WHOLE, _FLAG = {"phase", "event"}, {"epoch", "thawed", "parts"}, {"best"}


def rows_to_json(rows: Iterable[EpochRow]) -> list[dict[str, Any]]:
    """Lines as JSON values; NaN becomes null, other numbers keep every digit."""
    return [
        {name: _null(getattr(row, name)) for name in _PLAIN}
        | {"classes": {name: _null(value) for name, value in row.classes.items()}}
        for row in rows
    ]


def rows_from_json(data: Sequence[Mapping[str, Any]]) -> list[EpochRow]:
    """What `rows_to_json` gave."""
    return [
        EpochRow(
            **{name: _back(name, entry[name]) for name in _PLAIN},
            classes={name: float("nan") if value is None else value for name, value in entry["classes"].items()},
        )
        for entry in data
    ]


def to_csv(rows: Sequence[EpochRow]) -> str:
    """The whole file: one line an epoch, an empty cell where there is no number, a column a class.

    Rates and scores are written with all their digits, so that the file tells two runs apart as the weights do.
    """
    classes = list(dict.fromkeys(name for row in rows for name in row.classes))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_PLAIN, *(_CLASS + name for name in classes)])
    for row in rows:
        cells = [getattr(row, name) for name in _PLAIN] + [row.classes.get(name, float("nan")) for name in classes]
        writer.writerow([_cell(value) for value in cells])
    return text.getvalue()


def read_history(path: Path) -> list[EpochRow]:
    """What `to_csv` wrote.

    Raises:
        DataError: A file that is missing or no history.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            entries = list(csv.DictReader(stream))
        return [
            EpochRow(
                **{name: _parsed(name, entry[name]) for name in _PLAIN},
                classes={
                    key.removeprefix(_CLASS): float(value) if value else float("nan")
                    for key, value in entry.items()
                    if key.startswith(_CLASS)
                },
            )
            for entry in entries
        ]
    except (OSError, KeyError, ValueError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise DataError("no history of a run", path=path, found=repr(error)) from None


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _back(name: str, value: Any) -> Any:
    return float("nan") if value is None and name not in _TEXT else value


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return str(value)


def _parsed(name: str, text: str) -> Any:
    if name in _TEXT:
        return text
    if name in _WHOLE:
        return int(text)
    if name in _FLAG:
        return text == "1"
    return float(text) if text else float("nan")
