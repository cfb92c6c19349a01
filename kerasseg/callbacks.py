"""Learning-rate schedules: plateaus, as a state machine and as a Keras callback, and the cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal

import keras

from kerasseg.recipe import RECIPE_STAGES
from kerasseg_tfrecords.errors import UsageError


@dataclass(frozen=True, slots=True)
class Thaw:
    """Unfreeze one more block.

    Attributes:
        depth: Number of blocks that the schedule has unfrozen, this one included.
    """

    depth: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Continue with a lower learning rate."""

    rate: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop training."""

    reason: str


Event = Thaw | Drop | Stop


@dataclass(frozen=True, slots=True)
class PlateauState:
    """State of the schedule: plain numbers that can be stored as JSON.

    Attributes:
        rate: Current learning rate.
        epoch: Epochs seen; 0 before the first.
        best: Best score so far; None before the first.
        best_epoch: Epoch of the best score; 0 is the network before training.
        flat: Epochs since the last improvement, drop or thaw.
        thawed: Number of blocks unfrozen so far.
        stopped: Whether the last step returned `Stop`.

    Example:
        >>> state = PlateauState(rate=1e-4, epoch=3, best=0.7, best_epoch=2, flat=1)
        >>> PlateauState.from_json(state.to_json()) == state
        True
    """

    rate: float
    epoch: int = 0
    best: float | None = None
    best_epoch: int = 0
    flat: int = 0
    thawed: int = 0
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the state as a dictionary of plain numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlateauState:
        """Read what `to_json` returned.

        Raises:
            UsageError: Keys are missing or unknown.
        """
        names = {item.name for item in fields(cls)}
        if set(data) != names:
            raise UsageError("invalid state of the schedule", found=sorted(data), expected=sorted(names))
        return cls(**data)


@dataclass(frozen=True, slots=True)
class PlateauRule:
    """Schedule of the training recipe: lower the learning rate on plateaus, and stop when that no longer helps.

    With the defaults, 5 epochs without improvement lower the rate to 1e-5, 3 more to 1e-6, and 7 more stop. The stop
    counts from the last drop; counted from the best epoch, it would come before the drop to 1e-6. The rate never rises,
    and weights are not restored at a drop. Stages whose rate is not below the current one are skipped.

    With `thaws` > 0 (strategy "progressive"), each plateau first unfreezes one more block at the same rate and restarts the
    count. The stages follow when all blocks are unfrozen.

    Args:
        rate: Learning rate of the first epoch, > 0.
        stages: (patience, rate) pairs with falling rates and patiences >= 1 in epochs; () never lowers the rate.
        stop_after: Epochs without improvement until the stop, >= 1; None never stops.
        stop_counter: "stage" counts from the last improvement, drop or thaw; "total" from the best epoch.
        thaws: Number of blocks that can be unfrozen.
        thaw_patience: Epochs without improvement until a thaw; None for the patience of the first stage, or 5.
        mode: "max" if higher scores are better, "min" for losses.
        min_delta: Improvements up to this size do not count.

    Raises:
        UsageError: An argument is out of range.

    Example:
        >>> rule = PlateauRule(rate=1e-4)
        >>> state = rule.begin(baseline=0.70)
        >>> for score in [0.72, 0.71, 0.71, 0.71, 0.71, 0.71]:
        ...     state, events = rule.step(state, score)
        >>> events, state.best_epoch
        ((Drop(rate=1e-05),), 1)
    """

    rate: float
    stages: tuple[tuple[int, float], ...] = field(default=RECIPE_STAGES)
    stop_after: int | None = 7
    stop_counter: Literal["stage", "total"] = "stage"
    thaws: int = 0
    thaw_patience: int | None = None
    mode: Literal["max", "min"] = "max"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "stages", _checked_stages(self.stages))
        _require(_positive(self.rate), "learning rate cannot be used", self.rate, "a number > 0")
        for name in ("stop_after", "thaw_patience"):
            value = getattr(self, name)
            whole = value is None or _whole(value, 1)
            _require(whole, f"{name} cannot be used", value, "a whole number of epochs >= 1")
        _require(self.stop_counter in ("stage", "total"), "unknown stop counter", self.stop_counter, "stage or total")
        _require(_whole(self.thaws, 0), "number of thaws cannot be used", self.thaws, "a whole number >= 0")
        _require(self.mode in ("max", "min"), "unknown mode of the schedule", self.mode, "max or min")
        valid = math.isfinite(self.min_delta) and self.min_delta >= 0
        _require(valid, "min_delta cannot be used", self.min_delta, ">= 0")

    def begin(self, baseline: float | None = None) -> PlateauState:
        """Return the state before the first epoch.

        Args:
            baseline: Score of the network before training ("epoch 0"), which can be the best; None if unknown.
        """
        if baseline is None or math.isnan(baseline):
            return PlateauState(rate=self.rate)
        return PlateauState(rate=self.rate, best=float(baseline))

    def better(self, state: PlateauState, score: float) -> bool:
        """Return whether the score beats the best so far; NaN never does."""
        if math.isnan(score):
            return False
        if state.best is None:
            return True
        gain = score - state.best if self.mode == "max" else state.best - score
        return gain > self.min_delta

    def step(self, state: PlateauState, score: float) -> tuple[PlateauState, tuple[Event, ...]]:
        """Advance by one epoch.

        Args:
            state: State from `begin` or the last step.
            score: Validation score of the epoch.

        Returns:
            The new state, and the event to apply before the next epoch, if any.
        """
        epoch = state.epoch + 1
        if self.better(state, score):
            return replace(state, epoch=epoch, best=float(score), best_epoch=epoch, flat=0, stopped=False), ()
        state = replace(state, epoch=epoch, flat=state.flat + 1, stopped=False)

        # The "total" counter is an upper bound and therefore comes first; with "stage", a drop or thaw comes first.
        if self.stop_counter == "total" and self._idle_too_long(state):
            return self._stop(state)
        if state.thawed < self.thaws:
            if state.flat >= self._patience_of_thaw():
                return replace(state, thawed=state.thawed + 1, flat=0), (Thaw(state.thawed + 1),)
        elif (stage := self.next_stage(state.rate)) is not None and state.flat >= stage[0]:
            return replace(state, rate=stage[1], flat=0), (Drop(stage[1]),)
        if self._idle_too_long(state):
            return self._stop(state)
        return state, ()

    def idle(self, state: PlateauState) -> int:
        """Return the epochs without improvement, as counted for the stop."""
        return state.epoch - state.best_epoch if self.stop_counter == "total" else state.flat

    def lower(self, state: PlateauState, rate: float) -> PlateauState:
        """Return the state after the rate was lowered from outside; stages above the new rate are skipped."""
        _require(_positive(rate) and rate <= state.rate, "rate is not lower", rate, f"at most {state.rate:g}")
        return replace(state, rate=float(rate), flat=0, stopped=False)

    def next_stage(self, rate: float) -> tuple[int, float] | None:
        """Return (patience, rate) of the first stage below the given rate; None after the last."""
        # Optimizers store the rate as float32, so 5e-5 may read back slightly larger.
        return next((stage for stage in self.stages if stage[1] < rate * (1 - 1e-6)), None)

    def _patience_of_thaw(self) -> int:
        if self.thaw_patience is not None:
            return self.thaw_patience
        return self.stages[0][0] if self.stages else RECIPE_STAGES[0][0]

    def _idle_too_long(self, state: PlateauState) -> bool:
        return self.stop_after is not None and self.idle(state) >= self.stop_after

    def _stop(self, state: PlateauState) -> tuple[PlateauState, tuple[Event, ...]]:
        since = "the best epoch" if self.stop_counter == "total" else "the last improvement, drop or thaw"
        reason = f"no better score for {self.idle(state)} epochs since {since}"
        return replace(state, stopped=True), (Stop(reason),)


def cosine_rate(peak: float, step: int, steps: int, warmup: float = 0.05) -> float:
    """Return the learning rate of one step: linear warm-up to `peak`, then a half cosine towards 0.

    It depends only on the step, so a resumed run continues with the same rates.

    Args:
        peak: Highest learning rate, > 0.
        step: Optimizer steps taken before, 0 or more.
        steps: Planned total number of steps, 1 or more.
        warmup: Fraction of the steps used for the warm-up, [0, 1).

    Example:
        >>> [round(cosine_rate(1.0, step, 10, warmup=0.2), 3) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    warm = min(round(warmup * steps), steps - 1)
    if step < warm:
        return peak * (step + 1) / warm
    share = (min(step, steps - 1) - warm) / (steps - warm)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


def _checked_stages(stages: Sequence[Any]) -> tuple[tuple[int, float], ...]:
    expected = "pairs (epochs >= 1, rate > 0) with falling rates"
    pairs = []
    for stage in stages:
        valid = len(stage) == 2 and _whole(stage[0], 1) and _positive(stage[1])
        _require(valid, "stages cannot be used", stages, expected)
        pairs.append((int(stage[0]), float(stage[1])))
    falling = all(a[1] > b[1] for a, b in pairwise(pairs))
    _require(falling, "stages cannot be used", stages, expected)
    return tuple(pairs)


def _require(condition: bool, what: str, found: object, expected: object) -> None:
    if not condition:
        raise UsageError(what, found=found, expected=expected)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@keras.saving.register_keras_serializable(package="kerasseg")
class PlateauSchedule(keras.callbacks.Callback):
    """Lower the learning rate on plateaus of a validation score, and stop; see `kerasseg.callbacks.PlateauRule`.

    Unlike `keras.callbacks.ReduceLROnPlateau` with `EarlyStopping`, it has a patience for each stage, counts the stop from
    the last drop, and keeps its counters over a second `fit` or a resumed run. Call `reset` before training another model.

    Args:
        monitor: Name of the score in the logs; "val_dice" for `DiceScore()`.
        rate: Learning rate of the first epoch; None for the optimizer's.
        stages: See `PlateauRule`.
        stop_after: See `PlateauRule`.
        stop_counter: See `PlateauRule`.
        baseline: Score of the model before training; see `PlateauRule.begin`.
        mode: "max", or "min" for losses.
        min_delta: See `PlateauRule`.
        thaws: Number of blocks that `on_thaw` can unfreeze.
        thaw_patience: Epochs without improvement until a thaw.
        on_thaw: Function called with (model, depth) at each plateau while blocks are frozen. It must compile the model
            again, because Keras otherwise ignores the changed `trainable`. Not serialised.

    Attributes:
        state: The `PlateauState`; None before training.
        events: Events of the last epoch.

    Raises:
        UsageError: An argument is out of range, the score is not in the logs, or the optimizer already has a schedule.

    Example:
        >>> schedule = PlateauSchedule(monitor="val_dice", stages=[(5, 1e-5), (3, 1e-6)], stop_after=7)
        >>> keras.saving.serialize_keras_object(schedule)["registered_name"]
        'kerasseg>PlateauSchedule'

        `model.fit(..., validation_data=..., callbacks=[schedule])`
    """

    def __init__(
        self,
        monitor: str = "val_dice",
        rate: float | None = None,
        stages: Sequence[Sequence[float]] = RECIPE_STAGES,
        stop_after: int | None = 7,
        stop_counter: Literal["stage", "total"] = "stage",
        *,
        baseline: float | None = None,
        mode: Literal["max", "min"] = "max",
        min_delta: float = 0.0,
        thaws: int = 0,
        thaw_patience: int | None = None,
        on_thaw: Callable[[keras.Model, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self.baseline = baseline
        self.on_thaw = on_thaw
        self._rate = rate
        # The rate is known only when training begins; 1.0 lets the other arguments be checked here.
        self._rule = PlateauRule(
            rate=1.0 if rate is None else rate,
            stages=tuple((stage[0], stage[1]) for stage in stages),  # type: ignore[misc]
            stop_after=stop_after,
            stop_counter=stop_counter,
            thaws=thaws,
            thaw_patience=thaw_patience,
            mode=mode,
            min_delta=min_delta,
        )
        self.state: PlateauState | None = None
        self.events: tuple[Event, ...] = ()

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002
        """Start or continue, and set the optimizer's learning rate."""
        if self._rule.thaws and self.on_thaw is None:
            raise UsageError("nothing to thaw with", found=f"thaws={self._rule.thaws}", expected="on_thaw, a function")
        if self.state is None:
            rule = self._rule_at(self._current_rate() if self._rate is None else self._rate)
            self.state = rule.begin(self.baseline)
        self._set_rate(self.state.rate)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Apply the rule to the score of the epoch."""
        if self.state is None:
            raise UsageError("the schedule has not begun", remedy="Call on_train_begin first.")
        logs = {} if logs is None else logs
        if self.monitor not in logs:
            raise UsageError(
                "the monitored score is not in the logs",
                found=", ".join(sorted(logs)) or "no logs",
                expected=self.monitor,
                remedy="Pass validation_data and a metric of that name, or another monitor.",
            )
        logs["learning_rate"] = self.state.rate  # the rate that this epoch was trained at
        self.state, self.events = self._rule_at(self.state.rate).step(self.state, float(logs[self.monitor]))
        for event in self.events:
            match event:
                case Drop(rate):
                    self._set_rate(rate)
                case Thaw(depth):
                    if self.on_thaw is not None:
                        self.on_thaw(self.model, depth)
                    self._set_rate(self.state.rate)
                case Stop():
                    self.model.stop_training = True

    def reset(self) -> None:
        """Forget the state, for another model."""
        self.state, self.events = None, ()

    def get_state(self) -> dict[str, Any] | None:
        """Return the counters as plain numbers; None before training."""
        return None if self.state is None else self.state.to_json()

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Restore the result of `get_state`."""
        self.state = None if state is None else PlateauState.from_json(state)
        self.events = ()

    def get_config(self) -> dict[str, Any]:
        """Return all arguments except `on_thaw`."""
        rule = self._rule
        return {
            "monitor": self.monitor,
            "rate": self._rate,
            "stages": [list(stage) for stage in rule.stages],
            "stop_after": rule.stop_after,
            "stop_counter": rule.stop_counter,
            "baseline": self.baseline,
            "mode": rule.mode,
            "min_delta": rule.min_delta,
            "thaws": rule.thaws,
            "thaw_patience": rule.thaw_patience,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PlateauSchedule:
        """Create a schedule with these arguments."""
        return cls(**config)

    def _rule_at(self, rate: float) -> PlateauRule:
        return replace(self._rule, rate=rate)

    def _current_rate(self) -> float:
        optimizer = self.model.optimizer
        # `learning_rate` is the current value; `_learning_rate` shows whether it comes from a schedule. Under mixed_float16
        # the optimizer is wrapped in one that scales the loss.
        behind = getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None)
        if isinstance(behind, keras.optimizers.schedules.LearningRateSchedule):
            raise UsageError(
                "the optimizer's learning rate is already a schedule",
                found=type(behind).__name__,
                expected="an optimizer with a plain learning rate",
            )
        return float(optimizer.learning_rate)

    def _set_rate(self, rate: float) -> None:
        self._current_rate()
        self.model.optimizer.learning_rate = rate
