"""Write folds for cross-validation: one shard directory per fold, with whole groups in either train or val.

The folds use the training and validation slices. Test slices are in no fold, and in each `splits.csv` as left out. Each
part is written once and hard-linked into all folds, so that all folds together need little more space than one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kerasseg_tfrecords.conversion.write import shuffle_key
from kerasseg_tfrecords.errors import DataError, UsageError
from kerasseg_tfrecords.files import atomic_folder, explain_os_error, remove_leftovers, scratch_folder, write_atomically
from kerasseg_tfrecords.records.manifest import (
    MANIFEST,
    SPLITS_FILE,
    Counts,
    Manifest,
    PrepareOptions,
    ShardFacts,
    SplitFacts,
    dataset_fingerprint,
    load_manifest,
    local_shards,
)
from kerasseg_tfrecords.records.shards import ShardRecords, check_hashes
from kerasseg_tfrecords.splitting.optimise import apportion
from kerasseg_tfrecords.splitting.split import SPLITS, Shares, count_slices, leaks, worst_deviation
from kerasseg_tfrecords.splitting.splits_file import LEFT_OUT, SplitRow, dump, load
from kerasseg_tfrecords.text import count

_SOURCES = ("train", "val")


@dataclass(frozen=True, slots=True)
class _Piece:
    """One slice: the place of its record, and what the manifest counts."""

    slice_id: str
    label: str
    group: str
    split: str
    number: int
    tumour_pixels: int
    area: float | None


def assign_folds(
    labels: Sequence[str], groups: Sequence[str], folds: int, seed: int = 42, tumours: Sequence[bool] | None = None
) -> NDArray[np.int64]:
    """Choose a fold for each slice: groups stay whole, and each class is divided as evenly as groups allow.

    Uses the search of `split_by_group`, with the same arguments; a slice with group "" is a group of its own.

    Raises:
        UsageError: Fewer groups than folds, or fewer than 2 folds.

    Example:
        >>> found = assign_folds(["a", "b"] * 4, list("11223344"), folds=2)
        >>> np.bincount(found).tolist()
        [4, 4]
    """
    if folds < 2:
        raise UsageError("too few folds for cross-validation", found=folds, expected="2 or more")
    own = [group or f"slice:{i}" for i, group in enumerate(groups)]
    names = sorted(set(own))
    if len(names) < folds:
        raise UsageError(
            f"{count(len(names), 'patient group')} cannot be divided into {folds} folds",
            remedy=f"Use --folds {len(names)}." if len(names) > 1 else "Cross-validation needs more patients.",
        )
    row = {name: k for k, name in enumerate(names)}
    counts, with_tumour = count_slices(labels, [row[group] for group in own], tumours)
    where = apportion(counts, np.full(folds, 1 / folds), seed, with_tumour)
    return np.array([where[row[group]] for group in own], np.int64)


def write_folds(shards: Path | str, targets: Sequence[Path], seed: int = 42) -> tuple[Manifest, ...]:
    """Write a shard directory for each fold: its own part is `val`, the others are `train`, and there is no test split.

    Folds that already exist and hold the same slices are kept, so that an interrupted call can be repeated.

    Raises:
        DataError: Shards are missing or damaged, or a target holds another fold.
        UsageError: Fewer groups than folds.
        KerassegError: The disk is full, or cannot be written.
    """
    root = local_shards(shards, _SOURCES)
    for target in targets:
        remove_leftovers(target.parent)
    source = load_manifest(root)
    rows = load(root / SPLITS_FILE)
    used = {row.slice_id: row for row in rows if row.split in _SOURCES}
    ids = sorted(used)  # the order in which slices were prepared does not matter
    labels = [used[name].label for name in ids]
    pieces: list[_Piece] = []
    tumours: list[bool] | None = None
    if _has_both(source):
        # Only then does it matter which slices show a tumour, and the masks must be read before the folds are known.
        pieces = _pieces(root, source, used)
        with_tumour = {piece.slice_id for piece in pieces if piece.tumour_pixels}
        tumours = [name in with_tumour for name in ids]
    groups = [used[name].group or f"slice:{name}" for name in ids]
    found = assign_folds(labels, groups, len(targets), seed, tumours)
    fold_of = dict(zip(ids, found.tolist(), strict=True))
    options = _options(source, len(targets), seed)
    plans = [[_moved(row, fold_of, k) for row in rows] for k in range(len(targets))]
    prints = [dataset_fingerprint(plan, options) for plan in plans]
    missing = [k for k, target in enumerate(targets) if not _is_there(target, prints[k])]
    if missing:
        pieces = pieces or _pieces(root, source, used)
        try:
            with scratch_folder(targets[0].parent) as parts:
                written = [_write_part(root, source, pieces, fold_of, k, parts, seed) for k in range(len(targets))]
                for k in missing:
                    manifest = _manifest(source, options, plans[k], prints[k], k, written, pieces, fold_of)
                    _put(targets[k], manifest, plans[k], parts, written)
        except OSError as error:
            raise explain_os_error(error, targets[0].parent) from error
    return tuple(load_manifest(target) for target in targets)


def _has_both(source: Manifest) -> bool:
    """Whether a class has slices both with and without tumour."""
    slices, empty = Counter[str](), Counter[str]()
    for entry in source.counts:
        if entry.split in _SOURCES:
            slices[entry.label] += entry.slices
            empty[entry.label] += entry.empty
    return any(0 < empty[label] < slices[label] for label in slices)


def _options(source: Manifest, folds: int, seed: int) -> PrepareOptions:
    by = "patient" if source.options.split_by == "slice" else source.options.split_by
    shares = f"{100 * (folds - 1) / folds:g}/{100 / folds:g}/0"
    return source.options.model_copy(update={"split": shares, "split_by": by, "seed": seed})


def _moved(row: SplitRow, fold_of: dict[str, int], fold: int) -> SplitRow:
    mine = fold_of.get(row.slice_id)
    return replace(row, split=LEFT_OUT if mine is None else "val" if mine == fold else "train")


def _is_there(target: Path, fingerprint: str) -> bool:
    if not target.exists():
        return False
    if load_manifest(target).fingerprint == fingerprint:
        return True
    raise DataError(
        "another fold already exists here: the slices, the number of folds or the seed have changed",
        path=target,
        remedy="Choose another --out.",
    )


def _pieces(root: Path, source: Manifest, used: dict[str, SplitRow]) -> list[_Piece]:
    """Read all training and validation records once."""
    from kerasseg_tfrecords.records.schema import decode

    pieces = []
    for split in _SOURCES:
        records = ShardRecords(root, source, split)
        check_hashes(root, records.shards)
        for number in range(len(records)):
            record = decode(records.read(number), size=source.size, channels=source.channels)
            row = used.get(record.slice_id)
            if row is None or row.split != split:
                raise DataError(
                    f"the shards and {SPLITS_FILE} disagree: slice {record.slice_id!r} is in the shards of {split}",
                    path=root,
                    remedy="Prepare the shards again.",
                )
            pixels = int(record.mask_native.sum())
            area = pixels * record.spacing[0] * record.spacing[1] if min(record.spacing) > 0 else None
            label = source.classes[record.label]
            pieces.append(_Piece(record.slice_id, label, record.group, split, number, pixels, area))
    return pieces


def _write_part(
    root: Path, source: Manifest, pieces: Sequence[_Piece], fold_of: dict[str, int], part: int, folder: Path, seed: int
) -> list[ShardFacts]:
    """Copy the records of one part unchanged, one family of files per class; paths are relative to `folder`."""
    from kerasseg_tfrecords.records.shards import family_files, family_names, write_shard

    readers = {split: ShardRecords(root, source, split) for split in _SOURCES}
    families = family_names(source.classes)
    facts: list[ShardFacts] = []
    for label in source.classes:
        members = [piece for piece in pieces if piece.label == label and fold_of[piece.slice_id] == part]
        members.sort(key=lambda piece: shuffle_key(seed, piece.slice_id))
        family, limit = f"{families[label]}-part-{part + 1}", source.options.records_per_shard
        for name, first, last in family_files("parts", family, len(members), limit):
            records = (readers[piece.split].read(piece.number) for piece in members[first:last])
            facts.append(write_shard(folder, name, label, records))
    return facts


def _manifest(
    source: Manifest,
    options: PrepareOptions,
    rows: Sequence[SplitRow],
    fingerprint: str,
    fold: int,
    written: Sequence[Sequence[ShardFacts]],
    pieces: Sequence[_Piece],
    fold_of: dict[str, int],
) -> Manifest:
    shards = []
    for part, facts in enumerate(written):
        split = "val" if part == fold else "train"
        shards += [f.model_copy(update={"split": split, "path": f"{split}/{Path(f.path).name}"}) for f in facts]
    there = [row for row in rows if row.split != LEFT_OUT]
    labels, where = [row.label for row in there], [row.split for row in there]
    people = [row.patient or f"slice:{row.slice_id}" for row in there]
    folds = len(written)
    shares = Shares(1 - Fraction(1, folds), Fraction(1, folds), Fraction(0))
    note = (
        f"fold {fold + 1} of {folds}, of the training and validation slices of the data set {source.fingerprint[:12]}"
    )
    return source.model_copy(
        update={
            "options": options,
            "counts": tuple(_counts(source.classes, pieces, fold_of, fold)),
            "split": SplitFacts(
                worst_deviation=round(worst_deviation(labels, where, shares), 3),
                patients_on_both_sides=leaks(people, where),
                slices_without_patient=sum(not row.patient for row in there),
            ),
            "shards": tuple(sorted(shards, key=lambda s: (s.split != "train", source.classes.index(s.label), s.path))),
            "splits_sha256": hashlib.sha256(dump(rows).encode("utf-8", "surrogateescape")).hexdigest(),
            "fingerprint": fingerprint,
            "notes": (*source.notes, note),
        }
    )


def _counts(classes: Sequence[str], pieces: Sequence[_Piece], fold_of: dict[str, int], fold: int) -> list[Counts]:
    cells: dict[tuple[str, str], list[tuple[str, int, float | None]]] = defaultdict(list)
    for piece in pieces:
        split = "val" if fold_of[piece.slice_id] == fold else "train"
        cells[split, piece.label].append((piece.group, piece.tumour_pixels, piece.area))
    return [Counts.of(split, label, cells[split, label]) for split in SPLITS for label in classes]


def _put(
    target: Path, manifest: Manifest, rows: Sequence[SplitRow], parts: Path, written: Sequence[Sequence[ShardFacts]]
) -> None:
    """Write the shard directory of one fold."""
    files = {Path(facts.path).name: parts / facts.path for part in written for facts in part}
    with atomic_folder(target) as work:
        for shard in manifest.shards:
            path = work / shard.path
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.hardlink_to(files[path.name])
            except OSError:  # FAT and some network drives have no hard links
                shutil.copyfile(files[path.name], path)
        write_atomically(work / SPLITS_FILE, dump(rows).encode("utf-8", "surrogateescape"))
        write_atomically(work / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
