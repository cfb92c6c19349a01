"""`history.csv` for people and their spreadsheets, and the same lines as exact JSON for the state."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kerasseg_tfrecords.errors import DataError

__all__ = ["EpochRow", "append_log", "read_history", "read_log", "rows_from_json", "rows_to_json", "to_csv"]


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One line of `history.csv`. Means over slices, at threshold 0.5 and the network's resolution.

    Attributes:
        phase: Strategy that is trained.
        epoch: Counted from 1 in each phase; 0 is the untouched network.
        learning_rate: That it was trained at.
        loss, dice: On augmented training slices in training mode, while weights moved; NaN for epoch 0.
        val_loss, val_dice, val_soft_dice, val_iou, val_precision, val_recall: Over all validation slices.
        val_dice_tumour: Over those where mask or prediction holds tumour.
        classes: Class -> validation Dice.
        seconds: For the epoch, validation included.
        slices_per_second: In training; NaN for epoch 0.
        memory_mb: Peak so far: of the process, or of the busiest GPU, in MB (1e6 bytes).
        thawed: Blocks thawed by the schedule so far.
        parts: Into how many parts each batch was divided for lack of memory.
        best: Whether its validation Dice is the best so far.
        event: What the schedule did after it, in words; "".
        val_dice_raw, val_dice_ema: Validation Dice of the trained weights and of their moving average; the other validation
            scores are those of the better of the two. NaN, and left out of files, where no average is kept.
    """

    phase: str
    epoch: int
    learning_rate: float
    loss: float
    dice: float
    val_loss: float
    val_dice: float
    val_soft_dice: float
    val_iou: float
    val_precision: float
    val_recall: float
    val_dice_tumour: float
    classes: Mapping[str, float]
    seconds: float
    slices_per_second: float
    memory_mb: float
    thawed: int = 0
    parts: int = 1
    best: bool = False
    event: str = ""
    val_dice_raw: float = float("nan")
    val_dice_ema: float = float("nan")


_CLASS = "val_dice_class_"
_OPTIONAL = ("val_dice_raw", "val_dice_ema")
_PLAIN = tuple(f.name for f in fields(EpochRow) if f.name not in ("classes", *_OPTIONAL))
_TEXT, _WHOLE, _FLAG = {"phase", "event"}, {"epoch", "thawed", "parts"}, {"best"}


def rows_to_json(rows: Iterable[EpochRow]) -> list[dict[str, Any]]:
    """Lines as JSON values; NaN becomes null, other numbers keep every digit."""
    return [
        {name: _null(getattr(row, name)) for name in (*_PLAIN, *_kept([row]))}
        | {"classes": {name: _null(value) for name, value in row.classes.items()}}
        for row in rows
    ]


def rows_from_json(data: Sequence[Mapping[str, Any]]) -> list[EpochRow]:
    """What `rows_to_json` gave."""
    return [
        EpochRow(
            **{name: _back(name, entry[name]) for name in (*_PLAIN, *_there(entry))},
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
    plain = (*_PLAIN, *_kept(rows))
    writer.writerow([*plain, *(_CLASS + name for name in classes)])
    for row in rows:
        cells = [getattr(row, name) for name in plain] + [row.classes.get(name, float("nan")) for name in classes]
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
                **{name: _parsed(name, entry[name]) for name in (*_PLAIN, *_there(entry))},
                classes={
                    key.removeprefix(_CLASS): float(value) if value else float("nan")
                    for key, value in entry.items()
                    if key.startswith(_CLASS)
                },
            )
            for entry in entries
        ]
    except (OSError, KeyError, ValueError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise DataError("cannot read the history of a run", path=path, found=repr(error)) from None


def _kept(rows: Sequence[EpochRow]) -> list[str]:
    """The optional columns that any of the rows has a number for."""
    return [name for name in _OPTIONAL if any(not math.isnan(getattr(row, name)) for row in rows)]


def _there(entry: Mapping[str, Any]) -> list[str]:
    return [name for name in _OPTIONAL if name in entry]


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


def append_log(path: Path, event: Mapping[str, Any]) -> None:
    """Adds a line with the time. A line that a kill has torn is ended first.

    Args:
        path: The file; made where it is missing.
        event: JSON values; NaN becomes null.
    """
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **_plain(event)}, allow_nan=False)
    with path.open("ab+") as stream:
        if stream.tell() > 0:
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(line.encode() + b"\n")


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are whole, in order."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
