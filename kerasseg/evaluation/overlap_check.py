"""Which slices of another shard directory a run has been trained with: those that cannot test it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kerasseg_tfrecords.duplicates import Fingerprints, fingerprint, overlap
from kerasseg_tfrecords.fingerprints import Fingerprint
from kerasseg_tfrecords.manifest import SPLITS_FILE
from kerasseg_tfrecords.shards import read_records
from kerasseg_tfrecords.splits_file import load

__all__ = ["seen_in_training"]

_SEEN = ("train", "val")
"""Weights come from the one, the choice of the epoch and the rule from the other."""


def seen_in_training(training: Path, other: Path, splits: Sequence[str] = ("train", "val", "test")) -> tuple[str, ...]:
    """Slices that the training or validation split of one shard directory holds too.

    Those that were read from the same bytes, and those that show the same: re-encoded, resized, mirrored
    (`kerasseg_tfrecords.duplicates`, as `kerasseg prepare --exclude-overlap` finds them). Equal ids alone mean nothing:
    every data set has its slice 1.

    Args:
        training: The shards that the run was trained on.
        other: Those to look through.
        splits: Of `other`.

    Returns:
        Ids in `other`, in the order of its shards.

    Raises:
        DataError: One of the two cannot be read.
    """
    known = {row.sha256.lower() for row in load(training / SPLITS_FILE) if row.split in _SEEN and row.sha256}
    equal = {row.slice_id for row in load(other / SPLITS_FILE) if row.sha256.lower() in known}
    names: list[str] = []

    def theirs() -> Iterator[Fingerprint]:
        for record in read_records(other, splits):
            names.append(record.slice_id)
            yield fingerprint(record.image)

    asked = Fingerprints.of(theirs())
    ours = Fingerprints.of(fingerprint(record.image) for record in read_records(training, _SEEN))
    near = {names[match.first] for match in overlap(asked, ours).matches}
    return tuple(name for name in names if name in near or name in equal)
