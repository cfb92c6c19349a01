"""Learning-rate schedules: plateaus as a pure state machine and as a Keras callback, and the cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal

import keras

from kerasseg_tfrecords.errors import UsageError

__all__ = ["RECIPE_STAGES", "Drop", "PlateauRule", "PlateauSchedule", "PlateauState", "Stop", "Thaw", "cosine_rate"]

RECIPE_STAGES: tuple[tuple[int, float], ...] = ((5, 1e-5), (3, 1e-6))
"""(epochs without a better score, rate that follows)."""


@dataclass(frozen=True, slots=True)
class Thaw:
    """Unfreeze one more block.

    Attributes:
        depth: Number of blocks that the schedule has unfrozen, this one included.
    """

    depth: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Continue with a lower learning rate.

    Attributes:
        rate: The new learning rate.
    """

    rate: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop training.

    Attributes:
        reason: A sentence without its full stop.
    """

    reason: str


Event = Thaw | Drop | Stop


@dataclass(frozen=True, slots=True)
class PlateauState:
    """State of the schedule: plain numbers that can be stored as JSON.

    Attributes:
        rate: Current learning rate.
        epoch: Epochs seen; 0 before the first.
        best: Best score so far; None before the first.
        best_epoch: Its epoch; 0 is the network before the first step.
        flat: Epochs since the last better score, drop or thaw.
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
        """Convert to a dictionary of plain numbers, which `from_json` reads."""
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
    """The recipe's schedule: lower the rate on plateaus, and stop when that no longer helps.

    With the defaults, 5 epochs without a better score lower the rate to 1e-5, 3 more to 1e-6, and 7 without improvement
    stop. The stop counts from the last drop: counted from the best epoch it would come at 7, and 1e-6, due at 8, would
    never be reached. Without any gain over epoch 0 the drops come after epochs 5 and 8, and the stop after epoch 15. The
    rate never rises, and weights are not restored at a drop.

    Stages whose rate is not below the current one are skipped: training that starts at 1e-5 ("aggressive") has one stage,
    1e-6 after 3 flat epochs.

    With `thaws` > 0 (strategy "progressive") each plateau first unfreezes one more block at the same rate, and counting
    starts again. The stages follow when all blocks are unfrozen.

    Args:
        rate: Learning rate of the first epoch, > 0.
        stages: (patience, rate) pairs, rates falling, patiences >= 1 in epochs; () never lowers the rate.
        stop_after: Epochs without improvement until the stop, >= 1; None never stops.
        stop_counter: "stage": the stop counts from the last better score, drop or thaw. "total": from the best epoch.
        thaws: Number of blocks that can be unfrozen.
        thaw_patience: Epochs without a better score until a thaw; None: the patience of the first stage, or 5.
        mode: "max" if a higher score is better, "min" for losses.
        min_delta: Largest gain that does not count; 0: any gain counts.

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
        _require(
            self.stop_after is None or _whole(self.stop_after, 1),
            "stop_after cannot be used",
            self.stop_after,
            "a whole number of epochs >= 1",
        )
        _require(self.stop_counter in ("stage", "total"), "unknown stop counter", self.stop_counter, "stage or total")
        _require(_whole(self.thaws, 0), "number of thaws cannot be used", self.thaws, "a whole number >= 0")
        _require(
            self.thaw_patience is None or _whole(self.thaw_patience, 1),
            "thaw_patience cannot be used",
            self.thaw_patience,
            "a whole number of epochs >= 1",
        )
        _require(self.mode in ("max", "min"), "unknown mode of the schedule", self.mode, "max or min")
        _require(
            math.isfinite(self.min_delta) and self.min_delta >= 0, "min_delta cannot be used", self.min_delta, ">= 0"
        )

    def begin(self, baseline: float | None = None) -> PlateauState:
        """The state before the first epoch.

        Args:
            baseline: Score of the untouched network ("epoch 0"), which can be the best; None if it is not known.
        """
        if baseline is None or math.isnan(baseline):
            return PlateauState(rate=self.rate)
        return PlateauState(rate=self.rate, best=float(baseline))

    def better(self, state: PlateauState, score: float) -> bool:
        """Whether the score beats the best so far; NaN never does."""
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
            The new state, and the events to apply before the next epoch: none or one.
        """
        epoch = state.epoch + 1
        if self.better(state, score):
            return replace(state, epoch=epoch, best=float(score), best_epoch=epoch, flat=0, stopped=False), ()
        state = replace(state, epoch=epoch, flat=state.flat + 1, stopped=False)

        # Counted in total, the stop is an upper bound and comes first; counted per stage, a drop or thaw comes first.
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
        """Epochs without improvement, as the stop counts them."""
        return state.epoch - state.best_epoch if self.stop_counter == "total" else state.flat

    def lower(self, state: PlateauState, rate: float) -> PlateauState:
        """The state after the rate was lowered from outside; stages above the new rate are skipped."""
        _require(_positive(rate) and rate <= state.rate, "rate is not lower", rate, f"at most {state.rate:g}")
        return replace(state, rate=float(rate), flat=0, stopped=False)

    def next_stage(self, rate: float) -> tuple[int, float] | None:
        """(patience, rate) of the first stage below the given rate; None after the last."""
        # An optimizer keeps its rate as float32: 5e-5 read back from there may be a hair above 5e-5.
        return next((stage for stage in self.stages if stage[1] < rate * (1 - 1e-6)), None)

    def _patience_of_thaw(self) -> int:
        if self.thaw_patience is not None:
            return self.thaw_patience
        return self.stages[0][0] if self.stages else RECIPE_STAGES[0][0]

    def _idle_too_long(self, state: PlateauState) -> bool:
        return self.stop_after is not None and self.idle(state) >= self.stop_after

    def _stop(self, state: PlateauState) -> tuple[PlateauState, tuple[Event, ...]]:
        since = "the best epoch" if self.stop_counter == "total" else "the last gain or fresh chance"
        reason = f"no better score for {self.idle(state)} epochs since {since}"
        return replace(state, stopped=True), (Stop(reason),)


