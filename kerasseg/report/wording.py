"""Numbers and findings in words, as a careful person would put them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kerasseg.evaluation.schema import Evaluation, Figures, Mean, NetworkFigures, Stage, Target
from kerasseg.postprocessing import rule_in_words

__all__ = ["Cell", "Goal", "Table", "cell", "count", "gain_cell", "gain_sentence", "goals", "rule_in_words", "share"]

SPLITS = {"train": "training", "val": "validation", "test": "test", "all": "external"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: the figure, and below it in small what belongs to it."""

    text: str
    small: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page; the first cell of a row names it.

    Attributes:
        caption: What it shows.
        columns: Headings.
        rows: Cells, as many as headings.
        note: What a reader must know to read it.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and how it stands, as a line of the verdict.

    Attributes:
        verdict: "met", "missed" or "open".
        text: The rest of the line.
    """

    verdict: Literal["met", "missed", "open"]
    text: str


def is_number(value: float | None) -> bool:
    """Whether there is a figure at all."""
    return value is not None and math.isfinite(value)


def share(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A figure with a fixed number of digits; a dash where there is none.

    >>> share(0.91234), share(None), share(0.02, sign=True), share(-0.0001, sign=True)
    ('0.912', '-', '+0.020', '0.000')
    """
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def count(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun.

    >>> count(1, "slice"), count(2100, "slice")
    ('1 slice', '2,100 slices')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def limits(mean: Mean, digits: int = 3, *, sign: bool = False) -> str:
    """The interval, such as "0.890 to 0.933"; "" where nothing can be said."""
    if not (is_number(mean.low) and is_number(mean.high)):
        return ""
    return f"{share(mean.low, digits, sign=sign)} to {share(mean.high, digits, sign=sign)}"


def cell(mean: Mean | None, digits: int = 3) -> Cell:
    """A mean with its interval."""
    return Cell("-") if mean is None else Cell(share(mean.mean, digits), limits(mean, digits))


def gain_cell(mean: Mean | None) -> Cell:
    """A difference with its interval."""
    return Cell("-") if mean is None else Cell(share(mean.mean, sign=True), limits(mean, sign=True))


def gain_sentence(gain: Mean | None, over: str) -> str:
    """What a paired difference means: a gain, a loss, or neither; "" where there is none to speak of.

    Args:
        gain: Paired difference of Dice.
        over: What is compared with, such as "the checkpoint before training".

    Example:
        >>> gain_sentence(Mean(mean=0.02, low=-0.01, high=0.05, slices=40, patients=12), "the checkpoint")
        '+0.020 Dice over the checkpoint (-0.010 to +0.050): this may be chance.'
    """
    if gain is None or not is_number(gain.mean):
        return ""
    interval = limits(gain, sign=True)
    if not interval:
        return f"{share(gain.mean, sign=True)} Dice over {over}; with so few patients no interval can be given."
    low, high = gain.low or 0.0, gain.high or 0.0
    said = "more than chance" if low > 0 else "a loss, and more than chance" if high < 0 else "this may be chance"
    return f"{share(gain.mean, sign=True)} Dice over {over} ({interval}): {said}."


def goals(evaluation: Evaluation) -> tuple[Goal, ...]:
    """A line for each target, in their order."""
    return tuple(Goal(target.verdict, _goal(target)) for target in evaluation.targets)


def _goal(target: Target) -> str:
    further = " (the further goal)" if target.stretch else ""
    interval = limits(target.value)
    measured = f"{target.name} {target.goal:.3g}{further}: measured {share(target.value.mean)}"
    if not interval:
        return f"{measured}; without an interval nothing more can be said."
    why = {
        "met": "the whole interval lies above",
        "missed": "the whole interval lies below",
        "open": f"the interval holds the goal, the mean lies {'above' if target.reached else 'below'}",
    }[target.verdict]
    return f"{measured}, {interval}; {why}."


def misses(figures: Figures) -> str:
    """Tumours that were not found, and tumours found where there is none."""
    sentences = []
    if figures.with_tumour:
        missed = f"{figures.missed:,} of {figures.with_tumour:,} tumours were missed altogether"
        beside = figures.untouched - figures.missed
        sentences.append(missed + (f", and in {beside:,} more the prediction lies beside the tumour" if beside else ""))
    if figures.empty:
        sentences.append(
            f"{figures.false_alarms:,} of {count(figures.empty, 'slice')} without tumour have a false alarm"
        )
    return "".join(f"{sentence}. " for sentence in sentences).strip()


def stage_in_words(stage: Stage) -> str:
    """Name of a stage for a table."""
    threshold = "a threshold for each class" if stage.rule.class_thresholds else f"threshold {stage.rule.threshold:g}"
    if stage.name == "postprocessing":
        return f"{threshold} and post-processing".capitalize()
    return f"{threshold}, raw".capitalize() if stage.name == "raw" else threshold.capitalize()


def stage_of(network: NetworkFigures | None, name: str) -> Stage | None:
    """The stage of that name, if there is one."""
    return None if network is None else next((stage for stage in network.stages if stage.name == name), None)
