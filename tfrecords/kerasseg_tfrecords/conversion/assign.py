"""From converted slices to classes, groups and splits: everything about them that needs all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
)
from kerasseg_tfrecords.splitting.splits_file import LEFT_OUT, SplitRow, apply, load
from kerasseg_tfrecords.text import Progress

__all__ = ["ONE_CLASS", "Arrangement", "arrange", "check_request"]

ONE_CLASS = "tumor"
"""The class of slices whose data set names none."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Slices with their class, group and split, index by index.

    Attributes:
        slices: In the order of the inputs.
        labels: Class name of each.
        groups: What was kept together: the patient's family, merged with those whose slices are duplicates.
        splits: `train`, `val`, `test`, or `left_out` for slices that a subset or an overlap excludes.
        classes: Names in label order.
        channels: 3 where any slice has colour, else 1.
        facts: How well the split came out.
        duplicates, unmerged_chains, overlap: For the manifest.
        notes: Sentences for the report.
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
        """The lines of `splits.csv`."""
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
    options: PrepareOptions,
    *,
    splits: Path | str | None = None,
    exclude_overlap: Path | str | None = None,
    progress: Progress | None = None,
) -> Arrangement:
    """Decides class, group and split of every slice; deterministic, and independent of the slices' order.

    Raises:
        DataError: Where no split can be made, or `splits` does not fit the slices.
    """
    if progress:
        progress("compare", 0, 1)
    ids = [piece.facts.slice_id for piece in slices]
    labels = [piece.facts.label or ONE_CLASS for piece in slices]
    prints = Fingerprints.of([piece.fingerprint for piece in slices])
    notes: list[str] = []

    people, said = _families(slices, options)
    notes += said
    looks = _look_alikes(prints, ids, people, options)
    notes += looks.notes
    held: tuple[Overlap, ...] = ()
    if exclude_overlap is not None:
        held = _overlap(prints, ids, exclude_overlap)
        notes.append(f"{len(held)} slices were left out because {Path(exclude_overlap).name} already holds them")
    if splits is not None:
        where, groups = _frozen(Path(splits), slices, labels, options)
        notes.append(f"the split was taken from {Path(splits).name}")
    else:
        excluded = {entry.slice_id for entry in held}
        kept = [index for index, name in enumerate(ids) if name not in excluded]
        if not kept:
            raise DataError("no slice is left: the other shards hold them all", path=exclude_overlap)
        where, remarks = _divide(kept, ids, labels, looks.groups, options)
        groups = list(looks.groups)
        notes += remarks
    channels: Literal[1, 3] = 3 if any(piece.facts.channels == 3 for piece in slices) else 1
    if channels == 3 and any(piece.facts.channels == 1 for piece in slices):
        notes.append("grey and colour slices together: all are stored with 3 channels")
    if progress:
        progress("compare", 1, 1)
    used = [index for index, split in enumerate(where) if split != LEFT_OUT]
    return Arrangement(
        slices=tuple(slices),
        labels=tuple(labels),
        groups=tuple(groups),
        splits=tuple(where),
        classes=class_order(labels, options.classes),
        channels=channels,
        facts=SplitFacts(
            worst_deviation=round(_worst_deviation(labels, where, Shares.parse(options.split)), 3),
            patients_on_both_sides=leaks([people[i] for i in used], [where[i] for i in used]),
            slices_without_patient=sum(not slices[i].facts.patient for i in used),
        ),
        duplicates=looks.pairs,
        unmerged_chains=looks.chains,
        overlap=held,
        notes=tuple(notes),
    )


