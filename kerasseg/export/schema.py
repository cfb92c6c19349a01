"""The form of `metadata.json`, beside every export: what a program needs to use it, and a reader to judge it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from kerasseg.evaluation.schema import Mean
from kerasseg.postprocessing import MaskRule
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.documents import read_document

__all__ = [
    "FORMATS",
    "FORMAT_VERSION",
    "METADATA",
    "SCHEMA",
    "Calling",
    "ClassFigures",
    "Comparison",
    "DataFacts",
    "EvaluationFacts",
    "ExportFormat",
    "ExportMetadata",
    "FileFacts",
    "Int8Facts",
    "MaskFacts",
    "NetworkFacts",
    "Port",
    "Preprocessing",
    "read_metadata",
]

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
        path: Relative to the folder.
        bytes: Its size.
        sha256: Hex digest.
    """

    path: str
    bytes: int
    sha256: str


class Port(_Model):
    """One input or output.

    Attributes:
        name: As the format has it.
        dtype: Such as "float32".
        shape: With None for sizes that are free.
        meaning: For people.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    meaning: str


class Calling(_Model):
    """One way to call the export.

    Attributes:
        name: Of the signature; "" where a format has one alone.
        inputs, outputs: In order.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class NetworkFacts(_Model):
    """The network.

    Attributes:
        parameters: Numbers in it.
        size: Side of its input in pixels.
        channels: Of its input.
        sha256: Of the run's `model.keras`.
        checkpoint: That it was fine-tuned from; None for a fresh one. Without the folders of whoever trained it.
        checkpoint_sha256: Of that; None where unknown.
    """

    parameters: int
    size: int
    channels: int
    sha256: str
    checkpoint: str | None
    checkpoint_sha256: str | None


class Preprocessing(_Model):
    """From a stored slice to the network's input.

    Attributes:
        inside: Whether the export does it by itself.
        intensity: The rule of the window: `minmax`, `percentile` or `zscore`.
        window_of: "slice", or "volume" where the run was trained on slices of volumes.
        size: Side of the square that the slice is padded and resized to (area interpolation).
        channels: Of a slice, 1 or 3; grey is repeated to what the network takes.
        scale: What grey levels 0 to 255 are multiplied with at last.
    """

    inside: bool
    intensity: str
    window_of: Literal["slice", "volume"]
    size: int
    channels: int
    scale: float = 1 / 255


class MaskFacts(_Model):
    """From probabilities to the mask.

    Attributes:
        rule: Threshold and post-processing; lengths are shares of the slice's longer side.
        source: "threshold.json", "given" (as an option) or "default" (the run has none: 0.5).
        resolution: Where the rule is meant: at the slice's own size, after enlarging the probabilities bilinearly.
        inside: Fields of the rule that the export applies by itself.
        left: Those that whoever uses the export applies: `kerasseg.postprocess(mask, rule)`.
    """

    rule: MaskRule
    source: Literal["threshold.json", "given", "default"]
    resolution: Literal["native"] = "native"
    inside: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def inner_rule(self) -> MaskRule:
        """The steps that the export itself does; the usual threshold where it makes no masks."""
        given = self.rule.model_dump()
        return MaskRule(**{name: given[name] for name in self.inside if name != "class_thresholds"})

    @property
    def meant_rule(self) -> MaskRule:
        """That its masks come of: what it does by itself, or all of the rule where it makes no masks."""
        return self.inner_rule if self.inside else self.rule


class SplitCounts(_Model):
    """Slices of a split, patients (summed over classes), slices without tumour; None where the shards were not there."""

    slices: int
    patients: int | None
    empty: int | None


class DataFacts(_Model):
    """What the network was trained on.

    Attributes:
        fingerprint: Of the data set, see `manifest.json`.
        inputs: Names and formats of what was read, such as "figshare-mat (figshare)"; empty where the shards are gone.
        classes: Names.
        split: Split -> what it holds.
        split_by, shares, seed: How it was split; None where the shards are gone.
        patients_on_both_sides: Patients in more than one split; None where unknown.
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
    """The export, opened from disk, beside the network of the run.

    Attributes:
        slices: That were compared.
        source: "validation" (real slices) or "synthetic" (the shards were not there).
        largest_difference: Of probabilities, where both saw the same image.
        allowed_difference: Its bound; None for int8, which is judged by Dice.
        equal_pixels: Share of equal mask pixels, where both saw the same image.
        raw_slices: Slices that were given as stored, at their own and other sizes; 0 where only the network's size can be
            given.
        raw_equal_pixels: Share of equal mask pixels there; None without.
        raw_largest_difference: Of probabilities there; None without. One grey level that is rounded otherwise shows here.
        least_equal_pixels: Bound of both shares; None for int8.
    """

    slices: int
    source: Literal["validation", "synthetic"]
    largest_difference: float
    allowed_difference: float | None
    equal_pixels: float
    raw_slices: int = 0
    raw_equal_pixels: float | None = None
    raw_largest_difference: float | None = None
    least_equal_pixels: float | None


class Int8Facts(_Model):
    """What whole numbers of 8 bits cost.

    Attributes:
        calibration: Training slices that the ranges were found on.
        slices, patients: Validation slices that Dice was taken on.
        dice_float, dice_int8: Mean Dice with the rule, at native size.
        cost: Paired difference, float less int8.
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
    """One evaluation of the run: the stage of its `metrics.json` whose rule is the export's, else the final one.

    Attributes:
        name: Folder below `evaluation`.
        split: "test", "val", "train" or "all" (another data set).
        created: When.
        fingerprint: Of the data set.
        resolution: "native" or "model".
        rule: That was applied.
        slices, patients, with_tumour, missed, false_alarms: Counted.
        measures: By name, see `kerasseg.evaluation.schema`.
        classes: Class -> Dice.
        baseline_dice: Of the checkpoint before training.
        gain: Paired, over the baseline.
        whole_rule_dice: Dice with all of the rule, where the export leaves some of it to whoever uses it; None elsewhere.
        confidence: Of the intervals.
        test_looks: How often anybody has looked at the test split.
        warnings: Of the evaluation, and about it.
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
        kind: Says what the file is.
        format_version: Rises when a reader of an earlier version could misread it.
        kerasseg, created, software: What wrote it, when (ISO 8601, UTC), and with which versions.
        name: Of the run.
        license: Of the weights, as whoever exported them said.
        format: Of the export.
        int8: What 8 bits cost; None for float32.
        files: All but this one and the card.
        network, preprocessing, mask, calling, data, comparison: See there.
        training: The recipe: settings and what they came to.
        evaluations: Of the run, in the order test, val, others; empty where there is none.
        tuning: Evidence for the rule, on validation: mean Dice, and its gain over 0.5; None where it was not tuned.
        provenance: The record that `kerasseg.open_checkpoint` gives to what it opens from here.
        warnings: Sentences for people.

    Example:
        Other programs find its schema so:

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
        """As it is written."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def read_metadata(folder: Path | str) -> ExportMetadata:
    """Reads the `metadata.json` of an export.

    Raises:
        DataError: It is missing or damaged.
        KerassegError: It is of a newer version.
    """
    return read_document(Path(folder) / METADATA, ExportMetadata, FORMAT_VERSION, "the metadata of the export")
