"""Slices of heads that another folder does not hold: what a checkpoint is trained on before it meets that folder."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py

from kerasseg_tfrecords.splitting.patients import group_of

__all__ = ["other_heads"]


def other_heads(source: Path, seen: Path, out: Path) -> Path:
    """Link the slices of `source` whose heads do not occur in `seen`.

    A head is the patient id without its trailing letters: `MR040240` and `MR040240B` are scans of one person.

    Args:
        source: Folder with `index.csv` (image, mask, label, patient).
        seen: Folder with .mat files of Cheng's data set.
        out: Folder to create, with an `index.csv` of its own and links to the files.

    Returns:
        `out`.
    """
    if (out / "index.csv").exists():
        return out
    known = {group_of(_patient(path)) for path in sorted(seen.glob("*.mat"))}
    with (source / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if group_of(row["patient"]) not in known]
    for name in (row[column] for row in rows for column in ("image", "mask")):
        link = out / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(source / name)
    # Written last: where it is, the folder is complete.
    with (out / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return out


def _patient(path: Path) -> str:
    with h5py.File(path) as file:
        return "".join(map(chr, file["cjdata/PID"][:].ravel())).strip()
