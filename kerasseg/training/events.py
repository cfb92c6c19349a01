"""What a run tells while it goes on, and the protocol of those who listen: screen, files, TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from kerasseg.statistics import Interval
    from kerasseg.training.slice_table import SliceTable

__all__ = ["Began", "Ended", "EpochRow", "Evaluated", "Event", "Message", "Observer", "Saved", "Step"]


@dataclass(frozen=True, slots=True)
class Began:
    """The run begins, or goes on.

    Attributes:
        title: For people, such as "conservative, unet-lgg-savedmodel".
        epochs: At most, a phase.
        steps: Steps in an epoch.
        batch_size: Slices in a global batch.
        facts: What was resolved, label -> text, in the order to show it: strategy, frozen blocks, rate, precision, ...
        resumed: (epoch, step) where an earlier run is taken up; None for a fresh one.
        first, best: Validation Dice of epoch 0 and the best so far, of a run that is taken up; NaN for a fresh one.
    """

    title: str
    epochs: int
    steps: int
    batch_size: int
    facts: Mapping[str, str] = field(default_factory=dict)
    resumed: tuple[int, int] | None = None
    first: float = float("nan")
    best: float = float("nan")


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, or one batch of evaluation.

    Attributes:
        kind: "train" or "validation".
        epoch: Counted from 1; 0 is the evaluation before the first step.
        step: Counted from 1.
        steps: In this epoch or pass.
        loss: Mean over the epoch so far; NaN in validation.
        dice: Mean Dice over the slices of the epoch so far.
        rate: Learning rate.
        slices: Slices done in this step.
    """

    kind: Literal["train", "validation"]
    epoch: int
    step: int
    steps: int
    loss: float
    dice: float
    rate: float
    slices: int


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One line of `history.csv`. Means over slices, at threshold 0.5 and the network's resolution.

    Attributes:
        phase: Strategy that is trained.
        epoch: Counted from 1 in each phase; 0 is the untouched network.
        learning_rate: That it was trained at.
        loss, dice: On augmented training slices in training mode, while weights moved; NaN for epoch 0.
        val_loss, val_dice, val_soft_dice, val_iou, val_precision, val_recall: Over all validation slices.
        val_dice_tumour: Over those where mask or prediction holds tumour.
        classes: Class -> validation Dice.
        seconds: For the epoch, validation included.
        slices_per_second: In training; NaN for epoch 0.
        memory_mb: Peak so far: of the process, or of the busiest GPU, in MB (1e6 bytes).
        thawed: Blocks thawed by the schedule so far.
        parts: Into how many parts each batch was divided for lack of memory.
        best: Whether its validation Dice is the best so far.
        event: What the schedule did after it, in words; "".
    """

    phase: str
    epoch: int
    learning_rate: float
    loss: float
    dice: float
    val_loss: float
    val_dice: float
    val_soft_dice: float
    val_iou: float
    val_precision: float
    val_recall: float
    val_dice_tumour: float
    classes: Mapping[str, float]
    seconds: float
    slices_per_second: float
    memory_mb: float
    thawed: int = 0
    parts: int = 1
    best: bool = False
    event: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A validation pass is over.

    Attributes:
        row: Its line.
        table: Scores of each slice.
        history: All lines so far, this one included.
    """

    row: EpochRow
    table: SliceTable
    history: tuple[EpochRow, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """Something to tell people, once.

    Attributes:
        level: "note" or "warning".
        kind: A short stable word for machines, such as "below-epoch-0".
        text: One or more sentences, with the remedy.
    """

    level: Literal["note", "warning"]
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Saved:
    """The state was written: a run that is killed now goes on from here.

    Attributes:
        epoch: Epochs completed.
        step: Steps of the next epoch that are done.
    """

    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over.

    Attributes:
        reason: "finished" (all epochs), "stopped" (the schedule), "interrupted" (Ctrl-C) or "failed".
        text: The reason as a sentence.
        history: All lines.
        first: Line of epoch 0.
        best: Line of the best epoch; the same as `first` where no epoch gained.
        gain: Of the best epoch over epoch 0 on the same slices, mean of Dice with its interval over patients; None where
            nothing was trained.
        class_gains: The same for each class.
        seconds: In all, over all sittings.
    """

    reason: Literal["finished", "stopped", "interrupted", "failed"]
    text: str
    history: tuple[EpochRow, ...]
    first: EpochRow
    best: EpochRow
    gain: Interval | None
    class_gains: Mapping[str, Interval]
    seconds: float


Event = Began | Step | Evaluated | Message | Saved | Ended


class Observer(Protocol):
    """Somebody who listens to a run. Called in the training thread: be quick, and raise nothing."""

    def __call__(self, event: Event, /) -> None:
        """Takes an event."""
