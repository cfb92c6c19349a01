"""`manifest.json`: what a shard directory holds, how it was made, and what it should hash to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kerasseg_tfrecords.documents import read_document
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.splitting.splits_file import SplitRow
from kerasseg_tfrecords.validation import complaint

__all__ = [
    "MANIFEST",
    "SPLITS_FILE",
    "Counts",
    "DuplicatePair",
    "InputFacts",
    "Manifest",
    "Overlap",
    "PrepareOptions",
    "ShardFacts",
    "SplitFacts",
    "dataset_fingerprint",
    "load_manifest",
    "parse_options",
    "tumour_warnings",
]

MANIFEST = "manifest.json"
SPLITS_FILE = "splits.csv"
FORMAT_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrepareOptions(_Model):
    """What `prepare` was asked; the defaults are the recipe's.

    Attributes:
        format: Reader for all inputs; None detects one for each.
        size: Side of the stored images in pixels.
        intensity: `minmax`, `percentile` or `zscore` (see `kerasseg_tfrecords.intensity`).
        split: Shares of train, validation and test.
        split_by: `patient` (families of ids together), `id` (ids as they stand) or `slice` (as in slice-wise papers).
        seed: Of every random choice.
        per_class: Take a balanced subset of so many slices a class first.
        classes: Class names in label order; None for the built-in ones.
        plane, foreground, channel, sequence, empty_share: For volumes; see `SourceOptions`.
        patient_pattern: Regular expression that finds the patient in a file's name.
        find_duplicates: Keep equal and near-equal slices in one group.
        skip_bad: Leave bad files out instead of stopping.
        records_per_shard: Upper bound.

    Example:
        >>> options = PrepareOptions(split="70/15/15", intensity="percentile")
        >>> options.size, options.split_by, options.seed
        (256, 'patient', 42)
    """

    format: str | None = None
    size: Annotated[int, Field(ge=16, le=4096)] = 256
    intensity: Literal["minmax", "percentile", "zscore"] = "minmax"
    split: str = "80/10/10"
    split_by: Literal["patient", "id", "slice"] = "patient"
    seed: Annotated[int, Field(ge=0)] = 42
    per_class: Annotated[int | None, Field(ge=1)] = None
    classes: tuple[str, ...] | None = None
    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    foreground: tuple[int, ...] | None = None
    channel: str | None = None
    sequence: str | None = None
    empty_share: Annotated[float, Field(ge=0)] = 0.2
    patient_pattern: str | None = None
    find_duplicates: bool = True
    skip_bad: bool = False
    records_per_shard: Annotated[int, Field(ge=1)] = 256


class InputFacts(_Model):
    """One input: the name that prefixes its slices' ids, its format, and how many items and slices it gave."""

    name: str
    format: str
    items: int
    slices: int


class Counts(_Model):
    """One class in one split."""

    split: str
    label: str
    slices: int
    patients: int
    tumour_pixels: int = Field(description="at native size, summed over the slices")
    tumour_mm2: float | None = Field(description="the same in square millimetres; None where a spacing is unknown")
    empty: int = Field(description="slices without tumour")


class ShardFacts(_Model):
    """One file."""

    path: str
    split: str
    label: str
    records: int
    bytes: int
    sha256: str


class DuplicatePair(_Model):
    """Two slices that show the same, and so went into one group."""

    first: str
    second: str
    kind: Literal["equal", "near"]
    correlation: float
    orientation: str


class Overlap(_Model):
    """A slice that was left out because another shard directory holds it."""

    slice_id: str
    other: str
    kind: Literal["equal", "near"]
    correlation: float


class SplitFacts(_Model):
    """How the split came out.

    Attributes:
        worst_deviation: Largest difference between a class's share in a split and the share asked for, percentage points.
        patients_on_both_sides: Patients whose slices stand in more than one split.
        slices_without_patient: Their patients are unknown, so leaks cannot be excluded.
    """

    worst_deviation: float
    patients_on_both_sides: int
    slices_without_patient: int


