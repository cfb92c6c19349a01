"""Assign converted slices to classes, groups and splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from kerasseg_tfrecords.classes import TUMOUR_CLASSES
from kerasseg_tfrecords.conversion.staging import Spooled
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.records.manifest import DuplicatePair, Overlap, PrepareOptions, SplitFacts, load_manifest
from kerasseg_tfrecords.splitting.duplicates import find_duplicates, merge_groups, overlap
from kerasseg_tfrecords.splitting.fingerprints import Fingerprint, Fingerprints, fingerprint
from kerasseg_tfrecords.splitting.patients import compile_pattern, groups_of
from kerasseg_tfrecords.splitting.split import (
    SPLITS,
    Shares,
    Split,
    leaks,
    split_by_group,
    split_by_slice,
    take_per_class,
    worst_deviation,
)
from kerasseg_tfrecords.splitting.splits_file import LEFT_OUT, SplitRow, apply, load
from kerasseg_tfrecords.text import Progress, count

ONE_CLASS = "tumor"
"""Class of slices in data sets without classes."""

_FEW_PATIENTS = 5
"""Patients below which a validation or test split is too small for a conclusion."""
_FEW_OF_CLASS = 2


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Slices with their class, group and split.

    Attributes:
        slices: In the order of the inputs.
        labels: Class name of each slice.
        groups: Group of each slice: the patient, merged with patients that have copies of the same slices.
        splits: `train`, `val`, `test`, or `left_out` for slices that a subset or an overlap excludes.
        classes: Class names in label order.
        channels: 3 where any slice is in colour, else 1.
        facts: Quality of the split.
        duplicates, unmerged_chains, overlap: For the manifest.
        notes: Sentences for the user.
    """

    slices: tuple[Spooled, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    channels: Literal[1, 3]
    facts: SplitFacts
    duplicates: tuple[DuplicatePair, ...]
    unmerged_chains: tuple[tuple[str, ...], ...]
    overlap: tuple[Overlap, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[SplitRow]:
        return [
            SplitRow(
                slice_id=piece.facts.slice_id,
                source=piece.facts.source,
                sha256=piece.facts.sha256,
                label=label,
                patient=piece.facts.patient,
                group=group,
                split=split,
            )
            for piece, label, group, split in zip(self.slices, self.labels, self.groups, self.splits, strict=True)
        ]


def arrange(
    slices: Sequence[Spooled],
    prints: Fingerprints,
    options: PrepareOptions,
    *,
    splits: Path | str | None = None,
    exclude_overlap: Path | str | None = None,
    progress: Progress | None = None,
) -> Arrangement:
    """Choose class, group and split of every slice; deterministic and independent of their order."""
    if progress:
        progress("compare", 0, 1)
    ids = [piece.facts.slice_id for piece in slices]
    labels = [piece.facts.label or ONE_CLASS for piece in slices]
    notes: list[str] = []

    people, remarks = _patient_groups(slices, options)
    notes += remarks
    looks = _look_alikes(prints, ids, people, options)
    notes += looks.notes
    held: tuple[Overlap, ...] = ()
    if exclude_overlap is not None:
        held = _overlap(prints, ids, exclude_overlap)
        other = Path(exclude_overlap).name
        notes.append(f"Left out {count(len(held), 'slice')} already in {other}.")
    if splits is not None:
        where, groups = _frozen(Path(splits), slices, labels, options)
        notes.append(f"The split was taken from {Path(splits).name}.")
    else:
        excluded = {entry.slice_id for entry in held}
        kept = [index for index, name in enumerate(ids) if name not in excluded]
        if not kept:
            raise DataError("these shards have copies of all slices, so no slice remains", path=exclude_overlap)
        where, remarks = _divide(kept, slices, labels, looks.groups, options)
        groups = list(looks.groups)
        notes += remarks
    channels: Literal[1, 3] = 3 if any(piece.facts.channels == 3 for piece in slices) else 1
    if channels == 3 and any(piece.facts.channels == 1 for piece in slices):
        notes.append("Some slices are in colour: all are stored with 3 channels.")
    if progress:
        progress("compare", 1, 1)
    used = [index for index, split in enumerate(where) if split != LEFT_OUT]
    unknown = sum(not slices[i].facts.patient for i in used)
    notes += _few_patients(
        [(where[i], labels[i], groups[i]) for i in used], options, known=not unknown, frozen=splits is not None
    )
    return Arrangement(
        slices=tuple(slices),
        labels=tuple(labels),
        groups=tuple(groups),
        splits=tuple(where),
        classes=class_order(labels, options.classes),
        channels=channels,
        facts=SplitFacts(
            worst_deviation=round(worst_deviation(labels, where, Shares.parse(options.split)), 3),
            patients_on_both_sides=leaks([people[i] for i in used], [where[i] for i in used]),
            slices_without_patient=unknown,
        ),
        duplicates=looks.pairs,
        unmerged_chains=looks.chains,
        overlap=held,
        notes=tuple(notes),
    )


def _few_patients(
    cells: Sequence[tuple[str, str, str]], options: PrepareOptions, *, known: bool, frozen: bool
) -> list[str]:
    """Return warnings about splits with too few patients.

    Args:
        cells: (split, class, group) of each slice in a split.
        options: Options with the requested shares.
        known: Whether all patients are known.
        frozen: Whether the split comes from a file; a new split already has a note about missing classes.
    """
    unit = "patient" if known else "patient group"
    sizes = {split: len({group for where, _, group in cells if where == split}) for split in SPLITS}
    few = [f"{count(sizes[split], unit)} in {split}" for split in SPLITS[1:] if 0 < sizes[split] < _FEW_PATIENTS]
    for label in sorted({label for _, label, _ in cells}):
        of_class = {s: len({group for where, what, group in cells if (where, what) == (s, label)}) for s in SPLITS}
        lacking = [s for s in SPLITS if sizes[s] and (0 if frozen else 1) <= of_class[s] < _FEW_OF_CLASS]
        few += [f"{of_class[s]} with {label} in {s}" for s in lacking]
    if not few:
        return []
    shares = Shares.parse(options.split)
    small = frozen or min(shares.val or 1, shares.test or 1) < Fraction(1, 5)
    remedy = "larger validation and test splits (--split 60/20/20) or " if small else ""
    note = (
        f"Warning: too few {unit}s for reliable results: {', '.join(few)}. At least {_FEW_PATIENTS} in validation and in "
        f"test, and {_FEW_OF_CLASS} with each class, are needed. Consider {remedy}kerasseg cross-validate."
    )
    return [note]


def _patient_groups(slices: Sequence[Spooled], options: PrepareOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Group slices by patient. The pattern may find patients in file names, parts of patient ids, or both."""
    facts = [piece.facts for piece in slices]
    patients = [piece.patient for piece in facts]
    pattern = None
    if options.patient_pattern is not None:
        pattern = compile_pattern(options.patient_pattern)
        # The readers took the patients from file names with it; such ids need not match it again.
        if any(patients) and not any(pattern.fullmatch(patient) for patient in patients if patient):
            pattern = None
        if not any(patients):
            raise UsageError(
                f"--patient-pattern {options.patient_pattern!r} matches no file name and no patient id",
                found=f"names such as {facts[0].source!r}",
                remedy="Use a pattern that occurs in them, with brackets around the patient.",
            )
    by: Literal["patient", "id"] = "id" if options.split_by == "id" else "patient"
    found = groups_of(
        patients, [piece.slice_id for piece in facts], [piece.volume for piece in facts], by=by, pattern=pattern
    )
    return found.groups, found.notes


@dataclass(frozen=True, slots=True)
class _LookAlikes:
    groups: tuple[str, ...]
    pairs: tuple[DuplicatePair, ...] = ()
    chains: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


def _look_alikes(
    prints: Fingerprints, ids: Sequence[str], groups: tuple[str, ...], options: PrepareOptions
) -> _LookAlikes:
    """Merge groups that share copies of a slice."""
    if not options.find_duplicates:
        return _LookAlikes(groups)
    report = find_duplicates(prints)
    notes = []
    if report.chains:
        notes.append(
            f"{count(len(report.chains), 'chain')} of similar slices, each with more than 5 % of the data, not merged "
            "into groups; the manifest lists them."
        )
    if report.left_out:
        notes.append(f"{count(len(report.left_out), 'near-uniform slice')} not searched for copies.")
    return _LookAlikes(
        groups=tuple(merge_groups(groups, report.clusters)),
        pairs=tuple(
            DuplicatePair(
                first=ids[pair.first],
                second=ids[pair.second],
                kind=pair.kind,
                correlation=round(pair.correlation, 4),
                orientation=pair.orientation,
            )
            for pair in report.pairs
        ),
        chains=tuple(tuple(ids[index] for index in chain) for chain in report.chains),
        notes=tuple(notes),
    )


def _divide(
    kept: list[int], slices: Sequence[Spooled], labels: Sequence[str], groups: Sequence[str], options: PrepareOptions
) -> tuple[list[str], tuple[str, ...]]:
    """Return the split of every slice (`left_out` for those not in `kept` or not in the subset), and notes."""
    ids = [piece.facts.slice_id for piece in slices]
    subset_notes: tuple[str, ...] = ()
    if options.per_class is not None:
        chosen, subset_notes = take_per_class(
            [labels[i] for i in kept], [ids[i] for i in kept], options.per_class, options.seed
        )
        kept = [kept[i] for i in chosen]
    shares = Shares.parse(options.split)
    kept_labels = [labels[i] for i in kept]
    tumours = [slices[i].facts.tumour_pixels > 0 for i in kept]
    made: Split
    if options.split_by == "slice":
        made = split_by_slice(kept_labels, shares, options.seed, [ids[i] for i in kept], tumours)
    else:
        made = split_by_group(kept_labels, [groups[i] for i in kept], shares, options.seed, tumours)
    where = [LEFT_OUT] * len(ids)
    for index, split in zip(kept, made.assignment, strict=True):
        where[index] = split
    return where, subset_notes + made.notes


def _frozen(
    path: Path, slices: Sequence[Spooled], labels: Sequence[str], options: PrepareOptions
) -> tuple[list[str], list[str]]:
    """Return splits and groups from a `splits.csv`, which must fit the slices."""
    rows = load(path)
    by_id = {row.slice_id: row for row in rows}
    now = [
        SplitRow(facts.slice_id, facts.source, facts.sha256, label, facts.patient, "", "")
        for facts, label in zip((piece.facts for piece in slices), labels, strict=True)
    ]
    where = apply(rows, now, grouped=options.split_by == "patient", path=path)
    return list(where), [by_id[row.slice_id].group or row.slice_id for row in now]


def check_request(
    options: PrepareOptions, splits: Path | str | None = None, exclude_overlap: Path | str | None = None
) -> None:
    """Check the options that can be checked before any slice is read."""
    Shares.parse(options.split)
    if options.classes is not None and len(set(options.classes)) != max(1, len(options.classes)):
        raise UsageError(
            "invalid --classes",
            found=", ".join(options.classes) or "no name",
            expected="different class names, such as lesion,oedema",
        )
    if options.patient_pattern is not None:
        compile_pattern(options.patient_pattern)
    if splits is not None:
        load(Path(splits))
    if exclude_overlap is not None:
        load_manifest(exclude_overlap)


def class_order(labels: Sequence[str], asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return class names in label order: requested or known classes in their order, then others by name.

    >>> class_order(["pituitary", "glioma"], None)
    ('glioma', 'pituitary')
    """
    present = set(labels)
    if asked is not None:
        return (*asked, *sorted(present.difference(asked)))
    known = tuple(name for name in TUMOUR_CLASSES if name in present)
    return (*known, *sorted(present.difference(known)))


def _overlap(prints: Fingerprints, ids: Sequence[str], folder: Path | str) -> tuple[Overlap, ...]:
    """Return the slices of which another shard directory has copies, each with its best match."""
    from kerasseg_tfrecords.records.shards import read_records

    names: list[str] = []

    def others() -> Iterator[Fingerprint]:
        for record in read_records(folder):
            names.append(record.slice_id)
            yield fingerprint(record.image)

    theirs = Fingerprints.of(others())
    return tuple(
        Overlap(
            slice_id=ids[match.first],
            other=names[match.second],
            kind=match.kind,
            correlation=round(match.correlation, 4),
        )
        for match in overlap(prints, theirs)
    )
