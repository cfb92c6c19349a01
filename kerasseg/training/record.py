"""Where the loop and its listeners write: the files of a run directory."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import keras
from numpy.typing import NDArray

from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.history import rows_to_json, to_csv
from kerasseg.runs.logfile import append_log
from kerasseg.runs.state import StateStore
from kerasseg.training.curves import draw_curves
from kerasseg.training.events import Began, Ended, EpochRow, Evaluated, Event, Message, Saved, Step
from kerasseg.training.progress import Progress
from kerasseg.training.slice_table import SliceTable
from kerasseg_tfrecords.files import write_atomically

__all__ = ["VARIABLES", "RunKeeper", "log_to", "validation_csv"]

VARIABLES = "variables/"
"""Before the names of the engine's variables in a state."""


class RunKeeper:
    """The `Keeper` that writes to a run directory.

    Args:
        run: The directory; locked.
        as_saved: Gives a block within which the network is as it is to be saved (float32, BatchNorm not synchronized).
        tag: Of the best weights in the state that the run goes on from; None for a fresh run.
    """

    def __init__(
        self, run: RunDirectory, as_saved: Callable[[keras.Model], AbstractContextManager[Any]], tag: str | None = None
    ) -> None:
        self._run, self._as_saved = run, as_saved
        self._store = StateStore(run.state_folder)
        # Of the two generations of the state.
        self._tags: deque[str] = deque([] if tag is None else [tag], maxlen=2)

    def keep_best(self, tag: str, model: keras.Model) -> None:
        """Writes the best weights so far, under the tag."""
        with self._as_saved(model):
            self._run.save_model(model, self._run.best_file(tag))

    def save(self, progress: Progress, variables: Mapping[str, NDArray[Any]]) -> None:
        """Writes the state, then points `model.keras` at the weights it names, then clears up."""
        arrays = progress.arrays() | {VARIABLES + name: array for name, array in variables.items()}
        self._store.save(progress.facts(), arrays)
        self._tags.append(progress.best_tag)
        self._run.use_best(progress.best_tag)
        self._run.prune_best(self._tags)

    def write_history(self, history: tuple[EpochRow, ...]) -> None:
        """Writes `history.csv` and `training.png`."""
        write_atomically(self._run.history_file, to_csv(history), durable=False)
        draw_curves(history, self._run.curves_file)


def validation_csv(slices: Sequence[tuple[str, str, str, str]], first: SliceTable, best: SliceTable) -> str:
    """Dice of each validation slice before training and at its best, threshold 0.5, the network's resolution.

    Args:
        slices: (slice_id, patient, group, class) in the order of the tables.
        first: Epoch 0.
        best: The best epoch; that may be epoch 0.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slice_id", "patient", "group", "label", "dice_epoch_0", "dice_best"])
    for names, before, after in zip(slices, first.dice.tolist(), best.dice.tolist(), strict=True):
        writer.writerow([*names, repr(before), repr(after)])
    return text.getvalue()


def log_to(run: RunDirectory) -> Callable[[Event], None]:
    """A listener that writes what is told into `log.jsonl`, steps left out.

    A line that cannot be written costs nothing else: where the disk is full, the next saved state says so.
    """

    def listen(event: Event) -> None:
        entry: dict[str, Any]
        match event:
            case Began() | Message():
                entry = asdict(event)
            case Evaluated(row=row):
                entry = {"row": rows_to_json([row])[0]}
            case Ended(reason=reason, text=text, seconds=seconds):
                entry = {"reason": reason, "text": text, "seconds": seconds}
            case Step() | Saved():
                return
        with contextlib.suppress(OSError):
            append_log(run.log_file, {"event": type(event).__name__.lower(), **entry})

    return listen