def cosine_rate(peak: float, step: int, steps: int, warmup: float = 0.05) -> float:
    """Learning rate of one step: a linear warm-up to `peak`, then half a cosine towards 0 (SGDR without restarts).

    The rate depends on the step alone, so that a resumed run continues with the same rates.

    Args:
        peak: Highest learning rate, > 0.
        step: Optimizer steps taken before this one, 0 or more.
        steps: Planned steps in total, 1 or more.
        warmup: Share of the steps spent on the warm-up, [0, 1).

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
        _require(
            len(stage) == 2 and _whole(stage[0], 1) and _positive(stage[1]), "stages cannot be used", stages, expected
        )
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

    Unlike `keras.callbacks.ReduceLROnPlateau` with `EarlyStopping`, it has several patiences, a stop that counts from the
    last drop, and counters that a second `fit` or a resumed run does not reset. Call `reset` before training another model.

    Args:
        monitor: Name of the score in the logs; with `DiceScore()` it is "val_dice".
        rate: Learning rate of the first epoch; None for the optimizer's.
        stages: Pairs of patience in epochs and the rate that follows; rates fall.
        stop_after: Epochs without improvement until the stop; None never stops.
        stop_counter: "stage" or "total".
        baseline: Score of the untouched model, so that epoch 0 can be the best; see `PlateauRule.begin`.
        mode: "max", or "min" for losses.
        min_delta: Largest gain that does not count.
        thaws: Number of blocks that `on_thaw` can unfreeze.
        thaw_patience: Epochs without a better score until a thaw.
        on_thaw: Called with (model, depth) at each plateau while blocks are frozen. It must compile the model again, since
            Keras ignores a changed `trainable` otherwise. Not serialised.

    Attributes:
        state: The `PlateauState`, None before training.
        events: Events of the last epoch.

    Raises:
        UsageError: An argument is out of range, the score is not in the logs, or the optimizer's learning rate is itself a
            schedule.

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
        # The rate is only known when training begins; with any other, invalid arguments are found here.
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
        """Start or continue; sets the optimizer's learning rate."""
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
        """The counters as plain numbers, None before training."""
        return None if self.state is None else self.state.to_json()

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `get_state` returned."""
        self.state = None if state is None else PlateauState.from_json(state)
        self.events = ()

    def get_config(self) -> dict[str, Any]:
        """All arguments except `on_thaw`, a function, which must be set again."""
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
        """A schedule with these arguments."""
        return cls(**config)

    def _rule_at(self, rate: float) -> PlateauRule:
        return replace(self._rule, rate=rate)

    def _current_rate(self) -> float:
        optimizer = self.model.optimizer
        # `learning_rate` computes the current value; the attribute behind it tells a schedule from a number. Under
        # mixed_float16 the optimizer stands within one that scales the loss.
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
