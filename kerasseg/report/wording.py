"""Numbers and findings as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeGuard

from kerasseg.evaluation.bootstrap import FEWEST_PATIENTS
from kerasseg.evaluation.schema import Evaluation, Figures, Mean, NetworkFigures, Stage, Target
from kerasseg_tfrecords.text import count

SPLITS = {"train": "training", "val": "validation", "test": "test", "all": "external"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: the figure, and small text below it."""

    text: str
    small: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page; the first cell of a row is its name."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and its verdict.

    Attributes:
        verdict: "met", "missed" or "open".
        text: The rest of the line.
    """

    verdict: Literal["met", "missed", "open"]
    text: str


def is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def share(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Format a figure with a fixed number of digits, or "-" if there is none.

    >>> share(0.91234), share(None), share(0.02, sign=True), share(-0.0001, sign=True)
    ('0.912', '-', '+0.020', '0.000')
    """
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def limits(mean: Mean, digits: int = 3, *, sign: bool = False) -> str:
    """Format an interval, such as "0.890 to 0.933"; "" if there is none."""
    if not (is_number(mean.low) and is_number(mean.high)):
        return ""
    return f"{share(mean.low, digits, sign=sign)} to {share(mean.high, digits, sign=sign)}"


def cell(mean: Mean | None, digits: int = 3) -> Cell:
    """Return a cell with a mean and its interval."""
    return Cell("-") if mean is None else Cell(share(mean.mean, digits), limits(mean, digits))


def gain_cell(mean: Mean | None) -> Cell:
    return Cell("-") if mean is None else Cell(share(mean.mean, sign=True), limits(mean, sign=True))


def gain_sentence(gain: Mean | None, over: str, confidence: float = 0.95) -> str:
    """Describe a paired difference in one sentence; "" if there is none.

    Example:
        >>> gain_sentence(Mean(mean=0.02, low=-0.01, high=0.05, slices=40, patients=12), "the checkpoint")
        '0.020 Dice higher than the checkpoint (95 % CI -0.010 to +0.050, 12 patients): may be chance.'
    """
    if gain is None or not is_number(gain.mean):
        return ""
    assert gain.mean is not None  # noqa: S101 - a number
    word = "higher" if gain.mean >= 0 else "lower"
    found, patients = f"{share(abs(gain.mean))} Dice {word} than {over}", count(gain.patients, "patient")
    interval = limits(gain, sign=True)
    if not interval or gain.patients < FEWEST_PATIENTS:
        return f"{found} ({patients}: too few for a conclusion)."
    # Without a sign-flip test (files of earlier versions) only the interval decides.
    said = "beyond chance" if gain.is_clear else "may be chance"
    return f"{found} ({100 * confidence:g} % CI {interval}, {patients}): {said}."


def goals(evaluation: Evaluation) -> tuple[Goal, ...]:
    """Return a line for each target, in order."""
    return tuple(Goal(target.verdict, _goal(target)) for target in evaluation.targets)


def _goal(target: Target) -> str:
    name = target.name.removeprefix("Dice of ").replace("Dice (stated baseline)", "stated baseline")
    further = " (stretch)" if target.stretch else ""
    few = "" if limits(target.value) else ", too few patients"
    return f"{name} {target.goal:.4g}{further}{few}"


def misses(figures: Figures, half: int | None = None) -> str:
    """Describe how many tumours were found, and how many slices have a false alarm."""
    above = "" if half is None else f", {half:,} of them with Dice above 0.5"
    sentences = []
    if figures.with_tumour:
        touched = figures.with_tumour - figures.untouched
        sentences.append(f"{touched:,} of {count(figures.with_tumour, 'tumour')} touched{above}")
    if figures.empty:
        sentences.append(
            f"{figures.false_alarms:,} of {count(figures.empty, 'slice')} without a tumour with a false alarm"
        )
    return "".join(f"{sentence}. " for sentence in sentences).strip()


def stage_in_words(stage: Stage) -> str:
    threshold = "a threshold for each class" if stage.rule.class_thresholds else f"threshold {stage.rule.threshold:g}"
    if stage.name == "postprocessing":
        return f"{threshold} and post-processing".capitalize()
    return f"{threshold}, raw".capitalize() if stage.name == "raw" else threshold.capitalize()


def stages_with_effect(evaluation: Evaluation) -> list[Stage]:
    """Return the stages of the network, without those whose rules are the same as before."""
    networks = [evaluation.model, *([evaluation.baseline] if evaluation.baseline else [])]
    return [
        stage
        for i, stage in enumerate(evaluation.model.stages)
        if not i or any(network.stages[i].rule != network.stages[i - 1].rule for network in networks)
    ]


def stage_of(network: NetworkFigures | None, name: str) -> Stage | None:
    return None if network is None else next((stage for stage in network.stages if stage.name == name), None)
