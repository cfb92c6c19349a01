"""Write a shard directory: the records, the frozen split and the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.conversion.assign import Arrangement
from kerasseg_tfrecords.conversion.inputs import ListedInput
from kerasseg_tfrecords.conversion.staging import Place, Spooled, read_payload
from kerasseg_tfrecords.errors import Problem
from kerasseg_tfrecords.files import write_atomically
from kerasseg_tfrecords.records.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS_FILE,
    Counts,
    InputFacts,
    Manifest,
    PrepareOptions,
    ShardFacts,
    dataset_fingerprint,
    tumour_warnings,
)
from kerasseg_tfrecords.records.schema import Payload, SliceFacts
from kerasseg_tfrecords.sources.base import LeftOut
from kerasseg_tfrecords.splitting.split import SPLITS
from kerasseg_tfrecords.splitting.splits_file import dump
from kerasseg_tfrecords.text import Progress
from kerasseg_tfrecords.workers import Pool


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file to write, with all that its records need."""

    spool: Path
    root: Path
    name: str
    label: str
    index: int
    channels: int
    records: tuple[tuple[Place, SliceFacts, str], ...]


def write_shards(
    arrangement: Arrangement, options: PrepareOptions, spool: Path, root: Path, pool: Pool, progress: Progress | None
) -> list[ShardFacts]:
    """Write all records from the folder `spool` to the shard directory `root`, one family of files per class and split."""
    total, done = sum(split in SPLITS for split in arrangement.splits), 0
    shards: list[ShardFacts] = []
    for facts in pool.map(_write_shard, _planned(arrangement, options, spool, root), trusted=True):
        shards.append(facts)
        done += facts.records
        if progress:
            progress("write", done, total)
    return shards


def _planned(arrangement: Arrangement, options: PrepareOptions, spool: Path, root: Path) -> Iterator[_Shard]:
    from kerasseg_tfrecords.records.shards import family_files, family_names

    families = family_names(arrangement.classes)
    chosen: dict[tuple[str, str], list[int]] = {(split, label): [] for split in SPLITS for label in arrangement.classes}
    for index, split in enumerate(arrangement.splits):
        if split in SPLITS:
            chosen[split, arrangement.labels[index]].append(index)
    for (split, label), members in chosen.items():
        # Shuffled, so that a reader that takes shards from the front does not see patients or files in order.
        order = sorted(members, key=lambda i: shuffle_key(options.seed, arrangement.slices[i].facts.slice_id))
        for name, first, last in family_files(split, families[label], len(order), options.records_per_shard):
            pieces = [(arrangement.slices[i], arrangement.groups[i]) for i in order[first:last]]
            yield _Shard(
                spool,
                root,
                name,
                label,
                arrangement.classes.index(label),
                arrangement.channels,
                tuple((piece.place, piece.facts, group) for piece, group in pieces),
            )


def _write_shard(shard: _Shard) -> ShardFacts:
    from kerasseg_tfrecords.records.schema import encode
    from kerasseg_tfrecords.records.shards import write_shard

    records = (
        encode(
            _with_channels(read_payload(shard.spool, place), facts.channels, shard.channels),
            facts,
            label=shard.index,
            group=group,
        )
        for place, facts, group in shard.records
    )
    return write_shard(shard.root, shard.name, shard.label, records)


def shuffle_key(seed: int, slice_id: str) -> bytes:
    """Return the sort key of a slice within its family of shards: a shuffle that is the same on every machine."""
    return hashlib.sha256(f"{seed} {slice_id}".encode()).digest()


def _with_channels(payload: Payload, have: int, want: int) -> Payload:
    """Repeat the grey channel where the data set also has colour slices."""
    if have == want:
        return payload
    return replace(payload, image=np.repeat(np.frombuffer(payload.image, np.uint8), 3).tobytes())


def make_manifest(
    arrangement: Arrangement,
    options: PrepareOptions,
    listed: Sequence[ListedInput],
    slices: Sequence[Spooled],
    shards: Sequence[ShardFacts],
    problems: Sequence[Problem],
    left_out: Sequence[LeftOut],
) -> Manifest:
    """Describe the data set and how it was made. Holds no dates and no paths: equal input gives an equal manifest."""
    rows = arrangement.rows()
    counts = _counts(arrangement)
    found = Counter(piece.facts.slice_id.split("/", 1)[0] for piece in slices)
    return Manifest(
        format_version=FORMAT_VERSION,
        kerasseg=__version__,
        software=_software(),
        options=options,
        inputs=tuple(
            InputFacts(name=entry.name, format=entry.format, items=len(entry.items), slices=found[entry.name])
            for entry in listed
        ),
        size=options.size,
        channels=arrangement.channels,
        intensity=options.intensity,
        mask_bits=1,
        square_pixels=True,
        classes=arrangement.classes,
        counts=counts,
        split=arrangement.facts,
        shards=tuple(shards),
        splits_sha256=hashlib.sha256(dump(rows).encode()).hexdigest(),
        fingerprint=dataset_fingerprint(rows, options),
        duplicates=arrangement.duplicates,
        unmerged_chains=arrangement.unmerged_chains,
        overlap=arrangement.overlap,
        skipped=tuple((problem.name, problem.kind, problem.message) for problem in problems),
        left_out=tuple((entry.name, entry.reason) for entry in left_out),
        remarks=tuple((piece.facts.slice_id, note) for piece in slices for note in piece.facts.notes),
        notes=(*(note for entry in listed for note in entry.notes), *arrangement.notes, *tumour_warnings(counts)),
    )


def _counts(arrangement: Arrangement) -> tuple[Counts, ...]:
    cells: dict[tuple[str, str], list[tuple[str, int, float | None]]] = defaultdict(list)
    columns = (arrangement.splits, arrangement.labels, arrangement.groups, arrangement.slices)
    for split, label, group, piece in zip(*columns, strict=True):
        cells[split, label].append((group, piece.facts.tumour_pixels, piece.facts.tumour_mm2()))
    return tuple(Counts.of(split, label, cells[split, label]) for split in SPLITS for label in arrangement.classes)


def _software() -> dict[str, str]:
    versions = {}
    for package in ("h5py", "nibabel", "numpy", "opencv-python-headless", "pydicom", "scikit-learn", "tensorflow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # another build may have another name (tensorflow-cpu, opencv-python)
            versions[package] = "unknown"
    return versions


def write_index(root: Path, manifest: Manifest, arrangement: Arrangement) -> None:
    """Write `splits.csv`, then `manifest.json`, which makes the folder a shard directory."""
    write_atomically(root / SPLITS_FILE, dump(arrangement.rows()))
    write_atomically(root / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
