"""The schema of `metrics.json`.

Measures, by name (`Figures.measures`); each is a mean over slices with its interval over patients:

| name | over which slices | unit |
| --- | --- | --- |
| `dice`, `iou`, `precision`, `recall` | all slices of the set | share, 0 to 1 |
| `dice_tumour` | slices with tumour in reference or prediction | share |
| `hd95`, `asd` | slices with tumour in reference and prediction | pixels |
| `hd95_mm`, `asd_mm` | the same, if the spacing is known | mm |
| `hd95_with_misses` | tumour in reference or prediction; a miss or false alarm counts as the image's diagonal | pixels |
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from kerasseg.evaluation.bootstrap import FEWEST_PATIENTS
from kerasseg.postprocessing import MaskRule
from kerasseg_tfrecords.documents import read_document

FORMAT_VERSION = 1

MEASURES = (
    *("dice", "dice_tumour", "iou", "precision", "recall"),
    *("hd95", "asd", "hd95_mm", "asd_mm", "hd95_with_misses"),
)

StageName = Literal["raw", "threshold", "postprocessing"]
"""At 0.5; at the tuned (or given) threshold; with the tuned post-processing as well."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Mean(_Model):
    """A mean over slices with its interval over patients.

    Attributes:
        mean: The mean; None if no slice counts.
        low, high: Limits; None with fewer than five patients, which are too few for an interval.
        slices, patients: Number of slices and patients that count.
        clear: For paired differences, whether the difference is significant: the interval excludes 0 and a sign-flip test
            over patients agrees. None for other means, and in files of earlier versions.
    """

    mean: float | None
    low: float | None
    high: float | None
    slices: int
    patients: int
    clear: bool | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # Other means are saved as in earlier versions, because the digest of threshold.json depends on it.
        return {name: value for name, value in handler(self).items() if name != "clear" or value is not None}

    @property
    def is_clear(self) -> bool:
        """Whether a difference is significant, also one from a file without `clear`."""
        if self.low is None or self.high is None or self.patients < FEWEST_PATIENTS:
            return False
        return (self.low > 0 or self.high < 0) and self.clear is not False


class Figures(_Model):
    """Figures of one set of slices: all, one class, or one range of tumour sizes.

    Attributes:
        slices, patients: Number of slices and patients.
        with_tumour: Slices with a tumour in the reference.
        missed: Slices with tumour but without any predicted pixel.
        untouched: Slices with tumour where prediction and reference do not overlap (Dice 0), `missed` included.
        empty: Slices with an empty reference.
        false_alarms: Slices with an empty reference and a predicted pixel.
        measures: Means by name, see above.
    """

    slices: int
    patients: int
    with_tumour: int
    missed: int
    untouched: int
    empty: int
    false_alarms: int
    measures: dict[str, Mean]


class Stage(_Model):
    """One stage from probabilities to the final mask.

    Attributes:
        name: Name of the stage.
        rule: Rule that was applied.
        all: Figures of all slices.
        classes: Class -> figures.
        sizes: Range of tumour sizes -> figures; the smallest first.
        volumes: Mean over volumes of Dice pooled within each; None without volumes.
    """

    name: StageName
    rule: MaskRule
    all: Figures
    classes: dict[str, Figures]
    sizes: dict[str, Figures]
    volumes: Mean | None = None


class NetworkFigures(_Model):
    """Figures of a network at each stage: raw, threshold, postprocessing."""

    stages: tuple[Stage, ...]


class Calibration(_Model):
    """Reliability on pixels inside and near the reference (within a tenth of the width of its bounding box).

    Attributes:
        edges: Bounds of the bins of predicted probability, one more than bins.
        predicted: Mean probability in each bin; None if empty.
        observed: Share of tumour pixels in each bin; None if empty.
        pixels: Pixels in each bin.
        error: Expected calibration error: mean of |predicted - observed|, weighted by pixels.
    """

    edges: tuple[float, ...]
    predicted: tuple[float | None, ...]
    observed: tuple[float | None, ...]
    pixels: tuple[int, ...]
    error: float | None


class Speed(_Model):
    """Median speed of a network without reading files, on this machine, by batch size (as text)."""

    slices_per_second: dict[str, float]
    milliseconds_a_slice: dict[str, float]
    baseline_slices_per_second: dict[str, float] = {}
    baseline_milliseconds_a_slice: dict[str, float] = {}
    device: str


class RobustnessCurve(_Model):
    """One corruption.

    Attributes:
        name: For instance `rician_noise`.
        grades: Strengths, 1 to 5.
        dice: Mean Dice at each grade.
        kept: Mean over the grades of Dice / clean Dice.
    """

    name: str
    grades: tuple[float, ...]
    dice: tuple[float | None, ...]
    kept: float | None


class Robustness(_Model):
    """Dice under corruption, at the final stage.

    Attributes:
        seed: Random seed of the corruptions.
        clean: Dice without corruption.
        curves: One curve per corruption.
        kept: Mean over all of them.
    """

    seed: int
    clean: float | None
    curves: tuple[RobustnessCurve, ...]
    kept: float | None


