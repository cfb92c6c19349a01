"""The training loop: epoch 0, then epochs of training and validation in one or more phases.

A `Recorder` writes files, observers show progress, and the `Engine` computes. The progress of a run is an immutable value
(`Progress`), so that a killed run resumes from the last saved one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasseg.callbacks import Drop, Stop, Thaw
from kerasseg.callbacks import Event as PlateauEvent
from kerasseg.evaluation.bootstrap import Interval, paired_interval
from kerasseg.runs.history import EpochRow
from kerasseg.training.diagnostics import (
    KNOWS,
    clearly_below,
    far_message,
    idle_message,
    overfitting_message,
    sunk_message,
)
from kerasseg.training.events import Began, Ended, Evaluated, Event, Message, Observer, Saved, Step
from kerasseg.training.recorder import Recorder
from kerasseg.training.state import EpochSums, Progress, SliceTable
from kerasseg.training.strategies import Phase
from kerasseg_tfrecords.errors import KerassegError

_WATCHED = 3
"""Number of first epochs that are compared with epoch 0: too high a rate shows at once."""

_GUARDS = 2
"""How often the guard may lower the rate in a phase."""


class BrokenTrainingError(KerassegError):
    """The loss, the weights or the output of the network became NaN or infinite."""


class NothingTrainedError(KerassegError):
    """Training was stopped before epoch 0 was evaluated."""

    exit_code = 130


class _Interrupted(Exception):  # noqa: N818 - not an error
    """Training was asked to stop; raised at the end of a step."""


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """Validation slices.

    Attributes:
        data: `EvaluationData` with labels, or an object with the same methods.
        classes: Class names; a label is an index into them.
        groups: (slices,) patient group of each slice, for intervals.
    """

    data: Any
    classes: tuple[str, ...]
    groups: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan of a training run.

    Attributes:
        phases: Phases to train one after the other.
        epochs: Maximum number of epochs in a phase, or in two phases of which the second continues the first.
        steps: Maximum number of steps in an epoch; None for all.
        guard: Whether to restore weights and lower the rate if Dice falls clearly below epoch 0.
        cautions: Messages to give after epoch 0, unless the checkpoint hardly knows the task.
        ema: Whether the engine keeps a moving average of the weights, which is also validated.
        save_every: Steps between saved states within an epoch; None for none.
        scales_loss: Whether the loss is scaled (float16).
        title, facts: Texts to show; see `Began`.
    """

    phases: tuple[Phase, ...]
    epochs: int
    steps: int | None = None
    guard: bool = False
    cautions: tuple[Message, ...] = ()
    ema: bool = False
    save_every: int | None = None
    scales_loss: bool = False
    title: str = ""
    facts: tuple[tuple[str, str], ...] = ()


