"""Goals and their verdicts: whether mean Dice is significantly above or below."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kerasseg.evaluation.figures import USUAL, Resampling, clusters
from kerasseg.evaluation.per_slice import SliceRow
from kerasseg.evaluation.schema import Mean, Stage, Target
from kerasseg_tfrecords.errors import UsageError

_RECIPE = ["bombshelll", "unet-brain-tumor-segmentation"]

STATED_BASELINE = 0.8657
"""Test Dice that the recipe states for its checkpoint with tuned threshold and post-processing."""

DICE_GOALS = ((0.92, False), (0.95, True))
"""(goal, whether it is a stretch goal) for Dice over all slices."""

CLASS_GOALS = ((0.90, False), (0.93, True))
"""The same for each class."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A Dice to reach.

    Attributes:
        of: A class, or None for all slices.
        goal: Mean Dice.
        stretch: Whether it is a stretch goal.
        name: Name for display.
    """

    of: str | None
    goal: float
    stretch: bool = False
    name: str = ""


def usual_goals(classes: Sequence[str]) -> tuple[Goal, ...]:
    """Return the recipe's goals: its stated baseline, 92 and 95 %, and 90 and 93 % for each class."""
    stated = Goal(None, STATED_BASELINE, name="Dice (stated baseline)")
    whole = [Goal(None, goal, stretch) for goal, stretch in DICE_GOALS]
    each = [Goal(name, goal, stretch) for goal, stretch in CLASS_GOALS for name in classes] if len(classes) > 1 else []
    return (stated, *whole, *each)


def parse_goal(text: str) -> Goal:
    """Parse a goal such as "0.92", "92%", or "glioma=0.9".

    Example:
        >>> parse_goal("glioma=0.9")
        Goal(of='glioma', goal=0.9, stretch=False, name='')
    """
    name, _, number = text.rpartition("=")
    try:
        value = float(number.strip().removesuffix("%")) / (100 if number.strip().endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise UsageError(f"invalid --target {text!r}", expected="a Dice in (0, 1], such as 0.92 or glioma=0.9")
    return Goal(name.strip() or None, value)


def is_recipe_checkpoint(checkpoint: str | None, provenance: Mapping[str, Any] | None = None) -> bool:
    """Return whether a checkpoint is the recipe's, to which its goals apply.

    Example:
        >>> is_recipe_checkpoint("hf://bombshelll/unet-brain-tumor-segmentation@main"), is_recipe_checkpoint("unet.keras")
        (True, False)
    """
    named = (checkpoint, None if provenance is None else provenance.get("path"))
    return any(re.split("[@/]", str(name).removeprefix("hf://"), maxsplit=2)[:2] == _RECIPE for name in named)


def targets_of(
    stage: Stage, goals: Sequence[Goal], rows: Sequence[SliceRow], resampling: Resampling = USUAL
) -> tuple[Target, ...]:
    people = clusters(rows)
    dice = np.array([row.stage(stage.name).dice for row in rows], np.float64)
    labels = np.array([row.label for row in rows])
    found = []
    for goal in goals:
        if goal.of is not None and goal.of not in stage.classes:
            raise UsageError("unknown class in a goal", found=goal.of, expected=", ".join(stage.classes) or "no class")
        value = (stage.all if goal.of is None else stage.classes[goal.of]).measures["dice"]
        members = np.full(len(rows), True) if goal.of is None else labels == goal.of
        over = resampling.paired(np.full(int(members.sum()), goal.goal), dice[members], people[members])
        found.append(
            Target(
                name=goal.name or ("Dice" if goal.of is None else f"Dice of {goal.of}"),
                goal=goal.goal,
                stretch=goal.stretch,
                value=value,
                verdict=judge(over),
                reached=value.mean is not None and value.mean >= goal.goal,
            )
        )
    return tuple(found)


def judge(over: Mean) -> Literal["met", "missed", "open"]:
    """Return the verdict on a goal.

    Args:
        over: Dice minus the goal.

    Example:
        >>> judge(Mean(mean=0.01, low=-0.01, high=0.03, slices=90, patients=30, clear=False))
        'open'
    """
    if not over.is_clear or over.mean is None:
        return "open"
    return "met" if over.mean > 0 else "missed"
