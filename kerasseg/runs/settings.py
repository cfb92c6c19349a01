"""Settings of a training run, validated by pydantic and stored in the run as JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, field_validator, model_validator

from kerasseg.recipe import RECIPE_STAGES
from kerasseg_tfrecords.errors import UsageError
from kerasseg_tfrecords.text import without_credentials
from kerasseg_tfrecords.validation import complaint

Strategy = Literal["conservative", "moderate", "aggressive", "progressive", "two-stage", "auto", "scratch"]
Precision = Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"]

Address = Annotated[str, PlainSerializer(without_credentials)]
"""A path or address; saved without password and query."""

_RATES: dict[str, float] = {"aggressive": 1e-5, "scratch": 1e-3, "decoder": 1e-3}
_RATE = 1e-4
_DECODER = 10
"""Learning rate of the first of two stages, as a multiple of the second one's."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AugmentationSettings(_Settings):
    """Arguments of `SafeAugmentation`; 0 turns an augmentation off.

    Attributes:
        flip: Probability of a horizontal flip, 0 to 1.
        brightness: Largest shift, as a share of the range of grey values.
        contrast: Largest relative change of contrast.
        zoom: Largest relative zoom.
    """

    flip: float = 0.5
    brightness: float = 0.1
    contrast: float = 0.1
    zoom: float = 0.05


class LossSettings(_Settings):
    """Arguments of `DiceBCELoss`."""

    dice_weight: float = 1.0
    bce_weight: float = 1.0
    smooth: float = 1.0
    positive_weight: float = 1.0


class ScheduleSettings(_Settings):
    """When the learning rate changes and training stops.

    Attributes:
        kind: "plateau" lowers the rate on plateaus of validation Dice. "cosine" warms up, then follows a cosine to 0 over
            the planned epochs, and never stops early. None: plateau; cosine for scratch and two-stage training, unless an
            attribute for plateaus is given.
        warmup: Share of the steps that a cosine schedule spends on a linear warm-up.
        stages: Pairs of epochs without improvement and the learning rate that follows.
        stop_after: Epochs without improvement until training stops; None never stops.
        stop_counter: "stage" or "total".
        min_delta: Smallest improvement of Dice that counts, exclusive.
    """

    kind: Literal["plateau", "cosine"] | None = None
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    stages: tuple[tuple[Annotated[int, Field(ge=1)], float], ...] = RECIPE_STAGES
    stop_after: Annotated[int, Field(ge=1)] | None = 7
    stop_counter: Literal["stage", "total"] = "stage"
    min_delta: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _plateau_where_described(cls, values: Any) -> Any:
        # Also for runs of earlier versions, which had only plateau schedules.
        described = isinstance(values, dict) and "kind" not in values
        if described and {"stages", "stop_after", "stop_counter", "min_delta"} & set(values):
            return {**values, "kind": "plateau"}
        return values


