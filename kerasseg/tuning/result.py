"""The result of tuning: the rule and the validation evidence for it, as stored in `threshold.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from kerasseg.evaluation.schema import Mean
from kerasseg.postprocessing import MaskRule, rule_in_words
from kerasseg.tuning.thresholds import FEWEST_PATIENTS
from kerasseg_tfrecords.text import count

StepName = Literal[
    "raw",
    "threshold",
    "min_diameter",
    "close_radius",
    "fill_holes",
    "keep_largest",
    "open_radius",
    "settled",
    "class_thresholds",
]
"""In this order: 0.5 alone; the tuned threshold; the steps of post-processing, named as in `MaskRule`; the threshold chosen
again with the kept steps; a threshold for each class."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Curve(_Model):
    """Mean Dice by threshold.

    Attributes:
        thresholds: Thresholds, rising.
        dice: Mean Dice over slices at each.
    """

    thresholds: tuple[float, ...]
    dice: tuple[float, ...]


class TuningStep(_Model):
    """One step of the search.

    Attributes:
        name: Name of the step.
        rule: The best rule with it.
        dice: Mean Dice over slices with this rule; None if every setting was clearly worse and dropped early.
        gain: `dice` minus that of the last kept step; None for the first step, and if `dice` is None.
        classes: Class -> mean Dice.
        kept: Whether the next step builds on it.
        reason: Why it was not kept; "" otherwise.
    """

    name: StepName
    rule: MaskRule
    dice: float | None
    gain: float | None
    classes: dict[str, float]
    kept: bool
    reason: str = ""


class Tuned(_Model):
    """A rule, with the evidence for it.

    Attributes:
        rule: Rule from probabilities to masks.
        resolution: Resolution at which Dice is computed: "native" or "model".
        slices, patients: Number of slices and patients it was tuned on.
        searched: Number of slices that post-processing was tried on; all, unless there are very many.
        raw: Mean Dice at 0.5 without post-processing, with its interval over patients.
        dice: Mean Dice of the rule.
        gain: Paired difference of the two.
        confidence: Confidence level of the intervals.
        best: Threshold with the highest mean; the rule has the threshold with the most certain gain over 0.5.
        threshold_low, threshold_high: Interval of the best threshold over patients; None with fewer than five.
        flat_low, flat_high: Range of thresholds that are as good as the best within noise.
        curve: Dice by threshold, without post-processing.
        curve_with_steps: The same with the kept post-processing; None without any.
        steps: Steps of the search, in order.
        width: Median of the slices' longer side in pixels, the unit of lengths in the rule.
        spacing: Median millimetres per pixel; None if unknown.
        notes: Sentences about limitations of the rule.
        tumour_patients: Patients with tumours; like all that follow, None in files of earlier versions.
        forced: Whether the rule was kept without a test against noise.
        candidate: The rule that would have been used, if none was kept.
        candidate_gain: Its paired gain over 0.5 on these slices.
    """

    rule: MaskRule
    resolution: Literal["native", "model"]
    slices: int
    patients: int
    searched: int
    raw: Mean
    dice: Mean
    gain: Mean
    confidence: float
    best: float
    threshold_low: float | None
    threshold_high: float | None
    flat_low: float
    flat_high: float
    curve: Curve
    curve_with_steps: Curve | None = None
    steps: tuple[TuningStep, ...]
    width: int
    spacing: float | None = None
    notes: tuple[str, ...] = ()
    tumour_patients: int | None = None
    forced: bool | None = None
    candidate: MaskRule | None = None
    candidate_gain: Mean | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # Files of earlier versions lack these; they are saved unchanged, because their digest depends on it.
        added = ("tumour_patients", "forced", "candidate", "candidate_gain")
        return {name: value for name, value in handler(self).items() if name not in added or value is not None}

    @property
    def decision(self) -> str:
        """Why a rule was kept or not, in one sentence; "" if the search found nothing better than 0.5."""
        patients = (
            "" if self.tumour_patients is None else f" over {count(self.tumour_patients, 'patient')} with tumours"
        )
        if self.forced and self.rule != MaskRule():
            return f"The rule was kept with --force, without a test that its gain{patients} is beyond noise."
        if self.candidate is None or self.rule != MaskRule():
            return ""
        gain = self.candidate_gain
        found = "" if gain is None or gain.mean is None else f" ({gain.mean:+.3f} Dice on the validation slices)"
        few = self.tumour_patients is not None and self.tumour_patients < FEWEST_PATIENTS
        why = (
            f"the validation split has {count(self.tumour_patients or 0, 'patient')} with tumours, and a rule needs "
            f"at least {FEWEST_PATIENTS}"
            if few
            else f"no gain{patients} is beyond noise"
        )
        return (
            f"Threshold 0.5 without post-processing is used: {why}; the rule would have been "
            f"{rule_in_words(self.candidate)}{found}."
        )

    @model_validator(mode="after")
    def _evidence_is_about_the_rule(self) -> Tuned:
        kept = [step for step in self.steps if step.kept]
        if not kept or kept[-1].rule != self.rule:
            msg = "the rule differs from the one in its evidence: the file was edited by hand"
            raise ValueError(msg)
        return self
