"""`threshold.json`: the rule of a run's network and of its baseline, with the validation evidence for each.

The file contains the SHA-256 of the weights that the rule was tuned for; after more training the rule is refused.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kerasseg.evaluation.schema import Mean
from kerasseg.postprocessing import MaskRule, rule_in_words
from kerasseg.runs.directory import RunDirectory
from kerasseg.tuning.thresholds import FEWEST_PATIENTS
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.documents import read_document
from kerasseg_tfrecords.errors import DataError, KerassegError
from kerasseg_tfrecords.files import write_atomically
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

    def length(self, share: float, *, brief: bool = False) -> str:
        """Describe a length of the rule: "4.2 mm (8 px)", or "8 px (2 % of the width)" if the spacing is unknown."""
        pixels = share * self.width
        text = f"{pixels:.0f} px" if pixels >= 10 else f"{pixels:.1f} px"
        first, second = text, f"{100 * share:.3g} % of the width"
        if self.spacing is not None:
            first, second = f"{pixels * self.spacing:.1f} mm", text
        return first if brief else f"{first} ({second})"

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
            f"{rule_in_words(self.candidate, self.length)}{found}."
        )

    @model_validator(mode="after")
    def _evidence_is_about_the_rule(self) -> Tuned:
        kept = [step for step in self.steps if step.kept]
        if not kept or kept[-1].rule != self.rule:
            msg = "the rule differs from the one in its evidence: the file was edited by hand"
            raise ValueError(msg)
        return self


FORMAT_VERSION = 1

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StaleRuleError(DataError):
    """The rule was tuned for other weights than those in the run."""


class NetworkRule(Tuned):
    """The rule of one network.

    Attributes:
        network: Name of the network's file in the run.
        sha256: SHA-256 of that file when the rule was tuned.
    """

    network: str
    sha256: _Digest


class ThresholdFile(BaseModel):
    """The whole file.

    Attributes:
        format_version: Raised when earlier versions could misread the file.
        kerasseg, created: Version that wrote it, and when these rules were first found (ISO 8601, UTC).
        split: Always validation.
        folds: Number of folds of a cross-validation, whose networks each predicted their held-out slices; 0 for a single
            network.
        shards: The shard directory, as given.
        fingerprint: Fingerprint of the data set.
        classes: Class names.
        model: The rule for `model.keras`.
        baseline: The rule for `baseline.keras`, tuned in the same way for a fair comparison; None if training did not start
            from a whole pretrained network.
        flip_average: Whether predictions of each image and its mirror image were averaged; None if not.
        digest: SHA-256 of the rest, which detects edits by hand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: int = FORMAT_VERSION
    kerasseg: str = __version__
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    split: Literal["val"] = "val"
    folds: Annotated[int, Field(ge=0)] = 0
    shards: str
    fingerprint: str
    classes: tuple[str, ...]
    model: NetworkRule
    baseline: NetworkRule | None
    flip_average: bool | None = None
    digest: str = ""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # The digest in a file of an earlier version does not cover new fields.
        return {name: value for name, value in handler(self).items() if name != "flip_average" or value is not None}

    def own_digest(self) -> str:
        """Compute the digest of the file's content."""
        return hashlib.sha256(self.model_dump_json(exclude={"digest", "created"}).encode()).hexdigest()


def save_threshold(run: RunDirectory, file: ThresholdFile) -> ThresholdFile:
    """Write the file atomically, with its digest, and return what was written.

    The same rules as before keep their time, so that an evaluation with them does not count as outdated.
    """
    sealed = file.model_copy(update={"digest": file.own_digest()})
    with suppress(KerassegError):
        earlier = load_threshold(run)
        if earlier.digest == sealed.digest:
            sealed = earlier
    write_atomically(run.threshold_file, sealed.model_dump_json(indent=1) + "\n")
    return sealed


def load_threshold(run: RunDirectory) -> ThresholdFile:
    """Load the rules of a run, and check that its networks are those that the rules were tuned for.

    Raises:
        DataError: The file is missing, damaged or edited by hand, or the run was trained further since.
        KerassegError: A newer version wrote it.
    """
    path, again = run.threshold_file, f"Tune again: kerasseg tune-threshold {run.root}"
    own = "To use another threshold: kerasseg evaluate --threshold 0.4"
    file = read_document(
        path,
        ThresholdFile,
        FORMAT_VERSION,
        "the tuned threshold",
        remedy=f"{again}. {own}",
        missing_remedy=f"Tune it: kerasseg tune-threshold {run.root}",
    )
    if file.digest != file.own_digest():
        raise DataError("the rule was edited by hand", path=path, found="a wrong digest", remedy=f"{again}. {own}")
    for rule in (file.model, file.baseline):
        if rule is None or not (network := run.root / rule.network).is_file():
            continue  # opening the weights reports this
        found = network_sha256(network)
        if found != rule.sha256:
            raise StaleRuleError(
                "the rule was tuned for other weights: the network was trained further or replaced",
                path=path,
                found=f"{rule.network} {found[:12]}",
                expected=rule.sha256[:12],
                remedy=again,
            )
    return file


def network_sha256(path: Path) -> str:
    """Return the SHA-256 of a network's file as hex digits."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError("the network cannot be read", path=path, found=error.strerror or error) from None
