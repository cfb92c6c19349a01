"""Diagnose a run from its figures: messages with a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from kerasseg.evaluation.bootstrap import group_numbers
from kerasseg.runs.history import EpochRow
from kerasseg.training.events import Message
from kerasseg.training.state import SliceTable
from kerasseg_tfrecords.errors import UsageError

_LEAST = 0.01
"""Smallest fall of Dice that is reported."""

_GAP = 0.10
"""Dice by which training may exceed validation without overfitting: augmented slices, weights that move."""

_TREND = 3
"""Number of epochs that make a trend."""

_MARKS = 0.05
"""Dice on tumour slices below which a network marks almost nothing."""

_FALLS = 0.02
"""Smallest fall of the loss, as a share of it, that counts."""

_ENOUGH = 1000
"""Training slices per class below which the recipe advises against training everything."""


KNOWS = 0.3
"""Validation Dice from which a checkpoint counts as trained for a similar task. The recipe's own starts at 0.70; those in
docs/results.md that started below 0.2 learned more with nothing frozen at ten times the recipe's rate."""

_CAREFUL = 1e-4
"""The recipe's rate for fine-tuning."""


def far_message(dice: float, rate: float, strategy: str, *, tried: bool = False) -> Message | None:
    """Advice for a checkpoint with little to preserve: train everything at a higher rate.

    Args:
        dice: Validation Dice of the untouched network.
        rate: Initial learning rate.
        strategy: First phase. Scratch and two-stage training start with fresh weights and get no advice.
        tried: Whether this run already tries what the advice suggests.

    Example:
        >>> far_message(0.7, 1e-4, "conservative") is None
        True
    """
    # Written so that NaN gives no advice.
    if strategy in ("scratch", "decoder") or not dice < KNOWS or rate > _CAREFUL:
        return None
    text = f"The checkpoint hardly knows this task: its validation Dice is {dice:.3f}, below {KNOWS}. "
    if tried:
        text += "Strategy auto therefore also trains every weight at learning rate 1e-3."
    else:
        text += "Train every weight instead: --strategy aggressive --learning-rate 1e-3 --schedule cosine."
    return Message("note", "far-checkpoint", text)


def clearly_below(first: SliceTable, now: SliceTable, groups: ArrayLike) -> bool:
    """Return whether validation Dice fell significantly below epoch 0, and by more than 0.01.

    Significant: the mean paired difference is below 0 by more than two standard errors, taken over patients.
    """
    difference = now.dice.astype(np.float64) - first.dice.astype(np.float64)
    mean = float(difference.mean())
    if not mean < -_LEAST:
        return False
    members = group_numbers(groups)
    # A mean over slices is a ratio over patients: residuals summed per patient are independent.
    residuals = np.bincount(members, difference - mean)
    many = len(residuals)
    if many < 2:
        return False
    error = float(np.sqrt(many / (many - 1) * (residuals**2).sum())) / len(difference)
    return mean + 2 * error < 0


def sunk_message(first: SliceTable, now: SliceTable, rate: float, strategy: str = "") -> Message:
    """Warn that training fell below epoch 0: pretrained features are being forgotten."""
    more = "--freeze-batchnorm" if strategy == "conservative" else "--strategy conservative, --freeze-batchnorm"
    text = (
        f"Validation Dice fell to {now.mean('dice'):.4f}, clearly below the untouched checkpoint's "
        f"{first.mean('dice'):.4f}: training is losing what the checkpoint had learned. Lower the rate (--learning-rate "
        f"{rate / 10:g}), freeze more ({more}), or use --guard."
    )
    return Message("warning", "below-epoch-0", text)


def overfitting_message(history: Sequence[EpochRow], *, far: bool = False) -> Message | None:
    """Warn of overfitting.

    Over three epochs training Dice rose and validation Dice fell, by more than 0.01 from its best and to more than 0.10
    below training Dice.
    """
    rows = [row for row in history if row.epoch > 0]
    if len(rows) <= _TREND:
        return None
    last, before = rows[-1], rows[-1 - _TREND]
    best = max(row.val_dice for row in rows)
    parted = last.dice > before.dice and last.val_dice < before.val_dice and last.val_dice < best - _LEAST
    if not parted or last.dice - last.val_dice <= _GAP:
        return None
    text = (
        f"Training Dice rises ({last.dice:.3f}) while validation Dice falls ({last.val_dice:.3f}): the network is "
        f"overfitting. The best weights are kept. To reduce overfitting{'' if far else ' freeze more,'} add --l2 1e-4, "
        "train fewer epochs, or add patients."
    )
    return Message("warning", "overfitting", text)


def idle_message(history: Sequence[EpochRow]) -> Message | None:
    """Warn that the learning rate was lowered while the network still marked almost nothing and its loss was falling.

    Such a network has not started to learn the task; at lower rates it may never do so.
    """
    rows = [row for row in history if row.epoch > 0]
    if len(rows) < 2 or "rate" not in rows[-1].event:
        return None
    marks = max(row.val_dice_tumour for row in rows)
    # Written so that NaN gives no warning.
    if not (marks < _MARKS and rows[-1].val_loss < (1 - _FALLS) * rows[0].val_loss):
        return None
    text = (
        f"The learning rate was lowered because validation Dice did not rise, but the loss still fell "
        f"({rows[0].val_loss:.3f} to {rows[-1].val_loss:.3f}): the network marks almost nothing yet. Wait longer before "
        "the rate falls (--stages 10:1e-5,3:1e-6), or try another --seed."
    )
    return Message("warning", "not-begun", text)


def few_slices_message(strategy: str, counts: Mapping[str, int]) -> Message | None:
    """Warn against `aggressive` with fewer than 1,000 training slices per class, as the recipe advises."""
    few = {name: count for name, count in counts.items() if count < _ENOUGH}
    if strategy != "aggressive" or not few:
        return None
    named = ", ".join(f"{count:,} of {name}" for name, count in few.items())
    text = (
        f"Strategy aggressive trains every weight, and there are few training slices ({named}; advised: {_ENOUGH:,} per "
        "class): it is likely to overfit. Strategy conservative or moderate is safer."
    )
    return Message("warning", "aggressive-with-few-slices", text)


def check_intensity(shards: str, recorded: str | None, *, checkpoint: str) -> Message | None:
    """Check that the shards' grey values are scaled like the images that the checkpoint was trained on.

    Returns:
        A note if the checkpoint's rule is unknown; None if the rules agree.
    """
    if recorded is None:
        text = (
            f"The checkpoint does not record how its training images were scaled; the shards use {shards!r}. If its "
            "documentation says otherwise, prepare the shards again with --intensity."
        )
        return Message("note", "intensity-unknown", text)
    if recorded != shards:
        raise UsageError(
            "the shards are scaled differently from the images that the checkpoint was trained on",
            path=checkpoint,
            found=f"intensity {shards}",
            expected=recorded,
            remedy=f"Prepare them again: kerasseg prepare INPUT --intensity {recorded}",
        )
    return None