class TrainSettings(_Settings):
    """Settings of a training run; None means the recipe's value, which is resolved when the run starts.

    Attributes:
        shards: Shard directory, or its URL.
        checkpoint: File, folder, `hf://...` or `https://...`; None for the configured default (none for `scratch`).
        architecture: Network of a checkpoint that contains only weights.
        head: What to do with the checkpoint's last layer; see `fit_to_task`.
        encoder: Name of a pretrained encoder to use instead of a checkpoint, see `kerasseg.unet`.
        encoder_weights: Weights of the encoder: "imagenet", a file, `hf://...` or `https://...`; None for "imagenet".
        strategy: What is frozen, and the learning rate.
        freeze: Blocks or layers to freeze instead of the strategy's.
        freeze_batchnorm: Freeze every BatchNorm layer.
        batchnorm_momentum: Momentum of trained BatchNorm layers, [0, 1); None: the network's own, or less if epochs are
            short, see `kerasseg.training.batchnorm`.
        learning_rate: Initial learning rate, > 0; None: 1e-4, "aggressive" 1e-5, "scratch" 1e-3. In two-stage training
            the rate of the second stage; the first one's is ten times as high.
        encoder_rate_factor: Learning rate of encoder and bottleneck as a multiple of the decoder's, (0, 1]; None: 0.1 in
            the second of two stages, otherwise 1.
        weight_decay: Decoupled weight decay of kernels.
        l2: Strength of L2 of kernels in the loss; 0 for none.
        clipnorm: Maximum global norm of the gradients; None for no limit.
        epochs: Maximum number of epochs.
        steps: Maximum number of steps in an epoch; None for the whole split.
        recalibrate_batchnorm: Measure BatchNorm's statistics on the training slices before the first step; they are kept
            if validation Dice rises.
        batch_size: Slices in a global batch, over all devices.
        loss: Arguments of the loss.
        schedule: When the learning rate changes and training stops.
        balance: Composition of batches.
        augmentation: Amounts of augmentation; None for none.
        class_weight: "balanced", or class name -> weight.
        train_on_positives: Leave out training slices without tumour.
        guard: If Dice falls clearly below epoch 0, restore the weights and divide the learning rate by ten.
        seed: Random seed for order, augmentation, fresh weights and dropout.
        precision: "auto" chooses the fastest format of the device that costs no Dice.
        devices: Names such as "GPU:0"; empty for all GPUs, or the CPU.
        deterministic: The same seed on the same machine gives the same weights, bit for bit.
        xla: Compile with XLA; None: only on a single GPU.
        save_memory: On a processor, need less memory and more time, with the same result.
        ema: Decay of an exponential moving average of the weights, such as 0.999; None for none.
        save_every: Steps between saved states within an epoch; None saves only after epochs.
        cache: Where training slices are cached.
        memory_budget: Memory for a split, in bytes.
        network: Arguments of `kerasseg.unet` for `scratch` without a checkpoint, such as {"filters": 16}.
    """

    shards: Address = "shards"
    checkpoint: Address | None = None
    architecture: Address | None = None
    head: Literal["auto", "keep", "binary"] = "auto"
    encoder: str | None = None
    encoder_weights: Address | None = None
    strategy: Strategy = "conservative"
    freeze: tuple[str, ...] = ()
    freeze_batchnorm: bool = False
    batchnorm_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    learning_rate: float | None = None
    encoder_rate_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    recalibrate_batchnorm: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    l2: Annotated[float, Field(ge=0)] = 0.0
    clipnorm: float | None = None
    epochs: Annotated[int, Field(ge=0)] = 20
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 8
    loss: LossSettings = LossSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    balance: Literal["proportional", "balanced"] = "proportional"
    augmentation: AugmentationSettings | None = AugmentationSettings()
    class_weight: Literal["balanced"] | dict[str, float] | None = None
    train_on_positives: bool = False
    guard: bool = False
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 42
    precision: Precision = "auto"
    devices: tuple[str, ...] = ()
    deterministic: bool = False
    xla: bool | None = None
    save_memory: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    save_every: Annotated[int, Field(ge=1)] | None = None
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    memory_budget: Annotated[int, Field(ge=0)] = 2 * 1024**3
    network: dict[str, Any] = {}

    @field_validator("learning_rate", "clipnorm")
    @classmethod
    def _positive(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and value > 0):
            msg = "a number > 0"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.freeze and self.strategy in ("progressive", "two-stage", "auto", "scratch"):
            msg = f"strategy {self.strategy} decides itself what is frozen, and freeze= names blocks too: give one of them"
            raise ValueError(msg)
        if self.encoder_weights is not None and self.encoder is None:
            msg = "encoder_weights need an encoder"
            raise ValueError(msg)
        if self.encoder is not None and self.checkpoint is not None:
            msg = "a checkpoint and an encoder are given: give one of them"
            raise ValueError(msg)
        if self.deterministic and self.xla:
            msg = "XLA has no deterministic kernels for these networks: give deterministic or xla, not both"
            raise ValueError(msg)
        return self

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases to train: two stages, or two strategies from the same checkpoint, or one."""
        return {"auto": ("conservative", "moderate"), "two-stage": ("decoder", "conservative")}.get(
            self.strategy, (self.strategy,)
        )

    def schedule_of(self, strategy: str) -> Literal["plateau", "cosine"]:
        """Return the schedule of a strategy.

        >>> TrainSettings().schedule_of("scratch"), TrainSettings(schedule={"stop_after": 9}).schedule_of("scratch")
        ('cosine', 'plateau')
        """
        return self.schedule.kind or ("cosine" if self.strategy == "two-stage" or strategy == "scratch" else "plateau")

    def rate_of(self, strategy: str) -> float:
        """Return the initial learning rate of a strategy.

        >>> TrainSettings().rate_of("conservative"), TrainSettings(learning_rate=3e-4).rate_of("aggressive")
        (0.0001, 0.0003)
        """
        if self.learning_rate is None:
            return _RATES.get(strategy, _RATE)
        return self.learning_rate * (_DECODER if strategy == "decoder" else 1)


def parse_settings(path: Path | None = None, /, **values: Any) -> TrainSettings:
    """Validate settings.

    Example:
        >>> try: parse_settings(epochs=-1)
        ... except UsageError as error: print(error)
        epochs cannot be used (found -1, expected at least 0)
    """
    try:
        settings = TrainSettings(**values)
    except ValidationError as error:
        wrong = complaint(error, list(TrainSettings.model_fields))
        if wrong.kind == "unknown":
            raise UsageError(f"unknown setting {wrong.where!r}", path=path, remedy=wrong.remedy) from None
        if not wrong.where:
            raise UsageError(str(wrong.expected), path=path) from None
        raise UsageError(
            f"{wrong.where} cannot be used", path=path, found=wrong.found, expected=wrong.expected, remedy=wrong.remedy
        ) from None
    _check_schedule(settings, path)
    return settings


def _check_schedule(settings: TrainSettings, path: Path | None) -> None:
    """Refuse stages that would raise the rate, and plateau options with a cosine schedule.

    The recipe's own stages are skipped if the initial rate is at or below theirs. This is not part of the model, so that
    existing runs can still be read.
    """
    stages = settings.schedule.stages
    if settings.schedule.kind == "cosine":
        default = ScheduleSettings()
        for name in ("stages", "stop_after", "stop_counter"):
            if getattr(settings.schedule, name) != getattr(default, name):
                option = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{option} has no effect on a cosine schedule",
                    path=path,
                    remedy=f"Leave out {option} or --schedule.",
                )
        return
    first = max(settings.rate_of(phase) for phase in settings.phases)
    above = [rate for _, rate in stages if rate > first * (1 + 1e-6)]
    if above and stages != RECIPE_STAGES:
        raise UsageError(
            "a stage of the schedule would raise the rate",
            path=path,
            found=f"{above[0]:g} after an initial rate of {first:g}",
            expected="falling rates, below the initial one",
            remedy="Change --stages, or start higher with --learning-rate.",
        )