class SecondReader(_Model):
    """A second annotator's masks for the same slices.

    Attributes:
        source: Source of the masks.
        slices: Slices with a second mask, over which all figures are computed.
        without: Slices without a second mask.
        agreement: Dice of the two annotators.
        agreement_classes: The same for each class.
        network: Dice of the network against the first annotator, on the same slices.
        network_second: Dice of the network against the second annotator.
        network_classes, network_second_classes: The same for each class.
        difference: The network's Dice minus the second annotator's, both against the first annotator, paired.
        difference_classes: The same for each class.
    """

    source: str
    slices: int
    without: int
    agreement: Mean
    agreement_classes: dict[str, Mean]
    network: Mean
    network_second: Mean
    network_classes: dict[str, Mean] = {}
    network_second_classes: dict[str, Mean] = {}
    difference: Mean | None = None
    difference_classes: dict[str, Mean] = {}


class Target(_Model):
    """A goal and whether it was met.

    "met" and "missed" mean that Dice is significantly above or below the goal, by interval and sign-flip test over at least
    five patients; "open" means neither.

    Attributes:
        name: "Dice", or "Dice of glioma", ...
        goal: Dice to reach.
        stretch: Whether it is a stretch goal.
        value: Measured Dice.
        verdict: Verdict of the test.
        reached: Whether the mean reaches the goal.
    """

    name: str
    goal: float
    stretch: bool
    value: Mean
    verdict: Literal["met", "missed", "open"]
    reached: bool


class SplitFacts(_Model):
    """The split of the data, and its leaks.

    Attributes:
        split_by: `patient`, `id` or `slice`.
        seed: Random seed of the split.
        shares: Shares such as "80/10/10".
        patients_on_both_sides: Patients with slices in more than one split.
        slices_without_patient: Slices of unknown patients, for which leaks cannot be excluded.
        intensity, size: Intensity rule and size of the slices.
        fingerprint: Fingerprint of the data set.
        overlap_with_training: Slices of another shard directory that are also in the run's training data; None: unchecked.
    """

    split_by: str
    seed: int
    shares: str
    patients_on_both_sides: int
    slices_without_patient: int
    intensity: str
    size: int
    fingerprint: str
    overlap_with_training: int | None = None


class Evaluation(_Model):
    """The content of `metrics.json`.

    Attributes:
        format_version: Raised when earlier versions could misread the file.
        kerasseg, software, created: Versions that wrote it, and when (ISO 8601, UTC).
        run: Folder of the run, without its parents unless it was given as a relative path; "" without a run.
        run_id: Hash of the run's configuration.
        network: Description of the network.
        shards, split: The shard directory, as given, and the split; "all" for a whole other shard directory.
        resolution: "native" or "model".
        precision: Numeric precision of the predictions; "" for arrays and in files of earlier versions.
        threshold: Option as given: "auto", "0.5", ...
        confidence: Confidence level of the intervals.
        classes: Class names.
        final: Name of the last stage, which the verdict is about.
        model, baseline: Figures; the baseline is the checkpoint before training, None if there is none.
        gain: Stage -> paired gain in Dice of the model over the baseline.
        gain_classes: The same for each class, at the final stage.
        tuning_gain: Paired gain of the final stage over the raw one.
        targets: Goals.
        calibration, speed, robustness, second_reader: Results of these analyses, if requested.
        data: Facts about the split.
        test_looks: Number of evaluations of the test split of these shards, including this one.
        rule_decision: Why the tuned rule is 0.5 without post-processing, and what it would have been; "" otherwise.
        flip_average: Whether predictions of each image and its mirror image were averaged.
        warnings: Sentences to show.
        earlier: Place of the previous evaluation with other options, relative to the run's `evaluation/`; None if there is
            none.
    """

    format_version: int = FORMAT_VERSION
    kerasseg: str
    software: dict[str, str]
    created: str
    run: str
    run_id: str
    network: str
    shards: str
    split: Literal["train", "val", "test", "all"]
    resolution: Literal["native", "model"]
    precision: str = ""
    threshold: str
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    classes: tuple[str, ...]
    final: StageName
    model: NetworkFigures
    baseline: NetworkFigures | None
    gain: dict[str, Mean] = {}
    gain_classes: dict[str, Mean] = {}
    tuning_gain: Mean | None = None
    targets: tuple[Target, ...] = ()
    calibration: Calibration | None = None
    speed: Speed | None = None
    robustness: Robustness | None = None
    second_reader: SecondReader | None = None
    data: SplitFacts
    test_looks: int = 0
    rule_decision: str = ""
    flip_average: bool = False
    warnings: tuple[str, ...] = ()
    earlier: str | None = None

    def final_stage(self) -> Stage:
        return next(stage for stage in self.model.stages if stage.name == self.final)


def read_evaluation(path: Path) -> Evaluation:
    return read_document(path, Evaluation, FORMAT_VERSION, "the evaluation")
