"""The recipe's schedule as a Keras callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import keras

from kerasseg.plateau import RECIPE_STAGES, Drop, Event, PlateauRule, PlateauState, Stop, Thaw
from kerasseg_tfrecords.errors import UsageError

__all__ = ["PlateauSchedule"]


@keras.saving.register_keras_serializable(package="kerasseg")
class PlateauSchedule(keras.callbacks.Callback):
    """Lowers the rate on plateaus of a validation score and stops; `kerasseg.plateau.PlateauRule` has the rules.

    What `keras.callbacks.ReduceLROnPlateau` with `EarlyStopping` cannot do: several patiences, a stop that counts anew
    after each drop, and counters that survive: neither a second `fit` nor a resumed run starts them again. Use `reset`
    to begin with another model.

    Args:
        monitor: Name of the score in the logs; with `DiceScore()` it is "val_dice".
        rate: Learning rate of the first epoch; None takes the optimizer's.
        stages: (patience in epochs, rate that follows), rates falling.
        stop_after: Epochs without improvement until the stop; None never stops.
        stop_counter: "stage" or "total".
        baseline: Score of the untouched model, so that epoch 0 can be the best; see `PlateauRule.begin`.
        mode: "max", or "min" for losses.
        min_delta: Gain that does not count.
        thaws: How many blocks `on_thaw` can thaw.
        thaw_patience: Epochs without a better score until a thaw.
        on_thaw: Called with (model, depth) at each plateau while blocks are frozen. A compiled Keras model takes up a
            changed `trainable` only when it is compiled again, which the function has to see to. Not serialised.

    Attributes:
        state: The `PlateauState`, None before training.
        events: What the last epoch brought.

    Raises:
        UsageError: If an argument is out of its range, the score is not in the logs, or the optimizer's rate is a
            schedule of its own.

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
        # The rate is only known when training begins; any stands in, so that wrong arguments are told here.
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
        """Begins, or goes on where it was; the optimizer gets the rate in force."""
        if self._rule.thaws and self.on_thaw is None:
            raise UsageError("nothing to thaw with", found=f"thaws={self._rule.thaws}", expected="on_thaw, a function")
        if self.state is None:
            rule = self._rule_at(self._current_rate() if self._rate is None else self._rate)
            self.state = rule.begin(self.baseline)
        self._set_rate(self.state.rate)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Takes the epoch's score and does what the rule says."""
        if self.state is None:
            raise UsageError("the schedule has not begun", remedy="Call on_train_begin first.")
        logs = {} if logs is None else logs
        if self.monitor not in logs:
            raise UsageError(
                "the schedule's score is not in the logs",
                found=", ".join(sorted(logs)) or "no logs",
                expected=self.monitor,
                remedy="Give validation_data and a metric of that name, or another monitor.",
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
        """Forgets everything, for another model."""
        self.state, self.events = None, ()

    def get_state(self) -> dict[str, Any] | None:
        """The counters as plain numbers, None before training."""
        return None if self.state is None else self.state.to_json()

    def set_state(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from what `get_state` gave."""
        self.state = None if state is None else PlateauState.from_json(state)
        self.events = ()

    def get_config(self) -> dict[str, Any]:
        """All arguments but `on_thaw`, for `from_config`; a function is no data, set it again."""
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
                "two schedules want to set the rate",
                found=type(behind).__name__,
                expected="an optimizer with a plain learning rate",
            )
        return float(optimizer.learning_rate)

    def _set_rate(self, rate: float) -> None:
        self._current_rate()
        self.model.optimizer.learning_rate = rate
