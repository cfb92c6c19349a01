"""Rows of `history.csv`, the same rows as exact JSON for the state, and `log.jsonl`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.tables import format_csv, read_csv


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One row of `history.csv`. Scores are means over slices at threshold 0.5 and the network's resolution.

    Attributes:
        phase: Strategy or stage; "recalibrated" if only BatchNorm statistics changed.
        epoch: Epoch within the phase, from 1; 0 is the untouched network.
        learning_rate: Learning rate of the last step; NaN if nothing was trained.
        loss, dice: Means over augmented training slices during training; NaN for epoch 0.
        val_loss, val_dice, val_soft_dice, val_iou, val_precision, val_recall: Means over all validation slices.
        val_dice_tumour: Mean over slices with tumour in mask or prediction.
        classes: Class -> validation Dice.
        seconds: Duration of the epoch, validation included.
        slices_per_second: Training speed; NaN for epoch 0.
        memory_mb: Peak memory so far of the process or the busiest GPU, in MB (1e6 bytes).
        thawed: Number of blocks unfrozen by the schedule so far.
        parts: Number of parts that each batch was divided into for lack of memory.
        best: Whether its validation Dice is the best so far.
        event: What the schedule did after the epoch; "" for nothing.
        val_dice_raw, val_dice_ema: Validation Dice of the trained weights and of their moving average; the other validation
            scores are those of the better of the two. NaN, and left out of files, without a moving average.
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
    """Convert rows to JSON values; NaN becomes null, numbers keep all their digits."""
    return [
        {name: _null(getattr(row, name)) for name in (*_PLAIN, *_kept([row]))}
        | {"classes": {name: _null(value) for name, value in row.classes.items()}}
        for row in rows
    ]


def rows_from_json(data: Sequence[Mapping[str, Any]]) -> list[EpochRow]:
    return [
        EpochRow(
            **{name: _back(name, entry[name]) for name in (*_PLAIN, *_there(entry))},
            classes={name: float("nan") if value is None else value for name, value in entry["classes"].items()},
        )
        for entry in data
    ]


def to_csv(rows: Sequence[EpochRow]) -> str:
    """Return history as CSV: one line per epoch, one column per class, an empty cell for NaN.

    Numbers keep all their digits, so that runs with different weights have different files.
    """
    classes = list(dict.fromkeys(name for row in rows for name in row.classes))
    plain = (*_PLAIN, *_kept(rows))
    table: list[list[object]] = [[*plain, *(_CLASS + name for name in classes)]]
    for row in rows:
        values = [getattr(row, name) for name in plain] + [row.classes.get(name, float("nan")) for name in classes]
        table.append([int(value) if isinstance(value, bool) else _null(value) for value in values])
    return format_csv(table)


def read_history(path: Path) -> list[EpochRow]:
    """Read what `to_csv` wrote."""
    try:
        return [
            EpochRow(
                **{name: _parsed(name, entry[name]) for name in (*_PLAIN, *_there(entry))},
                classes={
                    key.removeprefix(_CLASS): float(value) if value else float("nan")
                    for key, value in entry.items()
                    if key.startswith(_CLASS)
                },
            )
            for entry in read_csv(path, "the history of a run", _PLAIN)
        ]
    except ValueError as error:
        raise DataError("the history of a run is damaged", path=path, found=error) from None


def _kept(rows: Sequence[EpochRow]) -> list[str]:
    """Return the optional columns in which any row has a number."""
    return [name for name in _OPTIONAL if any(not math.isnan(getattr(row, name)) for row in rows)]


def _there(entry: Mapping[str, Any]) -> list[str]:
    return [name for name in _OPTIONAL if name in entry]


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _back(name: str, value: Any) -> Any:
    return float("nan") if value is None and name not in _TEXT else value


def _parsed(name: str, text: str) -> Any:
    if name in _TEXT:
        return text
    if name in _WHOLE:
        return int(text)
    if name in _FLAG:
        return text == "1"
    return float(text) if text else float("nan")


def append_log(path: Path, event: Mapping[str, Any]) -> None:
    """Append a JSON line with the time. An incomplete last line, left by a kill, is ended first."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **_plain(event)}, allow_nan=False)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW  # a link in a run of others would lead elsewhere
    with os.fdopen(os.open(path, flags, 0o644), "ab+") as stream:
        if stream.tell() > 0:
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(line.encode() + b"\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
