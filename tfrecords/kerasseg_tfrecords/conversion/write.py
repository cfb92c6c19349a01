"""From arranged slices to a shard directory: the records, the manifest, and the one rename that puts all in place."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.conversion.assign import Arrangement
from kerasseg_tfrecords.conversion.inputs import ListedInput
from kerasseg_tfrecords.conversion.staging import Spooled, SpoolReader
from kerasseg_tfrecords.errors import Problem
from kerasseg_tfrecords.files import explain_os_error, sync_folder, write_atomically
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
)
from kerasseg_tfrecords.records.record import Payload
from kerasseg_tfrecords.sources.base import LeftOut
from kerasseg_tfrecords.splitting.split import SPLITS
from kerasseg_tfrecords.splitting.splits_file import dump
from kerasseg_tfrecords.text import Progress

__all__ = ["make_manifest", "put_in_place", "shuffle_key", "write_shards"]


def write_shards(
    arrangement: Arrangement, options: PrepareOptions, work: Path, progress: Progress | None
) -> list[ShardFacts]:
    """Writes every record from the spool to `work/shards`, one family of files a class and split.

    Raises:
        KerassegError: Where the disk is full or cannot be written.
    """
    from kerasseg_tfrecords.records.schema import encode  # TensorFlow: only now, and only in this process
    from kerasseg_tfrecords.records.shards import family_names, write_family

    root = work / "shards"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    families = family_names(arrangement.classes)
    chosen: dict[tuple[str, str], list[int]] = {(split, label): [] for split in SPLITS for label in arrangement.classes}
    for index, split in enumerate(arrangement.splits):
        if split in SPLITS:
            chosen[split, arrangement.labels[index]].append(index)
    total, done = sum(map(len, chosen.values())), 0
    shards: list[ShardFacts] = []
    with SpoolReader(work / "spool") as spool:

        def serialized(order: Sequence[int], number: int) -> bytes:
            nonlocal done
            index = order[number]
            piece = arrangement.slices[index]
            payload = _with_channels(spool.read(piece), piece.facts.channels, arrangement.channels)
            done += 1
            if progress and (done % 32 == 0 or done == total):
                progress("write", done, total)
            label = arrangement.classes.index(arrangement.labels[index])
            return encode(payload, piece.facts, label=label, group=arrangement.groups[index])

        for (split, label), members in chosen.items():
            # A fixed shuffle: a reader that takes shards from the front sees no order of patients or files.
            order = sorted(members, key=lambda i: shuffle_key(options.seed, arrangement.slices[i].facts.slice_id))
            shards += write_family(
                root,
                split,
                label,
                families[label],
                functools.partial(serialized, order),
                len(order),
                options.records_per_shard,
            )
    return shards


def shuffle_key(seed: int, slice_id: str) -> bytes:
    """Where a slice stands in its family of shards: sorted by it, slices are shuffled alike on every machine."""
    return hashlib.sha256(f"{seed} {slice_id}".encode()).digest()


def _with_channels(payload: Payload, have: int, want: int) -> Payload:
    """Repeats grey where the data set also holds colour."""
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
    """What the data set holds and how it was made; the same for the same input, so no dates and no paths."""
    rows = arrangement.rows()
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
        counts=_counts(arrangement),
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
        notes=(*(note for entry in listed for note in entry.notes), *arrangement.notes),
    )


def _counts(arrangement: Arrangement) -> tuple[Counts, ...]:
    counts = []
    for split in SPLITS:
        for label in arrangement.classes:
            members = [
                index
                for index, (where, what) in enumerate(zip(arrangement.splits, arrangement.labels, strict=True))
                if where == split and what == label
            ]
            facts = [arrangement.slices[index].facts for index in members]
            areas = [piece.tumour_pixels * piece.spacing[0] * piece.spacing[1] for piece in facts]
            known = all(min(piece.spacing) > 0 for piece in facts)
            counts.append(
                Counts(
                    split=split,
                    label=label,
                    slices=len(members),
                    patients=len({arrangement.groups[index] for index in members}),
                    tumour_pixels=sum(piece.tumour_pixels for piece in facts),
                    tumour_mm2=round(sum(areas), 3) if facts and known else None,
                    empty=sum(piece.tumour_pixels == 0 for piece in facts),
                )
            )
    return tuple(counts)


def _software() -> dict[str, str]:
    versions = {}
    for package in ("h5py", "nibabel", "numpy", "opencv-python-headless", "pydicom", "scikit-learn", "tensorflow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a data node may have a differently named build (tensorflow-cpu, opencv-python)
            versions[package] = "unknown"
    return versions


def put_in_place(work: Path, target: Path, manifest: Manifest, arrangement: Arrangement) -> None:
    """Adds what makes the folder readable, then puts it in place by one rename."""
    root = work / "shards"
    for shard in manifest.shards:
        _sync_file(root / shard.path)
    write_atomically(root / SPLITS_FILE, dump(arrangement.rows()))
    write_atomically(root / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    for folder in {(root / shard.path).parent for shard in manifest.shards}:
        sync_folder(folder)
    old = work / "old"
    try:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        root.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise explain_os_error(error, target) from error


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
