"""Goals, and whether they were met: by the interval, not by the point alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kerasseg.evaluation.schema import Mean, Stage, Target
from kerasseg_tfrecords.errors import UsageError

__all__ = ["CLASS_GOALS", "DICE_GOALS", "STATED_BASELINE", "Goal", "judge", "parse_goal", "targets_of", "usual_goals"]

STATED_BASELINE = 0.8657
"""Test Dice that the recipe states for its checkpoint with tuned threshold and post-processing."""

DICE_GOALS = ((0.92, False), (0.95, True))
"""(goal, whether it is the further one) of Dice over all slices."""

CLASS_GOALS = ((0.90, False), (0.93, True))
"""The same for each class."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be reached.

    Attributes:
        of: A class, or None for all slices.
        goal: Mean Dice.
        stretch: Whether it is the further goal.
        name: For people.
    """

    of: str | None
    goal: float
    stretch: bool = False
    name: str = ""


def usual_goals(classes: Sequence[str]) -> tuple[Goal, ...]:
    """The recipe's goals: its stated baseline, 92 and 95 %, and 90 and 93 % for each class."""
    stated = Goal(None, STATED_BASELINE, name="Dice (stated baseline)")
    whole = [Goal(None, goal, stretch) for goal, stretch in DICE_GOALS]
    each = [Goal(name, goal, stretch) for goal, stretch in CLASS_GOALS for name in classes] if len(classes) > 1 else []
    return (stated, *whole, *each)


def parse_goal(text: str) -> Goal:
    """A goal as typed: "0.92", "92%", or "glioma=0.9".

    Raises:
        UsageError: It is no share.

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
        raise UsageError(f"--target cannot be {text!r}", expected="a Dice in (0, 1], such as 0.92 or glioma=0.9")
    return Goal(name.strip() or None, value)


def targets_of(stage: Stage, goals: Sequence[Goal]) -> tuple[Target, ...]:
    """The goals beside what was measured; usual goals are for the classes that have slices.

    Raises:
        UsageError: A goal for a class that is not among the evaluated ones.
    """
    found = []
    for goal in goals:
        if goal.of is not None and goal.of not in stage.classes:
            raise UsageError(
                "a goal for an unknown class", found=goal.of, expected=", ".join(stage.classes) or "no class"
            )
        value = (stage.all if goal.of is None else stage.classes[goal.of]).measures["dice"]
        found.append(
            Target(
                name=goal.name or ("Dice" if goal.of is None else f"Dice of {goal.of}"),
                goal=goal.goal,
                stretch=goal.stretch,
                value=value,
                verdict=judge(value, goal.goal),
                reached=value.mean is not None and value.mean >= goal.goal,
            )
        )
    return tuple(found)


def judge(value: Mean, goal: float) -> Literal["met", "missed", "open"]:
    """The verdict: "met" where the whole interval reaches the goal, "missed" where it all lies below, otherwise "open".

    Without an interval (a single patient) everything is open.

    >>> judge(Mean(mean=0.93, low=0.91, high=0.95, slices=90, patients=30), 0.92)
    'open'
    """
    if value.low is None or value.high is None:
        return "open"
    return "met" if value.low >= goal else "missed" if value.high < goal else "open"
