"""`training.png`: loss, Dice, Dice of each class and the learning rate over the epochs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasseg.training.events import EpochRow
from kerasseg_tfrecords.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves"]

# Okabe and Ito's colours, which those who confuse red and green tell apart.
_TRAIN, _VAL, _FIRST, _RATE = "#0072B2", "#D55E00", "#555555", "#000000"
_CLASSES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def draw_curves(history: Sequence[EpochRow], path: Path) -> None:
    """Draws the lines of a run so far; phases follow one another, with a line between.

    Args:
        history: Lines, epoch 0 first.
        path: The picture, PNG; replaced at once.

    Raises:
        KerassegError: The file cannot be written.
    """
    # The object interface: pyplot would keep state, and may ask for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True)
    # Epochs of a second phase go on counting along the axis.
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
        axes[1, 0].plot(places, values, ".-", color=_CLASSES[i % len(_CLASSES)], label=name)
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
    for axis in (axes[0, 0], axes[0, 1], axes[1, 0]):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, framealpha=0.7)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    phases = list(dict.fromkeys(row.phase for row in history))
    figure.suptitle(" then ".join(phases), fontsize=11)
    text = io.BytesIO()
    canvas.print_figure(text, format="png")
    write_atomically(path, text.getvalue(), durable=False)


def _lines(axis: Axes, places: Any, history: Sequence[EpochRow], title: str, *curves: tuple[str, str, str]) -> None:
    for name, label, colour in curves:
        axis.plot(places, [getattr(row, name) for row in history], ".-", color=colour, label=label)
    _label(axis, title)


def _label(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
