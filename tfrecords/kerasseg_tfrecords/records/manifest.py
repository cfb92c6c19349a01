"""The `manifest.json` of a shard directory: content, options and hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kerasseg_tfrecords.documents import MAX_BYTES, read_document
from kerasseg_tfrecords.errors import DataError, KerassegError, UsageError
from kerasseg_tfrecords.files import write_atomically
from kerasseg_tfrecords.splitting.splits_file import SplitRow
from kerasseg_tfrecords.storage import Wanted, copying, fetch, read_small, remote_cache, url_of
from kerasseg_tfrecords.text import Progress
from kerasseg_tfrecords.validation import complaint

MANIFEST = "manifest.json"
SPLITS_FILE = "splits.csv"
FORMAT_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrepareOptions(_Model):
    """Options of `prepare`.

    Attributes:
        format: Format of all inputs; None detects it for each.
        size: Side of the stored images in pixels.
        intensity: `minmax`, `percentile` or `zscore` (see `kerasseg_tfrecords.intensity`).
        split: Shares of train, validation and test.
        split_by: `patient` (merges the ids of one person), `id` (uses ids unchanged) or `slice` (ignores patients).
        seed: Random seed.
        per_class: Number of slices per class of a balanced subset; None uses all slices.
        classes: Class names in label order; None for the built-in ones.
        plane, foreground, channel, sequence, empty_share: For volumes; see `SourceOptions`.
        patient_pattern: Regular expression that finds the patient in file names or patient ids.
        find_duplicates: Keep copies of a slice in one group.
        skip_bad: Skip bad files instead of stopping.
        records_per_shard: Largest number of records in a file.

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
    """One input: its name (the prefix of its slice ids), its format, and its numbers of items and slices."""

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
    tumour_mm2: float | None = Field(description="the same in square millimetres; None if a spacing is unknown")
    empty: int = Field(description="slices without tumour")

    @classmethod
    def of(cls, split: str, label: str, slices: Sequence[tuple[str, int, float | None]]) -> Counts:
        """Count slices given as (group, tumour area in pixels, and in square millimetres or None)."""
        areas = [area for _, _, area in slices if area is not None]
        return cls(
            split=split,
            label=label,
            slices=len(slices),
            patients=len({group for group, _, _ in slices}),
            tumour_pixels=sum(pixels for _, pixels, _ in slices),
            tumour_mm2=round(sum(areas), 3) if slices and len(areas) == len(slices) else None,
            empty=sum(pixels == 0 for _, pixels, _ in slices),
        )


class ShardFacts(_Model):
    """One TFRecord file."""

    path: str
    split: str
    label: str
    records: int
    bytes: int
    sha256: str


class DuplicatePair(_Model):
    """Two copies of a slice, which are in one group."""

    first: str
    second: str
    kind: Literal["equal", "near"]
    correlation: float
    orientation: str


class Overlap(_Model):
    """A slice that was excluded because another shard directory has a copy of it."""

    slice_id: str
    other: str
    kind: Literal["equal", "near"]
    correlation: float


class SplitFacts(_Model):
    """Quality of the split.

    Attributes:
        worst_deviation: Largest difference between actual and requested share of a class, in percentage points.
        patients_on_both_sides: Number of patients with slices in more than one split.
        slices_without_patient: Number of slices of unknown patients, which may leak.
    """

    worst_deviation: float
    patients_on_both_sides: int
    slices_without_patient: int


class Manifest(_Model):
    """The manifest. `format_version` increases when an earlier version could misread the shards.

    Attributes:
        kerasseg, software: Versions of the software that wrote the shards.
        options: Options of `prepare`.
        size, channels: Side of the stored images in pixels; 1 or 3 channels.
        intensity: Rule that mapped grey values to 0-255.
        square_pixels: Whether slices with non-square pixels were resampled; False for shards of earlier versions.
        classes: Class names in label order.
        counts: Slices and patients of each class in each split.
        shards: Path, SHA-256 and number of records of each file.
        fingerprint: SHA-256 of the data set: equal for equal slices, options and split.
        duplicates, unmerged_chains, overlap: Copies that were found.
        skipped, left_out, remarks, notes: Files that were not read, with reasons, and decisions of the readers.

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
    remarks: Annotated[tuple[tuple[str, str], ...], Field(description="slice_id, decision or warning")] = ()
    notes: tuple[str, ...] = ()

    def shards_of(self, split: str) -> tuple[ShardFacts, ...]:
        """Return the files of a split; `validation` means `val`."""
        name = "val" if split == "validation" else split
        return tuple(shard for shard in self.shards if shard.split == name)

    def fit_spacing(self, spacing: tuple[float, float]) -> tuple[float, float]:
        """Return the `spacing` argument of `restore` for a record with this spacing; (0, 0) if it was not resampled."""
        return spacing if self.square_pixels else (0.0, 0.0)

    def slices_in(self, split: str) -> int:
        """Count the records of a split."""
        return sum(shard.records for shard in self.shards_of(split))


def tumour_warnings(counts: Iterable[Counts]) -> tuple[str, ...]:
    """Return warnings about splits in which no mask holds a tumour.

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
    """Return the SHA-256 of the slices, their split and the conversion: equal for equal data sets on any machine."""
    facts = [[row.slice_id, row.sha256, row.label, row.group, row.split] for row in rows]
    made: list[object] = [options.size, options.intensity, options.plane, options.foreground, options.empty_share]
    # Only if set, so that fingerprints made before these options existed stay the same.
    made += [value for value in (options.channel, options.sequence) if value is not None]
    return hashlib.sha256(json.dumps([sorted(facts), made]).encode()).hexdigest()


