"""Strategies as training phases: what is frozen, and the learning rate schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import keras

from kerasseg.callbacks import PlateauRule, cosine_rate
from kerasseg.models.blocks import Blocks, find_blocks
from kerasseg.models.freezing import FreezeReport, freeze
from kerasseg.models.layers import with_inner
from kerasseg.optimizers import DecayedAdam, set_l2
from kerasseg.recipe import frozen_encoder_blocks
from kerasseg.runs.settings import ScheduleSettings, TrainSettings

BOLD_RATE = 1e-3
"""Learning rate for checkpoints that hardly know the task."""

_ENCODER_RATE_FACTOR = 0.1

_CAUGHT_UP, _STILL_RISES = 3, 0.005
"""A fresh decoder has caught up when soft Dice has not risen by more than 0.005 in 3 epochs."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of training, with its own optimizer.

    Attributes:
        strategy: Name in `history.csv`.
        freezes: A strategy of `freeze`, or names of blocks and layers.
        encoders: Encoder blocks, counted from the first, that "progressive" freezes at first; 0 for other strategies.
        freeze_batchnorm: Whether to freeze every BatchNorm layer.
        rule: What counts as a gain, when the rate drops and when training stops.
        encoder_rate_factor: Learning rate of encoder and bottleneck as a multiple of the decoder's.
        continues: Start from the best weights so far, for the epochs that the phase before left over.
        limit: Maximum number of epochs; None for the plan's.
        watch: Validation score that the rule follows.
        when: "far" only for checkpoints that hardly know the task, "near" only for others.
        recalibrates: Measure BatchNorm's statistics instead of training.
        warmup: Share of the steps that warm up before a cosine to 0; None if only the rule sets the rate.
        weight_decay, l2, clipnorm: Settings of the optimizer.
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
    encoder_rate_factor: float = 1.0
    continues: bool = False
    limit: int | None = None
    watch: Literal["dice", "soft_dice"] = "dice"
    when: Literal["always", "near", "far"] = "always"
    recalibrates: bool = False

    def rate(self, peak: float, step: int, steps: int) -> float:
        """Return the learning rate of a step (from 0) of `steps` planned ones; `peak` is the rule's current rate."""
        return peak if self.warmup is None else cosine_rate(peak, step, max(1, steps), self.warmup)

    def freeze(self, model: keras.Model, thawed: int = 0) -> FreezeReport:
        """Freeze the blocks of the phase except the `thawed` deepest ones."""
        what = self.freezes
        if self.encoders:
            left = [block.name for block in find_blocks(model).encoder[: max(0, self.encoders - thawed)]]
            what = tuple(left) or ("aggressive",)
        report = freeze(model, what, freeze_batchnorm=self.freeze_batchnorm)
        set_l2(model, self.l2)
        return report

    def optimizer(self, model: keras.Model, rate: float, *, scales_loss: bool = False) -> keras.optimizers.Optimizer:
        """Create an optimizer; `scales_loss` is for float16, in which small gradients would vanish."""
        adam = DecayedAdam(rate, self.weight_decay, global_clipnorm=self.clipnorm)
        if self.encoder_rate_factor != 1.0:
            blocks = find_blocks(model)
            encoder = [layer for block in (*blocks.encoder, blocks.bottleneck) for layer in with_inner(block.layers)]
            adam.scale_rate((v for layer in encoder for v in layer.weights), self.encoder_rate_factor)
        return keras.optimizers.LossScaleOptimizer(adam) if scales_loss else adam


def phases_of(settings: TrainSettings, model: keras.Model) -> tuple[Phase, ...]:
    blocks = find_blocks(model)
    phases = [_phase(settings, strategy, blocks) for strategy in settings.phases]
    match settings.strategy:
        case "two-stage":
            phases[1] = replace(phases[1], continues=True)
        case "auto":
            bold = settings.model_copy(update={"learning_rate": BOLD_RATE, "schedule": ScheduleSettings(kind="cosine")})
            phases[1] = replace(phases[1], when="near")
            phases.append(replace(_phase(bold, "aggressive", blocks), when="far"))
    if settings.recalibrate_batchnorm:
        rule = PlateauRule(rate=phases[0].rule.rate, stages=(), stop_after=None)
        everything = replace(phases[0], freezes=("aggressive",), encoders=0, freeze_batchnorm=False, warmup=None)
        phases.insert(
            0, replace(everything, strategy="recalibrated", rule=rule, limit=1, watch="dice", recalibrates=True)
        )
    return tuple(phases)


def _phase(settings: TrainSettings, strategy: str, blocks: Blocks) -> Phase:
    schedule = settings.schedule
    encoders = frozen_encoder_blocks("conservative", len(blocks.encoder)) if strategy == "progressive" else 0
    named = "aggressive" if strategy in ("scratch", "progressive") else strategy
    factor = settings.encoder_rate_factor or (_ENCODER_RATE_FACTOR if settings.strategy == "two-stage" else 1.0)
    cosine = settings.schedule_of(strategy) == "cosine"
    rule = PlateauRule(
        rate=settings.rate_of(strategy),
        stages=() if cosine else schedule.stages,
        stop_after=None if cosine else schedule.stop_after,
        stop_counter=schedule.stop_counter,
        thaws=encoders,
        min_delta=schedule.min_delta,
    )
    phase = Phase(
        strategy=strategy,
        freezes=settings.freeze or (named,),
        encoders=encoders,
        freeze_batchnorm=settings.freeze_batchnorm,
        rule=rule,
        weight_decay=settings.weight_decay,
        l2=settings.l2,
        clipnorm=settings.clipnorm,
        encoder_rate_factor=factor,
        warmup=schedule.warmup if cosine else None,
    )
    if strategy != "decoder":
        return phase
    # Soft Dice rises before any pixel passes 0.5; a fresh decoder stays below that in its first epochs.
    rule = PlateauRule(rate=rule.rate, stages=(), stop_after=_CAUGHT_UP, min_delta=_STILL_RISES)
    encoder = [
        b.name for b in (*blocks.encoder, blocks.bottleneck) if any(layer.weights for layer in with_inner(b.layers))
    ]
    frozen = tuple(encoder) or ("aggressive",)
    return replace(phase, freezes=frozen, rule=rule, warmup=None, limit=(settings.epochs + 1) // 2, watch="soft_dice")
