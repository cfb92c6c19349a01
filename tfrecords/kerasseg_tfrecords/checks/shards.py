"""Check a shard directory against its manifest, record by record (`kerasseg verify`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kerasseg_tfrecords.cluster import choose_pool
from kerasseg_tfrecords.errors import DataError
from kerasseg_tfrecords.files import file_sha256
from kerasseg_tfrecords.intensity import fit_mask
from kerasseg_tfrecords.records.manifest import (
    MANIFEST,
    SPLITS_FILE,
    Manifest,
    ShardFacts,
    load_manifest,
    local_shards,
    tumour_warnings,
)
from kerasseg_tfrecords.records.schema import Record
from kerasseg_tfrecords.splitting.duplicates import find_duplicates
from kerasseg_tfrecords.splitting.fingerprints import Fingerprint, Fingerprints, fingerprint
from kerasseg_tfrecords.splitting.split import SPLITS
from kerasseg_tfrecords.splitting.splits_file import LEFT_OUT, SplitRow, load
from kerasseg_tfrecords.text import count

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of `verify`.

    Attributes:
        errors: One line for each error; empty for sound shards.
        warnings: Properties of the data set that users should know, such as the leaks of a split by slice.
        records: Number of records read.
        shards: Number of files.

    Example:
        >>> found = verify("shards")
        >>> found.errors, found.records
        ((), 36)
    """

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    records: int
    shards: int

    @property
    def sound(self) -> bool:
        """True if there are no errors."""
        return not self.errors


@dataclass(slots=True)
class _State:
    """Everything that one pass over the records collects."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    prints: list[Fingerprint] = field(default_factory=list)

    def add(self, shard: ShardFacts, checked: _Checked, rows: dict[str, SplitRow]) -> None:
        """Add what was found in a shard, and compare its records with `splits.csv`."""
        self.errors += checked.before
        for name, group, print_, errors in checked.records:
            self.errors.extend(f"{shard.path}: {line}" for line in (*errors, *_misplaced(name, group, shard, rows)))
            self.ids.append(name)
            self.splits.append(shard.split)
            self.groups[group].add(shard.split)
            self.prints.append(print_)
        self.errors += checked.after


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was found in one shard."""

    before: tuple[str, ...]
    records: tuple[tuple[str, str, Fingerprint, tuple[str, ...]], ...]
    after: tuple[str, ...]


def verify(
    folder: Path | str, *, cluster: Client | None = None, progress: Callable[[str, int, int], None] | None = None
) -> Verification:
    """Check every hash, count, record, label and mask of a shard directory, and that its splits share no patient or copy.

    Args:
        folder: A shard directory, or its URL; its files are then copied again.
        cluster: Dask client of a cluster whose workers read the shards; they must see a local `folder`.
        progress: Called with "verify", the records checked, and their total.

    Returns:
        All errors and warnings.

    Raises:
        DataError: The folder is not a shard directory, or its manifest is damaged or of a newer version.

    Example:
        >>> verify("shards").sound
        True
    """
    # Again, because files at a URL may have changed since they were copied.
    root = local_shards(folder, SPLITS, again=True, progress=progress)
    root = root if cluster is None else root.absolute()
    manifest = load_manifest(root)
    state = _State()
    rows = _rows(root, manifest, state)
    total = sum(shard.records for shard in manifest.shards)
    # Without its shards, which would otherwise be sent with each task.
    check = partial(_check_shard, root, manifest.model_copy(update={"shards": ()}))
    fetch = partial(local_shards, splits=SPLITS)
    with choose_pool(1, cluster, reads=[root / MANIFEST], inputs=[folder], fetch=fetch) as pool:
        for shard, checked in zip(manifest.shards, pool.map(check, manifest.shards, trusted=True), strict=True):
            state.add(shard, checked, rows)
            if progress:
                progress("verify", len(state.ids), total)
    if progress:
        progress("verify", total, total)
    listed = {shard.path for shard in manifest.shards}
    for path in sorted(root.rglob("*.tfrecord")):
        name = path.relative_to(root).as_posix()
        if name not in listed:
            state.errors.append(f"{name}: not in the manifest")
    seen = set(state.ids)
    missing = [name for name, row in rows.items() if row.split != LEFT_OUT and name not in seen]
    if missing:
        state.errors.append(f"{SPLITS_FILE}: {count(len(missing), 'slice')} not in any shard, such as {missing[0]}")
    _check_counts(manifest, state)
    _check_crossings(manifest, state)
    state.warnings += [warning.removeprefix("Warning: ") for warning in tumour_warnings(manifest.counts)]
    return Verification(tuple(state.errors), tuple(state.warnings), len(state.ids), len(manifest.shards))


def check_files(folder: Path | str) -> tuple[str, ...]:
    """Check only that all files of a shard directory exist and have not changed; return one line for each error."""
    root = Path(folder)
    manifest = load_manifest(root)
    state = _State()
    _rows(root, manifest, state)
    found = (_check_file(root, shard) for shard in manifest.shards)
    return (*state.errors, *(error for error in found if error is not None))


