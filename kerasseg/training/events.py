"""Events of a training run, and the protocol of observers (screen, files, TensorBoard)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from kerasseg.evaluation.bootstrap import Interval
    from kerasseg.runs.history import EpochRow
    from kerasseg.training.state import SliceTable


@dataclass(frozen=True, slots=True)
class Began:
    """The run starts or resumes.

    Attributes:
        title: Short description, such as "conservative, unet-lgg-savedmodel".
        epochs: Maximum number of epochs in a phase.
        steps: Steps in an epoch.
        batch_size: Slices in a global batch.
        facts: Resolved settings, label -> text, in display order: strategy, frozen blocks, rate, precision, ...
        resumed: (epochs, steps of the next one) done before; None for a new run.
        first, best: When a run resumes, validation Dice of epoch 0 and the best so far; NaN for a new one.
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
    """An optimizer step or a batch of validation.

    Attributes:
        kind: "train" or "validation".
        epoch: Epoch, from 1; 0 is the evaluation before the first step.
        step: Step, from 1.
        steps: Steps in this epoch or pass.
        loss: Mean over the epoch so far; NaN in validation.
        dice: Mean Dice over the slices of the epoch so far.
        rate: Learning rate.
        slices: Slices in this step.
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
class Evaluated:
    """A validation pass has finished.

    Attributes:
        row: Row of `history.csv`.
        table: Scores of each slice.
        history: All rows so far, including this one.
    """

    row: EpochRow
    table: SliceTable
    history: tuple[EpochRow, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """A note or warning, sent once.

    Attributes:
        level: "note" or "warning".
        kind: Stable identifier, such as "below-epoch-0".
        text: One or more sentences, with the remedy.
    """

    level: Literal["note", "warning"]
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Saved:
    """The state was saved; a killed run resumes from here.

    Attributes:
        epoch: Epochs completed.
        step: Steps of the next epoch that are done.
    """

    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The run has ended.

    Attributes:
        reason: "finished" (all epochs), "stopped" (the schedule), "interrupted" (Ctrl-C) or "failed".
        text: The reason as a sentence.
        history: All rows.
        first: Row of epoch 0.
        best: Row of the best epoch; `first` if no epoch was better.
        gain: Mean gain in Dice of the best epoch over epoch 0, with its interval over patients; None if nothing was
            trained.
        class_gains: The same for each class.
        seconds: Duration of all sessions.
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
    """A function that receives the events of a run, called in the training thread. It should be quick and not raise.

    `kerasseg.fine_tune(..., observers=[...])` takes any number of them. Events are the classes of this module: `Began`,
    `Step`, `Evaluated`, `Message`, `Saved` and `Ended`.

    Example:
        >>> import kerasseg
        >>> def tell(event: Event) -> None:
        ...     if isinstance(event, Message):
        ...         print(event.level, event.text)
        >>> observer: kerasseg.Observer = tell
        >>> observer(Message("note", "example", "Training takes two stages."))
        note Training takes two stages.
    """

    def __call__(self, event: Event, /) -> None:
        """Receive an event."""