class Manifest(_Model):
    """The whole file. `format_version` rises when a reader of an earlier version could misread the shards.

    Attributes:
        kerasseg, software: The versions that wrote it.
        options: What was asked.
        size, channels: Of the stored images: side in pixels; 1 or 3.
        intensity: The rule by which grey values went onto 0-255.
        square_pixels: Whether slices whose pixels are not square were resampled; False for shards of earlier versions.
        classes: Names in the order of the labels.
        counts: Slices and patients of each class in each split.
        shards: Name, SHA-256 and number of records of each file.
        fingerprint: SHA-256 of the data set: equal for equal slices, options and split.
        duplicates, unmerged_chains, overlap: Copies that were found.
        skipped, left_out, remarks, notes: What was not read, why, and what readers had to decide.

    Example:
        >>> manifest = load_manifest("shards")
        >>> manifest.classes, manifest.size, manifest.slices_in("train"), len(manifest.shards_of("val"))
        (('meningioma', 'glioma', 'pituitary'), 32, 24, 3)
    """

    format_version: int
    kerasseg: str
    software: dict[str, str]
    options: PrepareOptions
    inputs: tuple[InputFacts, ...]
    size: int
    channels: Literal[1, 3]
    intensity: Literal["minmax", "percentile", "zscore"]
    mask_bits: Literal[1]
    square_pixels: bool = False
    classes: tuple[str, ...]
    counts: tuple[Counts, ...]
    split: SplitFacts
    shards: tuple[ShardFacts, ...]
    splits_sha256: str
    fingerprint: str
    duplicates: tuple[DuplicatePair, ...] = ()
    unmerged_chains: tuple[tuple[str, ...], ...] = ()
    overlap: tuple[Overlap, ...] = ()
    skipped: Annotated[tuple[tuple[str, str, str], ...], Field(description="name, kind, message")] = ()
    left_out: Annotated[tuple[tuple[str, str], ...], Field(description="name, reason")] = ()
    remarks: Annotated[tuple[tuple[str, str], ...], Field(description="slice_id, what was decided or looks odd")] = ()
    notes: tuple[str, ...] = ()

    def shards_of(self, split: str) -> tuple[ShardFacts, ...]:
        """The files of one split; `validation` is understood as `val`."""
        name = "val" if split == "validation" else split
        return tuple(shard for shard in self.shards if shard.split == name)

    def fit_spacing(self, spacing: tuple[float, float]) -> tuple[float, float]:
        """The spacing by which a record's slice was resampled, as `restore` needs it; (0, 0) where it was not."""
        return spacing if self.square_pixels else (0.0, 0.0)

    def slices_in(self, split: str) -> int:
        """Number of records of one split."""
        return sum(shard.records for shard in self.shards_of(split))


def tumour_warnings(counts: Iterable[Counts]) -> tuple[str, ...]:
    """Return warnings about splits in which no mask holds a tumour.

    Args:
        counts: From a manifest.

    Example:
        >>> tumour_warnings(load_manifest("shards").counts)
        ()
    """
    counts = [entry for entry in counts if entry.slices]
    without = [
        split
        for split in dict.fromkeys(entry.split for entry in counts)
        if not any(entry.tumour_pixels for entry in counts if entry.split == split)
    ]
    if without and not any(entry.tumour_pixels for entry in counts):
        return ("Warning: no mask holds a tumour. Check that the masks belong to the images and are not all black.",)
    return tuple(
        f"Warning: {split} holds no tumour, so no Dice score of tumours can be computed on it. Prepare the shards again "
        "with another --split or --seed, or with more patients with tumours."
        for split in without
    )


def dataset_fingerprint(rows: Iterable[SplitRow], options: PrepareOptions) -> str:
    """SHA-256 over what was read, how it was split and how it was converted: equal for equal data sets anywhere."""
    facts = [[row.slice_id, row.sha256, row.label, row.group, row.split] for row in rows]
    made: list[object] = [options.size, options.intensity, options.plane, options.foreground, options.empty_share]
    # Fingerprints of data sets without these options stay what they were.
    made += [value for value in (options.channel, options.sequence) if value is not None]
    return hashlib.sha256(json.dumps([sorted(facts), made]).encode()).hexdigest()


def load_manifest(folder: Path | str) -> Manifest:
    """Reads and checks `manifest.json` of a shard directory.

    Args:
        folder: The shard directory.

    Raises:
        DataError: Where there is none, it is damaged, or of a newer version.

    Example:
        >>> load_manifest("shards").intensity
        'minmax'
    """
    path = Path(folder) / MANIFEST
    remedy = "Make one with: kerasseg prepare INPUT --out " + str(folder)
    if not path.is_file():
        raise DataError("not a shard directory", path=folder, expected=MANIFEST, remedy=remedy)
    return read_document(path, Manifest, FORMAT_VERSION, "the manifest", remedy=remedy)


def parse_options(**values: object) -> PrepareOptions:
    """`PrepareOptions` from what a user typed.

    Raises:
        UsageError: Names the option, what was given and what it may be.
    """
    try:
        return PrepareOptions.model_validate(values)
    except ValidationError as error:
        wrong = complaint(error)
        name = wrong.where.partition(".")[0] or "options"
        raise UsageError(
            f"--{name.replace('_', '-')} cannot be {wrong.found}", expected=wrong.expected, remedy=wrong.remedy
        ) from None