def _check_file(root: Path, shard: ShardFacts) -> str | None:
    """Return the error of a file that is missing or has changed."""
    path = root / shard.path
    if not path.is_file():
        return f"{shard.path}: missing"
    if path.stat().st_size != shard.bytes or file_sha256(path) != shard.sha256:
        return f"{shard.path}: its bytes have changed since it was written (SHA-256)"
    return None


def _rows(root: Path, manifest: Manifest, state: _State) -> dict[str, SplitRow]:
    path = root / SPLITS_FILE
    if not path.is_file():
        state.errors.append(f"{SPLITS_FILE}: missing")
        return {}
    if file_sha256(path) != manifest.splits_sha256:
        state.errors.append(f"{SPLITS_FILE}: has changed since the shards were written")
    try:
        return {row.slice_id: row for row in load(path)}
    except DataError as error:
        state.errors.append(str(error))
        return {}


def _check_shard(root: Path, manifest: Manifest, shard: ShardFacts) -> _Checked:
    from kerasseg_tfrecords.records.shards import read_shard

    path = root / shard.path
    error = _check_file(root, shard)
    before = () if error is None else (error,)
    if not path.is_file():
        return _Checked(before, (), ())
    records: list[tuple[str, str, Fingerprint, tuple[str, ...]]] = []
    after: list[str] = []
    try:
        for record in read_shard(path, size=manifest.size, channels=manifest.channels):
            errors = tuple(_check_record(record, shard, manifest))
            records.append((record.slice_id, record.group, fingerprint(record.image), errors))
    except DataError as error:
        after.append(str(error).replace(str(path), shard.path))
    if len(records) != shard.records:
        after.append(f"{shard.path}: {count(len(records), 'record')}, but the manifest says {shard.records}")
    return _Checked(before, tuple(records), tuple(after))


def _check_record(record: Record, shard: ShardFacts, manifest: Manifest) -> Iterator[str]:
    name = record.slice_id
    if not 0 <= record.label < len(manifest.classes):
        yield f"{name}: label {record.label}, but there are {len(manifest.classes)} classes"
    elif manifest.classes[record.label] != shard.label:
        yield f"{name}: has class {manifest.classes[record.label]} in a file of {shard.label}"
    if record.mask_native.shape != (record.height, record.width):
        found = "x".join(map(str, record.mask_native.shape))
        yield f"{name}: native mask is {found}, not {record.height}x{record.width}"
    elif not np.array_equal(
        fit_mask(record.mask_native, manifest.size, manifest.fit_spacing(record.spacing)), record.mask
    ):
        yield f"{name}: mask and native mask disagree"


def _misplaced(name: str, group: str, shard: ShardFacts, rows: dict[str, SplitRow]) -> Iterator[str]:
    row = rows.get(name)
    if rows and row is None:
        yield f"{name}: not in {SPLITS_FILE}"
    elif row is not None and (row.split, row.group) != (shard.split, group):
        yield f"{name}: is in {shard.split}, but {SPLITS_FILE} says {row.split} (groups {group}, {row.group})"


def _check_counts(manifest: Manifest, state: _State) -> None:
    times: dict[str, int] = defaultdict(int)
    for name in state.ids:
        times[name] += 1
    state.errors.extend(f"{name}: is {number} times in the shards" for name, number in times.items() if number > 1)
    for counts in manifest.counts:
        found = sum(
            shard.records for shard in manifest.shards if (shard.split, shard.label) == (counts.split, counts.label)
        )
        if found != counts.slices:
            state.errors.append(
                f"{counts.split}/{counts.label}: {count(found, 'record')}, but the manifest says {counts.slices}"
            )


def _check_crossings(manifest: Manifest, state: _State) -> None:
    """Find groups and copies in several splits. A split by slice always has some: then they are warnings."""
    crossing = sorted(group for group, splits in state.groups.items() if len(splits) > 1)
    say = state.warnings if manifest.options.split_by != "patient" else state.errors
    if crossing:
        say.append(f"{count(len(crossing), 'group')} in more than one split, such as {crossing[0]}")
    if not manifest.options.find_duplicates:
        say = state.warnings
    known = {frozenset(chain) for chain in manifest.unmerged_chains}
    excused = {name for chain in known for name in chain}
    chained: list[str] = []
    for pair in find_duplicates(Fingerprints.of(state.prints)).pairs:
        first, second = state.ids[pair.first], state.ids[pair.second]
        if state.splits[pair.first] == state.splits[pair.second]:
            continue
        line = f"{first} ({state.splits[pair.first]}) and {second} ({state.splits[pair.second]}) show the same image"
        (chained if first in excused and second in excused else say).append(line)
    if chained:
        state.warnings.append(
            f"{count(len(chained), 'pair')} of similar slices in different splits, from chains that prepare did not merge "
            f"(see the manifest), such as {chained[0]}"
        )
