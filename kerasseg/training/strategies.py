"""What a strategy means for a network: what is frozen, at which depth of thaw, and the schedule that goes with it."""

from __future__ import annotations

from dataclasses import dataclass

import keras

from kerasseg.callbacks import PlateauRule, cosine_rate
from kerasseg.models.blocks import find_blocks
from kerasseg.models.freezing import FreezeReport, freeze, frozen_encoder_blocks
from kerasseg.optimizers import DecayedAdam, set_l2
from kerasseg.runs.settings import TrainSettings

__all__ = ["Phase", "phases_of"]


@dataclass(frozen=True, slots=True)
class Phase:
    """One training from the checkpoint to its stop.

    Attributes:
        strategy: Its name, for people and `history.csv`.
        freezes: A strategy of `freeze`, or names of blocks and layers.
        encoders: How many of the first encoder blocks "progressive" begins with frozen; 0 for the others.
        freeze_batchnorm: Hold every BatchNorm layer.
        rule: What counts as a gain, when the rate drops and when training stops.
        warmup: Share of the steps that warm up before a cosine to 0; None where the rule alone sets the rate.
        weight_decay, l2, clipnorm: Of the optimizer.
    """

    strategy: str
    freezes: tuple[str, ...]
    encoders: int
    freeze_batchnorm: bool
    rule: PlateauRule
    weight_decay: float
    l2: float
    clipnorm: float | None
    warmup: float | None = None

    def rate(self, peak: float, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0, of so many planned ones; `peak` is what the rule has come to."""
        return peak if self.warmup is None else cosine_rate(peak, step, max(1, steps), self.warmup)

    def freeze(self, model: keras.Model, thawed: int = 0) -> FreezeReport:
        """Freezes what the phase freezes, less `thawed` blocks, the deepest first."""
        what = self.freezes
        if self.encoders:
            left = [block.name for block in find_blocks(model).encoder[: max(0, self.encoders - thawed)]]
            what = tuple(left) or ("aggressive",)
        report = freeze(model, what, freeze_batchnorm=self.freeze_batchnorm)
        set_l2(model, self.l2)
        return report

    def optimizer(self, rate: float, *, scales_loss: bool = False) -> keras.optimizers.Optimizer:
        """A fresh optimizer; `scales_loss` for float16, whose small gradients would vanish otherwise."""
        adam = DecayedAdam(rate, self.weight_decay, global_clipnorm=self.clipnorm)
        return keras.optimizers.LossScaleOptimizer(adam) if scales_loss else adam


def phases_of(settings: TrainSettings, model: keras.Model) -> tuple[Phase, ...]:
    """The phases that the settings ask for.

    Raises:
        UsageError: A rate or stage out of its range.
        KerassegError: `find_blocks` sees no encoder-decoder in the model.
    """
    encoders = len(find_blocks(model).encoder)
    phases = []
    for strategy in settings.phases:
        held = frozen_encoder_blocks("conservative", encoders) if strategy == "progressive" else 0
        named = "aggressive" if strategy in ("scratch", "progressive") else strategy
        schedule = settings.schedule
        cosine = settings.schedule_of(strategy) == "cosine"
        rule = PlateauRule(
            rate=settings.rate_of(strategy),
            stages=() if cosine else schedule.stages,
            stop_after=None if cosine else schedule.stop_after,
            stop_counter=schedule.stop_counter,
            thaws=held,
            min_delta=schedule.min_delta,
        )
        phases.append(
            Phase(
                strategy=strategy,
                freezes=settings.freeze or (named,),
                encoders=held,
                freeze_batchnorm=settings.freeze_batchnorm,
                rule=rule,
                weight_decay=settings.weight_decay,
                l2=settings.l2,
                clipnorm=settings.clipnorm,
                warmup=schedule.warmup if cosine else None,
            )
        )
    return tuple(phases)
