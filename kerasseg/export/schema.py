"""The schema of `metadata.json` in every export: what is needed to use and to judge it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from kerasseg.evaluation.schema import Mean
from kerasseg.postprocessing import MaskRule
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.documents import read_document

FORMAT_VERSION = 1
METADATA = "metadata.json"
SCHEMA: Literal["kerasseg-export"] = "kerasseg-export"

ExportFormat = Literal["keras", "savedmodel", "onnx", "litert", "app"]
FORMATS: tuple[str, ...] = get_args(ExportFormat)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null", populate_by_name=True)


class FileFacts(_Model):
    """One file of the export.

    Attributes:
        path: Path relative to the folder.
        bytes: Size.
        sha256: SHA-256 as hex digits.
    """

    path: str
    bytes: int
    sha256: str


class Port(_Model):
    """One input or output.

    Attributes:
        name: Name in the format.
        dtype: Data type, such as "float32".
        shape: Shape, with None for free sizes.
        meaning: Description for display.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    meaning: str


class Calling(_Model):
    """One way to call the export.

    Attributes:
        name: Name of the signature; "" if the format has only one.
        inputs, outputs: Ports, in order.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class NetworkFacts(_Model):
    """The network.

    Attributes:
        parameters: Number of parameters.
        size: Side of the input in pixels.
        channels: Channels of the input.
        sha256: SHA-256 of the run's `model.keras`.
        checkpoint: Checkpoint that it was fine-tuned from, without local folders; None for a fresh network.
        checkpoint_sha256: SHA-256 of the checkpoint; None if unknown.
    """

    parameters: int
    size: int
    channels: int
    sha256: str
    checkpoint: str | None
    checkpoint_sha256: str | None


class Preprocessing(_Model):
    """Steps from a stored slice to the network's input.

    Attributes:
        inside: Whether the export includes them.
        intensity: Intensity rule: `minmax`, `percentile` or `zscore`.
        window_of: "slice", or "volume" if the run was trained on slices of volumes.
        size: Side of the square that the slice is padded and resized to (area interpolation).
        channels: Channels of a slice, 1 or 3; grey is repeated to the channels of the network.
        scale: Final factor for grey levels 0 to 255.
    """

    inside: bool
    intensity: str
    window_of: Literal["slice", "volume"]
    size: int
    channels: int
    scale: float = 1 / 255


class MaskFacts(_Model):
    """Steps from probabilities to the mask.

    Attributes:
        rule: Threshold and post-processing; lengths are shares of the slice's longer side.
        source: "threshold.json", "given" (as an option) or "default" (the run has none: 0.5).
        resolution: Resolution of the rule: the slice's own size, after enlarging the probabilities bilinearly.
        inside: Fields of the rule that the export applies.
        left: Fields that the user of the export has to apply: `kerasseg.postprocess(mask, rule)`.
    """

    rule: MaskRule
    source: Literal["threshold.json", "given", "default"]
    resolution: Literal["native"] = "native"
    inside: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def inner_rule(self) -> MaskRule:
        """The steps that the export applies; the default threshold if it makes no masks."""
        given = self.rule.model_dump()
        return MaskRule(**{name: given[name] for name in self.inside if name != "class_thresholds"})

    @property
    def meant_rule(self) -> MaskRule:
        """The rule behind its masks: what it applies, or the whole rule if it makes no masks."""
        return self.inner_rule if self.inside else self.rule


class SplitCounts(_Model):
    """Slices of a split, patients (summed over classes), slices without tumour; None if the shards were missing."""

    slices: int
    patients: int | None
    empty: int | None


class DataFacts(_Model):
    """Facts about the training data.

    Attributes:
        fingerprint: Fingerprint of the data set, see `manifest.json`.
        inputs: Names and formats of the inputs, such as "figshare-mat (figshare)"; empty if the shards are missing.
        classes: Class names.
        split: Split -> counts.
        split_by, shares, seed: Options of the split; None if the shards are missing.
        patients_on_both_sides: Patients in more than one split; None if unknown.
    """

    fingerprint: str
    inputs: tuple[str, ...]
    classes: tuple[str, ...]
    split: dict[str, SplitCounts]
    split_by: str | None
    shares: str | None
    seed: int | None
    patients_on_both_sides: int | None


class Comparison(_Model):
    """Comparison of the export, opened from disk, with the network of the run.

    Attributes:
        slices: Number of compared slices.
        source: "validation" (real slices) or "synthetic" (the shards were missing).
        precision: Numeric precision of the network; the export has the same, or 8-bit integers.
        largest_difference: Largest difference of probabilities at the network's size.
        allowed_difference: Its bound; None for int8, which is judged by Dice.
        equal_pixels: Share of equal mask pixels at the network's size.
        raw_slices: Number of slices that were given as stored, in several sizes; 0 if the export does not take them.
        raw_equal_pixels: Share of equal mask pixels of these; None without.
        raw_largest_difference: Largest difference of their probabilities, where a grey level may be rounded differently;
            None without.
        least_equal_pixels: Bound of both shares; None for int8.
    """

    slices: int
    source: Literal["validation", "synthetic"]
    precision: str = "float32"
    largest_difference: float
    allowed_difference: float | None
    equal_pixels: float
    raw_slices: int = 0
    raw_equal_pixels: float | None = None
    raw_largest_difference: float | None = None
    least_equal_pixels: float | None


class Int8Facts(_Model):
    """Cost of 8-bit integers.

    Attributes:
        calibration: Number of training slices for calibration.
        slices, patients: Number of validation slices and patients.
        dice_float, dice_int8: Mean Dice with the rule, at native size.
        cost: Paired difference, float minus int8.
        allowed_cost: Bound of its mean.
        bytes_float: Size of the same network in float32.
    """

    calibration: int
    slices: int
    patients: int
    dice_float: Mean
    dice_int8: Mean
    cost: Mean
    allowed_cost: float
    bytes_float: int


class ClassFigures(_Model):
    """Mean Dice of one class."""

    dice: Mean
    missed: int


class EvaluationFacts(_Model):
    """One evaluation of the run: the stage of its `metrics.json` with the export's rule, or else the final one.

    Attributes:
        name: Folder in `evaluation`.
        split: "test", "val", "train" or "all" (another data set).
        created: Time of the evaluation.
        fingerprint: Fingerprint of the data set.
        resolution: "native" or "model".
        rule: Rule of the stage.
        slices, patients, with_tumour, missed, false_alarms: Counts.
        measures: Means by name, see `kerasseg.evaluation.schema`.
        classes: Class -> Dice.
        baseline_dice: Dice of the checkpoint before training.
        gain: Paired gain over the baseline.
        whole_rule_dice: Dice with the whole rule, if the export applies only part of it; otherwise None.
        confidence: Confidence level of the intervals.
        test_looks: Number of evaluations of the test split.
        warnings: Warnings of the evaluation, and about it.
    """

    name: str
    split: str
    created: str
    fingerprint: str
    resolution: str
    rule: MaskRule
    slices: int
    patients: int
    with_tumour: int
    missed: int
    false_alarms: int
    measures: dict[str, Mean]
    classes: dict[str, ClassFigures]
    baseline_dice: Mean | None
    gain: Mean | None
    whole_rule_dice: Mean | None = None
    confidence: float
    test_looks: int
    warnings: tuple[str, ...]


class ExportMetadata(_Model):
    """The whole file.

    Attributes:
        kind: Identifies the file.
        format_version: Raised when earlier versions could misread the file.
        kerasseg, created, software: Version that wrote it, when (ISO 8601, UTC), and versions of packages.
        name: Name of the run.
        license: License of the weights, as given at the export.
        format: Format of the export.
        int8: Cost of 8 bits; None for float32.
        files: All files except this one and the card.
        network, preprocessing, mask, calling, data, comparison: See these classes.
        training: Settings, and their resolved values.
        evaluations: Evaluations of the run: test, val, others.
        tuning: Evidence for the rule, on validation: mean Dice, and its gain over 0.5; None if it was not tuned.
        provenance: Provenance that `kerasseg.open_checkpoint` gives to the opened export.
        warnings: Sentences to show.

    Example:
        The JSON schema is available to other programs:

        >>> ExportMetadata.model_json_schema()["properties"]["format"]["enum"]
        ['keras', 'savedmodel', 'onnx', 'litert', 'app']
    """

    kind: Literal["kerasseg-export"] = Field(default="kerasseg-export", alias="schema")
    format_version: int = FORMAT_VERSION
    kerasseg: str = __version__
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    software: dict[str, str]
    name: str
    license: str | None
    format: ExportFormat
    int8: Int8Facts | None
    files: tuple[FileFacts, ...] = ()
    network: NetworkFacts
    preprocessing: Preprocessing
    mask: MaskFacts
    calling: tuple[Calling, ...]
    data: DataFacts
    training: dict[str, Any]
    comparison: Comparison
    evaluations: tuple[EvaluationFacts, ...]
    tuning: dict[str, Mean] | None
    provenance: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the content of the file."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def read_metadata(folder: Path | str) -> ExportMetadata:
    return read_document(Path(folder) / METADATA, ExportMetadata, FORMAT_VERSION, "the metadata of the export")
