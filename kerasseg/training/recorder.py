"""Write the files of a run directory."""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.runs.directory import RunDirectory
from kerasseg.runs.history import EpochRow, append_log, rows_to_json, to_csv
from kerasseg.runs.state import StateStore
from kerasseg.training.events import Began, Ended, Evaluated, Event, Message, Saved, Step
from kerasseg.training.state import Progress, SliceTable
from kerasseg_tfrecords.errors import one_line
from kerasseg_tfrecords.files import write_atomically
from kerasseg_tfrecords.tables import format_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Recorder(Protocol):
    """Storage for the training loop.

    A run survives a kill at any moment because of the order: `keep_best` writes the best weights under a new name, then
    `save` writes the state that names them, then `model.keras` points to them.
    """

    def keep_best(self, tag: str, model: keras.Model) -> None:
        """Write the best weights so far under the tag."""

    def save(self, progress: Progress, variables: Mapping[str, NDArray[Any]]) -> None:
        """Write the state; the best weights that it names have been written."""

    def write_history(self, history: tuple[EpochRow, ...]) -> None:
        """Write history and curves."""


class NullRecorder:
    """A recorder that saves nothing: for `fine_tune` without a run directory, and for workers other than the chief."""

    def keep_best(self, tag: str, model: keras.Model) -> None:
        """Do nothing."""

    def save(self, progress: Progress, variables: Mapping[str, NDArray[Any]]) -> None:
        """Do nothing."""

    def write_history(self, history: tuple[EpochRow, ...]) -> None:
        """Do nothing."""


VARIABLES = "variables/"
"""Prefix of the names of the engine's variables in a state."""


class RunRecorder:
    """The `Recorder` that writes to a run directory.

    Args:
        run: Run directory, locked.
        as_saved: Context in which the network is as saved files have it (float32, BatchNorm not synchronized).
        tag: Tag of the best weights in the state that the run resumes from; None for a new run.
    """

    def __init__(
        self, run: RunDirectory, as_saved: Callable[[keras.Model], AbstractContextManager[Any]], tag: str | None = None
    ) -> None:
        self._run, self._as_saved = run, as_saved
        self._store = StateStore(run.state_folder)
        # One tag for each of the two generations of the state.
        self._tags: deque[str] = deque([] if tag is None else [tag], maxlen=2)

    def keep_best(self, tag: str, model: keras.Model) -> None:
        """Write the best weights so far under the tag."""
        with self._as_saved(model):
            self._run.save_model(model, self._run.best_file(tag))

    def save(self, progress: Progress, variables: Mapping[str, NDArray[Any]]) -> None:
        """Write the state, point `model.keras` to the weights that it names, then delete old files."""
        arrays = progress.arrays() | {VARIABLES + name: array for name, array in variables.items()}
        self._store.save(progress.facts(), arrays)
        self._tags.append(progress.best_tag)
        self._run.use_best(progress.best_tag)
        self._run.prune_best(self._tags)

    def write_history(self, history: tuple[EpochRow, ...]) -> None:
        """Write `history.csv` and `training.png`."""
        write_atomically(self._run.history_file, to_csv(history), durable=False)
        draw_curves(history, self._run.curves_file)


def validation_csv(slices: Sequence[tuple[str, str, str, str]], first: SliceTable, best: SliceTable) -> str:
    """Return Dice of each validation slice before training and at the best epoch as CSV (at 0.5, network resolution)."""
    header = ("slice_id", "patient", "group", "label", "dice_epoch_0", "dice_best")
    scores = zip(slices, first.dice.tolist(), best.dice.tolist(), strict=True)
    return format_csv([header, *((*names, before, after) for names, before, after in scores)])


def log_to(run: RunDirectory) -> Callable[[Event], None]:
    """Return an observer that writes all events except steps to `log.jsonl`.

    A line that cannot be written is dropped; on a full disk the next saved state raises the error.
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


# Okabe and Ito's palette, which colour-blind readers can tell apart.
_TRAIN, _VAL, _FIRST, _RATE = "#0072B2", "#D55E00", "#555555", "#000000"
_CLASSES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def _plain(name: str) -> str:
    """Escape a name in a legend: Matplotlib sets text between `$` as a formula and omits names that begin with `_`."""
    return (" " if name.startswith("_") else "") + one_line(name).replace("$", r"\$")


def draw_curves(history: Sequence[EpochRow], path: Path) -> None:
    """Draw the training curves so far, one phase after the other."""
    # Not pyplot, which keeps global state and may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True)
    # Epochs of later phases continue along the axis.
    places = np.arange(len(history))
    first = history[0]
    _lines(axes[0, 0], places, history, "loss", ("loss", "training", _TRAIN), ("val_loss", "validation", _VAL))
    _lines(axes[0, 1], places, history, "Dice", ("dice", "training", _TRAIN), ("val_dice", "validation", _VAL))
    axes[0, 1].axhline(first.val_dice, color=_FIRST, linestyle="--", linewidth=1, label="untouched checkpoint")
    best = max(range(len(history)), key=lambda i: (history[i].best, i))
    axes[0, 1].plot(
        best, history[best].val_dice, "*", color=_VAL, markersize=13, label=f"best: {history[best].val_dice:.4f}"
    )
    for i, name in enumerate(first.classes):
        values = [row.classes.get(name, float("nan")) for row in history]
        axes[1, 0].plot(places, values, ".-", color=_CLASSES[i % len(_CLASSES)], label=_plain(name))
    _label(axes[1, 0], "validation Dice by class")
    axes[1, 1].step(places[1:], [row.learning_rate for row in history[1:]], ".-", where="mid", color=_RATE)
    axes[1, 1].set_yscale("log")
    _label(axes[1, 1], "learning rate")
    for axis in axes.flat:
        for i, row in enumerate(history):
            if "thaw" in row.event:
                axis.axvline(i + 0.5, color="#009E73", linestyle=":", linewidth=1)
            if i and row.phase != history[i - 1].phase and i > 1:
                axis.axvline(i - 0.5, color=_FIRST, linewidth=1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Where curves of a training that works leave room.
    for axis, place in ((axes[0, 0], "upper right"), (axes[0, 1], "lower right"), (axes[1, 0], "lower right")):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, framealpha=0.7, loc=place)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    phases = list(dict.fromkeys(row.phase for row in history))
    figure.suptitle(" then ".join(phases), fontsize=11)
    png = io.BytesIO()
    canvas.print_figure(png, format="png")
    write_atomically(path, png.getvalue(), durable=False)


def _lines(axis: Axes, places: Any, history: Sequence[EpochRow], title: str, *curves: tuple[str, str, str]) -> None:
    for name, label, colour in curves:
        axis.plot(places, [getattr(row, name) for row in history], ".-", color=colour, label=label)
    _label(axis, title)


def _label(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