class Trainer:
    """Train a network by a plan.

    Args:
        model: The untouched network, in the training precision. It is changed in place and ends with the best weights.
        make_engine: Creates an `Engine` from the network, an optimizer and the number of parts of a batch.
        training: `TrainingData` with labels, or an object with the same methods.
        validation: Validation slices.
        plan: Plan of the run.
        recorder: Saves the state.
        observers: Functions that receive events.
        scope: Context in which optimizers are created, see `Devices.scope`.
        interrupted: Called after each step; returns whether to stop.
        memory: Returns the peak memory so far, in MB.
    """

    def __init__(
        self,
        model: keras.Model,
        make_engine: Callable[[keras.Model, keras.optimizers.Optimizer, int], Any],
        training: Any,
        validation: Validation,
        plan: Plan,
        recorder: Recorder,
        observers: Iterable[Observer] = (),
        *,
        scope: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        interrupted: Callable[[], bool] = lambda: False,
        memory: Callable[[], float] = lambda: float("nan"),
    ) -> None:
        self.model, self.training, self.validation, self.plan = model, training, validation, plan
        self.progress = Progress()
        self.steps = min(training.steps, plan.steps or training.steps)
        self._make_engine, self._recorder, self._observers = make_engine, recorder, tuple(observers)
        self._scope, self._interrupted, self._memory = scope, interrupted, memory
        self._untouched = model.get_weights()
        self._best_weights = self._untouched
        self._engine: Any = None
        self._since = time.monotonic()
        self._last_slices: NDArray[np.int64] | None = None
        self._written = 0

    # --- resuming ----------------------------------------------------------------------------------------------------

    def restore(
        self, progress: Progress, variables: dict[str, NDArray[Any]], best_weights: list[NDArray[Any]] | None
    ) -> None:
        """Restore a saved state."""
        self.progress = progress
        if best_weights is not None:
            self._best_weights = best_weights
        if not progress.finished and progress.plateau is not None:
            self._open_phase()
            self._engine.restore(variables)

    def run(self) -> Ended:
        """Train until the end, an interruption or an error."""
        self._since = time.monotonic()
        resumed = (self.progress.epoch, self.progress.sums.steps) if self.progress.history else None
        plan = self.plan
        self._tell(
            Began(
                plan.title,
                plan.epochs,
                self.steps,
                self.training.batch_size,
                dict(plan.facts),
                resumed=resumed,
                first=self._first_dice() if resumed else float("nan"),
                best=max(row.val_dice for row in self.progress.history) if resumed else float("nan"),
            )
        )
        try:
            self._train()
        except _Interrupted:
            self._save()
            self.back_to_best()
            return self._end("interrupted", "stopped on request")
        self.back_to_best()
        return self._end("stopped" if self.progress.finished == "stopped" else "finished", self.progress.text)

    def _train(self) -> None:
        if self._engine is None:
            self._open_phase()
        if self.progress.first_table is None:
            self._epoch_zero()
        while not self.progress.finished:
            if self.progress.epoch >= self._limit():
                self._close_phase("finished", _all_done(self.plan.epochs if self._phase.continues else self._limit()))
                continue
            self._epoch()

    # --- phases ------------------------------------------------------------------------------------------------------

    @property
    def _phase(self) -> Phase:
        return self.plan.phases[self.progress.phase]

    def _limit(self) -> int:
        """Return the maximum number of epochs of the phase."""
        if not self._phase.continues:
            return self.plan.epochs if self._phase.limit is None else self._phase.limit
        earlier = self.plan.phases[self.progress.phase - 1].strategy
        return self.plan.epochs - sum(row.epoch > 0 and row.phase == earlier for row in self.progress.history)

    def _next_phase(self) -> int | None:
        """Return the index of the next phase meant for such a checkpoint; None after the last."""
        other = "near" if self._first_dice() < KNOWS else "far"
        later = range(self.progress.phase + 1, len(self.plan.phases))
        return next((number for number in later if self.plan.phases[number].when != other), None)

    def _base(self) -> list[NDArray[Any]]:
        """Return the checkpoint's weights, with recalibrated BatchNorm if that helped; phases start from them."""
        return [self.progress.base.get(i, weight) for i, weight in enumerate(self._untouched)]

    def _open_phase(self) -> None:
        """Freeze, create the optimizer and compile; the weights stay as they are."""
        plateau = self.progress.plateau
        rate, thawed = (self._phase.rule.rate, 0) if plateau is None else (plateau.rate, plateau.thawed)
        self._phase.freeze(self.model, thawed)
        optimizer = self._optimizer(rate)
        if self._engine is None:
            self._engine = self._make_engine(self.model, optimizer, self.progress.parts)
        else:
            self._engine.rebuild(optimizer)

    def _optimizer(self, rate: float) -> keras.optimizers.Optimizer:
        with self._scope():
            return self._phase.optimizer(self.model, rate, scales_loss=self.plan.scales_loss)

    def _close_phase(self, reason: str, text: str) -> None:
        """End the phase. The next one starts from the same weights as this one, or continues from the best so far."""
        number = self._next_phase()
        if number is None:
            self._set(finished=reason, text=text)
            self._save()
            return
        following = self.plan.phases[number]
        if not self._phase.recalibrates:
            kind = f"phase-{self.progress.phase}" if self.progress.phase else "phase"
            self._say(Message("note", kind, f"{self._phase.strategy}: {text}. Next: {following.strategy}."))
        else:
            kept = "kept" if any(self.progress.best) else "not kept"
            before, after = self._first_dice(), self.progress.history[-1].val_dice
            text = f"Recalibrated BatchNorm changes validation Dice from {before:.4f} to {after:.4f}: {kept}."
            self._say(Message("note", "recalibrated", text))
        if self._phase.recalibrates and any(self.progress.best):
            changed = zip(self._best_weights, self._untouched, strict=True)
            self._set(base={i: new for i, (new, old) in enumerate(changed) if not np.array_equal(new, old)})
        self.model.set_weights(self._best_weights if following.continues else self._base())
        self._engine.restart_average()
        self._set(phase=number, epoch=0, sums=EpochSums(), plateau=None, guarded=0)
        self._open_phase()
        self._set(plateau=self._phase.rule.begin(self._baseline()))
        self._save()

    def _baseline(self) -> float:
        """Return the score that the phase starts with."""
        if self._phase.watch == "soft_dice":
            return self.progress.history[0].val_soft_dice
        return (
            max(row.val_dice for row in self.progress.history if row.best)
            if self._phase.continues
            else self._first_dice()
        )

    # --- epochs ------------------------------------------------------------------------------------------------------

    def _epoch_zero(self) -> None:
        """Validate the untouched network, the baseline for every epoch."""
        began = time.monotonic()
        table = self._validate(0)
        if np.isnan(table.dice).all():
            raise BrokenTrainingError(
                "the output of the network is NaN before the first step",
                expected="finite probabilities",
                remedy="Use another checkpoint or --precision float32; kerasseg inspect shows what a file contains.",
            )
        row = self._row(table, 0, EpochSums(), seconds=time.monotonic() - began, best=True)
        row = replace(row, phase=next(p.strategy for p in self.plan.phases if not p.recalibrates))
        self._set(history=(row,), first_table=table, best_table=table, last_table=table)
        self._set(plateau=self._phase.rule.begin(self._baseline()))
        self._recorder.keep_best(self.progress.best_tag, self.model)
        self._save()
        self._tell(Evaluated(row, table, self.progress.history))
        far = self._first_dice() < KNOWS
        first = next(p for p in self.plan.phases if not p.recalibrates)
        tried = any(p.when == "far" for p in self.plan.phases)
        advice = far_message(self._first_dice(), first.rule.rate, first.strategy, tried=tried)
        for message in (advice, *(() if far else self.plan.cautions)):
            if message is not None:
                self._say(message)

    def _epoch(self) -> None:
        """Train the rest of an epoch, validate, and apply the schedule."""
        recalibrates = self._phase.recalibrates
        if recalibrates:
            self._engine.recalibrate(self.training, self.steps, self._stop_if_asked)
        else:
            self._train_steps()
        began = time.monotonic()
        number = self.progress.epoch + 1
        table = self._validate(number)
        if np.isnan(table.dice).all():
            raise self._broken(f"the output of the network is NaN after epoch {number}", self._last_slices)
        raw, averaged = table, None
        if self.plan.ema and not recalibrates:
            with self._engine.averaged():
                averaged = self._validate(number)
            if averaged.mean("dice") > raw.mean("dice"):
                table = averaged
        progress, plateau = self.progress, self.progress.plateau
        if plateau is None:
            msg = "an epoch without a schedule"
            raise RuntimeError(msg)
        dice = table.mean("dice")
        # Written so that an epoch 0 with NaN scores can be improved on.
        best = not math.isnan(dice) and (progress.best_table is None or not dice <= progress.best_table.mean("dice"))
        rule = replace(self._phase.rule, rate=plateau.rate)
        new, events = rule.step(plateau, dice if self._phase.watch == "dice" else table.mean(self._phase.watch))
        seconds = progress.sums.seconds + time.monotonic() - began
        row = replace(self._row(table, number, progress.sums, seconds=seconds, best=best), event=_in_words(events))
        if recalibrates:
            row = replace(row, learning_rate=float("nan"))
        if averaged is not None:
            row = replace(row, val_dice_raw=raw.mean("dice"), val_dice_ema=averaged.mean("dice"))
        self._set(epoch=number, sums=EpochSums(), plateau=new, history=(*progress.history, row), last_table=table)
        if best:
            self._set(best=(progress.phase, number), best_table=table)
            with self._engine.averaged() if table is averaged else contextlib.nullcontext():
                self._best_weights = self.model.get_weights()
                self._recorder.keep_best(self.progress.best_tag, self.model)
        self._tell(Evaluated(row, table, self.progress.history))
        stopped = self._follow(events)
        self._advise(table, stopping=stopped is not None)
        if stopped is not None:
            self._close_phase("stopped", stopped)
        else:
            self._save()

    def _train_steps(self) -> None:
        start = self.progress.sums.steps
        if start >= self.steps:
            return
        epoch = self.progress.epoch
        for step, batch in enumerate(self._engine.batches(self.training, epoch, start), start + 1):
            began = time.monotonic()
            rate = self._rate()
            if self._phase.warmup is not None:
                self._engine.set_rate(rate)
            result = self._engine.train_step(batch)
            if not math.isfinite(result.loss):
                what = f"the loss became NaN or infinite in epoch {epoch + 1}, step {step}"
                raise self._broken(what, result.slices)
            self._last_slices = result.slices
            self._set(sums=self.progress.sums.with_step(result.loss, result.dice, time.monotonic() - began))
            if self._engine.parts != self.progress.parts:
                self._set(parts=self._engine.parts)
            sums = self.progress.sums
            self._tell(
                Step("train", epoch + 1, step, self.steps, sums.mean_loss, sums.mean_dice, rate, len(result.dice))
            )
            self._stop_if_asked()
            if step >= self.steps:
                break
            if self.plan.save_every and step % self.plan.save_every == 0:
                self._save()

    def _validate(self, epoch: int) -> SliceTable:
        seen, total = 0, 0.0

        def on_batch(step: int, steps: int, table: SliceTable) -> None:
            nonlocal seen, total
            seen, total = seen + len(table), total + float(table.dice.astype(np.float64).sum())
            mean = total / seen if seen else float("nan")
            self._tell(Step("validation", epoch, step, steps, float("nan"), mean, self._rate(), len(table)))
            self._stop_if_asked()

        table: SliceTable = self._engine.evaluate(self.validation.data, on_batch)
        return table

    # --- after an epoch --------------------------------------------------------------------------------------------------

    def _follow(self, events: tuple[PlateauEvent, ...]) -> str | None:
        """Apply events of the schedule; return the reason if training stops."""
        for event in events:
            match event:
                case Drop(rate):
                    self._engine.set_rate(rate)
                case Thaw(depth):
                    report = self._phase.freeze(self.model, depth)
                    # Adam corrects young averages by counting steps: weights that are unfrozen later need a new count,
                    # or their first steps would be three times too long.
                    self._engine.rebuild(self._optimizer(self._peak()))
                    still = ", ".join(report.frozen_blocks) or "nothing"
                    self._say(Message("note", f"thaw-{depth}", f"No gain: one more block is trained. Frozen: {still}."))
                case Stop(reason):
                    return reason
        return None

    def _advise(self, table: SliceTable, *, stopping: bool) -> None:
        """Warn where Dice fell below epoch 0 (the guard also acts on it) or training overfits."""
        progress = self.progress
        if progress.first_table is None or progress.plateau is None:
            return
        # Fresh weights have learned nothing that could be lost or restored.
        far = self._first_dice() < KNOWS
        fresh = self._phase.strategy == "scratch"
        below = not fresh and clearly_below(progress.first_table, table, self.validation.groups)
        guarding = self.plan.guard and not stopping and progress.guarded < _GUARDS
        if below and guarding and progress.plateau.best_epoch == 0:
            rate = progress.plateau.rate / 10
            self.model.set_weights(self._best_weights if self._phase.continues else self._base())
            self._set(plateau=self._phase.rule.lower(progress.plateau, rate), guarded=progress.guarded + 1)
            self._engine.rebuild(self._optimizer(rate))
            self._engine.restart_average()
            text = (
                f"Guard: validation Dice {table.mean('dice'):.4f} is clearly below epoch 0 ({self._first_dice():.4f}): "
                f"restored the starting weights, learning rate {rate:g}."
            )
            self._say(Message("warning", f"guard-{self.progress.phase}-{self.progress.guarded}", text))
        elif below and not far and progress.epoch <= _WATCHED and not progress.guarded:
            self._say(sunk_message(progress.first_table, table, self._peak(), self._phase.strategy))
        rows = [row for row in progress.history if row.phase == self._phase.strategy]
        for message in (overfitting_message(rows, far=far), idle_message(rows)):
            if message is not None:
                self._say(message)

    # --- small things ------------------------------------------------------------------------------------------------

    def _row(self, table: SliceTable, epoch: int, sums: EpochSums, *, seconds: float, best: bool) -> EpochRow:
        return EpochRow(
            phase=self._phase.strategy,
            epoch=epoch,
            learning_rate=self._rate(),
            loss=sums.mean_loss,
            dice=sums.mean_dice,
            val_loss=table.mean("loss"),
            val_dice=table.mean("dice"),
            val_soft_dice=table.mean("soft_dice"),
            val_iou=table.mean("iou"),
            val_precision=table.mean("precision"),
            val_recall=table.mean("recall"),
            val_dice_tumour=table.mean("dice", subset="tumour"),
            classes=table.by_class("dice", self.validation.classes),
            seconds=seconds,
            slices_per_second=sums.slices / sums.seconds if sums.seconds else float("nan"),
            memory_mb=self._memory(),
            thawed=self.progress.plateau.thawed if self.progress.plateau else 0,
            parts=self.progress.parts,
            best=best,
        )

    def _broken(self, what: str, slices: NDArray[np.int64] | None) -> BrokenTrainingError:
        """Return the error, which names the slices of the batch."""
        names = None if slices is None else ", ".join(self.training.slices.slice_ids(slices))
        rate = self._peak()
        return BrokenTrainingError(
            what,
            found=None if names is None else f"in a batch of the slices {names}",
            expected="finite numbers",
            remedy=f"Start a new run with --learning-rate {rate / 10:g}, --clipnorm 1 or "
            "--precision float32, and check these slices with kerasseg verify.",
        )

    def _first_dice(self) -> float:
        return self.progress.history[0].val_dice

    def _peak(self) -> float:
        """Return the rule's current learning rate; a cosine schedule starts from it."""
        return self.progress.plateau.rate if self.progress.plateau else self._phase.rule.rate

    def _rate(self) -> float:
        """Return the learning rate of the next step or, after an epoch, of its last step."""
        progress = self.progress
        step = progress.epoch * self.steps + min(progress.sums.steps, self.steps - 1)
        return self._phase.rate(self._peak(), step, self._limit() * self.steps)

    def _set(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)

    def _say(self, message: Message) -> None:
        """Send a message; each kind once per run."""
        if message.kind not in self.progress.said:
            self._set(said=self.progress.said | {message.kind})
            self._tell(message)

    def _stop_if_asked(self) -> None:
        if self._interrupted():
            raise _Interrupted

    def _save(self) -> None:
        if self.progress.first_table is None:
            return  # a new start gives the same
        variables = self._engine.variables()
        # The loss of a step is computed before its update, so it does not show that the update broke the weights.
        if any(name.startswith("model/") and not np.isfinite(array).all() for name, array in variables.items()):
            raise self._broken("weights of the network became NaN or infinite", self._last_slices)
        now = time.monotonic()
        self._set(seconds=self.progress.seconds + now - self._since)
        self._since = now
        self._recorder.save(self.progress, variables)
        if len(self.progress.history) != self._written:
            self._written = len(self.progress.history)
            self._recorder.write_history(self.progress.history)
        self._tell(Saved(self.progress.epoch, self.progress.sums.steps))

    def back_to_best(self) -> None:
        """Restore the best weights so far."""
        self.model.set_weights(self._best_weights)

    def _end(self, reason: Any, text: str) -> Ended:
        progress = self.progress
        first, best = progress.first_table, progress.best_table
        history = progress.history
        row = history[0] if history else None
        if row is None or first is None or best is None:
            msg = "stopped before the untouched network was evaluated; nothing was trained"
            raise NothingTrainedError(msg, remedy="Start it again with: kerasseg train --resume")
        best_phase = self.plan.phases[progress.best[0]].strategy
        winner = next((r for r in history if r.best and r.epoch == progress.best[1] and r.phase == best_phase), row)
        gain, gains = None, dict[str, Interval]()
        if len(history) > 1:
            groups = self.validation.groups
            gain = paired_interval(first.dice, best.dice, groups).cut(-1.0, 1.0)
            for i, name in enumerate(self.validation.classes):
                rows = first.label == i
                if rows.any():
                    gains[name] = paired_interval(first.dice[rows], best.dice[rows], groups[rows]).cut(-1.0, 1.0)
        seconds = progress.seconds + time.monotonic() - self._since
        ended = Ended(reason, text, history, row, winner, gain, gains, seconds)
        self._tell(ended)
        return ended


def _all_done(epochs: int) -> str:
    return "the one epoch is done" if epochs == 1 else f"all {epochs} epochs are done"


def _in_words(events: tuple[PlateauEvent, ...]) -> str:
    words = []
    for event in events:
        match event:
            case Drop(rate):
                words.append(f"rate {rate:g}")
            case Thaw(depth):
                words.append(f"thaw {depth}")
            case Stop():
                words.append("stop")
    return ", ".join(words)