def load_manifest(folder: Path | str) -> Manifest:
    """Read and check the `manifest.json` of a shard directory.

    Args:
        folder: The shard directory, or its URL.

    Raises:
        DataError: The folder is not a shard directory, or the manifest is damaged.
        KerassegError: A newer version of kerasseg wrote it.

    Example:
        >>> load_manifest("shards").intensity
        'minmax'
    """
    return _read(local_shards(folder) / MANIFEST, folder)


def _read(path: Path, folder: Path | str) -> Manifest:
    """Read the manifest of a folder, or the copy of one at a URL."""
    if not path.is_file():
        raise _no_shards(folder)
    try:
        return read_document(path, Manifest, FORMAT_VERSION, "the manifest", remedy=_no_shards(folder).remedy)
    except KerassegError as error:  # of a newer version: also data that cannot be used, for the exit code
        named = path if url_of(folder) is None else f"{url_of(folder)}/{MANIFEST}"
        raise DataError(
            error.what, path=named, found=error.found, expected=error.expected, remedy=error.remedy
        ) from None


def _no_shards(folder: Path | str) -> DataError:
    url = url_of(folder)
    remedy = f"Make one with: kerasseg prepare INPUT --out {'FOLDER' if url else folder}"
    return DataError("not a shard directory", path=url or folder, expected=MANIFEST, remedy=remedy)


def local_shards(
    folder: Path | str, splits: Sequence[str] = (), *, again: bool = False, progress: Progress | None = None
) -> Path:
    """Return a local shard directory unchanged. Copy one at a URL into the cache, and return the copy.

    The copy's name is the hash of the manifest: shards that were prepared again get another folder, and every file is
    compared with its hash in the manifest.

    Args:
        folder: A shard directory or its URL.
        splits: Splits whose files are needed, if any; they bring `splits.csv`.
        again: Copy files again that are already there.
        progress: Called with "fetch", the files copied, and their number.

    Raises:
        DataError: There is no manifest, or a file differs from it.
        KerassegError: As `kerasseg_tfrecords.storage.local_copy`.
    """
    url = url_of(folder)
    if url is None:
        return Path(folder)
    url = url.rstrip("/").removesuffix(f"/{MANIFEST}")
    data = read_small(url, MANIFEST, limit=MAX_BYTES)
    if data is None:
        raise _no_shards(url)
    place = remote_cache() / hashlib.sha256(data).hexdigest()
    with copying(place):
        if not (place / MANIFEST).is_file():
            write_atomically(place / MANIFEST, data)
        if splits:
            manifest = _read(place / MANIFEST, url)
            listed = [shard for split in splits for shard in manifest.shards_of(split)]
            wanted = [Wanted(SPLITS_FILE, sha256=manifest.splits_sha256)]
            wanted += [Wanted(shard.path, shard.bytes, shard.sha256) for shard in listed]
            fetch(url, place, [entry for entry in wanted if again or not entry.is_in(place)], progress)
    return place


def parse_options(**values: object) -> PrepareOptions:
    """Validate options from the command line; `UsageError` names the invalid option and its valid values."""
    try:
        return PrepareOptions.model_validate(values)
    except ValidationError as error:
        wrong = complaint(error)
        name = wrong.where.partition(".")[0] or "options"
        raise UsageError(
            f"--{name.replace('_', '-')} cannot be {wrong.found}", expected=wrong.expected, remedy=wrong.remedy
        ) from None