def _families(slices: Sequence[Spooled], options: PrepareOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Group of each slice by patient alone. The pattern may find patients in file names, families in ids, or both."""
    facts = [piece.facts for piece in slices]
    patients = [piece.patient for piece in facts]
    pattern = None
    if options.patient_pattern is not None:
        pattern = compile_pattern(options.patient_pattern)
        # The readers have taken patients from file names by it; such ids need not match it once more.
        if any(patients) and not any(pattern.fullmatch(patient) for patient in patients if patient):
            pattern = None
        if not any(patients):
            raise UsageError(
                f"--patient-pattern {options.patient_pattern!r} finds no patient in any name or id",
                found=f"names such as {facts[0].source!r}",
                remedy="Write a pattern that occurs in them; brackets mark the patient.",
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
    """Groups joined wherever a slice of one shows the same as a slice of the other."""
    if not options.find_duplicates:
        return _LookAlikes(groups)
    report = find_duplicates(prints)
    notes = []
    if report.chains:
        notes.append(
            f"{len(report.chains)} chain(s) of look-alike slices hold more than 5 % of the data each and were not "
            "merged: they are listed in the manifest"
        )
    if report.left_out:
        notes.append(f"{len(report.left_out)} near-uniform slices were left out of the search for look-alikes")
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
    kept: list[int], ids: Sequence[str], labels: Sequence[str], groups: Sequence[str], options: PrepareOptions
) -> tuple[list[str], list[str]]:
    """Split of every slice (`left_out` for those not in `kept` or not in the subset), and remarks."""
    notes: list[str] = []
    if options.per_class is not None:
        subset = take_per_class(
            [labels[i] for i in kept],
            [ids[i] for i in kept],
            options.per_class,
            options.seed,
        )
        kept = [kept[i] for i in subset.indices]
        notes.extend(subset.notes)
    shares = Shares.parse(options.split)
    some_labels, some_groups, some_ids = ([values[i] for i in kept] for values in (labels, groups, ids))
    made: Split
    if options.split_by == "slice":
        made = split_by_slice(some_labels, shares, options.seed, some_ids)
    else:
        made = split_by_group(some_labels, some_groups, shares, options.seed)
    where = [LEFT_OUT] * len(ids)
    for index, split in zip(kept, made.assignment, strict=True):
        where[index] = split
    return where, [*notes, *made.notes]


def _frozen(
    path: Path, slices: Sequence[Spooled], labels: Sequence[str], options: PrepareOptions
) -> tuple[list[str], list[str]]:
    """Splits and groups as the file says; refuses where it does not fit the slices."""
    rows = load(path)
    by_id = {row.slice_id: row for row in rows}
    now = [
        SplitRow(facts.slice_id, facts.source, facts.sha256, label, facts.patient, "", "")
        for facts, label in zip((piece.facts for piece in slices), labels, strict=True)
    ]
    where = apply(rows, now, grouped=options.split_by == "patient", path=path)
    return list(where), [by_id[row.slice_id].group or row.slice_id for row in now]


def _worst_deviation(labels: Sequence[str], where: Sequence[str], shares: Shares) -> float:
    """Largest difference, in percentage points, between a class's share in a split and the share asked for."""
    worst = 0.0
    for label in set(labels):
        of_class = [split for what, split in zip(labels, where, strict=True) if what == label and split != LEFT_OUT]
        for split, share in zip(SPLITS, shares.values(), strict=True):
            if of_class:
                worst = max(worst, abs(100 * of_class.count(split) / len(of_class) - 100 * float(share)))
    return worst


def check_request(
    options: PrepareOptions, splits: Path | str | None = None, exclude_overlap: Path | str | None = None
) -> None:
    """Whatever can be refused before any slice is read: shares, pattern, a missing file.

    Raises:
        UsageError: An option that cannot be meant.
        DataError: `splits` or `exclude_overlap` cannot be read.
    """
    Shares.parse(options.split)
    if options.classes is not None and len(set(options.classes)) != max(1, len(options.classes)):
        raise UsageError(
            "--classes needs names, each once",
            found=", ".join(options.classes) or "none",
            expected="such as lesion,oedema",
        )
    if options.patient_pattern is not None:
        compile_pattern(options.patient_pattern)
    if splits is not None:
        load(Path(splits))
    if exclude_overlap is not None:
        load_manifest(exclude_overlap)


def class_order(labels: Sequence[str], asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names in label order: as asked for; else the tumours in their usual order, then others by name.

    >>> class_order(["pituitary", "glioma"], None)
    ('glioma', 'pituitary')
    """
    present = set(labels)
    if asked is not None:
        return (*asked, *sorted(present.difference(asked)))
    known = tuple(name for name in TUMOUR_CLASSES if name in present)
    return (*known, *sorted(present.difference(known)))


def _overlap(prints: Fingerprints, ids: Sequence[str], folder: Path | str) -> tuple[Overlap, ...]:
    """Slices that another shard directory holds, each with its best match there."""
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
        for match in overlap(prints, theirs).matches
    )
