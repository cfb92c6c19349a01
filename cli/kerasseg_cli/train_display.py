"""Progress of a training run: one line per epoch and, on a terminal, a bar for the current epoch."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kerasseg_cli.console import errors, figures_table, print_json, screen
from kerasseg_tfrecords.errors import one_line
from kerasseg_tfrecords.text import count, duration

if TYPE_CHECKING:
    from kerasseg.evaluation.bootstrap import Interval
    from kerasseg.runs.directory import RunDirectory
    from kerasseg.runs.history import EpochRow
    from kerasseg.training.events import Began, Ended, Event, Message, Step

_PATIENCE = 30.0
"""Seconds between lines within an epoch without a terminal."""

_NARROW, _WIDE, _WIDEST = 70, 100, 120
"""Columns below which figures are left out, and from which more are shown."""


class SpeedColumn(ProgressColumn):
    """Slices per second, on wide terminals."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        """Format the rate, such as `312 slices/s`."""
        if self._console.width < _WIDEST or not task.speed:
            return Text("")
        return Text(f"{task.speed * task.fields['slices']:,.3g} slices/s")


@contextmanager
def watching(*, as_json: bool, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Yield an observer that shows a run's progress on standard error."""
    console = errors()
    if as_json or quiet:
        yield Watcher(console, None, warnings_only=True)
        return
    if not console.is_terminal:
        yield Watcher(console, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        SpeedColumn(console),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        yield Watcher(bar.console, bar)


class Watcher:
    """Print events as lines."""

    def __init__(self, console: Console, bar: Progress | None, *, warnings_only: bool = False) -> None:
        self._console, self._bar, self._warnings_only = console, bar, warnings_only
        self._task: Any = None
        self._began: Began | None = None
        self._first = self._best = float("nan")
        self._spoke = time.monotonic()
        self._header = False
        self._phase = ""

    def __call__(self, event: Event) -> None:
        from kerasseg.training.events import Began, Evaluated, Message, Step

        match event:
            case Began():
                self._begin(event)
            case Message():
                self._say(event)
            case Evaluated(row=row):
                self._line(row)
            case Step():
                self._step(event)
            case _:
                return

    def _begin(self, event: Began) -> None:
        self._began, self._header = event, False  # each fold of a cross-validation has a table of its own
        self._first, self._best = event.first, event.best
        if self._warnings_only:
            return
        if self._console.is_terminal:
            table = Table(box=None, show_header=False, pad_edge=False)
            table.add_column(style="bold", no_wrap=True)
            table.add_column(overflow="fold")
            for label, text in event.facts.items():
                table.add_row(label, Text(one_line(text)))
            self._console.print(table, soft_wrap=False)
        else:
            # One fact per line, however long, so that a log can be searched.
            width = max(map(len, event.facts), default=0)
            for label, text in event.facts.items():
                self._console.print(f"{label:<{width}}  {text}", markup=False)
        if event.resumed is not None:
            epoch, step = event.resumed
            within = f", step {step}" if step else ""
            self._console.print(f"Resuming after epoch {epoch}{within}.", markup=False)

    def _say(self, event: Message) -> None:
        if self._warnings_only and event.level != "warning":
            return
        word = "Warning: " if event.level == "warning" else ""
        # Only a terminal wraps at words.
        soft = not self._console.is_terminal
        self._console.print(word + event.text, markup=False, style="yellow" if word else None, soft_wrap=soft)

    def _line(self, row: EpochRow) -> None:
        if row.epoch == 0:
            self._first = row.val_dice
        if row.best:
            self._best = row.val_dice
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._spoke = time.monotonic()
        if self._warnings_only:
            return
        if row.phase != self._phase:
            self._phase, self._header = row.phase, False
        timed = not self._console.is_terminal or self._console.width >= _NARROW
        if not self._header:
            self._header = True
            header = "epoch   rate    loss   Dice  val Dice    gain" + ("    time" if timed else "")
            self._console.print(header, style="bold", markup=False)
        gain = row.val_dice - self._first
        cells = [
            f"{row.epoch:>5}",
            f"{row.learning_rate:>7.0e}" if row.epoch and not math.isnan(row.learning_rate) else " " * 7,
            f"{row.loss:>8.4f}" if not math.isnan(row.loss) else " " * 8,
            f"{row.dice:>7.4f}" if not math.isnan(row.dice) else " " * 7,
            f"{row.val_dice:>10.4f}",
            f"{gain:>+8.4f}" if row.epoch else " " * 8,
            f"{duration(row.seconds):>8}" if timed else "",
            "  best" if row.best and row.epoch else "",
            f"  {row.event}" if row.event else "",
        ]
        self._console.print("".join(cells).rstrip(), markup=False)

    def _step(self, event: Step) -> None:
        if self._warnings_only:
            return
        if self._bar is None:
            if time.monotonic() - self._spoke > _PATIENCE and event.kind == "train":
                self._spoke = time.monotonic()
                text = f"epoch {event.epoch}, step {event.step} of {event.steps}: loss {event.loss:.4f}"
                self._console.print(text, markup=False)
            return
        name = "epoch 0" if event.epoch == 0 or self._began is None else f"epoch {event.epoch}/{self._began.epochs}"
        if event.kind == "validation":
            name += " validation"
        if self._task is None:
            self._task = self._bar.add_task(name, total=event.steps, figures="", slices=event.slices)
        figures = f"Dice {event.dice:.3f}"
        if event.kind == "train":
            figures = f"loss {event.loss:.3f} {figures}"
            if self._console.width >= _NARROW:
                figures += f" rate {event.rate:.0e}"
        if self._console.width >= _WIDE and not math.isnan(self._best):
            figures += f"  best {self._best:.3f} (epoch 0: {self._first:.3f})"
        if event.step == 1:
            self._bar.reset(self._task, total=event.steps, description=name, figures=figures, slices=event.slices)
        self._bar.update(self._task, completed=event.step, total=event.steps, description=name, figures=figures)


def summary(ended: Ended, run: RunDirectory | None, *, as_json: bool, quiet: bool) -> None:
    """Print the final table and the next command, or one JSON document."""
    if as_json:
        print_json(_document(ended, run))
        return
    if run is None:
        if not quiet:
            errors().print(f"{ended.text[:1].upper()}{ended.text[1:]}. Worker 0 wrote the run.", markup=False)
        return
    if quiet:
        if ended.reason == "interrupted":
            errors().print(f"Stopped and saved. Resume with: {_next(ended, run)}", markup=False)
        return
    console = screen()
    best = f"epoch {ended.best.epoch}"
    if len({row.phase for row in ended.history}) > 1:
        best = f"{ended.best.phase}, {best}"
    console.print()
    console.print(f"Validation Dice, epoch 0 and the best ({best})", style="bold", markup=False)
    table = figures_table("", ("epoch 0", "best", "gain", "95 % interval"))
    table.add_row("all slices", f"{ended.first.val_dice:.4f}", f"{ended.best.val_dice:.4f}", *_gain(ended.gain))
    if _holds_empty(ended):
        before, after = ended.first.val_dice_tumour, ended.best.val_dice_tumour
        table.add_row("tumour slices", f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}", "")
    for name, before in ended.first.classes.items():
        after = ended.best.classes.get(name, float("nan"))
        table.add_row(Text(one_line(name)), f"{before:.4f}", f"{after:.4f}", *_gain(ended.class_gains.get(name)))
    console.print(table)
    for line in _sentences(ended):
        console.print(line, markup=False)
    # Not wrapped, so that paths and commands can be copied.
    for label, text in _places(ended, run):
        console.print(f"{label:<13} {text}" if label else text, markup=False, soft_wrap=True)


def _sentences(ended: Ended) -> list[str]:
    trained = sum(row.epoch > 0 and row.phase != "recalibrated" for row in ended.history)
    phases = list(dict.fromkeys(row.phase for row in ended.history if row.epoch))
    fresh = ended.first.phase in ("scratch", "decoder")
    lines = []
    if ended.gain is not None:
        few = [name for name, gain in ended.class_gains.items() if gain.few]
        if ended.gain.few:
            patients = count(ended.gain.groups, "patient")
            lines.append(f"Validation has {patients}: too few for intervals and conclusions, which need 5.")
        else:
            lines.append(f"The intervals of the gain are over patients ({ended.gain.groups} in validation).")
            if few:
                lines.append(f"No interval with fewer than 5 patients ({', '.join(few)}).")
        if _holds_empty(ended):
            lines.append("In all slices, those without tumour in mask and prediction count as Dice 1.")
    if ended.best.epoch == 0 and trained:
        lines.append(f"No epoch beat the {'fresh' if fresh else 'untouched'} network, which model.keras holds.")
    elif len(phases) > 1:
        lines.append(f"Best validation Dice of each part; {ended.best.phase} was kept:")
        best = {phase: max(r.val_dice for r in ended.history if r.phase == phase and r.epoch) for phase in phases}
        lines += [f"  {phase}: {dice:.4f}" for phase, dice in best.items()]
    if not math.isnan(ended.best.val_dice_ema):
        averaged = ended.best.val_dice_ema > ended.best.val_dice_raw
        lines.append(f"model.keras holds {'the moving average of the weights' if averaged else 'the trained weights'}.")
    memory = max(row.memory_mb for row in ended.history)
    lines.append(
        f"{count(trained, 'epoch')} in {duration(ended.seconds)}, peak memory {memory / 1000:.1f} GB. "
        f"{ended.text[:1].upper()}{ended.text[1:]}."
    )
    lines.append("All choices were made on the validation split; the test split was not read.")
    return lines


def _holds_empty(ended: Ended) -> bool:
    """Return whether slices without tumour raise the mean over all slices."""
    return any(
        not math.isnan(row.val_dice_tumour) and row.val_dice > row.val_dice_tumour + 1e-9
        for row in (ended.first, ended.best)
    )


def _places(ended: Ended, run: RunDirectory) -> list[tuple[str, str]]:
    return [
        ("Best weights:", str(run.model_file)),
        ("Curves:", str(run.curves_file)),
        ("History:", str(run.history_file)),
        ("", f"Next: {_next(ended, run)}"),
    ]


def _next(ended: Ended, run: RunDirectory) -> str:
    """Return the next command; it names the run unless that is the latest."""
    named = "" if run.is_latest() else shlex.quote(str(run.root))
    if ended.reason == "interrupted":
        return "kerasseg train --resume" + (f" --out {named}" if named else "")
    return f"kerasseg tune-threshold {named}".rstrip()


def _gain(interval: Interval | None) -> tuple[str, str]:
    if interval is None:
        return "", ""
    if interval.few or math.isnan(interval.low):
        return f"{interval.estimate:+.4f}", "none"
    return f"{interval.estimate:+.4f}", f"{interval.low:+.4f} to {interval.high:+.4f}"


def _document(ended: Ended, run: RunDirectory | None) -> dict[str, Any]:
    from kerasseg.runs.history import rows_to_json

    def interval(found: Interval | None) -> dict[str, Any] | None:
        if found is None:
            return None
        limits = {"low": found.low, "high": found.high}
        plain = {name: None if math.isnan(value) else value for name, value in limits.items()}
        return {"gain": found.estimate, **plain, "slices": found.slices, "patients": found.groups}

    first, best = rows_to_json([ended.first, ended.best])
    return {
        "run": None if run is None else str(run.root),
        "reason": ended.reason,
        "text": ended.text,
        "seconds": ended.seconds,
        "epoch_0": first,
        "best": best,
        "gain": interval(ended.gain),
        "class_gains": {name: interval(gain) for name, gain in ended.class_gains.items()},
        "history": rows_to_json(ended.history),
        "model": None if run is None else str(run.model_file),
        "baseline": None if run is None else str(run.baseline_file),
        "next": None if run is None else _next(ended, run),
    }
